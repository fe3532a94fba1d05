"""`vidchat data encode | pack | verify`: clips to tokens, and shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidchat.errors import plainly
from vidchat.shipped import CONFIGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from omegaconf import DictConfig

    from vidchat.data.tokens.encoder import ClipEncoder

Data = Annotated[Path, typer.Option(help="The data set: a folder with dialogues.jsonl and its clips.")]


def register(group: typer.Typer) -> None:
    """Adds the commands to a group."""
    for command in (encode, pack, verify):
        group.command()(command)


def encode(
    data: Data,
    output: Annotated[
        Path | None,
        typer.Option(help="Where to: a folder that training reads without the clips. By default DATA itself."),
    ] = None,
    video_vae: Annotated[str, typer.Option(help="A name of configs/video_vae, or a folder of a saved one.")] = "demo",
    audio_codec: Annotated[
        str, typer.Option(help="A name of configs/audio_codec, a folder of a saved one, or 'none'.")
    ] = "demo",
    thinker: Annotated[str, typer.Option(help="A name of configs/thinker, for its features of questions.")] = "none",
    fps: Annotated[int | None, typer.Option(help="Pictures per second; by default the config's.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of the pictures, e.g. 768x480.")] = None,
    turn: Annotated[bool, typer.Option(help="Bring clips that lie the other way round to WIDTHxHEIGHT.")] = False,
    max_chunks: Annotated[
        int | None, typer.Option(help="The longest piece, in chunks. Training may ask for less, not for more.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of latents on the disk: float32, float16 or bfloat16.")] = None,
    only_answers: Annotated[bool, typer.Option(help="Leave out what only conditions an answer.")] = False,
    workers: Annotated[int, typer.Option(help="Processes (or Ray tasks) that encode at the same time.")] = 1,
    engine: Annotated[str, typer.Option(help="What runs the workers: processes, or ray (extra 'ray').")] = "processes",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or some, e.g. cuda:0,cuda:1.")] = "auto",
    shard_mb: Annotated[int, typer.Option(help="Of the largest shard, in MiB.")] = 512,
    shard_clips: Annotated[int, typer.Option(help="Clips of the largest shard; what one worker takes at a time.")] = 64,
    dry_run: Annotated[bool, typer.Option(help="Say what would be encoded, and stop.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="More settings as train.py takes them, e.g. audio_codec.codebooks=4.")
    ] = None,
) -> None:
    """Encodes every clip of a data set once, into token shards that training reads.

    Stopped (or killed) and started again, it goes on where it was. The result can be trained on with
    `python train.py ... data=folder data.root=OUTPUT` and the same tokenizers and sizes.
    """
    from vidchat.cli.hydra_words import TRAIN_PATHS, literally
    from vidchat.data.folder import manifest_of, open_folder
    from vidchat.data.loading.conditions import Conditions
    from vidchat.data.tokens.cache import TOKENS, TokenCache
    from vidchat.data.tokens.encode import Sharding, fill, plan, survey
    from vidchat.data.tokens.media_shards import copy_manifest
    from vidchat.devices import usable

    with plainly():
        if engine not in ("processes", "ray"):
            raise ValueError(f"--engine must be processes or ray, not {engine}")
        manifest_of(data)  # before tokenizers are loaded
        words = [*_tokenizer("video_vae", video_vae), *_tokenizer("audio_codec", audio_codec)]
        words += literally(overrides or [], TRAIN_PATHS)
        words += [f"thinker={thinker}"]
        words += [f"data.fps={fps}"] * (fps is not None) + [f"data.dtype={dtype}"] * (dtype is not None)
        words += [f"data.max_chunks={max_chunks}"] * (max_chunks is not None) + ["data.turn=true"] * turn
        words += [f"data.size=[{size.replace('x', ',')}]"] if size is not None else []
        encoder, point, features = _encoder(data, words, audio_codec != "none")
        dialogues, report = open_folder(data, media=False)
        turns, longest = not only_answers, point["max_chunks"]
        chosen = Conditions(initiator=turns, earlier_turns=turns, features=features, max_chunks=longest)
        pieces = (piece for dialogue in dialogues for piece in chosen.pieces(dialogue))
        folder = None if output is None else output / TOKENS
        cache = TokenCache(data, encoder, longest, point["dtype"], folder)
        sharding = Sharding(shard_clips, shard_mb << 20)
        if dry_run:
            count, lacking = survey(cache, pieces)
            missing = sum(len(job.pieces) for job in plan(cache, lacking, sharding))
            typer.echo(f"{count} pieces of {len(dialogues)} dialogues, {missing} to encode, into {cache.folder}")
            return
        devices, run = _on_ray(_devices(device)) if engine == "ray" else (list(map(usable, _devices(device))), None)
        report.skipped += fill(cache, pieces, devices, workers, run, sharding).skipped
        if output is not None:
            copy_manifest(data, output)
        for track in cache.tracks.values():
            typer.echo(_told(track.folder))
        for where, why in report.skipped:
            typer.echo(f"skipped {where}: {why}")


def pack(
    data: Data,
    output: Annotated[Path, typer.Option(help="Where to: a data set whose clips lie in tars.")],
    shard_mb: Annotated[int, typer.Option(help="Of the largest shard, in MiB.")] = 1024,
) -> None:
    """Puts the clips of a data set into media shards: WebDataset tars of mp4 and json, which `encode` reads too."""
    from vidchat.data.tokens.media_shards import MEDIA
    from vidchat.data.tokens.media_shards import pack as pack_shards

    with plainly():
        report, _ = pack_shards(data, output, shard_mb << 20)
        typer.echo(_told(output / MEDIA))
        for where, why in report.skipped:
            typer.echo(f"skipped {where}: {why}")


def verify(data: Annotated[Path, typer.Option(help="A data set with token or media shards.")]) -> None:
    """Reads every shard of a data set and compares it with its index: SHA-256, number of bytes."""
    from vidchat.data.tokens.shards import ShardError, problems

    with plainly():
        folders = sorted(path.parent for pattern in ("*/index.json", "*/*/index.json") for path in data.glob(pattern))
        if not folders:
            raise ShardError(f"{data}: holds no shards; make some with 'vidchat data encode' or 'vidchat data pack'")
        found = [told for folder in folders for told in problems(folder)]
        for told in found:
            typer.echo(told)
        typer.echo(f"{len(folders)} folders of shards, {len(found)} problems")
        raise typer.Exit(1 if found else 0)


def _tokenizer(group: str, told: str) -> list[str]:
    """Overrides for a tokenizer that is named by its config or by its folder."""
    from vidchat.cli.hydra_words import override

    if Path(told).is_dir():
        return [f"{group}=demo", override(f"{group}.directory", told)]
    return [] if told == "none" else [f"{group}={told}"]


def _config(data: Path, words: list[str]) -> DictConfig:
    """train.py's config; raises `ValueError`."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from vidchat.cli.hydra_words import override

    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("train", ["stage=pretrain_av", "data=folder", override("data.root", data), *words])
    except (HydraException, OmegaConfBaseException) as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{why}; tokenizers are named by their configs or folders, see {CONFIGS}") from None


