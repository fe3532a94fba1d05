"""Token files: every piece of a data set encoded once, and read from then on.

Latents and codes are kept apart, `<folder>/video-<fingerprint>/<piece>.safetensors` and `audio-...`, so that a stage
without sound and one with it share latents. A fingerprint covers everything that decides the tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidchat.data.folder import FolderError
from vidchat.data.media import Media, MediaError
from vidchat.data.report import Report
from vidchat.data.tokens import VERSION, AudioEncoder, ClipEncoder, Piece, Tokens, VideoEncoder

WINDOW = 256 << 20  # bytes of pictures that are decoded before they are encoded
BATCH = 8  # spans of one length that are encoded together


class CacheError(FolderError):
    """Token files that do not belong to the tokenizers at hand, or that are not there yet."""


class TokenCache:
    """The token files of one pair of tokenizers at one working point.

    Args:
        folder: Where they are kept.
        encoder: What makes them; its fingerprint decides which ones are read.

    Raises:
        CacheError: A folder bears this fingerprint but was made with something else.
    """

    def __init__(self, folder: Path, encoder: ClipEncoder) -> None:
        self.encoder = encoder
        self.video = _claim(folder, "video", _video_ingredients(encoder))
        self.audio = None if encoder.audio_codec is None else _claim(folder, "audio", _audio_ingredients(encoder))
        self.bad_file = (self.audio or self.video) / "bad.json"

    def path(self, kind: str, name: str) -> Path:
        """Where the latents (`video`) or codes (`audio`) of a piece are."""
        folder = self.video if kind == "video" else self.audio
        assert folder is not None
        return folder / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether a piece is encoded."""
        return all(self.path(kind, name).is_file() for kind in self._kinds)

    @property
    def _kinds(self) -> list[str]:
        return ["video"] if self.audio is None else ["video", "audio"]

    def bad(self) -> dict[str, str]:
        """Pieces that could not be encoded, and why."""
        return json.loads(self.bad_file.read_text()) if self.bad_file.is_file() else {}

    def spans(self, name: str) -> int:
        """Number of spans of an encoded piece."""
        with safe_open(self.path("video", name), "pt") as file:
            return len(file.keys())

    def load(self, name: str, span: int = 0) -> Tokens:
        """The tokens of one span of a piece."""
        tensors = []
        for kind in self._kinds:
            with safe_open(self.path(kind, name), "pt") as file:
                tensors.append(file.get_tensor(str(span)))
        return Tokens(tensors[0], tensors[1].long() if len(tensors) > 1 else None)

    def fill(self, pieces: Iterable[Piece], device: torch.device | str = "cpu") -> Report:
        """Encodes what is not yet encoded; stopped and called again, it goes on.

        A piece that cannot be encoded is skipped, and remembered until its file changes.
        """
        named = {piece.name: piece for piece in pieces}
        bad = {name: why for name, why in self.bad().items() if name in named}
        missing = [name for name in named if name not in bad and not self.has(name)]
        if missing:
            with _on(device, self.encoder.video_vae, self.encoder.audio_codec):
                for window in self._windows(missing, named, bad):
                    self._encode(window, device)
            _write_atomically(self.bad_file, json.dumps(bad, indent=1, sort_keys=True))
        report = Report("clips", len(named) - len(bad))
        report.skipped += [(named[name].clip.path.name, why) for name, why in bad.items()]
        return report

    def _windows(
        self, missing: list[str], named: dict[str, Piece], bad: dict[str, str]
    ) -> Iterator[dict[str, list[Media]]]:
        """Decoded pieces by name, a few at a time; those that cannot be decoded go to `bad`."""
        window: dict[str, list[Media]] = {}
        held = 0
        for name in track(missing, "encoding clips"):
            try:
                window[name] = self.encoder.read(named[name])
            except MediaError as error:
                bad[name] = str(error)
                continue
            held += sum(span.pictures.nbytes for span in window[name])
            if held > WINDOW:
                yield window
                window, held = {}, 0
        if window:
            yield window

    def _encode(self, window: dict[str, list[Media]], device: torch.device | str) -> None:
        """Encodes the spans of a window in batches of one length, and writes its pieces."""
        by_length: dict[int, list[tuple[str, int]]] = {}
        for name, spans in window.items():
            for k, span in enumerate(spans):
                by_length.setdefault(len(span.pictures), []).append((name, k))
        done: dict[str, dict[int, Tokens]] = {name: {} for name in window}
        for places in by_length.values():
            for first in range(0, len(places), BATCH):
                batch = places[first : first + BATCH]
                for (name, k), tokens in zip(
                    batch, self.encoder.encode([window[name][k] for name, k in batch], device), strict=True
                ):
                    done[name][k] = tokens
        for name, spans_done in done.items():
            self._write(name, spans_done)

    def _write(self, name: str, spans: dict[int, Tokens]) -> None:
        _save(self.path("video", name), {str(k): tokens.latents for k, tokens in spans.items()})
        if self.audio is not None:
            codes = {str(k): tokens.codes.int() for k, tokens in spans.items() if tokens.codes is not None}
            _save(self.path("audio", name), codes)


@contextmanager
def _on(device: torch.device | str, *tokenizers: VideoEncoder | AudioEncoder | None) -> Iterator[None]:
    """Tokenizers on the device for as long as it takes, and back in the CPU's memory afterwards."""
    present = [tokenizer for tokenizer in tokenizers if tokenizer is not None]
    for tokenizer in present:
        tokenizer.to(device)
    try:
        yield
    finally:
        for tokenizer in present:
            tokenizer.to("cpu")


def _video_ingredients(encoder: ClipEncoder) -> dict[str, object]:
    return {
        "version": VERSION,
        "tokenizer": encoder.video_vae.fingerprint(),
        "fps": encoder.fps,
        "size": list(encoder.size),
    }


def _audio_ingredients(encoder: ClipEncoder) -> dict[str, object]:
    assert encoder.audio_codec is not None
    return {
        "version": VERSION,
        "tokenizer": encoder.audio_codec.fingerprint(),
        "fps": encoder.fps,
        "sample_rate": encoder.clock.sample_rate,
        "frames_per_chunk": encoder.clock.frames_per_chunk,
        "temporal_stride": encoder.clock.temporal_stride,
    }


def _claim(folder: Path, kind: str, ingredients: dict[str, object]) -> Path:
    """The folder for these ingredients, made if need be."""
    text = json.dumps(ingredients, sort_keys=True)
    claimed = folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    told = claimed / "made_with.json"
    if told.is_file() and told.read_text() != text:
        raise CacheError(f"{claimed}: was made with {told.read_text()}, not with {text}; delete it to encode again")
    if not told.is_file():
        claimed.mkdir(parents=True, exist_ok=True)
        _write_atomically(told, text)
    return claimed


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file({key: value.contiguous() for key, value in tensors.items()}, partial)
    os.replace(partial, path)


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    os.replace(partial, path)
