"""`vidchat data encode | pack | verify`: clips to tokens, and shards."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vidchat.cli.settings import Settings, command_with, names_of, no_key, read_settings
from vidchat.runtime.errors import user_errors
from vidchat.shipped import CONFIGS, find

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omegaconf import DictConfig

    from vidchat.data.tokens.encoder import ClipEncoder

Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="The data set: a folder with dialogues.jsonl and its clips.")
]


@dataclass(frozen=True)
class EncodeSettings:
    """Division of the work of `encode`.

    Attributes:
        workers: Number of processes (or Ray tasks) that encode in parallel.
        engine: Engine that runs the workers; ray needs the extra 'ray'.
        device: Device or devices of the tokenizers, such as cpu, cuda or cuda:0,cuda:1; auto takes every GPU.
        shard_mb: Largest size of a shard, in MiB.
        shard_clips: Largest number of clips of a shard, which one worker encodes at a time.
    """

    workers: int = 1
    engine: Literal["processes", "ray"] = "processes"
    device: str = "auto"
    shard_mb: int = 512
    shard_clips: int = 64

    def __post_init__(self) -> None:
        for name in ("workers", "shard_mb", "shard_clips"):
            _check_positive(name, getattr(self, name))


@dataclass(frozen=True)
class PackSettings:
    """Settings of `pack`.

    Attributes:
        shard_mb: Largest size of a shard, in MiB.
    """

    shard_mb: int = 1024

    def __post_init__(self) -> None:
        _check_positive("shard_mb", self.shard_mb)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def register(group: typer.Typer) -> None:
    """Adds the commands to a group."""
    group.command(cls=command_with(lambda: (EncodeSettings,), _help_of_training))(encode)
    group.command(cls=command_with(lambda: (PackSettings,)))(pack)
    group.command()(verify)


def _help_of_training() -> str:
    """Returns the keys of `vidchat train` that determine the tokens, with their defaults and comments."""
    groups = ("video_vae", "audio_codec", "thinker")
    lines = [
        f"  {group}={'|'.join(sorted(file.stem for file in (CONFIGS / group).glob('*.yaml')))}" for group in groups
    ]
    lines.append("  video_vae=FOLDER, audio_codec=FOLDER: a saved tokenizer; audio_codec=none: video alone")
    data = (CONFIGS / "data" / "folder.yaml").read_text(encoding="utf-8").splitlines()
    keys = ("fps:", "size:", "allow_portrait:", "dtype:", "max_chunks:")
    lines += [f"  data.{line.replace(': ', '=', 1)}" for line in data if line.startswith(keys)]
    return "Every key of `vidchat train`; these determine the tokens:\n\n" + "\n".join(lines) + "\n"


def encode(
    data: Data,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to write to, which training reads without the clips; DATA by default."
        ),
    ] = None,
    only_answers: Annotated[
        bool, typer.Option("--only-answers", help="Encode only answers, not the turns that condition them.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the clips to encode without encoding them.")
    ] = False,
    settings: Settings = None,
) -> None:
    """Encodes every clip of a data set once, into token shards that training reads.

    The same command resumes a stopped or killed run. Train on the result with the same tokenizers and sizes:
    `vidchat train ... data=folder data.root=OUTPUT`.
    """
    from vidchat.conditions.thinker import ThinkerFeatures
    from vidchat.data.folder import manifest_of
    from vidchat.data.loading.dialogues import Dialogues
    from vidchat.data.loading.selection import Selection
    from vidchat.data.tokens.encode import Sharding, fill, plan, survey
    from vidchat.data.tokens.media_shards import copy_manifest
    from vidchat.data.tokens.token_cache import TOKENS, TokenCache

    with user_errors():
        work, words = _split(settings or [])
        manifest_of(data)  # fails before tokenizers are loaded
        encoder, data_config, features = _encoder(data, words)
        dialogues = Dialogues(data)
        longest = data_config["max_chunks"]
        chosen = Selection({"features": ThinkerFeatures(features)} if features else {}, not only_answers, longest)
        segments = (segment for dialogue in dialogues for segment in chosen.segments(dialogue))
        cache = TokenCache(data, encoder, longest, data_config["dtype"], None if output is None else output / TOKENS)
        sharding = Sharding(work.shard_clips, work.shard_mb << 20)
        if dry_run:
            count, lacking = survey(cache, segments)
            missing = sum(len(job.segments) for job in plan(cache, lacking, sharding))
            typer.echo(f"{count} segments of {len(dialogues)} dialogues, {missing} to encode, into {cache.folder}")
            return
        devices, run = _engine(work)
        skipped = dialogues.report.skipped + fill(cache, segments, devices, work.workers, run, sharding).skipped
        if output is not None:
            copy_manifest(data, output)
        for track in cache.tracks.values():
            typer.echo(_summary(track.folder))
        for position, reason in skipped:
            typer.echo(f"skipped {position}: {reason}")


def pack(
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write to: a data set whose clips lie in tars.")
    ],
    settings: Settings = None,
) -> None:
    """Packs the clips of a data set into media shards: WebDataset tars of mp4 and json, which `encode` reads too."""
    from vidchat.data.tokens.media_shards import MEDIA
    from vidchat.data.tokens.media_shards import pack as pack_shards

    with user_errors():
        report, _ = pack_shards(data, output, read_settings(PackSettings, settings).shard_mb << 20)
        typer.echo(_summary(output / MEDIA))
        for position, reason in report.skipped:
            typer.echo(f"skipped {position}: {reason}")


def verify(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A data set with token or media shards.")],
) -> None:
    """Verifies every shard of a data set against its index: SHA-256 and number of bytes."""
    from vidchat.data.tokens.shards import ShardError, problems

    with user_errors():
        folders = sorted(path.parent for pattern in ("*/index.json", "*/*/index.json") for path in data.glob(pattern))
        if not folders:
            raise ShardError(f"{data}: holds no shards; make some with 'vidchat data encode' or 'vidchat data pack'")
        faults = [problem for folder in folders for problem in problems(folder)]
        for problem in faults:
            typer.echo(problem)
        typer.echo(f"{len(folders)} folders of shards, {len(faults)} problems")
        raise typer.Exit(1 if faults else 0)


def tokenizers(video_vae: str, audio_codec: str) -> tuple[Any, Any]:
    """Returns a video tokenizer and an audio codec (`None` for "none") by config name or folder."""
    from hydra.utils import instantiate

    config, audio = _config(Path("."), [f"video_vae={video_vae}", f"audio_codec={audio_codec}"])
    return instantiate(config.video_vae), instantiate(config.audio_codec) if audio else None


def _split(words: Sequence[str]) -> tuple[EncodeSettings, list[str]]:
    """Returns the settings of the work, and the words for Hydra."""
    own = [word for word in words if word.partition("=")[0] in names_of(EncodeSettings)]
    return read_settings(EncodeSettings, own), [word for word in words if word not in own]


def _config(data: Path, words: Sequence[str]) -> tuple[DictConfig, bool]:
    """Returns the config of `vidchat train`, and whether audio is encoded; raises `ValueError`."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from vidchat.cli.overrides import override, read_size

    overrides = [hydra for word in words for hydra in _for_hydra(word)]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose("train", ["stage=pretrain_av", "data=folder", override("data.root", data), *overrides])
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ValueError(_refusal(error)) from None
    return read_size(config), "audio_codec=none" not in words


