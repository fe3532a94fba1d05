"""Files, processes and errors: what every room needs and no room is about."""
