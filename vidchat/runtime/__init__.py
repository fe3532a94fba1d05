"""Files, processes, errors and the Hub: helpers that every room may use and that know nothing of the model."""
