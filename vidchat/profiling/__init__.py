"""What a model costs: parameters, operations, bytes, and the speed a GPU could reach."""
