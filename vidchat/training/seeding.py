"""Randomness as a function of where training stands, so that resuming needs no generator's state."""

from __future__ import annotations

import hashlib

import torch


def seed_for(*place: int | str) -> int:
    """A 63-bit seed that depends on every part of `place`, e.g. `(seed, step, micro_batch, rank)`."""
    digest = hashlib.blake2b("/".join(map(str, place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_step(seed: int, step: int, micro: int = 0, rank: int = 0) -> None:
    """Seeds torch's global generators for one micro-batch of one optimizer step.

    Whatever is drawn afterwards (noise, masks, dropped conditions) is a pure function of the four numbers: a run that
    stopped and resumed draws what one that never stopped would have drawn.
    """
    torch.manual_seed(seed_for(seed, "train", step, micro, rank))
