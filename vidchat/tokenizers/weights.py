"""A tokenizer on disk (`config.json` and `model.safetensors` in a folder) and its fingerprint.

Token caches and releases compare fingerprints: two tokenizers of the same fingerprint turn the same input into the same
tokens. The fingerprint covers the class, its configuration and every weight in memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidchat.runtime.atomic import atomic_folder
from vidchat.runtime.finite import not_finite
from vidchat.runtime.untrusted import no_larger_than
from vidchat.shipped import find

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_OS_ERROR = re.compile(r"os error (\d+)")


class TokenizerError(ValueError):
    """A tokenizer cannot be loaded, or cannot take its input."""


def load_error(name: str, kind: str, subfolder: str | None, error: Exception) -> TokenizerError:
    """Returns the error to raise when a library cannot load class `kind` from a Hub name or a folder."""
    location = f" in {subfolder}/" if subfolder else ""
    return TokenizerError(
        f"{name} cannot be loaded as {kind}: {str(error).strip().splitlines()[0]}; give the Hub name of a published "
        f"model (its download needs the network once) or a folder that holds one{location}"
    )


def fingerprint(module: nn.Module, config: Mapping[str, Any]) -> str:
    """Returns the fingerprint of a tokenizer: 16 hex digits of sha256 over its class, configuration and weights.

    Buffers that are not persistent are left out: the configuration determines them. The device has no part in it; the
    dtype has, because a tokenizer in half precision gives other tokens.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([type(module).__name__, config], sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_tokenizer(
    directory: str | Path, module: nn.Module, config: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Writes `config.json` and `model.safetensors`, both or neither; other files of the folder stay.

    Args:
        directory: The folder; created if absent.
        module: The tokenizer. Its class name is written beside the configuration and checked at load.
        config: JSON-serialisable keyword arguments that rebuild the module.
        dtype: Type in which floating-point tensors are stored, e.g. `torch.float16` for a small file. They are loaded
            as float32, rounded; call `round_weights` first if the module in memory must have the file's fingerprint.

    Raises:
        TokenizerError: a weight is not finite in the stored type.
        OSError: the folder cannot be written; its old files stay.
    """
    tensors = {name: _to_stored(value, dtype) for name, value in module.state_dict().items()}
    broken = not_finite(tensors)
    if broken is not None:
        raise TokenizerError(f"{directory} is not written: {broken}")
    with atomic_folder(directory) as folder:
        write_weights(folder / WEIGHTS_FILE, tensors, type(module).__name__)
        text = json.dumps({"kind": type(module).__name__, "config": dict(config)}, indent=2, sort_keys=True)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def write_weights(path: Path, tensors: dict[str, Tensor], kind: str) -> None:
    """Writes contiguous tensors to a safetensors file, readable for all users, with `kind` in its metadata.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt", "kind": kind})
    except SafetensorError as error:  # it has the operating system's error code in its text only
        code = _OS_ERROR.search(str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error), str(path)) from error
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def load_config(directory: str | Path, kind: str) -> dict[str, Any]:
    """Reads the configuration that `save_tokenizer` wrote for the class named `kind`.

    Raises:
        TokenizerError: the folder holds no tokenizer, or one of another class.
    """
    path = find(directory) / CONFIG_FILE
    if not path.is_file():
        raise TokenizerError(f"{directory} holds no tokenizer: {CONFIG_FILE} is missing; give the folder save() wrote")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        saved_kind, config = record["kind"], record["config"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TokenizerError(f"{path} is not a tokenizer's configuration: it needs 'kind' and 'config'") from error
    if saved_kind != kind:
        raise TokenizerError(
            f"{directory} holds a {saved_kind}, not a {kind}; choose the config group entry of {saved_kind}"
        )
    return dict(config)


def load_weights(directory: str | Path, module: nn.Module) -> None:
    """Loads `model.safetensors` into a module built from the same folder's configuration.

    Raises:
        TokenizerError: the file is absent or unreadable, its tensors do not fit the module, or one is not finite.
    """
    path = _weights_path(directory)
    try:
        tensors = load_file(path)
        stored = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        module.load_state_dict(stored)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TokenizerError(f"{path} does not fit the {type(module).__name__} of its config.json: {reason}") from error
    broken = not_finite(stored)
    if broken is not None:
        raise TokenizerError(f"{path} is damaged: {broken}; copy the folder again, or train the tokenizer again")


def _weights_path(directory: str | Path) -> Path:
    path = find(directory) / WEIGHTS_FILE
    if not path.is_file():
        raise TokenizerError(f"{directory} holds no weights ({WEIGHTS_FILE} is missing); copy the whole folder again")
    return path


def round_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Rounds every floating-point weight and persistent buffer to values of `dtype`, in place; they stay float32."""
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.to(dtype))


def _to_stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach().cpu()
    if dtype is not None and value.is_floating_point():
        value = value.to(dtype)
    return value.clone(memory_format=torch.contiguous_format)


class SavedTokenizer(nn.Module, ABC):
    """A tokenizer that can be saved to a folder and has a fingerprint."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Returns the JSON-serialisable configuration from which `from_config` builds an untrained tokenizer."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds an untrained tokenizer from what `config` returns."""
        return cls(**config)

    def fingerprint(self) -> str:
        """Returns the fingerprint of the class, configuration, weights and buffers; see `fingerprint`."""
        return fingerprint(self, self.config())

    def save(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes `config.json` and `model.safetensors` (in `dtype`, by default as in memory) to a folder."""
        save_tokenizer(directory, self, self.config(), dtype)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Loads a tokenizer that `save` wrote, in evaluation mode.

        Raises:
            TokenizerError: the folder holds no saved tokenizer of this class.
        """
        config, weights = load_config(directory, cls.__name__), _weights_path(directory)
        try:
            with no_larger_than(weights):
                tokenizer = cls.from_config(config)
        except TokenizerError:
            raise
        except SafetensorError as error:
            raise TokenizerError(f"{weights} is damaged ({error}); copy the whole folder again") from error
        except Exception as error:  # a foreign config can be wrong in any way
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise TokenizerError(f"{directory}: {CONFIG_FILE} describes no {cls.__name__}: {reason}") from error
        load_weights(directory, tokenizer)
        return tokenizer.eval()
