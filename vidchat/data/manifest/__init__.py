"""Annotations or own videos to a manifest of clips, to cut clips and dialogues."""
