"""The small models of tests/model, whose costs are counted here."""

from tests.model.conftest import make_batch, make_responder

__all__ = ["make_batch", "make_responder"]
