"""Data: from media files and manifests to batches."""
