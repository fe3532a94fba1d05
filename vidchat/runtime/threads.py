"""How many threads a process computes with, and how they wait; to be imported before torch.

Torch takes a thread for each core, and OpenMP's threads wait for each other by spinning. Small products then spend
their time on waiting, above all where the cores have other work: with two threads on two busy cores an answer of the
tiny model took 6.8 CPU seconds a chunk, with one 0.4. So threads sleep while they wait, and a model has as many as it
can use.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP reads these when torch loads it
os.environ.setdefault("KMP_BLOCKTIME", "0")

GIVEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WORTH_A_THREAD = 16_000_000  # parameters


def choose_threads(parameters: int) -> str:
    """Sets torch's threads for work on the CPU, by the model's size alone: the same machine gives the same bits.

    Args:
        parameters: Of the network that is trained or answers.

    Returns:
        A sentence that says how many, and how to choose otherwise.
    """
    import torch

    given = next((name for name in GIVEN if os.environ.get(name)), None)
    if given is not None:
        return f"computing with {_threads()}, as {given} says"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(cores, parameters // WORTH_A_THREAD)))
    return (
        f"computing with {_threads()} on {cores} cores, enough for {parameters / 1e6:.0f} million "
        f"parameters; {GIVEN[0]}=N in the environment chooses otherwise"
    )


def _threads() -> str:
    import torch

    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count > 1)}"
