from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import SIZE, Bytes, Codec, Vae, film, make_folder, selection, write_manifest
from torch import Tensor

from vidchat.batch import UNKNOWN, ChunkBatch, ConditionValues, pad
from vidchat.data.folder import FolderError
from vidchat.data.loading.datamodule import Batching, DialogueDataModule, Source, Tokenizers
from vidchat.data.tokens.encoder import MediaFormat
from vidchat.data.tokens.provenance import CacheError
from vidchat.dialogue import Dialogue


def module(root: Path, prepare: bool = True, **more: Any) -> DialogueDataModule:
    """A data module of one folder; further words go to the dataclass that knows them."""

    def options(*names: str) -> dict[str, Any]:
        return {name: more.pop(name) for name in names if name in more}

    sources = more.pop("sources", None) or [Source(root, **options("branch", "tier"))]
    point = MediaFormat(25, SIZE, **options("allow_portrait", "dtype"))
    batching = Batching(more.pop("batch_size", 2), **options("seed", "num_workers"))
    tools = Tokenizers(Vae(), Codec() if more.pop("audio", True) else None, Bytes(), more.pop("thinker", None))
    data = DialogueDataModule(sources, point, selection(**more), batching, tools)
    if prepare:
        data.prepare_data()
        data.setup("fit")
    return data


def numbers(latents: Tensor) -> list[int]:
    """Of (n, C, h, w) latents, which frame of its clip each is of."""
    return [round((float(level) - 20) / 4) for level in (latents.mean((1, 2, 3)) + 1) * 127.5]


