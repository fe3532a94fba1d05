"""Present speed of this machine: a training step by threads and precision, a rendered dialogue, a comparison."""

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
from vidchat.bench.spoken_distance import cepstra, nearest_sentence
from vidchat.data.media.pixels import from_bytes
from vidchat.data.media.read import read_clip
from vidchat.dialogue import Clip, Dialogue
from vidchat.layout import TurnSpan, lay_out
from vidchat.model.responder import Responder
from vidchat.playground.people.cast import plan_dialogues
from vidchat.playground.people.render import RenderSettings, candidate_waveforms, render_dialogue
from vidchat.release import Release

BATCH, CHUNKS = 8, 12


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


def measure_dialogue(release: Release, seed: int = 0) -> float:
    """Returns the seconds to render a dialogue, with all cores in use, and to encode its two clips."""
    settings = RenderSettings(dialogues=4, seed=seed)
    plans = plan_dialogues(settings.dialogues, seed)
    with TemporaryDirectory() as folder:
        (Path(folder) / "clips").mkdir()
        remaining = iter(plans[:3])
        rendering = median(_times(lambda: render_dialogue(next(remaining), Path(folder), settings), 3))
        clip = Clip(next(Path(folder, "clips").iterdir()), "")
        encoding = min(_times(lambda: _encode(clip, release), 2))
    return rendering / (os.cpu_count() or 1) + 2 * encoding


def measure_comparison(dialogue: Dialogue, sample_rate: int) -> float:
    """Returns the seconds to find the sentence of one voice that is nearest to an answer."""
    spoken = candidate_waveforms(dict(dialogue.answer.truth), 3 * sample_rate, sample_rate)
    sentences = {text: [cepstra(waveform, sample_rate)] for text, waveform in spoken.items()}
    answer = next(iter(spoken.values()))
    return median(_times(lambda: nearest_sentence(answer, sentences, sample_rate), 3))


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
    """Returns a batch of random tokens, with answers and questions as long as the demo's."""
    channels, (height, width) = release.video_vae.channels, release.video_vae.grid(release.size)
    codes = release.responder.code_shape
    assert codes is not None
    generator = torch.Generator().manual_seed(0)
    layout = lay_out([TurnSpan("initiator", CHUNKS), TurnSpan("responder", CHUNKS)])
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
