"""Measures that need no weights. Each stands in for a canonical one, and says what it really measures."""
