"""Writing a release folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from vidchat.model.responder import Responder
from vidchat.registry import to_names
from vidchat.release.format import CONFIG_FILE, FORMAT, TOKENIZERS, WEIGHTS_FILE, ReleaseError
from vidchat.runtime.atomic import atomic_folder
from vidchat.runtime.finite import not_finite
from vidchat.shipped import find
from vidchat.tokenizers.audio import AudioCodec
from vidchat.tokenizers.text import TextTokenizer
from vidchat.tokenizers.thinker import Thinker
from vidchat.tokenizers.video import VideoTokenizer
from vidchat.tokenizers.weights import write_weights


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
    """Writes a release folder; whatever interrupts it, the folder is the old one or the complete new one.

    Args:
        directory: Folder to write; existing files with the names of a release's are replaced, others stay.
        responder: Responder with the weights to release.
        config: Resolved config of the run. The release takes `model`, `condition`, `data.fps`, `data.size`,
            `data.allow_portrait`, the tokenizers' nodes, and the stage's name and number of steps; no paths of data.
        video_vae: Video tokenizer that `config["video_vae"]` describes.
        audio_codec: Audio codec that `config["audio_codec"]` describes.
        text_tokenizer: Text tokenizer that `config["text_tokenizer"]` describes.
        dtype: Type of the stored weights; they are loaded as float32.
        thinker: Thinker that `config["thinker"]` describes, if there is one; it is not copied.

    Returns:
        The folder.

    Raises:
        ReleaseError: a weight is not finite in the stored type.
        UnknownName, FormatError: a node of the config has no name.
        OSError: the folder cannot be written; its former content stays.
    """
    tensors = {name: value.detach().cpu().to(dtype).contiguous() for name, value in responder.state_dict().items()}
    damage = not_finite(tensors)
    if damage is not None:
        raise ReleaseError(f"{directory} is not written: {damage}")
    tokenizers: dict[str, Any] = dict(zip(TOKENIZERS, (video_vae, audio_codec, text_tokenizer), strict=True))
    with atomic_folder(directory) as folder:
        released = {
            "kind": "responder",
            "format": FORMAT,
            "stage": {key: config["stage"][key] for key in ("name", "steps")},
            "fps": config["data"]["fps"],
            "size": list(config["data"]["size"]),
            "allow_portrait": bool(config["data"].get("allow_portrait", False)),
            "model": to_names(config["model"]),
            "condition": to_names(config["condition"]),
            **{name: _copy_tokenizer(config[name], folder / name) for name in TOKENIZERS},
            "fingerprints": {name: tokenizer.fingerprint() for name, tokenizer in tokenizers.items()},
        }
        if thinker is not None:
            released["thinker"] = to_names(config["thinker"])
            released["fingerprints"]["thinker"] = thinker.fingerprint()
        write_weights(folder / WEIGHTS_FILE, tensors, "responder")
        OmegaConf.save(OmegaConf.create(released), folder / CONFIG_FILE, resolve=True)
    return Path(directory)


def _copy_tokenizer(node: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """Returns a tokenizer's config node for the release, and copies the tokenizer if it lies in a local folder."""
    named: dict[str, Any] = to_names(node)
    if "directory" in named:
        target.mkdir(exist_ok=True)
        for file in find(named["directory"]).iterdir():
            if file.suffix in (".json", ".safetensors"):
                shutil.copyfile(file, target / file.name)
        named["directory"] = target.name
    return named
