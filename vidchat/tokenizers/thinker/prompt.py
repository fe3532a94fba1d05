"""What the thinker reads: Qwen2.5-Omni's chat template around one video with its audio.

Audio and frame are interleaved as the model's processor does and as its positions expect: two seconds of video
tokens, the same two seconds of audio tokens, and so on. A position on the time axis is 40 ms; an audio token takes one
of them, a temporal patch of frames as many as it lasts.
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
    """The whole prompt: a user who says nothing but shows `media`, and an assistant who is about to answer."""
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{MEDIA_START}{media}<|vision_eos|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def video_places(tokens_per_grid: int, grids: int, steps_per_grid: float, block: int) -> np.ndarray:
    """(tokens,) which two-second block each video token lies in.

    Args:
        tokens_per_grid: Tokens of one temporal patch.
        grids: Temporal patches.
        steps_per_grid: Positions that one lasts.
        block: Positions in a block.
    """
    # In float32 and cut to whole numbers, as the model computes the same: a token that is put into another block
    # than the model believes would silently bear another's position.
    times = (np.arange(grids, dtype=np.float32) * np.float32(steps_per_grid)).astype(np.int64)
    return np.repeat(times // block, tokens_per_grid)


def media(video: np.ndarray, sound_tokens: int | None, block: int) -> str:
    """Placeholders of a video, with audio (`sound_tokens` of them) or without (`None`).

    Args:
        video: From `video_places`.
        sound_tokens: Audio tokens, each of which takes one position.
        block: Positions in a block.
    """
    if sound_tokens is None:
        return VIDEO * len(video)
    audio = np.arange(sound_tokens) // block
    blocks = 1 + max(int(video[-1]), int(audio[-1]))
    parts = [VIDEO * int((video == k).sum()) + AUDIO * int((audio == k).sum()) for k in range(blocks)]
    return f"<|audio_bos|>{''.join(parts)}<|audio_eos|>"
