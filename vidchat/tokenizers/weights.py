"""A tokenizer on disk: `config.json` and `model.safetensors` in a folder, and the fingerprint that names it.

The fingerprint is what caches and releases compare: two tokenizers with the same fingerprint turn the same input into
the same tokens. It covers the class, its configuration and every weight, as they are in memory.
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
    """A folder that does not hold the tokenizer it is asked for, or an input that a tokenizer cannot take."""


def not_loaded(name: str, kind: str, subfolder: str | None, error: Exception) -> TokenizerError:
    """What to say when a library could not load `kind` from a Hub name or a folder."""
    place = f" in {subfolder}/" if subfolder else ""
    return TokenizerError(
        f"{name} cannot be loaded as {kind}: {str(error).strip().splitlines()[0]}; give the name of a published model "
        f"(this needs the network once) or a folder that holds one{place}"
    )


def fingerprint(module: nn.Module, config: Mapping[str, Any]) -> str:
    """Names a tokenizer by what it does: 16 hex digits of sha256 over its class, configuration and weights.

    Buffers that are not persistent (they are made from the configuration) are left out; so are names of devices, but
    not dtypes, since a tokenizer in half precision gives other tokens.
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
    """Writes `config.json` and `model.safetensors`, both or neither; files of other names stay.

    Args:
        directory: The folder; made if absent.
        module: What to save. Its class name is written beside the configuration and checked at load.
        config: What JSON can hold; the keyword arguments that rebuild the module.
        dtype: Stores floating-point tensors in this type, e.g. `torch.float16` for a small file. They come back as
            float32, rounded; `round_weights` first if the module in memory must keep the file's fingerprint.

    Raises:
        TokenizerError: a weight is not finite in the stored type.
        OSError: the folder cannot be written; what it held stays.
    """
    tensors = {name: _stored(value, dtype) for name, value in module.state_dict().items()}
    broken = not_finite(tensors)
    if broken is not None:
        raise TokenizerError(f"{directory} is not written: {broken}")
    with atomic_folder(directory) as folder:
        write_weights(folder / WEIGHTS_FILE, tensors, type(module).__name__)
        text = json.dumps({"kind": type(module).__name__, "config": dict(config)}, indent=2, sort_keys=True)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def write_weights(path: Path, tensors: dict[str, Tensor], kind: str) -> None:
    """Writes contiguous tensors to a safetensors file that says what they are of, readable for everybody.

    Raises:
        OSError: it cannot be written, e.g. since the disk is full.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt", "kind": kind})
    except SafetensorError as error:  # it has the system's error in words alone
        number = _OS_ERROR.search(str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
    path.chmod(0o644)  # safetensors writes for its owner alone


def load_config(directory: str | Path, kind: str) -> dict[str, Any]:
    """Reads the configuration that `save_tokenizer` wrote for the class named `kind`.

    Raises:
        TokenizerError: there is no tokenizer there, or it is another class's.
    """
    path = find(directory) / CONFIG_FILE
    if not path.is_file():
        raise TokenizerError(f"{directory} holds no tokenizer: {CONFIG_FILE} is missing; give the folder save() wrote")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found, config = record["kind"], record["config"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TokenizerError(f"{path} is not a tokenizer's configuration: it needs 'kind' and 'config'") from error
    if found != kind:
        raise TokenizerError(f"{directory} holds a {found}, not a {kind}; choose the config group entry of {found}")
    return dict(config)


def load_weights(directory: str | Path, module: nn.Module) -> None:
    """Loads `model.safetensors` into a module built from the same folder's configuration.

    Raises:
        TokenizerError: the file is absent or unreadable, its tensors are not this module's, or one is not finite.
    """
    path = _weights_of(directory)
    try:
        tensors = load_file(path)
        stored = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        module.load_state_dict(stored)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TokenizerError(f"{path} does not fit a {type(module).__name__} of its config.json: {reason}") from error
    broken = not_finite(stored)
    if broken is not None:
        raise TokenizerError(f"{path} is damaged: {broken}; copy the folder again, or train it anew")


def _weights_of(directory: str | Path) -> Path:
    path = find(directory) / WEIGHTS_FILE
    if not path.is_file():
        raise TokenizerError(f"{directory} holds no weights ({WEIGHTS_FILE} is missing); copy the whole folder again")
    return path


def round_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Rounds every floating-point weight and persistent buffer to what `dtype` can hold, in place, staying float32."""
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.to(dtype))


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach().cpu()
    if dtype is not None and value.is_floating_point():
        value = value.to(dtype)
    return value.clone(memory_format=torch.contiguous_format)


class SavedTokenizer(nn.Module, ABC):
    """A tokenizer that is kept in a folder and named by its fingerprint."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What rebuilds an untrained tokenizer like this one: `type(self).from_config(config)`. JSON can hold it."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The inverse of `config`."""
        return cls(**config)

    def fingerprint(self) -> str:
        """Names the tokenizer by its configuration, weights and buffers; see `fingerprint`."""
        return fingerprint(self, self.config())

    def save(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes `config.json` and `model.safetensors` (in `dtype`, default as in memory) to a folder."""
        save_tokenizer(directory, self, self.config(), dtype)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Reads what `save` wrote, in evaluation mode.

        Raises:
            TokenizerError: the folder is not a saved tokenizer of this class.
        """
        config, weights = load_config(directory, cls.__name__), _weights_of(directory)
        try:
            with no_larger_than(weights):
                tokenizer = cls.from_config(config)
        except TokenizerError:
            raise
        except SafetensorError as error:
            raise TokenizerError(f"{weights} is damaged ({error}); copy the whole folder again") from error
        except Exception as error:  # a config that somebody else wrote can be wrong in any way
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise TokenizerError(f"{directory}: {CONFIG_FILE} describes no {cls.__name__}: {reason}") from error
        load_weights(directory, tokenizer)
        return tokenizer.eval()
