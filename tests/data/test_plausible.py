"""Tokens that are whole but cannot be: skipped, counted, and named with their dialogue and shard."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import SIZE, Bytes, Codec, Vae, make_folder, selection
from torch import Tensor

from vidchat.data.loading.crops import ClipDataModule
from vidchat.data.loading.datamodule import Batching, DialogueDataModule, Source, Tokenizers
from vidchat.data.media.read import Media
from vidchat.data.tokens.encoder import MediaFormat
from vidchat.data.tokens.plausible import implausible
from vidchat.data.tokens.shards import ShardError

LONG = 29  # frames of the clips of dialogues 2 and 5


class BadVae(Vae):
    """Gives some of the latents of long clips, or of all, another value."""

    def __init__(self, spoil: Any, every: bool = False) -> None:
        super().__init__()
        self.spoil, self.every = spoil, every

    def encode(self, frames: Tensor) -> Tensor:
        latents = super().encode(frames)
        return self.spoil(latents) if self.every or frames.shape[2] == LONG else latents


BadVae.__name__ = "Vae"  # the name is part of what tokens are said to be made with


class BadCodec(Codec):
    vocabulary = 1000

    def __init__(self, code: int | None = None) -> None:
        self.code = code

    def encode(self, waveform: Tensor) -> Tensor:
        codes = super().encode(waveform)
        if self.code is not None and waveform.shape[1] == (LONG - 1) * 640:
            codes[:, 3, 1] = self.code
        return codes


def module(root: Path, vae: Vae, codec: Codec, workers: int = 0, **options: Any) -> DialogueDataModule:
    tools = Tokenizers(vae, codec, Bytes(), None)
    conditions = selection(text="answer", **options)
    data = DialogueDataModule([Source(root)], MediaFormat(25, SIZE), conditions, Batching(2, 0, workers), tools)
    data.prepare_data()
    data.setup("fit")
    return data


def last(value: float) -> Any:
    def spoil(latents: Tensor) -> Tensor:
        latents[..., -1] = value
        return latents

    return spoil


BAD = [
    pytest.param(BadVae(last(torch.nan)), BadCodec(), "latents", id="nan"),
    pytest.param(BadVae(last(-torch.inf)), BadCodec(), "latents", id="inf"),
    pytest.param(BadVae(last(1e30)), BadCodec(), "latents", id="1e30"),
    pytest.param(BadVae(lambda latents: latents * 1e6), BadCodec(), "latents", id="a million times"),
    pytest.param(Vae(), BadCodec(1000), "codes", id="one code too large"),
    pytest.param(Vae(), BadCodec(-1), "codes", id="negative code"),
]


@pytest.mark.parametrize(("vae", "codec", "track"), BAD)
def test_impossible_tokens_are_skipped_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, vae: Vae, codec: Codec, track: str
) -> None:
    module(make_folder(tmp_path, ["train"] * 8), vae, codec)
    caplog.clear()
    data = module(tmp_path, Vae(), BadCodec(), workers=0)
    batches = islice(data.train_dataloader(), 8)
    texts = Counter(bytes(ids).decode() for batch in batches for ids in batch.conditions["text"].values.tolist())
    assert sum(texts.values()) == 16
    assert not {"a2", "a5"} & set(texts)
    assert f"skipped a sample of dialogue d2: {tmp_path}/tokens/{track}" in caplog.text
    data.teardown("fit")
    assert caplog.records[-1].levelno == logging.WARNING
    assert f"2 of {tmp_path}: {track}-" in caplog.messages[-1]
    assert "of the dialogues d2, d5;" in caplog.messages[-1]
    assert "dialogue d5: a sample of it could not be used" in (tmp_path / "tokens" / "report.txt").read_text()


def test_the_values_of_conditions_are_checked_too_in_any_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(tmp_path, ["train"] * 8)
    module(root, BadVae(last(torch.nan)), BadCodec(), initiator=True)
    data = module(root, Vae(), BadCodec(), workers=2, initiator=True)
    for batch in islice(data.train_dataloader(), 8):
        assert batch.heard_latents is not None
        assert bool(batch.heard_latents.isfinite().all())
    data.teardown("fit")
    assert "of the dialogues d2, d5;" in caplog.messages[-1]


def test_where_all_tokens_are_bad_the_data_are_said_to_be(tmp_path: Path) -> None:
    module(make_folder(tmp_path, ["train"] * 3), BadVae(last(torch.nan), every=True), BadCodec())
    data = module(tmp_path, Vae(), BadCodec())
    with pytest.raises(ShardError, match=r"the data are bad: 20 samples .*latents-.*shard-.*sample .* nan"):
        next(iter(data.train_dataloader()))


def test_plausible_values_are_let_through() -> None:
    assert implausible("latents", 30 * torch.randn(3, 4).half()) is None
    assert implausible("features", 2e4 * torch.ones(3)) is None
    assert implausible("codes", torch.tensor([0, 1023]), 1024) is None
    message = implausible("codes", torch.tensor([0, 1024]), 1024)
    assert message == "its codes lie between 0 and 1024, where 0 to 1023 is possible"
    assert implausible("latents", torch.zeros(0)) is None
    assert implausible("features", torch.tensor([0.0, torch.nan])) is not None


@pytest.mark.parametrize("score", ["1e30", "-1e9"])
def test_an_absurd_score_leaves_its_dialogue_out_and_the_others_alone(tmp_path: Path, score: str) -> None:
    manifest = make_folder(tmp_path, ["train"] * 4) / "dialogues.jsonl"
    manifest.write_text(manifest.read_text().replace('"dover": 3', f'"dover": {score}'))
    data = module(tmp_path, Vae(), BadCodec(), scores=("dover",))
    assert data.statistics == [pytest.approx((1.0, (2 / 3) ** 0.5))]
    assert "dialogue d3: a score of the responder is infinite or beyond 1e+06" in str(data.report)


def test_sound_that_is_no_number_is_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidchat.data.loading import crops
    from vidchat.data.tokens import encoder

    read = crops.read_clip

    def spoiled(clip: Any, **options: Any) -> Media:
        media = read(clip, **options)
        if clip.path.stem == "a2":
            media.waveform[7] = torch.nan
        return media

    monkeypatch.setattr(crops, "read_clip", spoiled)
    monkeypatch.setattr(encoder, "read_clip", spoiled)
    make_folder(tmp_path, ["train"] * 3)
    data = ClipDataModule(tmp_path, 25, SIZE, 16000, None, 3200, batch_size=2)
    data.setup()
    assert data.report.read == 5
    assert "a2.mp4" in str(data.report)
    assert "NaN or infinite" in str(data.report)
    assert "a2.mp4" in str(module(tmp_path, Vae(), BadCodec()).report)
