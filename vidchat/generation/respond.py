"""What a command, a server and a notebook share: a release is moved to its device and answers questions into files."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from vidchat.bench.pairs import Pair, pair_hash
from vidchat.bench.responsiveness import log_value
from vidchat.generation.answer import (
    PairsError,
    Question,
    QuestionError,
    Timing,
    answer,
    check_question,
    read_question,
)
from vidchat.generation.request import check_output
from vidchat.generation.stream import GenerationSettings
from vidchat.model.precision import supports_bf16, to_bf16
from vidchat.release import Release
from vidchat.runtime.atomic import write_text
from vidchat.runtime.devices import usable
from vidchat.runtime.errors import user_message
from vidchat.runtime.threads import choose_threads

log = logging.getLogger(__name__)
DEFAULT_SECONDS = 4.0


def choose_device(device: str = "auto", precision: str = "auto") -> tuple[str, str]:
    """Returns the device and the precision, fp32 or bf16, to generate with.

    Args:
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        precision: `auto` (bf16 on a GPU that multiplies it, else fp32), `fp32` or `bf16`.

    Raises:
        QuestionError: there is no such precision.
        DeviceError: there is no such device here.
    """
    device = usable(device)
    if precision not in ("auto", "fp32", "bf16"):
        raise QuestionError(f"precision={precision} is not known; give auto, fp32 or bf16")
    if precision == "auto":
        precision = "bf16" if supports_bf16(device) else "fp32"
    return device, precision


def move(release: Release, device: str, precision: str = "fp32") -> None:
    """Moves the whole release to a device; in bf16 it converts the responder, and nothing else."""
    if device == "cpu":
        log.info(choose_threads(sum(parameter.numel() for parameter in release.responder.parameters())))
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32: products in full fp32 are several times slower
    if precision == "bf16":
        to_bf16(release.responder)
    for module in (release.responder, release.video_vae, release.audio_codec):
        module.to(device)
    if release.thinker is not None:
        release.thinker.to(device)


def settings_of(
    release: Release, window: int = 64, seed: int = 0, sampling: Mapping[str, Any] | None = None
) -> GenerationSettings:
    """Returns how to generate: the release's own way of sampling, but for what `sampling` gives.

    The number of chunks is still 1; `respond` sets it.

    Raises:
        ValueError: names the setting that is out of bounds.
    """
    return GenerationSettings(1, window, seed, release.responder.sampling.changed(sampling or {}))


def chunk_count(release: Release, seconds: float | None, listened: int = 0) -> int:
    """Returns T, the chunks of an answer of so many seconds; without seconds, as many as were heard (or 4 s)."""
    if seconds is None and listened:
        return listened
    seconds = DEFAULT_SECONDS if seconds is None else seconds
    return max(1, math.ceil(seconds * release.clock.chunks_per_second - 1e-6))  # a whole number may be a hair above


def respond(
    release: Release,
    question: Question,
    output: Path,
    settings: GenerationSettings,
    seconds: float | None = None,
    device: str = "cpu",
) -> Timing:
    """Answers one question into an mp4; returns how fast it went.

    Args:
        release: The model, on `device`.
        question: What to answer.
        output: The mp4 to write.
        settings: How to generate; its chunks are not read.
        seconds: Length of the answer; `None` is as long as what is heard, or 4 s.
        device: Where the model is.

    Raises:
        QuestionError, MediaError: see `read_question`.
    """
    batch = read_question(release, question, device)
    if release.thinker is not None:
        release.thinker.unload()  # it has understood the question; the answer needs the memory
    listened = 0 if batch.turn_latents is None else batch.turn_latents.shape[1]
    settings, timing = replace(settings, chunks=chunk_count(release, seconds, listened)), Timing()
    for _ in track(answer(release, batch, settings, output, timing), "answering", total=settings.chunks):
        pass
    return timing


def respond_to_pairs(
    release: Release,
    pairs: Sequence[Pair],
    output: Path,
    settings: GenerationSettings,
    device: str = "cpu",
    precision: str = "fp32",
) -> list[Timing]:
    """Answers every pair of VidChatBench that has no answer yet, each of the benchmark's one length; returns how fast.

    Of the true answer a model is told nothing, its length included; a model that is told what to say is told its words
    (protocol `conditioned`). A pair that cannot be answered, e.g. one without words, is skipped with a warning; the
    others are answered.

    Args:
        release: The model, on `device`.
        pairs: What to answer.
        output: The folder of the answers; beside each stands a log of how it was made.
        settings: How to generate; its chunks are not read.
        device: Where the model is.
        precision: That of the responder, for the log.

    Raises:
        PairsError: after the last pair, if some were skipped; names them.
    """
    output.mkdir(parents=True, exist_ok=True)
    protocol = "conditioned" if "text" in release.conditions else "dyadic"
    timings, failed = [], []
    for pair in track(pairs, "answering pairs"):
        clip, written = output / f"{pair.id}.mp4", output / f"{pair.id}.json"
        if clip.is_file() and written.is_file() and log_value(written, "pair") in (None, pair_hash(pair)):
            continue
        try:
            timing = _respond_to_pair(release, pair, clip, settings, device)
        except ValueError as error:
            if user_message(error) is None:
                raise
            log.warning("skipped pair %s: %s", pair.id, error)
            failed.append(pair.id)
            continue
        made = {"device": device, "precision": precision, "protocol": protocol, "pair": pair_hash(pair)}
        write_text(written, json.dumps(timing.log() | made))
        timings.append(timing)
    if failed:
        raise PairsError(
            f"{len(failed)} of {len(pairs)} pairs have no answer, for the reasons above: {', '.join(failed)}; the "
            f"others are in {output}"
        )
    return timings


def _respond_to_pair(release: Release, pair: Pair, clip: Path, settings: GenerationSettings, device: str) -> Timing:
    """Answers one pair into `clip`; raises a `ValueError` that names what is wrong with its files."""
    with_words = "text" in release.conditions
    question = Question(pair.reference, pair.initiator, pair.truth.text if with_words else None)
    check_output(clip, [])
    check_question(release, question)
    batch, timing = read_question(release, question, device), Timing()
    settings = replace(settings, chunks=chunk_count(release, pair.answer_seconds))
    for _ in answer(release, batch, settings, clip, timing):
        pass
    return timing
