"""`python -m vidchat`, the same as the command `vidchat`."""

from vidchat.cli import app

app()
