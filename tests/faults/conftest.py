from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How many inputs of a kind to try: so many, or ten times as many with `--faults=long`."""
    times = 10 if request.config.getoption("--faults") == "long" else 1
    return lambda count: count * times
