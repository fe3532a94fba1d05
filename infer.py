"""One answer: `python infer.py initiator=CLIP.mp4 reference=FACE.png checkpoint=DIR output=OUT.mp4`.

Reads the initiator's clip (any frame rate, size, sample rate) and a picture of the responder, and writes the
responder's clip, H.264 and AAC, chunk by chunk as it is generated.
"""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.progress import track

from vidchat.errors import plain_message
from vidchat.generation.answer import Question, QuestionError, Timing, answer, check_question, read_question
from vidchat.generation.stream import GenerationSettings
from vidchat.release import Release, load_release

log = logging.getLogger("infer")
DEFAULT_SECONDS = 4.0


def respond(config: DictConfig) -> Timing:
    """Answer one question; returns how fast it went."""
    missing = [key for key in ("checkpoint", "reference", "output") if OmegaConf.is_missing(config, key)]
    if missing:
        raise QuestionError(f"give {', '.join(f'{key}=...' for key in missing)} (see configs/infer.yaml)")
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    release = load_release(config.checkpoint, config.thinker)
    question = Question(
        reference=Path(config.reference),
        initiator=Path(config.initiator) if config.initiator else None,
        text=config.text,
        voice=Path(config.voice) if config.voice else None,
        scores=config.scores,
    )
    check_question(release, question)
    for module in (release.responder, release.video_vae, release.audio_codec):
        module.to(device)
    if release.thinker is not None:
        release.thinker.to(device)
    batch = read_question(release, question, device)
    if release.thinker is not None:
        release.thinker.unload()  # it has understood the question; the answer needs the memory
    settings: GenerationSettings = GenerationSettings(
        chunks=_chunks(release, config.seconds, 0 if batch.turn_latents is None else batch.turn_latents.shape[1]),
        window=config.settings.window,
        seed=config.settings.seed,
        sampling=instantiate(config.settings.sampling),
    )
    timing, output = Timing(), Path(config.output)
    for _ in track(answer(release, batch, settings, output, timing), "answering", total=settings.chunks):
        pass
    return timing


def _chunks(release: Release, seconds: float | None, listened: int) -> int:
    """T: as long as asked, or as long as the initiator's clip."""
    if seconds is None and listened:
        return listened
    seconds = DEFAULT_SECONDS if seconds is None else seconds
    if seconds <= 0:
        raise QuestionError(f"seconds={seconds}: an answer must last longer than nothing")
    return max(1, math.ceil(seconds * release.clock.chunks_per_second))


@hydra.main(config_path="configs", config_name="infer", version_base="1.3")
def main(config: DictConfig) -> None:
    try:
        timing = respond(config)
    except Exception as error:
        message = plain_message(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")
    log.info(
        "%s: %.1f s of answer in %.1f s (%.2f x real time), first chunk after %.0f ms",
        config.output,
        timing.duration,
        timing.whole,
        1 / max(timing.real_time_factor, 1e-9),
        1000 * timing.first_chunk,
    )


if __name__ == "__main__":
    main()
