"""One stage of training: `vidchat train stage=pretrain_av data=folder data.root=DIR`.

Checks the config, builds the network (a responder from `configs/model`, or a tokenizer), the LightningModule and the
data module that the stage names, trains, and exports. Ctrl+C or SIGTERM leaves a checkpoint, from which the same
command resumes.
"""

from __future__ import annotations

import vidchat.runtime.threads  # noqa: F401  (before torch)

# isort: split
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from vidchat.build import build_responder, check_thinker
from vidchat.cli.overrides import TRAIN_PATHS, read_size, restore_words, run, sweep_folder
from vidchat.data.folder import MANIFESTS
from vidchat.model.compiled import compile_blocks
from vidchat.model.responder import Responder
from vidchat.registry import packages_in, to_names
from vidchat.release import TOKENIZERS
from vidchat.runtime.errors import user_errors
from vidchat.runtime.threads import choose_threads
from vidchat.shipped import CONFIGS
from vidchat.training import run_folder
from vidchat.training.check import check_config
from vidchat.training.checkpoint import Checkpoints, find_checkpoint, step_of
from vidchat.training.fit import check_fit
from vidchat.training.initialise import initialise, start_from_language_model
from vidchat.training.machine import check_one_rank
from vidchat.training.metrics import MetricsFile
from vidchat.training.module import TrainingModule
from vidchat.training.progress import Throughput, progress
from vidchat.training.same_run import check_resumed
from vidchat.training.stopping import StopSignals

log = logging.getLogger("train")
OmegaConf.register_new_resolver("sweep_name", run_folder.sweep_name, replace=True)


def train(config: DictConfig) -> Path:
    """Runs one stage; returns the exported folder.

    Raises:
        SystemExit: a signal ended the run; if it was training, a checkpoint to resume from was written.
    """
    plain = check_config(read_size(config))
    torch.manual_seed(plain["seed"])  # seeds the first weights; training seeds every micro-batch itself
    if plain["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32 where precision is not halved, mainly in samples
    output, export = Path(plain["output_dir"]), Path(plain["stage"]["export"])
    with StopSignals() as signals, run_folder.locked(output):
        run_folder.clean_up(output, export)
        resume = find_checkpoint(plain["resume"], output / "checkpoints")
        run_folder.check_set_aside(plain, resume)
        names = [name for name in plain["stage"]["tokenizers"] if config[name] is not None]  # thinker may be null
        tokenizers = {name: instantiate(config[name]) for name in names}
        check_fit(plain, tokenizers.get("video_vae"), tokenizers.get("audio_codec"))  # now with the loaded ones
        fingerprints = {name: tokenizer.fingerprint() for name, tokenizer in tokenizers.items()}
        if resume is not None:
            check_resumed(resume, plain, fingerprints)
            if run_folder.finished_step(output, export) == step_of(resume) >= plain["stage"]["steps"]:
                log.info(run_folder.finished_sentence(output, export, step_of(resume)))
                return export
        module = build_module(config, plain, tokenizers, fingerprints, fresh=resume is None)
        trainer = build_trainer(config, plain, signals)
        prepare_data(config)
        datamodule: L.LightningDataModule = instantiate(config.stage.datamodule, **tokenizers)
        run_folder.set_aside(output, export, resume)
        log.info("%s: %s", plain["stage"]["name"], f"resuming from {resume}" if resume else "starting")
        fit(trainer, module, datamodule, resume)
        if signals.received is not None:
            resuming = "the same command" if plain["resume"] == "auto" else "the command with resume=auto"
            log.warning("stopped by %s at step %d; %s resumes it", signals.received.name, trainer.global_step, resuming)
            raise SystemExit(128 + signals.received)
        if trainer.is_global_zero:
            module.export(export, plain)
            run_folder.mark_finished(output, export, trainer.global_step)
            log.info("exported to %s", export)
    return export


def build_module(
    config: DictConfig, plain: dict[str, Any], tokenizers: dict[str, Any], fingerprints: dict[str, str], fresh: bool
) -> TrainingModule:
    """Returns the module that trains a network; in a fresh run the network starts from the weights its config names."""
    if "video_vae" in tokenizers:
        module: TrainingModule = instantiate(config.stage.module, new_responder(plain, tokenizers), **tokenizers)
    else:  # the stage trains a tokenizer, which its own config holds
        module = instantiate(config.stage.module)
    if fresh and plain["backbone_from"] is not None:
        text_tokenizer = fingerprints.get("text_tokenizer")
        log.info(start_from_language_model(module, plain["backbone_from"], text_tokenizer))
    if fresh and plain["init_from"] is not None:
        log.info(initialise(module, Path(plain["init_from"]), plain, fingerprints))
    if plain["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available():
        log.info(choose_threads(sum(parameter.numel() for parameter in module.network.parameters())))
    if plain["compile"]:
        log.info("%d blocks will be compiled", compile_blocks(module.network))
    return module


def new_responder(plain: Mapping[str, Any], tokenizers: Mapping[str, Any]) -> Responder:
    """Returns the responder that `model` and `condition` of the config describe, with weights drawn from `seed`.

    Raises:
        TokenizerError: the thinker does not fit the condition.
    """
    model, condition = to_names(plain["model"]), to_names(plain["condition"])
    check_thinker(tokenizers.get("thinker"), condition)
    trained_with, trust = {name: tokenizers[name] for name in TOKENIZERS}, packages_in([model, condition])
    torch.manual_seed(plain["seed"])
    return build_responder(model, condition, plain["data"]["fps"], **trained_with, trust=trust)


def build_trainer(config: DictConfig, plain: dict[str, Any], signals: StopSignals) -> L.Trainer:
    """Returns Lightning's trainer with checkpoints, progress and a file of metrics."""
    output = Path(plain["output_dir"])
    checkpoints = Checkpoints(output / "checkpoints", **plain["checkpoints"], config=plain, signals=signals)
    callbacks = [instantiate(node) for node in (config.callbacks or {}).values()]
    trainer: L.Trainer = instantiate(
        config.trainer,
        default_root_dir=str(output),
        enable_progress_bar=sys.stderr.isatty(),
        logger=[MetricsFile(output), *(instantiate(node) for node in (config.logger or {}).values())],
        callbacks=[progress(plain["log_every"]), *callbacks, checkpoints, Throughput()],
    )
    return trainer


def fit(trainer: L.Trainer, module: TrainingModule, datamodule: L.LightningDataModule, resume: Path | None) -> None:
    """Trains; if the last step was made in an earlier process, only the end of training is run."""
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    if resume is not None and step_of(resume) >= trainer.max_steps:
        module.on_train_end()  # Lightning skips it if there is nothing to train


def prepare_data(config: DictConfig) -> None:
    """Renders the data set if its config says how and it does not exist yet."""
    exists = any((Path(config.data.root) / name).is_file() for name in MANIFESTS)
    if config.data.prepare is not None and not exists and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        log.info("rendering %s", config.data.root)
        instantiate(config.data.prepare)


@hydra.main(config_path=str(CONFIGS), config_name="train", version_base="1.3")
def _task(config: DictConfig) -> None:
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)`.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    restore_words()
    with user_errors():
        if (folder := sweep_folder()) is not None:
            check_one_rank(config.trainer)
            config.output_dir = folder
        train(config)


def main(words: Sequence[str] | None = None) -> None:
    """Runs `vidchat train` on the words of a command line; by default this process's."""
    run(_task, "train", TRAIN_PATHS, __doc__, words)
