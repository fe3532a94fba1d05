"""Metrics that need no weights; each stands in for a canonical metric, and states what it really measures."""
