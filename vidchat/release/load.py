"""Loading a release, from a folder or from the Hub, with every error in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vidchat.build import build_responder, check_thinker
from vidchat.registry import build
from vidchat.release.config import check_names, read_config
from vidchat.release.format import CONFIG_FILE, FILES, TOKENIZERS, WEIGHTS_FILE, ReleaseError
from vidchat.release.release import Release
from vidchat.runtime.finite import not_finite
from vidchat.runtime.hub import HubError, download, is_hub_name
from vidchat.runtime.untrusted import no_larger_than
from vidchat.shipped import find
from vidchat.tokenizers.thinker import Thinker


def load_release(source: Path | str, thinker: str | None = None, trust: Iterable[str] | str = ()) -> Release:
    """Loads a release from a folder, or from the Hub by `owner/name` or `owner/name@revision`.

    Args:
        source: Folder or Hub name of the release; `checkpoints/demo` ships with vidchat.
        thinker: Folder or Hub name of its thinker, if it differs from the one that the release names.
        trust: Packages beside this one whose classes the release may name; their code is run.

    Raises:
        ReleaseError: the release does not exist or is damaged, its tokenizers are not those it was trained with, or it
            names a class of a package that is not trusted; no code of that package was run.
    """
    trust = (trust,) if isinstance(trust, str) else tuple(trust)
    folder = _find_folder(source)
    config = read_config(folder)
    check_names(folder, config, trust)
    tokenizers: dict[str, Any] = {name: _load_tokenizer(folder, name, config[name], trust) for name in TOKENIZERS}
    loaded_thinker = _load_thinker(folder, config, thinker, trust)
    fingerprinted = tokenizers | ({"thinker": loaded_thinker} if loaded_thinker else {})
    _check_fingerprints(folder, fingerprinted, config["fingerprints"])
    responder = _load_responder(folder, config, tokenizers, trust)
    return Release(responder, **tokenizers, config=config, thinker=loaded_thinker, folder=folder)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Reads a release's tensors in the stored type.

    Raises:
        ReleaseError: the file is missing or damaged, or a weight is not finite.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ReleaseError(f"{folder} holds no {WEIGHTS_FILE}; copy the whole release again")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ReleaseError(f"{path} is damaged ({error}); copy the release again") from error
    damage = not_finite(tensors)
    if damage is not None:
        raise ReleaseError(f"{path} is damaged: {damage}; copy the release again, or export it anew")
    return tensors


def _find_folder(source: Path | str) -> Path:
    folder = find(source)
    if folder.exists():
        return folder
    if not is_hub_name(str(source)):
        raise ReleaseError(f"{source} does not exist; give a release folder or a Hub name such as owner/name")
    try:
        return download(str(source), FILES)
    except HubError as error:
        raise ReleaseError(str(error)) from error


def _load_tokenizer(folder: Path, name: str, node: dict[str, Any], trust: Iterable[str]) -> Any:
    if "directory" in node:
        if not (folder / name).is_dir():
            raise ReleaseError(f"{folder} lacks the folder {name}; copy the whole release again")
        node = {**node, "directory": str(folder / name)}
    return _build(folder, lambda: build(node, trust))


def _load_thinker(folder: Path, config: dict[str, Any], name: str | None, trust: Iterable[str]) -> Thinker | None:
    """Loads the thinker that a release names, or `name` in its place; its weights are not read yet."""
    if config.get("thinker") is None:
        return None
    node = config["thinker"] | ({"name": name} if name else {})
    thinker: Thinker = _build(folder, lambda: build(node, trust))
    check_thinker(thinker, config["condition"])
    return thinker


def _check_fingerprints(folder: Path, tokenizers: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    for name, tokenizer in tokenizers.items():
        if tokenizer.fingerprint() != expected.get(name):
            raise ReleaseError(
                f"{folder}: the {name} has the fingerprint {tokenizer.fingerprint()}, but the responder was trained "
                f"with {expected.get(name)}; restore the release's own {name}"
            )


def _load_responder(folder: Path, config: dict[str, Any], tokenizers: dict[str, Any], trust: Iterable[str]) -> Any:
    weights = read_weights(folder)
    model, condition, fps = config["model"], config["condition"], config["fps"]
    with no_larger_than(folder / WEIGHTS_FILE):
        responder = _build(folder, lambda: build_responder(model, condition, fps, **tokenizers, trust=trust))
    try:
        responder.load_state_dict({name: value.float() for name, value in weights.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ReleaseError(f"{folder}: {WEIGHTS_FILE} does not fit {CONFIG_FILE} ({reason}); export again") from error
    return responder.eval()


def _build(folder: Path, make: Callable[[], Any]) -> Any:
    """Returns what `make` returns; raises `ReleaseError` for any error."""
    try:
        return make()
    except Exception as error:  # a stranger's config can be wrong in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ReleaseError(f"{folder}: {CONFIG_FILE} cannot be built: {reason}") from error
