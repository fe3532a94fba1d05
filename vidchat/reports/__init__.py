"""HTML pages and contact sheets from plain values; independent of the rest of the package."""
