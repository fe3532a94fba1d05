"""Small good files, to be damaged: media of every kind, and a data set with tokenizers."""

from __future__ import annotations

import json
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from vidchat.data.media.write import write_clip
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec

FRAMES, RATE, SIDE = 10, 16000, 32
CODECS = {
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", "libopus"),
    "webm": ("libvpx-vp9", "libopus"),
    "mov": ("mpeg4", "aac"),
}
SUFFIXES = (*CODECS, "wav", "jpg", "png", "webp", "gif")


def make_specimens(folder: Path) -> dict[str, bytes]:
    """A good file of every suffix, as bytes: 0.4 s of moving noise and a tone, or its first frame."""
    for suffix, (video, audio) in CODECS.items():
        film(folder / f"good.{suffix}", video, audio)
    frame = Image.fromarray(_frames()[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    for suffix in ("jpg", "png", "webp"):
        frame.save(folder / f"good.{suffix}", exif=exif)
    frame.save(folder / "good.gif")
    with wave.open(str(folder / "good.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((_tone() * 32767).astype("<i2").tobytes())
    return {suffix: (folder / f"good.{suffix}").read_bytes() for suffix in SUFFIXES}


def film(path: Path, video: str = "libx264", audio: str = "aac", jump: float = 0.0, frames: int = FRAMES) -> Path:
    """A film whose time stamps jump by so many seconds after the fifth frame."""
    options = {"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(video, rate=25)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.thread_count = 1
        track = container.add_stream(audio, rate=48000, layout="mono")
        container.metadata["title"] = "a title"
        for number, pixels in enumerate(_frames(frames)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number + (round(jump * 25) if number >= 5 else 0), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        heard = av.AudioFrame.from_ndarray(_tone()[None].astype(np.float32), "fltp", "mono")
        heard.sample_rate, heard.pts, heard.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(track.encode(heard))
        container.mux(track.encode(None))
    return path


def _frames(count: int = FRAMES) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 255, (count, SIDE // 8, SIDE // 8, 3), np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


def _tone() -> np.ndarray:
    return 0.3 * np.sin(np.arange(RATE * FRAMES // 25) * 0.3)


def make_data(root: Path) -> Path:
    """A folder data set of three dialogues of a second, of noise, and untrained tokenizers for it."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for number, split in enumerate(("train", "train", "val")):
        turns = []
        for role in ("initiator", "responder"):
            frames = torch.randint(0, 256, (25, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
            write_clip(root / f"{role}{number}.mp4", frames, 0.1 * torch.randn(RATE, generator=generator), 25, RATE)
            turns.append({"role": role, "speaker": f"{role}{number}", "clip": f"{role}{number}.mp4", "text": "a word"})
        lines.append(json.dumps({"id": f"d{number}", "split": split, "turns": turns}))
    (root / "dialogues.jsonl").write_text("\n".join(lines))
    torch.manual_seed(0)
    StackedVAE(4, 8, [8], [1], [1]).save(root / "video_vae")
    codec = StftCodec(codebooks=2, vocabulary=8, code_width=4, width=8, encoder_blocks=1, decoder_blocks=1)
    codec.save(root / "audio_codec")
    return root
