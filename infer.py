"""One answer: `python infer.py initiator=CLIP.mp4 reference=FACE.png checkpoint=DIR output=OUT.mp4`.

Reads the initiator's clip (any frame rate, size, sample rate) and a picture of the responder, and writes the
responder's clip, H.264 and AAC, chunk by chunk as it is generated. With `pairs=BENCH` it answers every pair of
VidChatBench into the folder `output`, with a log beside each clip.
"""

from __future__ import annotations

import vidchat.threads  # noqa: F401  (before torch)

# isort: split
import json
import logging
import math
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import track

from vidchat.atomic import write_text
from vidchat.bench.pairs import Pair, pair_hash, read_pairs
from vidchat.bench.responsiveness import made_by
from vidchat.cli.hydra_words import INFER_PATHS, run
from vidchat.devices import usable
from vidchat.errors import plain_message, plainly
from vidchat.generation.answer import (
    PairsError,
    Question,
    QuestionError,
    Timing,
    answer,
    check_question,
    read_question,
)
from vidchat.generation.request import check_answers, check_folder, check_groups, check_output, check_seconds
from vidchat.generation.stream import GenerationSettings
from vidchat.model.precision import multiplies_bf16, to_bf16
from vidchat.release import Release, load_release
from vidchat.threads import choose_threads

log = logging.getLogger("infer")
DEFAULT_SECONDS = 4.0


def respond(config: DictConfig) -> Timing:
    """Answer one question; returns how fast it went."""
    _require(config, "checkpoint", "reference", "output")
    device, precision = _device(config)
    check_seconds(config.seconds)
    question, output = _question(config), Path(config.output)
    files = (question.reference, question.initiator, question.voice)
    check_output(output, [path for path in files if isinstance(path, Path)])
    release = load_release(config.checkpoint, config.thinker_from, config.trust)
    check_question(release, question)
    settings = _settings(config, release, 1)  # refused now, if they are wrong
    _move(release, device, precision)
    batch = read_question(release, question, device)
    if release.thinker is not None:
        release.thinker.unload()  # it has understood the question; the answer needs the memory
    listened = 0 if batch.turn_latents is None else batch.turn_latents.shape[1]
    settings = replace(settings, chunks=_chunks(release, config.seconds, listened))
    timing = Timing()
    for _ in track(answer(release, batch, settings, output, timing), "answering", total=settings.chunks):
        pass
    return timing


def _question(config: DictConfig) -> Question:
    if not isinstance(config.scores, Mapping | None):
        raise QuestionError(f"scores={config.scores}: give them by name, e.g. scores={{dover: 1.0}}")
    text = "???" if OmegaConf.is_missing(config, "text") else config.text  # which OmegaConf has a meaning for
    return Question(
        reference=Path(config.reference),
        initiator=Path(config.initiator) if config.initiator else None,
        text=None if text is None else str(text),
        voice=Path(config.voice) if config.voice else None,
        scores=config.scores or {},
    )


def respond_to_pairs(config: DictConfig) -> list[Timing]:
    """Answer every pair of VidChatBench that has no answer yet, each of the benchmark's one length; returns how fast.

    Of the true answer a model is told nothing, its length included; a model that is told what to say is told its words
    (protocol `conditioned`). A pair that cannot be answered, e.g. one without words, is skipped with a warning; the
    others are answered.

    Raises:
        PairsError: after the last pair, if some were skipped; names them.
    """
    _require(config, "checkpoint", "output")
    if config.seconds is not None:
        raise QuestionError("seconds= is not for pairs=: every answer is as long as the benchmark says (bench make)")
    device, precision = _device(config)
    check_folder(Path(config.output))
    pairs, output, timings, failed = read_pairs(Path(config.pairs)), Path(config.output), [], []
    inputs = (path for pair in pairs for path in (pair.reference, pair.initiator.path, pair.truth.path))
    check_answers((output / f"{pair.id}.mp4" for pair in pairs), inputs)
    release = load_release(config.checkpoint, config.thinker_from, config.trust)
    with_words = release.responder.conditions.switches.text
    _settings(config, release, 1)  # refused now, if they are wrong: no pair could be answered
    _move(release, device, precision)
    output.mkdir(parents=True, exist_ok=True)
    for pair in track(pairs, "answering pairs"):
        clip, written = output / f"{pair.id}.mp4", output / f"{pair.id}.json"
        if clip.is_file() and written.is_file() and made_by(written, "pair") in (None, pair_hash(pair)):
            continue
        try:
            timing = _respond_to_pair(config, release, pair, clip, device)
        except ValueError as error:
            if plain_message(error) is None:
                raise
            log.warning("skipped pair %s: %s", pair.id, error)
            failed.append(pair.id)
            continue
        made = {"protocol": "conditioned" if with_words else "dyadic", "pair": pair_hash(pair)}
        write_text(written, json.dumps(timing.log() | {"device": device, "precision": precision} | made))
        timings.append(timing)
    if failed:
        raise PairsError(
            f"{len(failed)} of {len(pairs)} pairs have no answer, for the reasons above: {', '.join(failed)}; the "
            f"others are in {output}"
        )
    return timings


