"""Checks by formula that a model fits its frames and its device, before anything is loaded, encoded or trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from vidchat.model.responder import Responder
from vidchat.profiling.cost import Workload, parameters
from vidchat.profiling.memory import FULL, MARGIN, peak_training_bytes
from vidchat.profiling.meta import Audio, FitError, Video, build_without_memory, check_size, latent_grid
from vidchat.tokenizers.layout import audio_layout, video_layout

TEXT = 64  # tokens assumed for a transcript: four seconds of speech
LARGE, LARGE_RATE = 100e6, 3e-4  # number of parameters above which this learning rate is too high


def check_fit(config: Mapping[str, Any], video: Video | None = None, audio: Audio | None = None) -> Responder | None:
    """Refuses frames that do not divide into tokens and a training step that the device cannot hold.

    Args:
        config: Resolved config of a run.
        video: Video tokenizer; `None` to take its layout from the config, if it is there.
        audio: Audio codec, likewise.

    Returns:
        The responder on the meta device; `None` for a tokenizer's stage, and if the config does not hold the layouts.

    Raises:
        FitError: the model does not fit.
        ClockError: the tokenizers' chunks do not span the same time.
    """
    stage, size, model = config["stage"], config["data"]["size"], config["model"]
    responds = "video_vae" in stage["tokenizers"]
    if not responds and "tokenizer" not in stage["module"]:  # the audio codec's stage sees no frame
        return None
    video = video or video_layout(config["video_vae"], config.get("video_layout"))
    if video is None:
        return None
    check_size(size, video)
    if not responds:
        return None
    grid = latent_grid(size, video, model.get("patch", 1), model.get("ratio", 1))
    audio = audio or audio_layout(config["audio_codec"], config.get("audio_layout"))
    if audio is None:
        return None
    responder = build_without_memory(config, video, audio)
    check_memory(config, responder, grid)
    return responder


def check_memory(config: Mapping[str, Any], model: Responder, grid: tuple[int, int]) -> None:
    """Raises `FitError` if a training step cannot fit the device."""
    device_and_memory = device_memory(config["trainer"])
    if device_and_memory is None:
        return
    device, memory = device_and_memory
    condition, data = config["condition"], config["data"]
    chunks, text = data["max_chunks"], TEXT * bool(condition.get("text"))
    heard = (condition.get("max_turn_chunks") or chunks) * bool(condition["initiator"])
    work = Workload(grid, chunks, heard, text=text, batch=data["batch_size"])
    average = bool((config["stage"].get("optimizer") or {}).get("ema_decay"))

    def needed(batch: int, recompute: bool = False) -> float:
        width = FULL if str(config["trainer"]["precision"]).startswith("32") else 2
        return MARGIN * peak_training_bytes(model, replace(work, batch=batch), width, average, recompute)

    if needed(work.batch) <= memory:
        return
    raise FitError(
        f"a training step of {work.batch} answers of {chunks} chunks at {data['size'][0]}x{data['size'][1]} takes "
        f"about {needed(work.batch) / 1e9:.0f} GB and {device} has {memory / 1e9:.0f}; lower data.batch_size (1 takes "
        f"{needed(1) / 1e9:.0f} GB, {needed(1, recompute=True) / 1e9:.0f} if model.backbone.recompute, "
        "model.spatial.recompute and model.depth.recompute are true), data.max_chunks, data.size or "
        "model.objective.spatial_chunks, or take a smaller model"
    )


def device_memory(trainer: Mapping[str, Any]) -> tuple[str, float] | None:
    """Returns the device that a process trains on, in words, and its memory in bytes; `None` if unknown."""
    if trainer["accelerator"] in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.cuda.get_device_name(0), float(torch.cuda.mem_get_info(0)[1])
    if trainer["accelerator"] not in ("cpu", "auto"):
        return None
    try:
        total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return None
    processes = trainer["devices"] if isinstance(trainer["devices"], int) else 1
    return ("this machine", total) if processes == 1 else (f"each of {processes} processes here", total / processes)


def advice(config: Mapping[str, Any], model: Responder) -> str | None:
    """Returns a warning if a large model is trained with a small model's learning rate, else `None`."""
    count, rate = sum(parameters(model).values()), (config["stage"].get("optimizer") or {}).get("lr", 0)
    if count <= LARGE or rate <= LARGE_RATE:
        return None
    return (
        f"{count / 1e6:.0f} M parameters with stage.optimizer.lr={rate:g}, which suits model=tiny; models of this size "
        "are usually trained with about 1e-4 and a warm-up of thousands of steps (stage.optimizer.warmup)"
    )
