"""From an initiator's clip to the responder's, chunk by chunk."""
