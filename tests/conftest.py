from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """A folder of filmed people talking, which is not part of the repository."""
    folder = SHARED / "data" / "real"
    if not (folder / "MANIFEST.json").is_file():
        pytest.skip("the real clips are not beside this checkout (../shared/data/real)")
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults",
        choices=("short", "long"),
        default="short",
        help="How much of tests/faults: 10,000 inputs or 100,000.",
    )
