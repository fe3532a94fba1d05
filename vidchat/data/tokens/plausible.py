"""Tokens whose values are impossible, though their file is intact."""

from __future__ import annotations

from torch import Tensor

from vidchat.data.tokens.encoder import Track

# Normalised latents have a standard deviation of 1, a thinker's features a few large values.
LARGEST: dict[Track, float] = {"latents": 1e3, "features": 1e6}


def implausible(track: Track, tokens: Tensor, vocabulary: int | None = None) -> str | None:
    """Returns what is wrong with the values of tokens, or `None`: not finite, too large, or no codes of the codec.

    Args:
        track: The track of the tokens.
        tokens: The tokens, of any shape.
        vocabulary: V of codes, which are 0 .. V-1; codes are not checked if it is `None`.
    """
    if not tokens.numel() or (track == "codes" and vocabulary is None):
        return None
    low, high = (float(value) for value in tokens.aminmax())
    least, most = (0.0, float((vocabulary or 0) - 1)) if track == "codes" else (-LARGEST[track], LARGEST[track])
    if least <= low and high <= most:  # so written, NaN is not plausible
        return None
    return f"its {track} lie between {low:g} and {high:g}, where {least:g} to {most:g} is possible"
