"""Rendered people who talk: drawn heads, voices of their own, questions and answers, and the exact truth about them."""
