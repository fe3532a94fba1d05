"""The commands that are killed and misled, as functions that a child can be given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from typer.testing import CliRunner

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = "width: 16, layers: 2, heads: 2, kv_heads: 2, head_dim: 8, mlp_width: 16"
SHAPE = f"{{_target_: vidchat.model.transformer.Shape, {SIZES}}}"


def compose_config(name: str, words: list[str]) -> DictConfig:
    """The config of train.py or infer.py."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, words)


def train(data: Path, output: Path, *words: str) -> None:
    """Trains the smallest responder for 8 steps, with a checkpoint after every second, and exports it."""
    from vidchat.cli import train as script

    small = [
        "stage=sft_dyadic", "data=folder", f"data.root={data}", f"output_dir={output}", "data.size=[32,32]",
        "data.batch_size=1", "data.max_chunks=3", "stage.steps=8", "logger=none", "log_every=1", "callbacks={}",
        "video_vae._target_=vidchat.tokenizers.stacked.StackedVAE.load", f"video_vae.directory={data}/video_vae",
        "audio_codec._target_=vidchat.tokenizers.stft_codec.StftCodec.load",
        f"audio_codec.directory={data}/audio_codec",
        "model.patch=1", "model.ratio=2", f"model.backbone={SHAPE}", f"model.spatial={SHAPE}", f"model.depth={SHAPE}",
        "model.flow.width=16", "model.flow.blocks=1", "trainer.val_check_interval=4", "checkpoints.every=2",
    ]  # fmt: skip
    script.train(compose_config("train", [*small, *words]))


def infer(**keys: Any) -> None:
    """One answer, or those to a benchmark's pairs."""
    from vidchat.cli import infer as script

    config = compose_config("infer", [])
    for key, value in keys.items():
        config[key] = value
    script.answer_question(config) if config.pairs is None else script.answer_pairs(config)


def answer(release: Path, initiator: Path, output: Path) -> None:
    """A short answer to a clip."""
    infer(checkpoint=str(release), reference=str(initiator), initiator=str(initiator), output=str(output), seconds=0.5)


def vidchat(*words: str) -> None:
    """A command of `vidchat`; a sentence that it ends with is raised as `SystemExit`."""
    from vidchat.cli import app

    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not (isinstance(done.exception, SystemExit) and done.exception.code == 0):
        if isinstance(done.exception, SystemExit) and (done.output.startswith("error: ") or done.exception.code == 2):
            raise SystemExit(done.output.strip().replace("\n", " "))  # 2: Typer's own, about options
        raise done.exception


def encode(data: Path, folder: Path) -> None:
    """Fills a token cache, a clip at a time; a line of `<folder>.log` is written for each that is encoded."""
    from vidchat.data.tokens import encode as filling
    from vidchat.data.tokens import windows
    from vidchat.data.tokens.encoder import ClipEncoder, Segment
    from vidchat.data.tokens.token_cache import TokenCache
    from vidchat.dialogue import Clip
    from vidchat.tokenizers.stacked import StackedVAE
    from vidchat.tokenizers.stft_codec import StftCodec

    class Logged(ClipEncoder):
        def encode_tracks(self, *arguments: Any) -> Any:
            with folder.with_suffix(".log").open("a") as file:
                file.write("1\n")
            return super().encode_tracks(*arguments)

    windows.WINDOW = 1
    encoder = Logged(StackedVAE.load(data / "video_vae"), StftCodec.load(data / "audio_codec"), 25, (32, 32))
    clips = [Clip(path, "ann", start=0.04 * k) for path in sorted(data.glob("*.mp4")) for k in range(2)]
    cache = TokenCache(data, encoder, 4, folder=folder)
    filling.fill(cache, [Segment(clip, "first", 4) for clip in clips], sharding=filling.Sharding(3, 20_000))


def export(release: Path, target: Path) -> None:
    """Exports a release again, to another folder or on top of what is there."""
    from vidchat.release import export_release, load_release

    loaded = load_release(release)
    config = {**loaded.config, "data": {"fps": loaded.config["fps"], "size": loaded.config["size"]}}
    for name in ("video_vae", "audio_codec"):
        config[name] = {**config[name], "directory": str(release / name)}
    export_release(target, loaded.responder, config, loaded.video_vae, loaded.audio_codec, loaded.text_tokenizer)


def train_poisoned(poison: str, data: Path, output: Path) -> None:
    """Trains on tokens of which those of one clip, `responder0`, are not what any tokenizer makes."""
    import logging

    from vidchat.data.tokens.encoder import ClipEncoder

    read, encode_tracks, spoilt = ClipEncoder.read, ClipEncoder.encode_tracks, set[int]()

    def noting(self: ClipEncoder, piece: Any) -> Any:
        spans = read(self, piece)
        spoilt.update(id(span) for span in spans if piece.clip.path.stem == "responder0")
        return spans

    def spoiling(self: ClipEncoder, spans: Any, *arguments: Any) -> Any:
        made = encode_tracks(self, spans, *arguments)
        for span, tokens in zip(spans, made, strict=True):
            if id(span) in spoilt and poison == "codes" and "codes" in tokens:
                tokens["codes"] = tokens["codes"] + 1000
            elif id(span) in spoilt and poison != "codes" and "latents" in tokens:
                tokens["latents"] = tokens["latents"] * (1e6 if poison == "latents" else float("nan"))
        return made

    ClipEncoder.read, ClipEncoder.encode_tracks = noting, spoiling  # type: ignore[method-assign]
    output.mkdir(parents=True)
    logging.basicConfig(filename=output / "train.log", level=logging.INFO)
    train(data, output)


def script(name: str, *words: str) -> None:
    """`python NAME.py WORDS`, in this process."""
    import runpy
    import sys

    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    sys.argv = [f"{name}.py", *words]
    runpy.run_path(str(CONFIGS.parent / f"{name}.py"), run_name="__main__")