def _respond_to_pair(config: DictConfig, release: Release, pair: Pair, clip: Path, device: str) -> Timing:
    """Answers one pair into `clip`; raises a `ValueError` that names what is wrong with its files."""
    with_words = release.responder.conditions.switches.text
    question = Question(pair.reference, pair.initiator, pair.truth.text if with_words else None)
    check_output(clip, [])
    check_question(release, question)
    batch = read_question(release, question, device)
    settings, timing = _settings(config, release, _chunks(release, pair.answer_seconds, 0)), Timing()
    for _ in answer(release, batch, settings, clip, timing):
        pass
    return timing


def _require(config: DictConfig, *keys: str) -> None:
    missing = [key for key in keys if OmegaConf.is_missing(config, key) or config[key] is None]
    if missing:
        raise QuestionError(f"give {', '.join(f'{key}=...' for key in missing)} (see configs/infer.yaml)")


def _device(config: DictConfig) -> tuple[str, str]:
    """On what, and in which precision, to generate."""
    device, precision = usable(str(config.device)), config.precision
    if precision not in ("auto", "fp32", "bf16"):
        raise QuestionError(f"precision={precision} is not known; give auto, fp32 or bf16")
    if precision == "auto":
        precision = "bf16" if multiplies_bf16(device) else "fp32"
    return device, precision


def _move(release: Release, device: str, precision: str) -> None:
    """The whole release to the device; in bf16, the responder alone is."""
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


def _settings(config: DictConfig, release: Release, chunks: int) -> GenerationSettings:
    """The release's own way of sampling, but for what the config gives."""
    whole: Any = OmegaConf.to_container(config)
    given = whole["settings"]
    check_groups(given)
    return GenerationSettings(
        chunks, given["window"], given["seed"], release.responder.sampling.changed(given["sampling"])
    )


def _chunks(release: Release, seconds: float | None, listened: int) -> int:
    """T: as long as asked, or as long as the initiator's clip."""
    if seconds is None and listened:
        return listened
    seconds = DEFAULT_SECONDS if seconds is None else seconds
    return max(1, math.ceil(seconds * release.clock.chunks_per_second - 1e-6))  # a whole number may be a hair above


@hydra.main(config_path="configs", config_name="infer", version_base="1.3")
def main(config: DictConfig) -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as an exception: nothing unfinished stays
    with plainly():
        timings = [respond(config)] if config.pairs is None else respond_to_pairs(config)
    if not timings:
        log.info("%s: every pair was answered already", config.output)
        return
    duration, whole = sum(timing.duration for timing in timings), sum(timing.whole for timing in timings)
    log.info(
        "%s: %.1f s of answer in %.1f s (%.2f x real time), first chunk after %.0f ms",
        config.output,
        duration,
        whole,
        duration / max(whole, 1e-9),
        1000 * median(timing.first_chunk for timing in timings),
    )


if __name__ == "__main__":
    run(main, "infer", INFER_PATHS, __doc__)
