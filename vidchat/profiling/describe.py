"""Numbers of `vidchat model describe`: the cost of a model before it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from vidchat.build import clock_of
from vidchat.model.responder import Responder
from vidchat.profiling.cost import (
    BRANCHES,
    DEVICES,
    Device,
    Sizes,
    Workload,
    generation_work,
    parameters,
    training_work,
)
from vidchat.profiling.count import Work
from vidchat.profiling.memory import peak_training_bytes, training_bytes
from vidchat.profiling.meta import build_without_memory, check_size, latent_grid
from vidchat.registry import to_names
from vidchat.runtime.untrusted import read_yaml
from vidchat.shipped import CONFIGS
from vidchat.tokenizers.layout import AudioLayout, VideoLayout, audio_layout, video_layout

BF16 = 2  # bytes of a value
OVERRIDES = ("model.", "video_vae.", "audio_codec.", "video_layout.", "audio_layout.")
"""Prefixes of the keys of `vidchat train` that `build` accepts, such as `model.set_causal=true`."""


@dataclass(frozen=True)
class Described:
    """Settings of `vidchat model describe`.

    Attributes:
        model: Name of a file of configs/model, or path of a YAML file.
        size: Frame size, HEIGHTxWIDTH.
        video_vae: Video tokenizer, a name in configs/video_vae.
        audio_codec: Audio codec, a name in configs/audio_codec, or none.
        said: Chunks that the responder says in a training sample; 6.25 per second at 160 ms.
        heard: Chunks of the initiator in it; 0 for a model that hears nothing.
        text: Text tokens.
        batch: Samples in a training step.
        window: Earlier steps that a step sees in generation; null for the model's own.
        sets: Number of sets in which a chunk's visual tokens are generated; null for the model's default.
        flow_steps: Evaluations of the flow head for each set; null for the model's default.
        guided: Whether generation uses classifier-free guidance.
        gpu: GPU for which the least times are given.
    """

    model: str = "tiny"
    size: tuple[int, int] = (96, 96)
    video_vae: str = "demo"
    audio_codec: str = "demo"
    said: int = 25
    heard: int = 25
    text: int = 0
    batch: int = 1
    window: int | None = None
    sets: int | None = None
    flow_steps: int | None = None
    guided: bool = False
    gpu: Literal["h100", "h200", "a100", "l40s"] = "h100"

    def __post_init__(self) -> None:
        for name in ("model", "video_vae", "audio_codec"):
            if getattr(self, name) in ("", "null"):
                raise ValueError(f"{name} must be the name of one of its configs, not null; see --help")
        for name, least in (("said", 1), ("heard", 0), ("text", 0), ("batch", 1), ("window", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")


def build(settings: Described, overrides: Sequence[str] = ()) -> tuple[Responder, Workload, float]:
    """Builds a model without allocating its weights, as `vidchat train` does for a frame size and tokenizers.

    Args:
        settings: Model, tokenizers and workload.
        overrides: Overrides of `vidchat train`, in Hydra's grammar, whose keys begin with one of `OVERRIDES`.

    Returns:
        The model, its workload, and the duration of a chunk in seconds.

    Raises:
        ValueError: The frame size does not fit the model, or the shapes of the tokens are unknown before loading.
        HydraException: A model, tokenizer or key does not exist.
    """
    config = _config(settings, overrides)
    text = "answer" if settings.text else None
    config.condition.update({"initiator": settings.heard > 0, "text": text, "caption": False})
    vae, codec = layouts(config)
    check_size(settings.size, vae)
    grid = latent_grid(settings.size, vae, config.model.get("patch", 1), config.model.get("ratio", 1))
    plain: Any = OmegaConf.to_container(config, resolve=False)
    clock = clock_of(config.data.fps, vae, codec)  # type: ignore[arg-type]
    model = build_without_memory(plain, vae, codec)
    sampling = model.sampling.changed({"sets": settings.sets, "flow_steps": settings.flow_steps})
    work = Workload(
        grid, settings.said, settings.heard, text=settings.text, batch=settings.batch,
        window=model.window if settings.window is None else settings.window, sets=sampling.sets,
        flow_steps=sampling.flow_steps, guided=settings.guided,
    )  # fmt: skip
    return model, work, float(1 / clock.chunks_per_second)


def layouts(config: DictConfig) -> tuple[VideoLayout, AudioLayout]:
    """Returns the shapes of a config's tokens; raises `ValueError` if only loaded tokenizers could tell them."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    vae = video_layout(plain["video_vae"], plain["video_layout"])
    codec = audio_layout(plain["audio_codec"], plain["audio_layout"])
    if vae is None or codec is None:
        raise ValueError("this config does not tell the shape of its tokens; choose a tokenizer with published weights")
    return vae, codec


def measure(model: Responder, work: Workload, gpu: str) -> dict[str, Any]:
    """Returns all costs in operations, bytes and seconds.

    Args:
        model: The model.
        work: Sizes of its training step, whose branch is ignored, and of a generated chunk.
        gpu: Name in `DEVICES`.

    Returns:
        The parameters of each part; `training`, the costs of a step by branch; `generation`, the costs of a chunk by
        what its step reads: `said`, or `heard_and_said`.
    """
    branches = BRANCHES if model.conditions.hears and work.heard else BRANCHES[:1]
    device = DEVICES[gpu]
    return {
        "parameters": parameters(model),
        "training": {branch: _training(model, replace(work, branch=branch), device) for branch in branches},
        "generation": {kind: _generation(parts, device) for kind, parts in generation_work(model, work).items()},
    }


def _training(model: Responder, work: Workload, device: Device) -> dict[str, Any]:
    """Returns the costs of a training step."""
    parts, moved = training_work(model, work), training_bytes(model, work)
    return {
        "tokens_per_sample": Sizes.of(model, work).sample(work),
        "flops_per_sample": {name: part.flops / work.batch for name, part in parts.items()},
        "bytes_per_step": moved,
        "peak_bytes": {
            "fp32": peak_training_bytes(model, work, 4),
            "bf16_activations": peak_training_bytes(model, work, BF16),
            "bf16_recomputed": peak_training_bytes(model, work, BF16, recompute=True),
        },
        "floor_s_per_step": device.seconds(sum(part.flops for part in parts.values()), moved),
    }


def _generation(parts: Mapping[str, Work], device: Device) -> dict[str, Any]:
    """Returns the costs of a generated chunk by part."""
    return {
        "flops": {name: part.flops for name, part in parts.items()},
        "bytes": {name: BF16 * part.values for name, part in parts.items()},
        "floor_s": {name: device.seconds(part.flops, BF16 * part.values) for name, part in parts.items()},
    }


def _config(settings: Described, overrides: Sequence[str]) -> DictConfig:
    """Returns the config of a training run with this model and these tokenizers."""
    is_file = settings.model.endswith(".yaml")
    words = ["stage=pretrain_av", "data=folder", "data.root=.", f"video_vae={settings.video_vae}"]
    words += [] if is_file else [f"model={settings.model}"]
    silent = settings.audio_codec == "none"
    words += ["model.depth=null"] if silent else [f"audio_codec={settings.audio_codec}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", [*words, *overrides])
    if is_file:
        if not Path(settings.model).is_file():
            raise ValueError(f"{settings.model} does not exist; give a name in configs/model or a YAML file")
        written = to_names(read_yaml(Path(settings.model)), foreign=False)
        fitted = {key: config.model[key] for key in ("patch", "ratio")}
        config.model = OmegaConf.merge(written, fitted, {"depth": None} if silent else {})
    return config
