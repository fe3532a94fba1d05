"""Crops of decoded clips to train tokenizers on: frames, audio, or both of one span."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track
from torch import Tensor

from vidchat.data.folder import read_folder
from vidchat.data.loading.endless import Draw, EndlessDataModule, in_order
from vidchat.data.loading.order import Order
from vidchat.data.media.audio_check import refuse_broken_audio
from vidchat.data.media.read import Media, MediaError, length_of, read_clip
from vidchat.data.report import Report
from vidchat.dialogue import Clip, Dialogue

log = logging.getLogger(__name__)
ATTEMPTS = 20  # clips tried for one draw before a data set counts as broken


@dataclass(frozen=True)
class Crop:
    """The format of a crop.

    Attributes:
        fps: Frames per second.
        size: (height, width) of a frame.
        sample_rate: Samples per second.
        frames: Frames in a crop, or `None` for audio only.
        samples: Samples in a crop, or `None` for frames only; both begin at the same instant.
    """

    fps: int
    size: tuple[int, int]
    sample_rate: int
    frames: int | None
    samples: int | None

    @property
    def span(self) -> int:
        """Returns how many frames last as long as the crop."""
        return max(self.frames or 0, math.ceil((self.samples or 0) * self.fps / self.sample_rate))

    def read(self, clip: Clip) -> Media:
        """Decodes a clip; raises `MediaError` if it cannot be, or is shorter than a crop."""
        media = read_clip(
            clip, fps=self.fps, size=self.size, sample_rate=self.sample_rate, audio=self.samples is not None
        )
        refuse_broken_audio(media, clip.path)
        if len(media.frames) < self.span:
            raise MediaError(
                f"{clip.path}: has {len(media.frames)} frames at {self.fps} fps, a crop needs {self.span}; "
                "remove the clip or shorten the crops"
            )
        return media

    def cut(self, media: Media, first: int) -> dict[str, Tensor]:
        """Returns the crop that begins with frame `first`; see `Crops`."""
        crop: dict[str, Tensor] = {}
        if self.frames is not None:
            crop["frames"] = media.frames[first : first + self.frames]
        if self.samples is not None:
            begin = round(first * self.sample_rate / self.fps)
            crop["waveform"] = media.waveform[begin : begin + self.samples]
        return crop


class Crops:
    """Makes batches of crops from clips, some of which are cached decoded.

    Args:
        clips: The clips that crops are cut from.
        crop: The format of a crop.
        cached: Decoded clips, by index; the others are decoded when drawn.
    """

    def __init__(self, clips: list[Clip], crop: Crop, cached: dict[int, Media]) -> None:
        self.clips, self.crop, self.cached = clips, crop, cached

    def __call__(self, draws: list[Draw]) -> dict[str, Tensor]:
        """Returns `frames` (B, n, 3, H, W) uint8 and `waveform` (B, s) float32 in [-1, 1], those that crops have."""
        cuts = [self._draw(*draw) for draw in draws]
        return {key: torch.stack([cut[key] for cut in cuts]) for key in cuts[0]}

    def _draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        for _ in range(ATTEMPTS):
            try:
                return self._crop(index, float(torch.rand((), generator=generator, dtype=torch.float64)))
            except MediaError as error:
                # Which file is bad depends on the file alone, so the next choice is still a function of the draw.
                log.warning("skipped: %s", error)
                index = int(torch.randint(len(self.clips), (), generator=generator))
        raise MediaError(
            f"{ATTEMPTS} clips in a row could not be used, the last {self.clips[index].path}; check the data"
        )

    def _crop(self, index: int, where: float) -> dict[str, Tensor]:
        """Returns the crop at the fraction `where` of a clip."""
        if index in self.cached:
            media = self.cached[index]
            return self.crop.cut(media, int(where * (len(media.frames) - self.crop.span + 1)))
        clip, fps = self.clips[index], self.crop.fps
        end = length_of(clip.path) if clip.end is None else clip.end
        last = math.floor((end - clip.start) * fps) - self.crop.span
        start = clip.start + int(where * max(last + 1, 1)) / fps
        return self.crop.cut(self.crop.read(replace(clip, start=start, end=start + self.crop.span / fps)), 0)


class ClipDataModule(EndlessDataModule):
    """Crops of every clip of a folder data set, whoever speaks.

    Args:
        root: The folder.
        fps: Working frames per second.
        size: (height, width) of a frame.
        sample_rate: Working samples per second.
        frames: Frames in a crop (4k+1 for a causal video tokenizer), or `None` for audio only.
        samples: Samples in a crop (a multiple of the codec's hop), or `None` for frames only.
        batch_size: Crops in a batch, per process.
        seed: The seed of the order and the crops.
        num_workers: Processes that make batches.
        memory_gb: Gigabytes of decoded clips to cache; the others are decoded when drawn.
    """

    def __init__(
        self,
        root: str | Path,
        fps: int,
        size: tuple[int, int],
        sample_rate: int,
        frames: int | None,
        samples: int | None,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        memory_gb: float = 4.0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        if frames is None and samples is None:
            raise ValueError("a crop needs frames or audio; set data.frames or data.samples")
        self.root, self.memory = Path(root), memory_gb * 2**30
        self.crop = Crop(fps, (size[0], size[1]), sample_rate, frames, samples)
        self.report = Report("clips")

    def setup(self, stage: str | None = None) -> None:
        """Decodes as many clips as fit into memory; skips and reports those that cannot be decoded."""
        if self.train is not None:
            return
        dialogues, folder = read_folder(self.root)
        self.report.skipped += folder.skipped
        train, val = (self._split(dialogues, split) for split in ("train", "val"))
        self.train = (train, Order.shuffled(self.seed, len(train.clips))) if train else None
        self.val = (val, in_order(range(len(val.clips)), self.batch_size)) if val else None
        rank_zero_info(str(self.report))

    def _split(self, dialogues: list[Dialogue], split: str) -> Crops | None:
        clips = _distinct(turn.clip for dialogue in dialogues if dialogue.split == split for turn in dialogue.turns)
        good: list[Clip] = []
        cached: dict[int, Media] = {}
        for clip in track(clips, f"decoding {split}", disable=not clips):
            media = None
            if self.memory > 0:
                try:
                    media = self._decode(clip)
                except MediaError as error:
                    self.report.skipped.append((clip.path.name, str(error)))
                    continue
                cached[len(good)] = media
            good.append(clip)
        self.report.read += len(good)
        return Crops(good, self.crop, cached) if good else None

    def _decode(self, clip: Clip) -> Media:
        media = self.crop.read(clip)
        if self.crop.frames is None:
            media.frames = media.frames[:, :0, :0, :0]  # only their number is needed
        self.memory -= media.frames.nbytes + media.waveform.nbytes
        return media


def _distinct(clips: Iterable[Clip]) -> list[Clip]:
    distinct: dict[tuple[Path, float, float | None], Clip] = {}
    for clip in clips:
        distinct.setdefault((clip.path, clip.start, clip.end), clip)
    return list(distinct.values())
