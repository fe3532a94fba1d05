"""A thinker's files: a folder, here or fetched from the Hub, and the fingerprint that names what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vidchat.runtime.hub import HubError, download
from vidchat.tokenizers.weights import TokenizerError

PREFIX = "thinker."  # of a thinker's tensors in the files of a whole Qwen2.5-Omni
PATTERNS = ["*.safetensors", "*.json", "*.txt"]


def locate(name: str) -> Path:
    """The folder of that name, or that of a repository on the Hub, fetched if need be.

    Raises:
        TokenizerError: there is none, or it cannot be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    try:
        return download(name, PATTERNS)
    except HubError as error:
        raise TokenizerError(
            f"the thinker {error}; otherwise give a folder with its config.json and *.safetensors"
        ) from error


def weights_digest(folder: Path, settings: Mapping[str, Any]) -> str:
    """Names a thinker by what it does: 16 hex digits over settings and each tensor's name, shape and first row.

    Not over every weight: there are billions, and nothing but the files is read. Fine-tuning changes them all.

    Raises:
        TokenizerError: the folder holds no weights.
    """
    rows: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dictionary
                tensor = file.get_slice(name)
                row = tensor[:1] if tensor.get_shape() else file.get_tensor(name)
                rows[f"{name} {tensor.get_shape()} {tensor.get_dtype()}"] = row.float().numpy().tobytes()
    if not rows:
        raise TokenizerError(f"{folder} holds no *.safetensors, so no thinker can be loaded; copy the whole folder")
    # The files of a whole Qwen2.5-Omni hold its talker too, which is none of the thinker's business.
    own = {told.removeprefix(PREFIX): row for told, row in rows.items() if told.startswith(PREFIX)} or rows
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for told, row in sorted(own.items()):
        digest.update(told.encode() + row)
    return digest.hexdigest()[:16]
