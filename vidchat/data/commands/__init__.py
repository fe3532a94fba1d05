"""`vidchat data`: the commands."""
