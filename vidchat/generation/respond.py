"""Moves a release to its device and answers questions into files, for the command line, servers and notebooks."""

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
from vidchat.generation.answer import Question, QuestionError, answer, check_question
from vidchat.generation.conversation import GenerationSettings
from vidchat.generation.request import check_output
from vidchat.generation.timing import Timing
from vidchat.model.precision import supports_bf16, to_bf16
from vidchat.release import Release
from vidchat.runtime.atomic import write_text
from vidchat.runtime.devices import usable
from vidchat.runtime.errors import user_message
from vidchat.runtime.threads import choose_threads

log = logging.getLogger(__name__)
DEFAULT_SECONDS = 30.0  # longest answer


class PairsError(ValueError):
    """Some pairs of a benchmark could not be answered."""


def choose_device(device: str = "auto", precision: str = "auto") -> tuple[str, str]:
    """Returns the device and the precision (fp32 or bf16) of generation.

    Args:
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        precision: `auto` (bf16 on GPUs with bf16 matrix units, else fp32), `fp32` or `bf16`.

    Raises:
        QuestionError: the precision is unknown.
        DeviceError: the device is not available.
    """
    device = usable(device)
    if precision not in ("auto", "fp32", "bf16"):
        raise QuestionError(f"precision={precision} is unknown; give auto, fp32 or bf16")
    if precision == "auto":
        precision = "bf16" if supports_bf16(device) else "fp32"
    return device, precision


def move(release: Release, device: str, precision: str = "fp32") -> None:
    """Moves a release to a device; bf16 converts the responder only, not the tokenizers."""
    if device == "cpu":
        log.info(choose_threads(sum(parameter.numel() for parameter in release.responder.parameters())))
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32; matrix products in full fp32 are several times slower
    if precision == "bf16":
        to_bf16(release.responder)
    for module in (release.responder, release.video_vae, release.audio_codec):
        module.to(device)
    if release.thinker is not None:
        release.thinker.to(device)


def generation_settings(
    release: Release,
    window: int | None = None,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    ends: bool = True,
) -> GenerationSettings:
    """Returns generation settings with the release's own sampling, overridden by the values in `sampling`.

    The number of chunks is 1 until `respond` sets it.

    Raises:
        ValueError: a setting is out of its range.
    """
    return GenerationSettings(1, window, seed, release.responder.sampling.changed(sampling or {}), ends)


def chunk_count(release: Release, seconds: float | None) -> int:
    """Returns T, the number of chunks of an answer that lasts `seconds`, by default `DEFAULT_SECONDS`."""
    seconds = DEFAULT_SECONDS if seconds is None else seconds
    # 1e-6: a product that should be a whole number may be slightly larger.
    return max(1, math.ceil(seconds * release.clock.chunks_per_second - 1e-6))


def respond(
    release: Release,
    question: Question,
    output: Path,
    settings: GenerationSettings,
    seconds: float | None = None,
    film: Path | None = None,
    device: str = "cpu",
) -> Timing:
    """Answers a question, or the questions of one conversation, into an mp4; returns the timing.

    Args:
        release: The model, on `device`.
        question: The inputs.
        output: The mp4 to write, see `answer`.
        settings: Generation settings; their number of chunks is ignored.
        seconds: Length at which an answer stops that does not end before; `None` is `DEFAULT_SECONDS`.
        film: A second mp4 to write, which shows both people.
        device: Device of the model.

    Raises:
        QuestionError, MediaError: see `read_question`.
    """
    settings, timing = replace(settings, chunks=chunk_count(release, seconds)), Timing()
    for _ in track(answer(release, question, settings, output, timing, film, device), "answering"):
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
    """Answers every pair of VidChatBench that has no answer yet, at the benchmark's length; returns the timings.

    The model gets nothing of the true answer, not even its length, except for its text if the model takes text
    (protocol `conditioned`). A pair that cannot be answered, e.g. because it has no text, is skipped with a warning.

    Args:
        release: The model, on `device`.
        pairs: The pairs to answer.
        output: Folder of the answers, each with a JSON log beside it.
        settings: Generation settings; their number of chunks is ignored.
        device: Device of the model.
        precision: Precision of the responder, for the log.

    Raises:
        PairsError: pairs were skipped; raised after the last pair.
    """
    output.mkdir(parents=True, exist_ok=True)
    protocol = "conditioned" if "text" in release.conditions else "dyadic"
    timings, failed = [], []
    for pair in track(pairs, "answering pairs"):
        clip, log_file = output / f"{pair.id}.mp4", output / f"{pair.id}.json"
        if clip.is_file() and log_file.is_file() and log_value(log_file, "pair") in (None, pair_hash(pair)):
            continue
        try:
            timing = _respond_to_pair(release, pair, clip, settings, device)
        except ValueError as error:
            if user_message(error) is None:
                raise
            log.warning("skipped pair %s: %s", pair.id, error)
            failed.append(pair.id)
            continue
        provenance = {"device": device, "precision": precision, "protocol": protocol, "pair": pair_hash(pair)}
        write_text(log_file, json.dumps(timing.log() | provenance))
        timings.append(timing)
    if failed:
        raise PairsError(
            f"{len(failed)} of {len(pairs)} pairs have no answer, for the reasons above: {', '.join(failed)}; the "
            f"others are in {output}"
        )
    return timings


def _respond_to_pair(release: Release, pair: Pair, clip: Path, settings: GenerationSettings, device: str) -> Timing:
    """Answers one pair into `clip`; raises a `ValueError` if its files cannot be used."""
    takes_text = "text" in release.conditions
    question = Question(pair.reference, pair.initiator, pair.truth.text if takes_text else None)
    check_output(clip, [])
    check_question(release, question)
    settings, timing = replace(settings, chunks=chunk_count(release, pair.answer_seconds), ends=False), Timing()
    for _ in answer(release, question, settings, clip, timing, device=device):
        pass
    return timing
