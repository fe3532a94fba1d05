"""Seeds that are functions of the position in training, so that resuming needs no state of a generator."""

from __future__ import annotations

import hashlib

import torch


def seed_for(*position: int | str) -> int:
    """Returns a 63-bit seed that depends on every element of `position`, e.g. `(seed, step, micro_batch, rank)`."""
    digest = hashlib.blake2b("/".join(map(str, position)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_step(seed: int, step: int, micro: int = 0, rank: int = 0) -> None:
    """Seeds torch's global generators for one micro-batch of one optimizer step.

    All later draws (noise, masks, dropped conditions) are a pure function of the four numbers, so a resumed run draws
    what the uninterrupted run would have drawn.
    """
    torch.manual_seed(seed_for(seed, "train", step, micro, rank))
