"""The SpeakerVid-5M release (arXiv 2507.09862): its annotations, read in place into a manifest of clips."""
