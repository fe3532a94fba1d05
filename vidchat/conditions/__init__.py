"""Conditions: what is known before an answer begins. One file each, its data half and its model half side by side."""

from vidchat.conditions import scores, text, thinker, voice  # noqa: F401  (each registers its name)
