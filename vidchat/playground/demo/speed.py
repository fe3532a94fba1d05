"""Present speed of this machine: a training step by threads and precision, a rendered encounter, a comparison."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vidchat.batch import ChunkBatch
from vidchat.data.media.pixels import from_bytes
from vidchat.data.media.read import read_clip
from vidchat.dialogue import Clip
from vidchat.layout import TurnSpan, lay_out
from vidchat.model.responder import Responder
from vidchat.playground.demo.conversation import AnswerReader
from vidchat.playground.demo.people import TestPeople
from vidchat.playground.people.render_encounters import EncounterSettings, plan_encounters, render_encounter
from vidchat.release import Release

BATCH, CHUNKS, QUESTIONS = 4, 12, 2
"""Samples of a training batch, chunks of a turn, and questions of a sample."""
SPANS = 1.5
"""Length of the encoded spans of an encounter, of which some overlap, over that of its tracks."""


def measure_training(release: Release) -> tuple[float, int, str]:
    """Returns the seconds of a training step, and the threads and the precision with which it is fastest.

    Args:
        release: A release whose model has the size to train; its weights do not change.
    """
    most, before = min(os.cpu_count() or 1, 8), torch.get_num_threads()
    precisions = ["bf16-mixed", "32-true"] if bf16_is_faster() else ["32-true"]
    try:
        times = {(measure_step(release, most, precision), most, precision) for precision in precisions}
        if most > 1:  # on a busy machine threads wait for each other, and fewer are faster
            times.add((measure_step(release, 1, min(times)[2]), 1, min(times)[2]))
    finally:
        torch.set_num_threads(before)
    return min(times)


def measure_step(release: Release, threads: int, precision: str) -> float:
    """Returns the seconds of a training step of the last stage: the median of three, the first of which warms up."""
    torch.set_num_threads(threads)
    model, batch = release.responder.train(), random_batch(release)
    try:
        times = list(_times(lambda: _step(model, batch, precision), 3))
    finally:
        model.eval().zero_grad(set_to_none=True)
    return median(times)


def measure_encounter(release: Release, seed: int = 0) -> float:
    """Returns the seconds to render an encounter, with all cores in use, and to encode its turns."""
    settings = EncounterSettings(encounters=4, seed=seed)
    plan = plan_encounters(settings)[0]
    with TemporaryDirectory() as folder:
        (Path(folder) / "clips").mkdir()
        rendering = sum(_times(lambda: render_encounter(plan, Path(folder), settings), 1))
        clips = iter([Clip(path, "") for path in Path(folder, "clips").iterdir()])
        encoding = sum(_times(lambda: _encode(next(clips), release), 2))
    return rendering / (os.cpu_count() or 1) + SPANS * encoding


def measure_comparison(people: TestPeople, sample_rate: int) -> float:
    """Returns the seconds to find the answer of one voice that is nearest to a waveform."""
    reader = AnswerReader([people.conversations[0].answer.truth["voice"]], sample_rate)
    noise = torch.randn(2 * sample_rate, generator=torch.Generator().manual_seed(0)).numpy()
    reader.read(noise, "topic", False)  # speaks the answers
    return median(_times(lambda: reader.read(noise, "topic", False), 3))


def _encode(clip: Clip, release: Release) -> None:
    clock = release.clock
    media = read_clip(clip, fps=clock.fps, size=release.size, sample_rate=clock.sample_rate)
    with torch.no_grad():
        release.video_vae.encode(from_bytes(media.frames[: clock.frames(clock.chunks(len(media.frames)))]))
        release.audio_codec.encode(media.waveform[None])


def bf16_is_faster() -> bool:
    """Returns whether this CPU multiplies faster in bf16 than in fp32; only some have instructions for it."""
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(512, 512, dtype=dtype)
        products[dtype] = min(_times(lambda a=a: a @ a, 3))  # type: ignore[misc]
    return products[torch.bfloat16] < products[torch.float32]


def random_batch(release: Release) -> ChunkBatch:
    """Returns a batch of random tokens, with as many turns as the demo's, and as long ones."""
    channels, (height, width) = release.video_vae.channels, release.video_vae.grid(release.size)
    codes = release.responder.code_shape
    assert codes is not None
    generator = torch.Generator().manual_seed(0)
    layout = lay_out([TurnSpan("initiator", CHUNKS), TurnSpan("responder", CHUNKS)] * QUESTIONS)
    said, heard = (torch.tensor([place.step for place in places]) for places in (layout.said, layout.heard))
    stills = torch.tensor([place.chunk == 0 for place in layout.said]).expand(BATCH, -1)

    def latents(columns: int) -> torch.Tensor:
        return torch.randn(BATCH, columns, channels, height, width, generator=generator)

    def random_codes(columns: int) -> torch.Tensor:
        shape = (BATCH, columns, codes.codec_frames, codes.codebooks)
        return torch.randint(codes.vocabulary, shape, generator=generator)

    audible = torch.ones(BATCH, len(heard), dtype=torch.bool)
    return ChunkBatch(
        latents(len(said)), said.expand(BATCH, -1), stills, torch.ones_like(stills), random_codes(len(said)),
        ends=torch.zeros_like(stills, dtype=torch.long), heard_latents=latents(len(heard)),
        heard_codes=random_codes(len(heard)), heard_steps=heard.expand(BATCH, -1), heard_video=audible,
        heard_audio=audible,
    )  # fmt: skip


def _step(model: Responder, batch: ChunkBatch, precision: str) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        model.loss(batch)["loss"].backward()
    model.zero_grad(set_to_none=True)


def _times(function: Callable[[], Any], count: int) -> Iterator[float]:
    for _ in range(count):
        start = time.perf_counter()
        function()
        yield time.perf_counter() - start
