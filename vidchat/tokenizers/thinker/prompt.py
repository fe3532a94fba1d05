"""The thinker's prompt: Qwen2.5-Omni's chat template around one video with its audio.

Video and audio tokens are interleaved as by the model's processor: the video tokens of two seconds, the audio tokens of
the same two seconds, and so on. A position on the time axis is 40 ms: an audio token takes one position, a temporal
patch of frames as many as it lasts.
"""

from __future__ import annotations

import numpy as np

SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)
VIDEO, AUDIO = "<|VIDEO|>", "<|AUDIO|>"
MEDIA_START = "<|vision_bos|>"


def chat(media: str, system: str = SYSTEM) -> str:
    """Returns the prompt: a user who shows `media` without text, and the start of the assistant's answer."""
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{MEDIA_START}{media}<|vision_eos|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def video_blocks(tokens_per_grid: int, grids: int, steps_per_grid: float, block: int) -> np.ndarray:
    """Returns the index of the two-second block of each video token, (tokens,).

    Args:
        tokens_per_grid: Number of tokens of one temporal patch.
        grids: Number of temporal patches.
        steps_per_grid: Duration of a temporal patch in positions.
        block: Number of positions in a block.
    """
    # In float32 and truncated, as in the model: a token in another block would silently get a wrong position.
    times = (np.arange(grids, dtype=np.float32) * np.float32(steps_per_grid)).astype(np.int64)
    return np.repeat(times // block, tokens_per_grid)


def placeholders(video: np.ndarray, audio_tokens: int | None, block: int) -> str:
    """Returns the placeholder tokens of a video with or without audio.

    Args:
        video: Index of the block of each video token, (tokens,), from `video_blocks`.
        audio_tokens: Number of audio tokens, each of which takes one position; `None` without audio.
        block: Number of positions in a block.
    """
    if audio_tokens is None:
        return VIDEO * len(video)
    audio = np.arange(audio_tokens) // block
    blocks = 1 + max(int(video[-1]), int(audio[-1]))
    tokens = [VIDEO * int((video == k).sum()) + AUDIO * int((audio == k).sum()) for k in range(blocks)]
    return f"<|audio_bos|>{''.join(tokens)}<|audio_eos|>"
