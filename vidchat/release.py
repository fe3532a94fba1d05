"""A release: a folder from which a trained responder is loaded by one call, here or from the Hub.

    model.safetensors   the averaged weights
    config.yaml         the model, its conditions, its working rates, its tokenizers: by names of `vidchat.registry`,
                        never by import paths; the tokenizers' fingerprints
    video_vae/          a copy of the video tokenizer, unless it has a name on the Hub
    audio_codec/        likewise

A thinker, if the responder is conditioned on one, is only named: its weights are many times the responder's.
The fingerprints are compared at load: a responder speaks the language of its tokenizers and of no others.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file

from vidchat.build import build_responder, check_thinker, clock_of
from vidchat.conditions.base import Condition
from vidchat.dialogue import ChunkClock
from vidchat.hub import HubError, download, is_hub_name, upload
from vidchat.model.graphs import CapturedLoops
from vidchat.model.responder import Responder
from vidchat.model_card import CardDetails, model_card, part_sizes
from vidchat.registry import UnknownName, build, look_up, names_in
from vidchat.release_format import FORMAT, FormatError, from_format_1, names_of_weights, to_names
from vidchat.runtime.atomic import atomic_folder
from vidchat.runtime.finite import not_finite
from vidchat.runtime.untrusted import UntrustedError, no_larger_than, read_yaml
from vidchat.shipped import find
from vidchat.tokenizers.audio import AudioCodec
from vidchat.tokenizers.text import TextTokenizer
from vidchat.tokenizers.thinker import Thinker
from vidchat.tokenizers.video import VideoTokenizer
from vidchat.tokenizers.weights import write_weights

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
TOKENIZERS = ("video_vae", "audio_codec", "text_tokenizer")
FILES = (CONFIG_FILE, WEIGHTS_FILE, *(f"{name}/*.{kind}" for name in TOKENIZERS for kind in ("json", "safetensors")))
"""Patterns of a release's own files: what goes to the Hub and comes from there."""

MOST_FPS, MOST_PIXELS = 240, 8192


def _whole(value: Any, most: int) -> bool:
    return type(value) is int and 0 < value <= most