def words(text: ConditionValues) -> list[str]:
    return [bytes(row[keep].tolist()).decode() for row, keep in zip(text.values, text.mask, strict=True)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"), ["train"] * 4 + ["val", "val", "val", "test"])


def test_answers_are_padded_and_masked(root: Path) -> None:
    batch = next(iter(module(root).val_dataloader()))  # answers of 25 and 30 frames
    assert isinstance(batch, ChunkBatch)
    assert batch.latents.shape == (2, 8, 3, 8, 8)
    assert batch.mask.tolist() == [[True] * 7 + [False], [True] * 8]
    assert batch.steps.tolist() == [[*range(7), 0], [*range(8)]]
    assert batch.stills.tolist() == [[True] + [False] * 7] * 2
    assert batch.ends.tolist() == [[UNKNOWN, 0, 0, 0, 0, 0, 1, UNKNOWN], [UNKNOWN, 0, 0, 0, 0, 0, 0, 1]]
    assert batch.codes is not None
    assert batch.codes.shape == (2, 8, 8, 2)
    assert numbers(batch.latents[0, :7]) == list(range(0, 25, 4))
    assert not batch.latents[0, 7].any()
    assert batch.codes[0, 1:7, 0, 1].tolist() == [0, 8, 16, 24, 32, 40], "chunk t and the codes of its time"
    assert not batch.codes[:, 0].any()
    assert not batch.codes[0, 7].any()
    assert batch.heard_steps is None
    assert not batch.conditions


def test_the_question_is_heard_before_the_answer_without_its_first_frame(root: Path) -> None:
    batch = next(iter(module(root, initiator=True).val_dataloader()))
    assert batch.heard_latents.shape == (2, 7, 3, 8, 8)
    assert batch.heard_codes.shape == (2, 7, 8, 2)
    # The second question has 30 frames: its last 29, of which the first is left out, are seven chunks.
    assert numbers(batch.heard_latents[1]) == list(range(5, 30, 4))
    assert batch.heard_steps.tolist() == [[1, 2, 3, 4, 5, 6, 0], [1, 2, 3, 4, 5, 6, 7]]
    assert batch.heard_video.tolist() == batch.heard_audio.tolist() == [[True] * 6 + [False], [True] * 7]
    # The reference, then the still beside the last that is heard.
    assert batch.steps.tolist() == [[0, *range(6, 13), 0], [0, *range(7, 15)]]
    assert batch.stills.tolist() == [[True, True] + [False] * 7] * 2
    assert numbers(batch.latents[1]) == [0, *range(0, 29, 4)]


def test_a_text_that_is_too_long_is_shortened_and_its_dialogue_named_once(root: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("vidchat.data.loading.batches.MAX_TEXT", 1)
    data = module(root, text="answer")
    for _ in range(2):
        batch = next(iter(data.val_dataloader()))
    assert words(batch.conditions["text"]) == ["a", "a"]
    warnings = [record.getMessage() for record in caplog.records if "of its text" in record.getMessage()]
    assert len(warnings) in (2, 4), "once for each reader of batches"
    assert "of its text of 2 tokens the first 1 are read" in warnings[0]


@pytest.mark.parametrize(("whose", "expected"), [("answer", ["a4", "a5"]), ("question", ["q4", "q5"])])
def test_text_is_the_answers_or_the_questions(root: Path, whose: str, expected: list[str]) -> None:
    batch = next(iter(module(root, text=whose).val_dataloader()))
    assert words(batch.conditions["text"]) == expected


def test_the_voice_is_another_answer_of_the_same_speaker_and_split(root: Path) -> None:
    data = module(root, voice=3)
    for split in ("train", "val"):
        items = data.samples(split)  # type: ignore[arg-type]
        for number, item in enumerate(items):
            expected = {i.answer.key for i in items if i.dialogue.answer.speaker == item.dialogue.answer.speaker}
            assert {name for name, _ in items.voices().of(number)} == expected
    first, second = list(data.val_dataloader())
    assert first.conditions["voice"].values.shape == (2, 3, 8, 2)
    assert first.conditions["voice"].mask.tolist() == [[True] * 3, [False] * 3]  # r1 answers only once in this split
    assert second.conditions["voice"].mask.all()


def test_scores_are_standardised_over_the_training_answers(root: Path) -> None:
    data = module(root, scores=("dover", "motion"))
    assert data.statistics[0] == pytest.approx((1.5, 1.25**0.5))
    batch = next(iter(data.val_dataloader()))
    scores = batch.conditions["scores"]
    torch.testing.assert_close(scores.values[:, 0], (torch.tensor([4.0, 5.0]) - 1.5) / 1.25**0.5)
    assert scores.mask.tolist() == [[True, False]] * 2
    assert not scores.values[:, 1].any()


def test_turns_follow_each_other_and_each_answer_has_its_still(tmp_path: Path) -> None:
    sides = ["initiator", "responder", "initiator", "responder"]
    for k in range(4):
        film(tmp_path / f"{k}.mp4", 9 + 4 * k)
    turns = [{"role": role, "speaker": role, "clip": f"{k}.mp4", "text": f"t{k}"} for k, role in enumerate(sides)]
    write_manifest(tmp_path, [{"id": "d", "branch": "multi_turn", "turns": turns}])
    batch = next(iter(module(tmp_path, initiator=True, batch_size=1, text="answer").train_dataloader()))
    assert batch.heard_steps.tolist() == [[1, 2, 6, 7, 8, 9]]
    assert numbers(batch.heard_latents[0]) == [4, 8, 4, 8, 12, 16]
    assert batch.steps.tolist() == [[0, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14]]
    assert numbers(batch.latents[0]) == [0, 0, 4, 8, 12, 0, 4, 8, 12, 16, 20]
    assert batch.ends.tolist() == [[-1, -1, 0, 0, 1, -1, 0, 0, 0, 0, 1]]
    assert words(batch.conditions["text"]) == ["t1\nt3"]
    deaf = module(tmp_path, text="answer")
    assert [sample.answer.position for sample in deaf.samples("train")] == [1, 3], "each turn is a sample of its own"
    assert set(words(next(iter(deaf.train_dataloader())).conditions["text"])) <= {"t1", "t3"}


def test_a_long_single_clip_becomes_several_answers(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 47)
    turn = {"role": "responder", "speaker": "r", "clip": "a.mp4"}
    write_manifest(tmp_path, [{"id": "d", "branch": "single", "turns": [turn]}])
    data = module(tmp_path, max_chunks=4)
    assert [sample.answer.span for sample in data.samples("train")] == [0, 1, 2]
    firsts = {numbers(b.latents[:1, 0])[0] for b in islice(iter(data.train_dataloader()), 6)}
    assert firsts <= {0, 17, 34}
    assert len(firsts) > 1


def test_resuming_is_exact_whatever_the_workers(root: Path) -> None:
    settings = {"voice": True, "initiator": True, "text": "answer"}
    unbroken = list(islice(iter(module(root, **settings).train_dataloader()), 7))
    for workers in (0, 1, 2):
        data = module(root, num_workers=workers, **settings)
        data.load_state_dict({"consumed": 3, "seed": 0, "batch_size": 2})
        for one, other in zip(islice(iter(data.train_dataloader()), 4), unbroken[3:], strict=True):
            assert one.conditions.keys() == other.conditions.keys() == {"voice", "text"}
            assert all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


def test_without_sound_silent_clips_are_answers(tmp_path: Path) -> None:
    make_folder(tmp_path, ["train", "train"])
    film(tmp_path / "a0.mp4", 21, audio=False)
    data = module(tmp_path, audio=False)
    assert next(iter(data.train_dataloader())).codes is None
    assert data.report.read == 2
    with_audio = module(tmp_path)
    assert with_audio.report.read == 1
    ((where, why),) = with_audio.report.skipped
    assert where == "dialogue d0"
    assert "no audio track" in why
    assert "1 skipped" in (tmp_path / "tokens" / "report.txt").read_text()


def test_filters_choose_dialogues(root: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (root / "dialogues.jsonl").read_text().splitlines()]
    for name in root.glob("*.mp4"):
        (tmp_path / name.name).symlink_to(name)
    lines[0] |= {"tier": "pretrain"}
    lines[1] |= {"branch": "single", "turns": lines[1]["turns"][1:]}
    write_manifest(tmp_path, lines)
    read = {
        key: [d.id for d in train_dialogues(module(tmp_path, prepare=False, **more))]
        for key, more in {
            "tier": {"tier": "pretrain"},
            "branch": {"branch": "single"},
        }.items()
    }
    assert read == {"tier": ["d0"], "branch": ["d1"]}
    with pytest.raises(FolderError, match="'train' with tier=sft, branch=listening"):
        module(tmp_path, tier="sft", branch="listening")


def test_any_split_can_be_loaded(root: Path) -> None:
    (batch,) = list(module(root, text="answer").split_dataloader("test"))
    assert words(batch.conditions["text"]) == ["a7"]


def test_missing_splits_are_refused_before_any_work(tmp_path: Path) -> None:
    make_folder(tmp_path, ["train"])
    with pytest.raises(CacheError, match="prepare_data"):
        module(tmp_path, prepare=False).setup("fit")
    with pytest.raises(FolderError, match=r"'val'.*limit_val_batches=0"):
        module(tmp_path).val_dataloader()
    with pytest.raises(FolderError, match="'train'"):
        module(make_folder(tmp_path, ["val"]))
    for name in ("q0.mp4", "a0.mp4"):
        (tmp_path / name).write_bytes(b"no")
    with pytest.raises(FolderError, match="no usable clip"):
        module(make_bad(tmp_path))


def train_dialogues(data: DialogueDataModule) -> list[Dialogue]:
    source = data.sources[0]
    table = data.folders[source.root].dialogues
    return [table[row] for row in data.rows(source, "train").tolist()]


def make_bad(root: Path) -> Path:
    make_folder(root, ["train"])
    (root / "a0.mp4").write_bytes(b"not a film")
    return root


def test_empty_tensors_pad_to_one_masked_position() -> None:
    padded, mask = pad([torch.zeros(0, 2), torch.zeros(0, 2)])
    assert padded.shape == (2, 1, 2)
    assert not mask.any()


def test_real_clips_make_batches(real_clips: Path, tmp_path: Path) -> None:
    for name in ("grid_man_red.mp4", "grid_woman_green.mp4"):
        (tmp_path / name).symlink_to(real_clips / name)
    turns = [
        {"role": "initiator", "speaker": "red", "clip": "grid_man_red.mp4", "text": "set white in z three now"},
        {"role": "responder", "speaker": "green", "clip": "grid_woman_green.mp4", "text": "lay red with p nine again"},
    ]
    write_manifest(tmp_path, [{"id": split, "split": split, "turns": turns} for split in ("train", "val")])
    batch = next(iter(module(tmp_path, initiator=True, text="answer").train_dataloader()))
    assert batch.latents.shape[:2] == (2, 20)
    assert batch.heard_latents.shape[1] == 18
