"""Reads and encodes the clip that a model hears, in memory that does not grow with the clip.

Models are trained on turns of some seconds, and all heard chunks stay in the cache. So only the end of a longer clip is
read (of a voice, its beginning), and a warning says so. The clip is encoded a few chunks at a time if the video
tokenizer encodes each chunk independently.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import torch
from torch import Tensor

from vidchat.data.media.read import Media, MediaError, length_of
from vidchat.data.tokens.encoder import ClipEncoder, Part, Segment, Tokens
from vidchat.dialogue import Clip
from vidchat.tokenizers.chunkwise import ChunkwiseVAE

log = logging.getLogger(__name__)
MAX_SECONDS = 30
ANY_LENGTH = 1_000_000  # chunks: more than any clip has
CHUNKS_AT_ONCE = 16  # number of chunks that are encoded together
MARGIN = 1.0  # seconds read before the last MAX_SECONDS, because durations in headers are not exact


def read_heard(encoder: ClipEncoder, clip: Clip, part: Part) -> Media:
    """Reads the complete chunks of a clip, or of its last (or first) `MAX_SECONDS` if it is longer.

    Args:
        encoder: Encoder that reads clips at the model's rates.
        clip: The file, or a span of it.
        part: `last` for the initiator's clip, `first` for a voice.

    Raises:
        MediaError: the clip cannot be decoded, or is shorter than a chunk.
    """
    max_chunks = int(MAX_SECONDS * encoder.clock.chunks_per_second)
    seconds = (length_of(clip.path) if clip.end is None else clip.end) - clip.start
    media = _read_end(encoder, clip, seconds, max_chunks) if part == "last" and seconds > MAX_SECONDS + MARGIN else None
    if media is None:
        media = encoder.read(Segment(clip, part, ANY_LENGTH if part == "last" else max_chunks + 1))[0]
    frames = encoder.clock.frames(max_chunks)
    seconds = max(seconds, len(media.frames) / encoder.fps)
    if seconds > MAX_SECONDS + MARGIN:
        log.warning("%s lasts %.0f s, of which the model hears the %s %d s", clip.path, seconds, part, MAX_SECONDS)
    if len(media.frames) <= frames:
        return media
    samples = encoder.clock.samples(max_chunks)
    span = slice(-frames, None) if part == "last" else slice(frames)
    waveform = media.waveform[-samples:] if part == "last" else media.waveform[:samples]
    return Media(media.frames[span].clone(), waveform.clone(), media.fps, media.sample_rate)


def _read_end(encoder: ClipEncoder, clip: Clip, seconds: float, max_chunks: int) -> Media | None:
    """Reads only the last `max_chunks` chunks of a clip; returns `None` if it ends earlier than its header says."""
    skipped = math.floor((seconds - MAX_SECONDS - MARGIN) * encoder.fps) / encoder.fps
    try:
        media = encoder.read(Segment(replace(clip, start=clip.start + skipped), "last", max_chunks))[0]
    except MediaError:
        return None
    return media if len(media.frames) == encoder.clock.frames(max_chunks) else None


def encode_heard(encoder: ClipEncoder, media: Media, device: torch.device | str) -> Tokens:
    """Encodes a clip to the latents (T, C, h, w) and the codes (T, F, K) of its chunks 1..T.

    They equal those of `ClipEncoder.encode` without chunk 0 (a frame without audio), except for rounding.
    """
    vae = encoder.video_vae
    if not isinstance(vae, ChunkwiseVAE):
        tokens = encoder.encode([media], device)[0]
        return Tokens(tokens.latents[1:], tokens.codes)
    latents = [
        _encode_chunks(vae, frames, device) for frames in media.frames[1:].split(CHUNKS_AT_ONCE * vae.temporal_stride)
    ]
    codes = encoder.encode_tracks([media], ["codes"], device)[0].get("codes")
    return Tokens(torch.cat(latents), codes)


@torch.inference_mode()
def _encode_chunks(vae: ChunkwiseVAE, frames: Tensor, device: torch.device | str) -> Tensor:
    """Encodes frames (n * temporal_stride, 3, H, W) uint8 after frame 0 to the latents (n, C, h, w) of their chunks."""
    chunks = (frames.to(device).float() / 127.5 - 1).unflatten(0, (-1, vae.temporal_stride))
    return vae.normalise(vae.encode_chunks(chunks)).float().cpu().clone()
