"""From a release, or from videos of one's own, to a manifest of clips, to dialogues."""
