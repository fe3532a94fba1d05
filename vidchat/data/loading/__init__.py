"""From dialogues and tokens to batches."""
