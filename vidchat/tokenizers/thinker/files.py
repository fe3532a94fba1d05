"""A thinker's files: its folder, local or downloaded from the Hub, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vidchat.runtime.hub import HubError, download
from vidchat.tokenizers.weights import TokenizerError

PREFIX = "thinker."  # prefix of the thinker's tensors in the files of a complete Qwen2.5-Omni
PATTERNS = ["*.safetensors", "*.json", "*.txt"]


def find_folder(name: str) -> Path:
    """Returns a local folder, or the folder of a Hub repository, which is downloaded if it is not cached.

    Raises:
        TokenizerError: there is no such folder or repository, or the Hub cannot be reached.
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
    """Returns the fingerprint of a thinker: 16 hex digits over settings and each tensor's name, shape and first row.

    It does not cover every weight, because there are billions. Fine-tuning changes all rows.

    Raises:
        TokenizerError: the folder holds no weights.
    """
    rows: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is not a dictionary
                tensor = file.get_slice(name)
                row = tensor[:1] if tensor.get_shape() else file.get_tensor(name)
                rows[f"{name} {tensor.get_shape()} {tensor.get_dtype()}"] = row.float().numpy().tobytes()
    if not rows:
        raise TokenizerError(f"{folder} holds no *.safetensors, so it is not a thinker; copy the whole folder")
    # The files of a complete Qwen2.5-Omni hold its talker too, which has no part in the features.
    own = {key.removeprefix(PREFIX): row for key, row in rows.items() if key.startswith(PREFIX)} or rows
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, row in sorted(own.items()):
        digest.update(key.encode() + row)
    return digest.hexdigest()[:16]
