"""One stage of training: `python train.py stage=pretrain_av data=folder data.root=DIR`.

The stage's config names a LightningModule and a data module; this file checks the config, builds them, trains,
and exports. Ctrl+C or SIGTERM leave a checkpoint; the same command then goes on from it.
"""

from __future__ import annotations

import vidchat.threads  # noqa: F401  (before torch)

# isort: split
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from vidchat.command_line import TRAIN_PATHS, run
from vidchat.data.folder import MANIFESTS
from vidchat.errors import plainly
from vidchat.model.compiled import compile_blocks
from vidchat.threads import choose_threads
from vidchat.training.check import check_config
from vidchat.training.checkpoint import Checkpoints, find_checkpoint
from vidchat.training.fit import check_fit
from vidchat.training.initialise import check_resumed, initialise, start_from_language_model
from vidchat.training.metrics import MetricsFile
from vidchat.training.module import TrainingModule
from vidchat.training.progress import Throughput, progress

log = logging.getLogger("train")


def train(config: DictConfig) -> Path:
    """Runs one stage; returns the folder it exported.

    Raises:
        SystemExit: it was stopped by a signal, with a checkpoint to go on from.
    """
    plain = check_config(config)
    torch.manual_seed(plain["seed"])  # of first weights: training itself seeds every micro-batch
    if plain["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32, for what is not in half precision, samples above all
    output = Path(plain["output_dir"])
    resume = find_checkpoint(plain["resume"], output / "checkpoints")
    wanted = [name for name in plain["stage"]["tokenizers"] if config[name] is not None]  # there may be no thinker
    tokenizers = {name: instantiate(config[name]) for name in wanted}
    check_fit(plain, tokenizers.get("video_vae"), tokenizers.get("audio_codec"))  # where only loading could tell
    fingerprints = {name: tool.fingerprint() for name, tool in tokenizers.items()}
    if resume is not None:
        check_resumed(resume, plain, fingerprints)
    module: TrainingModule = instantiate(config.stage.module, **tokenizers)
    if resume is None and plain["backbone_from"] is not None:
        log.info(start_from_language_model(module, plain["backbone_from"]))
    if resume is None and plain["init_from"] is not None:
        log.info(initialise(module, Path(plain["init_from"]), plain, fingerprints))
    if plain["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available():
        log.info(choose_threads(sum(parameter.numel() for parameter in module.network.parameters())))
    if plain["compile"]:
        log.info("%d blocks will be compiled", compile_blocks(module.network))
    prepare_data(config)
    datamodule: L.LightningDataModule = instantiate(config.stage.datamodule, **tokenizers)

    checkpoints = Checkpoints(output / "checkpoints", **plain["checkpoints"], config=plain)
    callbacks = [instantiate(node) for node in config.callbacks.values()]
    trainer: L.Trainer = instantiate(
        config.trainer,
        default_root_dir=str(output),
        enable_progress_bar=sys.stderr.isatty(),
        logger=[MetricsFile(output), *(instantiate(node) for node in config.logger.values())],
        callbacks=[progress(plain["log_every"]), *callbacks, checkpoints, Throughput()],
    )
    log.info("%s: %s", plain["stage"]["name"], f"resuming from {resume}" if resume else "starting")
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    if checkpoints.stopped is not None:
        log.warning("stopped by %s at step %d; the same command goes on", checkpoints.stopped.name, trainer.global_step)
        raise SystemExit(128 + checkpoints.stopped)
    export = Path(plain["stage"]["export"])
    if trainer.is_global_zero:
        module.export(export, plain)
        log.info("exported to %s", export)
    return export


def prepare_data(config: DictConfig) -> None:
    """Makes the data set if its config says how and it is not there yet."""
    there = any((Path(config.data.root) / name).is_file() for name in MANIFESTS)
    if config.data.prepare is not None and not there and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        log.info("rendering %s", config.data.root)
        instantiate(config.data.prepare)


@hydra.main(config_path="configs", config_name="train", version_base="1.3")
def main(config: DictConfig) -> Any:
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)`.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with plainly():
        train(config)


if __name__ == "__main__":
    run(main, "train", TRAIN_PATHS, __doc__)
