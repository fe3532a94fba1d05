"""Answers a clip: `vidchat infer initiator=CLIP.mp4 reference=FACE.png checkpoint=checkpoints/demo output=OUT.mp4`.

Reads the initiator's clip (any frame rate, size and sample rate) and an image of the responder, and writes the
responder's clip (H.264, AAC) while it is generated, until the answer ends. `initiator=[A.mp4,B.mp4]` are the turns of
one conversation: each is answered before the next is heard, and the output shows the responder all the time. With
`pairs=BENCH` it answers every pair of VidChatBench into the folder `output`, with a log beside each clip. A path that
does not exist, such as `examples/initiator.mp4` or `checkpoints/demo`, is looked up among the files that ship with
vidchat.
"""

from __future__ import annotations

import vidchat.runtime.threads  # noqa: F401  (before torch)

# isort: split
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from vidchat.bench.pairs import read_pairs
from vidchat.cli.overrides import INFER_PATHS, run
from vidchat.generation.answer import Question, QuestionError, check_question
from vidchat.generation.conversation import GenerationSettings
from vidchat.generation.request import check_answers, check_folder, check_groups, check_output, check_seconds
from vidchat.generation.respond import choose_device, generation_settings, move, respond, respond_to_pairs
from vidchat.generation.timing import Timing
from vidchat.release import Release, load_release
from vidchat.runtime.errors import user_errors
from vidchat.shipped import CONFIGS, find

log = logging.getLogger("infer")


def answer_question(config: DictConfig) -> list[Timing]:
    """Answers one question, or the questions of one conversation; returns the timing."""
    _require(config, "checkpoint", "reference", "output")
    device, precision = choose_device(str(config.device), config.precision)
    check_seconds(config.seconds)
    question, output = question_of(config), Path(config.output)
    film = Path(config.film) if config.film else None
    files = [question.reference, *(clip.path for clip in question.clips), *([question.voice] if question.voice else [])]
    check_output(output, files)
    if film is not None:
        if not question.clips:
            raise QuestionError("film= shows both people: give initiator= too, or output= alone")
        check_output(film, [*files, output], "film")
    release = _load(config)
    check_question(release, question)
    settings = _settings(config, release)
    move(release, device, precision)
    return [respond(release, question, output, settings, config.seconds, film, device)]


def answer_pairs(config: DictConfig) -> list[Timing]:
    """Answers the pairs of VidChatBench that have no answer yet; see `respond_to_pairs`."""
    _require(config, "checkpoint", "output")
    for key in ("seconds", "film", "listen"):
        if config[key]:
            raise QuestionError(
                f"{key}= cannot be set with pairs=: the benchmark fixes the length and the form of all answers "
                "(vidchat bench make)"
            )
    device, precision = choose_device(str(config.device), config.precision)
    output = Path(config.output)
    check_folder(output)
    pairs = read_pairs(Path(config.pairs))
    inputs = (path for pair in pairs for path in (pair.reference, pair.initiator.path, pair.truth.path))
    check_answers((output / f"{pair.id}.mp4" for pair in pairs), inputs)
    release = _load(config)
    settings = _settings(config, release)
    move(release, device, precision)
    return respond_to_pairs(release, pairs, output, settings, device, precision)


def question_of(config: DictConfig) -> Question:
    """Returns the question that a config describes, with its text and paths as they were typed."""
    for key, example in (("scores", "{dover: 1.0}"), ("conditions", "{head_pose: [0, 0, 0.2]}")):
        if not isinstance(config[key], Mapping | None):
            raise QuestionError(f"{key}={config[key]} must be values by name; give e.g. {key}={example}")
    if type(config.listen) is not bool:
        raise QuestionError(f"listen={config.listen} must be true or false")
    text = "???" if OmegaConf.is_missing(config, "text") else config.text  # OmegaConf reads ??? as missing
    return Question(
        reference=find(config.reference),
        initiator=_paths(config.initiator),
        text=None if text is None else str(text),
        voice=find(config.voice) if config.voice else None,
        scores=config.scores or {},
        conditions=_plain(config.conditions),
        listen=config.listen,
    )


def _paths(value: Any) -> list[Path]:
    """Returns the paths of a config value: none, one, or a list of them."""
    values = [value] if isinstance(value, str) else list(value or [])
    if not all(isinstance(path, str) for path in values):
        raise QuestionError(f"initiator={value} must be the path of a clip, or a list of them: initiator=[A.mp4,B.mp4]")
    return [find(path) for path in values if path]


def _plain(node: Any) -> dict[str, Any]:
    """Converts a mapping of a config, or `None`, to a dict."""
    plain: Any = OmegaConf.to_container(node) if node is not None else {}
    return plain


def _load(config: DictConfig) -> Release:
    return load_release(config.checkpoint, config.thinker_from, config.trust)


def _settings(config: DictConfig, release: Release) -> GenerationSettings:
    """Returns the generation settings of a config; raises `ValueError` if one is out of its range."""
    plain: Any = OmegaConf.to_container(config)
    settings = plain["settings"]
    check_groups(settings)
    names = ("window", "seed", "sampling", "ends")
    return generation_settings(release, *(settings[name] for name in names))


def _require(config: DictConfig, *keys: str) -> None:
    missing = [key for key in keys if OmegaConf.is_missing(config, key) or config[key] is None]
    if missing:
        raise QuestionError(f"give {', '.join(f'{key}=...' for key in missing)} (see configs/infer.yaml)")


@hydra.main(config_path=str(CONFIGS), config_name="infer", version_base="1.3")
def _task(config: DictConfig) -> None:
    # An exception, so that partial files are removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with user_errors():
        timings = answer_question(config) if config.pairs is None else answer_pairs(config)
    if not timings:
        log.info("%s: every pair already has an answer", config.output)
        return
    duration, elapsed = sum(timing.duration for timing in timings), sum(timing.total for timing in timings)
    log.info(
        "%s: %.1f s of answer in %.1f s (%.2f x real time), first chunk after %.0f ms",
        config.output,
        duration,
        elapsed,
        duration / max(elapsed, 1e-9),
        1000 * median(timing.first_chunk for timing in timings),
    )


def main(words: Sequence[str] | None = None) -> None:
    """Runs `vidchat infer` on command-line arguments, by default those of this process."""
    run(_task, "infer", INFER_PATHS, __doc__, words)
