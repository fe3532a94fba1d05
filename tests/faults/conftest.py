from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import commands
from tests.faults.children import run
from tests.faults.specimens import make_data


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How many inputs of a kind to try: so many, or ten times as many with `--faults=long`."""
    times = 10 if request.config.getoption("--faults") == "long" else 1
    return lambda count: count * times


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, encoded by the run of `trained`."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never killed; its release answers initiators."""
    place = tmp_path_factory.mktemp("trained")
    assert run(commands.train, data, place / "run", folder=place) == ""
    return place / "run"
