"""Tensors in, tensors out: the autoregressive audio-visual model."""
