"""Conditions: what is known before an answer starts. One file each, with its data half and its model half."""

from vidchat.conditions import caption, scores, text, thinker, voice  # noqa: F401  (each of them registers its name)
