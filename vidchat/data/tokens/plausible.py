"""Tokens and audio that cannot be what they are said to be, whole as their file may be."""

from __future__ import annotations

from torch import Tensor

from vidchat.data.tokens.encoder import Track

# Normalised latents have a standard deviation of 1, a thinker's features a few large values.
LARGEST: dict[Track, float] = {"latents": 1e3, "features": 1e6}


def implausible(track: Track, tokens: Tensor, vocabulary: int | None = None) -> str | None:
    """What is wrong with the values of tokens, or `None`: not finite, absurdly large, or no codes of the codec.

    Args:
        track: What they are.
        tokens: Of any shape.
        vocabulary: V, codes being 0 .. V-1; `None` does not look.
    """
    if not tokens.numel() or (track == "codes" and vocabulary is None):
        return None
    low, high = (float(value) for value in tokens.aminmax())
    least, most = (0.0, float((vocabulary or 0) - 1)) if track == "codes" else (-LARGEST[track], LARGEST[track])
    if least <= low and high <= most:  # so written, NaN is not plausible
        return None
    return f"its {track} lie between {low:g} and {high:g}, where {least:g} to {most:g} is possible"
