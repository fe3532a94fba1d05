"""Rendered people, and the demo that trains and judges a small model on them."""