def _encoder(data: Path, words: list[str], sound: bool) -> tuple[ClipEncoder, dict[str, Any], int]:
    """What encodes, as train.py's config makes it; the config of the data; and the width of a thinker's features."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from vidchat.data.tokens.encoder import ClipEncoder

    config = _config(data, words)
    point: dict[str, Any] = OmegaConf.to_container(config.data, resolve=True)  # type: ignore[assignment]
    codec = instantiate(config.audio_codec) if sound else None
    thinker = instantiate(config.thinker)  # None where there is none
    vae, size = instantiate(config.video_vae), (point["size"][0], point["size"][1])
    return ClipEncoder(vae, codec, point["fps"], size, point["turn"], thinker), point, config.condition.features


def tokenizers(video_vae: str, audio_codec: str) -> tuple[Any, Any]:
    """A video tokenizer and an audio codec (or `None` for "none") by their configs' names or their folders."""
    from hydra.utils import instantiate

    config = _config(Path("."), [*_tokenizer("video_vae", video_vae), *_tokenizer("audio_codec", audio_codec)])
    return instantiate(config.video_vae), None if audio_codec == "none" else instantiate(config.audio_codec)


def _devices(told: str) -> list[str]:
    import torch

    if told != "auto":
        return told.split(",")
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def _on_ray(devices: list[str]) -> tuple[list[str], Callable[..., None]]:
    """Ray shows a task the GPU that it is given, and no other."""
    from functools import partial

    from vidchat.data.tokens.encode import on_ray

    gpu = any(device.startswith("cuda") for device in devices)
    return ["cuda" if gpu else "cpu"], partial(on_ray, gpus=int(gpu))


def _told(folder: Path) -> str:
    import json

    whole = json.loads((folder / "index.json").read_text())
    return f"{folder}: {whole['samples']} samples in {whole['shards']} shards, {whole['bytes'] / 2**20:.1f} MiB"
