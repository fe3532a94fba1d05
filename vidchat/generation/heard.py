"""What a model hears and sees of a clip: its tokens, in memory that does not grow with the clip.

Models learn from turns of some seconds, and all that is heard stays in the answer's cache; so of a longer clip only the
end is read (of a voice, the beginning), and that is said. What is kept is encoded a few chunks at a time wherever the
tokenizer treats each chunk by itself.
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
MOST_SECONDS = 30
ANY_LENGTH = 1_000_000  # chunks
PIECE = 16  # chunks that are encoded at once
MARGIN = 1.0  # seconds read before what is kept: headers are not exact


def read_heard(encoder: ClipEncoder, clip: Clip, part: Part) -> Media:
    """Reads what is heard of a clip: all of it in whole chunks, or its last (or first) `MOST_SECONDS`.

    Args:
        encoder: What reads clips at the working rates.
        clip: A file or a span of one.
        part: `last`, of what the initiator says, or `first`, of a voice.

    Raises:
        MediaError: the clip cannot be decoded, or holds less than a chunk.
    """
    most = int(MOST_SECONDS * encoder.clock.chunks_per_second)
    seconds = (length_of(clip.path) if clip.end is None else clip.end) - clip.start
    media = _end_of(encoder, clip, seconds, most) if part == "last" and seconds > MOST_SECONDS + MARGIN else None
    if media is None:
        media = encoder.read(Segment(clip, part, ANY_LENGTH if part == "last" else most + 1))[0]
    frames = encoder.clock.frames(most)
    seconds = max(seconds, len(media.frames) / encoder.fps)
    if seconds > MOST_SECONDS + MARGIN:
        log.warning("%s lasts %.0f s, of which the %s %d s are heard", clip.path, seconds, part, MOST_SECONDS)
    if len(media.frames) <= frames:
        return media
    samples = encoder.clock.samples(most)
    kept = slice(-frames, None) if part == "last" else slice(frames)
    heard = media.waveform[-samples:] if part == "last" else media.waveform[:samples]
    return Media(media.frames[kept].clone(), heard.clone(), media.fps, media.sample_rate)


def _end_of(encoder: ClipEncoder, clip: Clip, seconds: float, most: int) -> Media | None:
    """The last `most` chunks of a clip, of which no more is read; `None` if it ends earlier than its header says."""
    skipped = math.floor((seconds - MOST_SECONDS - MARGIN) * encoder.fps) / encoder.fps
    try:
        media = encoder.read(Segment(replace(clip, start=clip.start + skipped), "last", most))[0]
    except MediaError:
        return None
    return media if len(media.frames) == encoder.clock.frames(most) else None


def encode_heard(encoder: ClipEncoder, media: Media, device: torch.device | str) -> Tokens:
    """Encodes what was read: latents (T, C, h, w) of chunks 1..T, and codes (T, F, K); chunk 0 is left out.

    Equal to `ClipEncoder.encode`, whose chunk 0 is a frame without audio, but for rounding.
    """
    vae = encoder.video_vae
    if not isinstance(vae, ChunkwiseVAE):
        tokens = encoder.encode([media], device)[0]
        return Tokens(tokens.latents[1:], tokens.codes)
    latents = [_encode_chunks(vae, frames, device) for frames in media.frames[1:].split(PIECE * vae.temporal_stride)]
    codes = encoder.encode_tracks([media], ["codes"], device)[0].get("codes")
    return Tokens(torch.cat(latents), codes)


@torch.inference_mode()
def _encode_chunks(vae: ChunkwiseVAE, frames: Tensor, device: torch.device | str) -> Tensor:
    """Frames (n * stride, 3, H, W) uint8, not a clip's first -> latents (n, C, h, w) of their chunks."""
    chunks = (frames.to(device).float() / 127.5 - 1).unflatten(0, (-1, vae.temporal_stride))
    return vae.normalise(vae.encode_chunks(chunks)).float().cpu().clone()
