"""From clips to tokens, in shards that training reads."""
