"""The values that a run's config may hold, by key."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Check = tuple[Callable[[Any], bool], str]


def _whole(least: int) -> Check:
    return lambda n: type(n) is int and n >= least, f"a whole number above {least - 1}"


def _real(least: float, most: float = math.inf, above: bool = False) -> Check:
    """Returns a check for a finite number from `least`, or above it, to `most`."""
    words = f"a number {'above' if above else 'of at least'} {least:g}"
    words += f" and at most {most:g}" if most < math.inf else ""
    return lambda n: _is_real(n) and least <= n <= most and not (above and n == least), words


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)


def _is_interval(value: Any) -> bool:
    return value is None or (type(value) is int and value > 0) or (isinstance(value, float) and 0 < value <= 1)


def _are_devices(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(type(n) is int and n >= 0 for n in value)
    return value == "auto" or (type(value) is int and value > 0)


def _are_betas(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_real(n) and 0 <= n < 1 for n in value)


def _are(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(entry, kind) for entry in value)


_PRECISIONS = ("64-true", "32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "64", "32", "16", "bf16")
_PARTS = ("width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")
CHECKS: Mapping[str, Check] = {
    "seed": (lambda n: type(n) is int, "a whole number"),
    "log_every": _whole(1),
    "checkpoints.every": _whole(1),
    "checkpoints.keep": _whole(1),
    "stage.steps": _whole(1),
    "stage.optimizer.lr": _real(0, above=True),
    "stage.optimizer.warmup": _whole(0),
    "stage.optimizer.weight_decay": _real(0),
    "stage.optimizer.clip": _real(0, above=True),
    "stage.optimizer.ema_decay": _real(0, 1),
    "stage.optimizer.final": _real(0),
    "stage.optimizer.patience": _whole(0),
    "stage.optimizer.betas": (_are_betas, "two numbers of at least 0 and below 1"),
    "data.fps": _whole(1),
    "data.dtype": (lambda name: name in ("float32", "float16", "bfloat16"), "float32, float16 or bfloat16"),
    "data.sources": (_are(dict), "a list such as [{root: OTHER, weight: 2}]"),
    "data.size": (_is_size, "HEIGHTxWIDTH in pixels, such as 480x768, or a list [height, width]"),
    "data.batch_size": _whole(1),
    "data.max_chunks": _whole(1),
    "data.max_steps": (lambda n: n is None or (type(n) is int and n > 0), "a number of steps, or null"),
    "data.num_workers": _whole(0),
    "data.sample_rate": _whole(1),
    "condition.drop": _real(0, 1),
    "trainer.devices": (_are_devices, "a number of devices, a list of their numbers, or auto"),
    "trainer.precision": (lambda name: name is None or str(name) in _PRECISIONS, f"one of {', '.join(_PRECISIONS)}"),
    "trainer.accumulate_grad_batches": _whole(1),
    "trainer.val_check_interval": (_is_interval, "a number of micro-batches, or null"),
    "model.patch": _whole(1),
    "model.ratio": _whole(1),
    "model.noise": (lambda n: n is None or (_is_real(n) and 0 <= n <= 1), "a number from 0 to 1, or null"),
    "model.flow.width": _whole(1),
    "model.flow.blocks": _whole(1),
    **{f"model.{part}.{name}": _whole(1) for part in ("backbone", "spatial", "depth") for name in _PARTS},
}
"""Key -> check of the value, and a description of right values. Keys that a config lacks are not checked."""


def wrong_values(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence for each wrong value of a config."""
    for key, (right, words) in CHECKS.items():
        *sections, name = key.split(".")
        node: Any = config
        for section in sections:
            node = node.get(section) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping) and name in node and not right(node[name]):
            yield f"{key} must be {words}, got {str(node[name])[:80]}"
