"""The last step of `vidchat train +experiment=table2`: every row answers the same pairs, and the table is written."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vidchat.release import read_config
from vidchat.training.run_folder import is_set_aside

log = logging.getLogger(__name__)
ANSWER = [sys.executable, "-m", "vidchat", "infer", "pairs={pairs}", "checkpoint={release}", "output={output}"]


def place_of(config: dict[str, Any]) -> str:
    """Returns the row of Table 2 that a config belongs to, under its name in `vidchat bench ablation`."""
    dyadic, model = bool(config["condition"]["initiator"]), config["model"]
    protocol = "dyadic" if dyadic else "conditioned"
    modules = {"audio": "depth", "spatial": "spatial", "noise": "noise"}
    switches = [switch for switch, module in modules.items() if model[module] is not None]
    switches += ["fine"] if dyadic and model.get("heard_ratio") == 1 else []
    switches += ["resample"] if (model.get("objective") or {}).get("resample") else []
    return f"{protocol}:{','.join(switches) or 'none'}"


class Table2(Callback):
    """Scores all rows in the sweep's folder once the last one has been trained.

    Args:
        pairs: Number of pairs of the test split that every row answers.
    """

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes `bench/`, the clips and scores of the rows, and `ablation.md` into the sweep's folder."""
        folder = Path(config.hydra.sweep.dir)
        paths = [path.parent for path in sorted(folder.glob("*/release/config.yaml"))]
        releases = [path for path in paths if not is_set_aside(path.parent)]
        if not releases:
            log.error("no row was trained in %s, so there is no table; train a row first", folder)
            return
        bench = folder / "bench"
        if not (bench / "pairs.jsonl").is_file():
            _bench("make", config.data.root, "-o", bench, f"limit={self.pairs}")
        rows = [f"rows.{place_of(read_config(release))}={release}" for release in releases]
        _bench("ablation", bench, "-o", folder, f"generate={shlex.join(ANSWER)}", *rows)
        log.info("the table is in %s", folder / "ablation.md")


def _bench(*words: Any) -> None:
    subprocess.run([sys.executable, "-m", "vidchat", "bench", *map(str, words)], check=True)
