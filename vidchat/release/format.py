"""The format of a release: the names of its files, and the format of the layout that its model was trained with.

Format 3 is that of vidchat 0.2: heard and said chunks on one clock (`vidchat.layout`). Models of formats 1 and 2 read
another sequence, so neither their releases nor the checkpoints of their runs are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FORMAT = 3
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
TOKENIZERS = ("video_vae", "audio_codec", "text_tokenizer")
FILES = (CONFIG_FILE, WEIGHTS_FILE, *(f"{name}/*.{kind}" for name in TOKENIZERS for kind in ("json", "safetensors")))
"""Patterns of a release's own files, which are uploaded to the Hub and downloaded from there."""


class ReleaseError(ValueError):
    """A folder that is not a usable release: what is wrong with it and what to do, in one sentence."""


def format_problem(source: Path | str, stated: Any) -> str | None:
    """Returns what is wrong with the format that a release or a checkpoint states; `None` if it is the present one.

    Args:
        source: The release or the checkpoint, for the message.
        stated: The number that it states.
    """
    if type(stated) is int and stated == FORMAT:
        return None
    if type(stated) is int and 0 < stated < FORMAT:
        return (
            f"{source} is of format {stated}, whose model lays a dialogue out in another way: vidchat 0.1.0 (git tag "
            "v0.1.0) is the last version that runs it; use that version, or train the model anew"
        )
    problem = "does not state its format" if stated is None else f"is of format {str(stated)[:80]!r}"
    return f"{source} {problem}; this vidchat reads format {FORMAT}: update it, or export the release again"
