"""The number of CPU threads of a process, and how they wait; must be imported before torch.

Torch uses a thread per core, and OpenMP's threads wait for each other by spinning. Small products then spend most of
their time waiting, above all if the cores have other work: on two busy cores the tiny model took 6.8 CPU seconds a
chunk with two threads, and 0.4 with one. So threads sleep while they wait, and their number depends on the model's
size.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP reads these when torch loads it
os.environ.setdefault("KMP_BLOCKTIME", "0")

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
PARAMETERS_PER_THREAD = 16_000_000


def choose_threads(parameters: int) -> str:
    """Sets the number of torch's CPU threads by the model's size alone, so that a machine always gives the same bits.

    Args:
        parameters: Number of parameters of the network that is trained or generates.

    Returns:
        A sentence that says how many threads there are, and how to change the number.
    """
    import torch

    variable = next((name for name in VARIABLES if os.environ.get(name)), None)
    if variable is not None:
        return f"computing with {_threads()}, as {variable} says"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(cores, parameters // PARAMETERS_PER_THREAD)))
    return (
        f"computing with {_threads()} on {cores} cores, enough for {parameters / 1e6:.0f} million "
        f"parameters; {VARIABLES[0]}=N in the environment chooses otherwise"
    )


def _threads() -> str:
    import torch

    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count > 1)}"