def _for_hydra(word: str) -> list[str]:
    """Returns a setting as Hydra reads it; a tokenizer may be named by its folder."""
    from vidchat.cli.overrides import TRAIN_PATHS, literally, override

    key, _, value = word.partition("=")
    if key in ("video_vae", "audio_codec") and find(value).is_dir():
        return [f"{key}=demo", override(f"{key}.directory", value)]
    return [] if word == "audio_codec=none" else literally([word], TRAIN_PATHS)


def _refusal(error: Exception) -> str:
    """Hydra's error in one sentence."""
    from vidchat.cli.overrides import explain_error

    unknown = re.match(r"Could not override '(.+?)'\.", str(error))
    if unknown and get_close_matches(unknown[1], names_of(EncodeSettings)):
        return no_key(unknown[1], names_of(EncodeSettings))
    if str(error).startswith("Config group override"):
        return "a group, such as thinker, must be given the name of one of its configs, not null; see --help"
    return explain_error(error, "train")


def _encoder(data: Path, words: list[str]) -> tuple[ClipEncoder, dict[str, Any], int]:
    """Returns the encoder that the config of `vidchat train` describes, the data config, and the thinker's width."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from vidchat.data.tokens.encoder import ClipEncoder
    from vidchat.training.config_values import wrong_values

    config, audio = _config(data, words)
    data_config: dict[str, Any] = OmegaConf.to_container(config.data, resolve=True)  # type: ignore[assignment]
    if wrong := "; ".join(wrong_values({"data": data_config})):
        raise ValueError(wrong)
    codec = instantiate(config.audio_codec) if audio else None
    thinker = instantiate(config.thinker)  # None where there is none
    vae, size = instantiate(config.video_vae), (data_config["size"][0], data_config["size"][1])
    return (
        ClipEncoder(vae, codec, data_config["fps"], size, data_config["allow_portrait"], thinker),
        data_config,
        config.condition.features,
    )


def _engine(work: EncodeSettings) -> tuple[list[str], Callable[..., None] | None]:
    """Returns the devices, and the function that runs the workers. A Ray task sees only its assigned GPU."""
    from vidchat.data.tokens.encode import on_ray
    from vidchat.runtime.devices import usable

    devices = _devices(work.device)
    if work.engine == "processes":
        return [usable(device) for device in devices], None
    gpu = any(device.startswith("cuda") for device in devices)
    return ["cuda" if gpu else "cpu"], partial(on_ray, gpus=int(gpu))


def _devices(name: str) -> list[str]:
    import torch

    if name != "auto":
        return name.split(",")
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def _summary(folder: Path) -> str:
    index = json.loads((folder / "index.json").read_text())
    return f"{folder}: {index['samples']} samples in {index['shards']} shards, {index['bytes'] / 2**20:.1f} MiB"