def _named(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


_SHAPES: dict[str, Callable[[Any], bool]] = {
    "fps": lambda value: _whole(value, MOST_FPS),
    "size": lambda value: isinstance(value, list) and len(value) == 2 and all(_whole(n, MOST_PIXELS) for n in value),
    "allow_portrait": lambda value: isinstance(value, bool | None),
    "thinker": lambda value: value is None or _named(value),
    **{key: lambda value: isinstance(value, dict) for key in ("condition", "fingerprints")},
    **dict.fromkeys(("model", *TOKENIZERS), _named),
}
"""What a release's config must hold, besides what is checked when it is built."""
_RENAMED = {"turn": "allow_portrait"}  # keys as format 2 first had them


class ReleaseError(ValueError):
    """A folder that is not a usable release: what is wrong with it and what to do, in one sentence."""


@dataclass
class Release:
    """A trained responder and the tokenizers it was trained with.

    Attributes:
        responder: In evaluation mode.
        video_vae: Pixels <-> latents.
        audio_codec: Waveform <-> codes.
        text_tokenizer: Text -> ids.
        config: What `config.yaml` holds, in the words of the present format; `fps` and `size` are the working rates.
        thinker: What it understands initiators with, if it does; `None` also where features are given as tensors.
        graphs: Captured in its answers, for the next ones.
        folder: Where it was loaded from; `None` for one that was not.
    """

    responder: Responder
    video_vae: VideoTokenizer
    audio_codec: AudioCodec
    text_tokenizer: TextTokenizer
    config: dict[str, Any]
    thinker: Thinker | None = None
    graphs: CapturedLoops = field(default_factory=CapturedLoops)
    folder: Path | None = None

    @property
    def clock(self) -> ChunkClock:
        """How long a chunk is."""
        return clock_of(self.config["fps"], self.video_vae, self.audio_codec)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames it was trained on."""
        height, width = self.config["size"]
        return height, width

    @property
    def conditions(self) -> dict[str, Condition]:
        """The conditions that the responder reads, by name."""
        return self.responder.conditions.used

    @property
    def hears(self) -> bool:
        """Whether the responder hears the initiator's clip."""
        return self.responder.conditions.hears

    @property
    def allow_portrait(self) -> bool:
        """Whether it was trained on frames of (width, height), too; releases that do not say were not."""
        return bool(self.config.get("allow_portrait", False))

    def model_card(self, name: str, details: CardDetails | None = None) -> str:
        """Returns the text of its model card; see `vidchat.model_card`. `name` stands in the commands of the card."""
        networks = {"responder": self.responder, "video_vae": self.video_vae, "audio_codec": self.audio_codec}
        return model_card(self.config, self.clock, part_sizes(networks), name, details or CardDetails(), self.folder)

    def push_to_hub(
        self, target: str, details: CardDetails | None = None, private: bool = False, api: Any = None
    ) -> str:
        """Uploads its folder and its model card in one commit; returns the commit's address.

        Args:
            target: `owner/name` of a repository, which is made if absent; `owner/name@branch` for another than `main`.
            details: What the card says that it does not know of itself.
            private: Whether a repository that is made now is private; else it is as its owner sets by default.
            api: Client, a `huggingface_hub.HfApi`; one of the default address if not given.

        Raises:
            ReleaseError: it was not loaded from a folder.
            HubError, CardError, ResultError: see `vidchat.hub` and `vidchat.model_card`.
        """
        if self.folder is None:
            raise ReleaseError("a release is pushed from its folder; write it by export_release and load that")
        return upload(self.folder, target, FILES, self.model_card(target, details), private, api)


def export_release(
    directory: Path | str,
    responder: Responder,
    config: Mapping[str, Any],
    video_vae: VideoTokenizer,
    audio_codec: AudioCodec,
    text_tokenizer: TextTokenizer,
    dtype: torch.dtype = torch.float32,
    thinker: Thinker | None = None,
) -> Path:
    """Writes a release folder.

    Args:
        directory: The folder; what it held under the same names is replaced, other files stay.
        responder: With the weights to release.
        config: The run's resolved config: `model`, `condition`, `data.fps`, `data.size`, `data.allow_portrait` and
            the three tokenizers' nodes are kept, with the stage's name and number of steps; paths of data are not.
        video_vae: The tokenizer named by `config["video_vae"]`, and so on.
        audio_codec: See above.
        text_tokenizer: See above.
        dtype: Of the stored weights; they are loaded as float32.
        thinker: That of `config["thinker"]`, if there is one; not copied.

    Returns:
        The folder: the old one or the new, whole, whatever happens meanwhile.

    Raises:
        ReleaseError: a weight is not finite in the stored type.
        UnknownName, FormatError: a part of the config cannot be named.
        OSError: the folder cannot be written; what it held stays.
    """
    tensors = {name: value.detach().cpu().to(dtype).contiguous() for name, value in responder.state_dict().items()}
    broken = not_finite(tensors)
    if broken is not None:
        raise ReleaseError(f"{directory} is not written: {broken}")
    with atomic_folder(directory) as folder:
        tools: dict[str, Any] = dict(zip(TOKENIZERS, (video_vae, audio_codec, text_tokenizer), strict=True))
        kept = {
            "kind": "responder",
            "format": FORMAT,
            "stage": {key: config["stage"][key] for key in ("name", "steps")},
            "fps": config["data"]["fps"],
            "size": list(config["data"]["size"]),
            "allow_portrait": bool(config["data"].get("allow_portrait", False)),
            "model": to_names(config["model"]),
            "condition": to_names(config["condition"]),
            **{name: _carry(folder / name, config[name]) for name in TOKENIZERS},
            "fingerprints": {name: tool.fingerprint() for name, tool in tools.items()},
        }
        if thinker is not None:
            kept["thinker"] = to_names(config["thinker"])
            kept["fingerprints"]["thinker"] = thinker.fingerprint()
        write_weights(folder / WEIGHTS_FILE, tensors, "responder")
        OmegaConf.save(OmegaConf.create(kept), folder / CONFIG_FILE, resolve=True)
    return Path(directory)


def load_release(source: Path | str, thinker: str | None = None, trust: Iterable[str] | str = ()) -> Release:
    """Loads a release from a folder, or from the Hub by `owner/name` or `owner/name@revision`.

    Args:
        source: The release; `checkpoints/demo` ships with vidchat.
        thinker: Where its thinker lies here, if not under the name that the release gives.
        trust: Packages beside this one that it may have parts of; their code is run.

    Raises:
        ReleaseError: it is not there, not a release, damaged, its tokenizers are not those it was trained with, or it
            has parts of a package that is not trusted; no code of that package was run.
    """
    trust = (trust,) if isinstance(trust, str) else tuple(trust)
    folder = _locate(source)
    config = read_config(folder)
    _check_names(folder, config, trust)
    tools: dict[str, Any] = {name: _load_tokenizer(folder, name, config[name], trust) for name in TOKENIZERS}
    mind = _load_thinker(folder, config, thinker, trust)
    for name, tool in (tools | ({"thinker": mind} if mind else {})).items():
        if tool.fingerprint() != config["fingerprints"].get(name):
            raise ReleaseError(
                f"{folder}: the {name} found is {tool.fingerprint()}, but the responder was trained with "
                f"{config['fingerprints'].get(name)}; restore the release's own {name}"
            )
    weights = read_weights(folder)
    model, condition, fps = config["model"], config["condition"], config["fps"]
    with no_larger_than(folder / WEIGHTS_FILE):
        responder = _build(folder, lambda: build_responder(model, condition, fps, **tools, trust=trust))
    try:
        responder.load_state_dict({name: value.float() for name, value in weights.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ReleaseError(f"{folder}: {WEIGHTS_FILE} does not fit {CONFIG_FILE} ({reason}); export again") from error
    return Release(responder.eval(), **tools, config=config, thinker=mind, folder=folder)


def read_config(folder: Path) -> dict[str, Any]:
    """A release's config, checked: its kind, its format, its keys. One of format 1 comes in the words of format 2.

    Raises:
        ReleaseError: see `load_release`.
    """
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        hint = "a training checkpoint" if folder.suffix == ".ckpt" else "a file"
        raise ReleaseError(f"{folder} is {hint}, not a release; give the folder that train.py exported")
    if not path.is_file():
        what = "a tokenizer's folder" if (folder / "config.json").is_file() else "a folder without config.yaml"
        raise ReleaseError(f"{folder} is {what}, not a release; give the folder that train.py exported")
    try:
        config = read_yaml(path)
    except (OSError, UntrustedError) as error:
        raise ReleaseError(str(error)) from error
    if not isinstance(config, dict) or config.get("kind") != "responder":
        raise ReleaseError(f"{path} is not the config of a responder's release; export it again")
    config = _of_this_format(path, config)
    missing = {"fps", "size", "model", "condition", "fingerprints", *TOKENIZERS} - config.keys()
    if missing:
        raise ReleaseError(f"{path} lacks {', '.join(sorted(missing))}; export the release again")
    wrong = [key for key, right in _SHAPES.items() if not right(config.get(key))]
    if wrong:
        raise ReleaseError(f"{path}: {wrong[0]} cannot be {str(config.get(wrong[0]))[:80]!r}; export the release again")
    return {str(key): value for key, value in config.items()}


def _of_this_format(path: Path, config: dict[Any, Any]) -> dict[Any, Any]:
    stated = config.get("format")
    if type(stated) is int and stated == FORMAT:
        return {_RENAMED.get(key, key): value for key, value in config.items()}
    if type(stated) is int and stated == 1:
        try:
            named: dict[Any, Any] = from_format_1(config)
        except FormatError as error:
            raise ReleaseError(f"{path}: {error}") from error
        return named | {"format": FORMAT}
    said = "does not state its format" if stated is None else f"is of format {str(stated)[:80]!r}"
    raise ReleaseError(f"{path} {said}; this vidchat reads formats 1 to {FORMAT}: take a newer one, or export it again")


def _check_names(folder: Path, config: Mapping[str, Any], trust: Iterable[str]) -> None:
    """Raises `ReleaseError` if a part has a name that is unknown here, before any is built."""
    try:
        for part in ("model", "condition", *TOKENIZERS, "thinker"):
            for name in names_in(config.get(part)):
                look_up(name, trust)
    except UnknownName as error:
        raise ReleaseError(f"{folder / CONFIG_FILE}: {error}") from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """A release's tensors, as stored, by the names that they have now.

    Raises:
        ReleaseError: they are absent or damaged, or one is not finite.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ReleaseError(f"{folder} holds no {WEIGHTS_FILE}; copy the whole release again")
    try:
        tensors = names_of_weights(load_file(path))
    except SafetensorError as error:
        raise ReleaseError(f"{path} is damaged ({error}); copy the release again") from error
    broken = not_finite(tensors)
    if broken is not None:
        raise ReleaseError(f"{path} is damaged: {broken}; copy the release again, or export it anew")
    return tensors


def _carry(target: Path, node: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's config node for the release; a tokenizer that lies in a folder is copied along."""
    named: dict[str, Any] = to_names(node)
    if "directory" in named:
        target.mkdir(exist_ok=True)
        for file in find(named["directory"]).iterdir():
            if file.suffix in (".json", ".safetensors"):
                shutil.copyfile(file, target / file.name)
        named["directory"] = target.name
    return named


def _load_tokenizer(folder: Path, name: str, node: dict[str, Any], trust: Iterable[str]) -> Any:
    if "directory" in node:
        if not (folder / name).is_dir():
            raise ReleaseError(f"{folder} lacks the folder {name}; copy the whole release again")
        node = {**node, "directory": str(folder / name)}
    return _build(folder, lambda: build(node, trust))


def _load_thinker(folder: Path, config: dict[str, Any], name: str | None, trust: Iterable[str]) -> Thinker | None:
    """The thinker that a release names, from there or from `name`; its weights are not read yet."""
    if config.get("thinker") is None:
        return None
    node = config["thinker"] | ({"name": name} if name else {})
    thinker: Thinker = _build(folder, lambda: build(node, trust))
    check_thinker(thinker, config["condition"])
    return thinker


def _build(folder: Path, make: Any) -> Any:
    """What `make` builds."""
    try:
        return make()
    except Exception as error:  # a config that somebody else wrote can be wrong in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ReleaseError(f"{folder}: {CONFIG_FILE} cannot be built: {reason}") from error


def _locate(source: Path | str) -> Path:
    folder = find(source)
    if folder.exists():
        return folder
    if not is_hub_name(str(source)):
        raise ReleaseError(f"{source} does not exist; give a release folder or a Hub id such as owner/name")
    try:
        return download(str(source), FILES)
    except HubError as error:
        raise ReleaseError(str(error)) from error
