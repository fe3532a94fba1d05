"""Reading media files into tensors, and writing them."""
