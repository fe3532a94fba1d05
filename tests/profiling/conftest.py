"""Fixtures of tests/model: small models and batches."""

from tests.model.conftest import make_batch, make_responder

__all__ = ["make_batch", "make_responder"]
