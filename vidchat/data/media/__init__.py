"""Media files to tensors, and back."""
