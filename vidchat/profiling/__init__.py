"""Cost of a model: parameters, operations, bytes, and the highest speed that a GPU allows."""
