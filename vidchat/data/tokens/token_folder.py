"""Folders that hold tokens and no clips: how long they are, and the frames and audio that they decode to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vidchat.data.media.pixels import to_bytes
from vidchat.data.media.read import Media
from vidchat.data.tokens.encoder import Segment
from vidchat.data.tokens.provenance import MADE_WITH, CacheError, describe, read_provenance
from vidchat.data.tokens.shards import ShardReader
from vidchat.data.tokens.token_cache import TOKENS, part_of, segment_key
from vidchat.data.tokens.track_index import Entry, TrackIndex
from vidchat.dialogue import Clip, Dialogue


class VideoDecoder(Protocol):
    """A video tokenizer, as decoding needs it: latents (1, C, T+1, h, w) to frames (1, 3, N, H, W) in [-1, 1]."""

    temporal_stride: int

    def decode(self, latents: Tensor) -> Tensor: ...


class AudioDecoder(Protocol):
    """An audio codec, as decoding needs it: codes (1, n, K) to a waveform (1, n * hop)."""

    sample_rate: int

    def decode(self, codes: Tensor) -> Tensor: ...


@dataclass
class StoredTrack:
    """The segments of one track, and their provenance."""

    index: TrackIndex
    made: dict[str, Any]


class TokenFolder:
    """The tokens of a folder; where there are several caches, those of the one with the most samples.

    Args:
        root: The data set's folder.

    Raises:
        CacheError: It holds no tokens.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._reader = root, ShardReader()
        latents = _largest(root, "latents")
        if latents is None:
            raise CacheError(f"{root}: holds no tokens; encode some with 'vidchat data encode'")
        self.latents, self.codes = latents, _largest(root, "codes")

    @property
    def stride(self) -> int | None:
        """Returns the frames of a chunk, if the provenance tells."""
        stride = self.latents.made["tokenizer"].get("config", {}).get("temporal_stride")
        if stride is None and self.codes is not None:
            stride = self.codes.made.get("temporal_stride")
        return stride if isinstance(stride, int) else None

    def seconds(self, dialogue: Dialogue, clip: Clip) -> float | None:
        """Returns how many seconds the tokens of a dialogue's clip last; `None` where there are none."""
        entry = self._entry(self.latents, dialogue, clip)
        if entry is None:
            return None
        if self.stride is None:  # what the manifest says
            return None if clip.end is None else clip.end - clip.start
        chunks = sum(span.shape[0] - 1 for span in entry.spans)
        return float(chunks * self.stride / self.latents.made["fps"])

    def check(self, decoder: Any, track: Literal["latents", "codes"]) -> None:
        """Raises `CacheError` unless a tokenizer is the one that made a track, which it names."""
        stored = self.latents if track == "latents" else self.codes
        made, here = {} if stored is None else stored.made["tokenizer"], describe(decoder)
        if (made.get("class"), made.get("fingerprint")) != (here["class"], here["fingerprint"]):
            key = "video_vae" if track == "latents" else "audio_codec"
            config = ", ".join(f"{key}={value}" for key, value in made.get("config", {}).items())
            raise CacheError(
                f"the {track} of {self.root} were made by {made.get('class')} {made.get('fingerprint')} ({config}), "
                f"and only it can decode them; give its config or the folder it was saved in by {key}=NAME"
            )

    @torch.inference_mode()
    def media(self, dialogue: Dialogue, clip: Clip, video: VideoDecoder, audio: AudioDecoder | None) -> Media | None:
        """Decodes a clip's first span; returns `None` where there are no tokens. Raises `ShardError`."""
        fps = int(self.latents.made["fps"])
        latents = self._load(self.latents, "latents", dialogue, clip)
        if latents is None:
            return None
        decoded = video.decode(latents[None].transpose(1, 2).float())[0].transpose(0, 1)
        frames = to_bytes(decoded)
        rate = 16000 if audio is None else audio.sample_rate
        waveform = torch.zeros(round(len(frames) / fps * rate))
        codes = None if audio is None or self.codes is None else self._load(self.codes, "codes", dialogue, clip)
        if audio is not None and codes is not None:  # audio begins with frame 1
            speech, begin = audio.decode(codes.flatten(0, 1).long()[None]).flatten(), rate // fps
            waveform[begin : begin + len(speech)] = speech[: len(waveform) - begin]
        return Media(frames, waveform, fps, rate)

    def _entry(self, track: StoredTrack, dialogue: Dialogue, clip: Clip) -> Entry | None:
        name = clip.path.relative_to(self.root).as_posix()
        turn = next(turn for turn in dialogue.turns if turn.clip is clip)
        return track.index.entry(segment_key(name, Segment(clip, part_of(dialogue, turn), 0)))

    def _load(self, track: StoredTrack, name: str, dialogue: Dialogue, clip: Clip) -> Tensor | None:
        entry = self._entry(track, dialogue, clip)
        if entry is None:
            return None
        return self._reader.tensor(track.index.shard_path(entry.shard), entry.spans[0].member, name)


def _largest(root: Path, track: Literal["latents", "codes"]) -> StoredTrack | None:
    tracks = [
        StoredTrack(TrackIndex(made.parent), read_provenance(made, track))
        for made in sorted((root / TOKENS).glob(f"{track}-*/{MADE_WITH}"))
    ]
    return max(tracks, key=lambda stored: stored.index.count, default=None)
