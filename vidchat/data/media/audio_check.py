"""Audio whose samples are numbers: a file of floating-point samples may hold anything."""

from __future__ import annotations

from pathlib import Path

from vidchat.data.media.read import Media, MediaError


def refuse_broken_audio(media: Media, path: Path) -> None:
    """Raises `MediaError` where the audio of a clip holds NaN or infinity, which no codec survives."""
    if not bool(media.waveform.isfinite().all()):
        raise MediaError(f"{path}: its audio holds samples that are no numbers; write the file anew or remove it")
