"""Check for finite audio: a file of floating-point samples may hold NaN or infinity."""

from __future__ import annotations

from pathlib import Path

from vidchat.data.media.read import Media, MediaError


def refuse_broken_audio(media: Media, path: Path) -> None:
    """Raises `MediaError` if the audio of a clip holds NaN or infinity, which no codec can encode."""
    if not bool(media.waveform.isfinite().all()):
        raise MediaError(f"{path}: its audio holds samples that are NaN or infinite; re-encode or remove the file")
