"""Batches of every branch on one clock: steps, stills, what is cropped, ends, and the text of the very chunks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from folders import film, write_manifest
from test_datamodule import module, numbers, words
from test_mixing import Thinker

from vidchat.batch import UNKNOWN, ChunkBatch
from vidchat.data.folder import FolderError
from vidchat.data.loading.batches import LoadedTurn
from vidchat.data.loading.datamodule import DialogueDataModule, Source
from vidchat.data.loading.endless import generator_for

CHUNK = 0.16  # seconds
LENGTHS = {"i8": 33, "i3": 13, "r12": 49, "r5": 21, "r4": 17, "r2": 9}  # frames of the clips, named by their chunks


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name, frames in LENGTHS.items():
        film(folder / f"{name}.mp4", frames)
    return folder


def turn(clip: str, at: float | None = None, **more: Any) -> dict[str, Any]:
    """A turn of a clip, at a step of the clock."""
    role = {"i": "initiator", "r": "responder"}[clip[0]]
    when = {} if at is None else {"at": at * CHUNK}
    return {"role": role, "speaker": role, "clip": f"{clip}.mp4"} | when | more


def folder(root: Path, films: Path, *dialogues: dict[str, Any]) -> Path:
    for name in LENGTHS:
        (root / f"{name}.mp4").symlink_to(films / f"{name}.mp4")
    write_manifest(root, [{"id": f"d{k}", **dialogue} for k, dialogue in enumerate(dialogues)])
    return root


def dialogue(branch: str, *turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"branch": branch, "turns": list(turns), **more}


def batches(data: DialogueDataModule) -> list[ChunkBatch]:
    """Each sample of the split `train` alone, in order."""
    assert data.train is not None
    make = data.train[0]
    return [make([(number, generator_for(0, number))]) for number in range(len(make.samples))]  # type: ignore[attr-defined]


def said(batch: ChunkBatch) -> list[tuple[int, int]]:
    """The step and the chunk of each said column, of which frame 4c is seen."""
    return list(zip(batch.steps[0].tolist(), [frame // 4 for frame in numbers(batch.latents[0])], strict=True))


def heard(batch: ChunkBatch) -> list[tuple[int, int]]:
    assert batch.heard_steps is not None
    keep = batch.heard_video[0]
    frames = numbers(batch.heard_latents[0][keep])
    return list(zip(batch.heard_steps[0][keep].tolist(), [frame // 4 for frame in frames], strict=True))


def test_a_listener_has_the_steps_of_the_speaker_and_no_end(tmp_path: Path, films: Path) -> None:
    root = folder(tmp_path, films, dialogue("listening", turn("i8"), turn("r5")))
    (batch,) = batches(module(root, initiator=True))
    assert said(batch) == [(step, step) for step in range(6)]
    assert heard(batch) == [(step, step) for step in range(1, 6)], "nothing is heard that no output sees"
    assert batch.ends.tolist() == [[UNKNOWN, 0, 0, 0, 0, UNKNOWN]]
    (shorter,) = batches(module(root, initiator=True, max_chunks=3))
    assert heard(shorter) == said(shorter)[1:] == [(1, 1), (2, 2), (3, 3)], "both begin at the same time"
    assert shorter.ends.tolist() == [[UNKNOWN, 0, 0, 0]], "it is known to go on"


def test_two_who_are_there_all_the_time_are_cropped_alike(tmp_path: Path, films: Path) -> None:
    root = folder(tmp_path, films, dialogue("multi_turn", turn("i8", 0), turn("r5", 0)))
    (batch,) = batches(module(root, initiator=True, max_chunks=3))
    assert heard(batch) == said(batch)[1:] == [(1, 1), (2, 2), (3, 3)]
    (whole,) = batches(module(root, initiator=True))
    assert whole.ends.tolist() == [[UNKNOWN, 0, 0, 0, 0, UNKNOWN]], "nobody said that it is over"


def test_turns_overlap_and_pause_as_their_starts_say(tmp_path: Path, films: Path) -> None:
    # "mhm" while the question is asked, an answer that is interrupted, and a pause before the last turn.
    turns = [turn("i8", 10), turn("r2", 13.4), turn("r5", 18), turn("i3", 22), turn("r4", 27)]
    root = folder(tmp_path, films, dialogue("multi_turn", *turns))
    (batch,) = batches(module(root, initiator=True))
    steps = [0, 3, 4, 5, 8, 9, 10, 11, 12, 13, 17, 18, 19, 20, 21]
    assert said(batch) == list(zip(steps, [0, 0, 1, 2, *range(6), *range(5)], strict=True))
    assert heard(batch) == [*zip(range(1, 9), range(1, 9), strict=True), *zip(range(13, 16), range(1, 4), strict=True)]
    assert [step for step, still in zip(steps, batch.stills[0], strict=True) if still] == [0, 3, 8, 17]
    assert [step for step, end in zip(steps, batch.ends[0], strict=True) if end == 1] == [5, 13, 21]


def test_an_answer_before_the_first_question_starts_with_the_reference(tmp_path: Path, films: Path) -> None:
    root = folder(tmp_path, films, dialogue("multi_turn", turn("r2"), turn("i3", 1), turn("r4", 4)))
    (batch,) = batches(module(root, initiator=True))
    assert said(batch) == [(0, 0), (1, 1), (2, 2), (4, 0), (5, 1), (6, 2), (7, 3), (8, 4)]
    assert heard(batch) == [(2, 1), (3, 2), (4, 3)]


def test_what_is_cropped_keeps_its_place(tmp_path: Path, films: Path) -> None:
    """Of a question the end is kept, of an answer the beginning; a clip's length is known, or the next turn's start."""
    known = dialogue("multi_turn", turn("i8", 0, end=33 / 25), turn("r5", 10), turn("r2", 20))
    guessed = dialogue("multi_turn", turn("i8", 0), turn("r5", 8))
    root = folder(tmp_path, films, known, guessed)
    first, second = batches(module(root, initiator=True, max_chunks=3))
    assert heard(first) == [(1, 6), (2, 7), (3, 8)]
    assert said(first) == [(0, 0), (5, 0), (6, 1), (7, 2), (8, 3), (15, 0), (16, 1), (17, 2)]
    assert first.ends[0].tolist() == [UNKNOWN, UNKNOWN, 0, 0, 0, UNKNOWN, 0, 1], "the first answer goes on"
    assert heard(second) == [(1, 6), (2, 7), (3, 8)]
    assert said(second)[:3] == [(0, 0), (3, 0), (4, 1)]


def test_a_dialogue_that_is_too_long_loses_its_earliest_turns(tmp_path: Path, films: Path) -> None:
    turns = [turn("i8"), turn("r5"), turn("i3"), turn("r4"), turn("i3")]
    root = folder(tmp_path, films, dialogue("multi_turn", *turns))
    for limit, steps, listened in ((20, 20, 11), (19, 12, 3), (12, 12, 3), (11, 7, 3), (7, 7, 3), (6, 4, 0), (1, 4, 0)):
        (batch,) = batches(module(root, initiator=True, max_steps=limit))
        assert int(batch.steps.max()) == steps, f"at most {limit}"
        assert len(heard(batch)) == listened
        assert batch.stills[0, 0]
    assert said(batch) == [(step, step) for step in range(5)], "the last answer alone, whose still is the reference"


def test_without_ears_each_answer_is_a_sample_of_its_own(tmp_path: Path, films: Path) -> None:
    turns = [turn("i8", text="q1"), turn("r5", text="a1"), turn("i3", text="q2"), turn("r4", text="a2")]
    root = folder(tmp_path, films, dialogue("multi_turn", *turns), dialogue("listening", turn("i8"), turn("r2")))
    data = module(root, text="answer")
    made = batches(data)
    assert [said(batch)[-1] for batch in made] == [(5, 5), (4, 4), (2, 2)]
    assert all(batch.heard_steps is None for batch in made)
    assert [words(batch.conditions["text"]) for batch in made] == [["a1"], ["a2"], [""]]
    asked = [words(batch.conditions["text"]) for batch in batches(module(root, text="question"))]
    assert asked == [["q1"], ["q2"], [""]]


def test_a_span_has_its_own_words(tmp_path: Path, films: Path) -> None:
    spoken = [["one", 0.1, 0.3], ["two", 0.8, 0.86], ["three", 0.85, 1.0], ["four", 1.7, 1.9]]
    timed = turn("r12", text="One, two, three, four.", words=spoken)
    root = folder(tmp_path, films, dialogue("single", timed), dialogue("single", turn("r12", text="untimed")))
    made = batches(module(root, max_chunks=5, text="answer"))  # spans of 21, 21 and 7 frames
    assert [words(batch.conditions["text"])[0] for batch in made] == ["one two", "three", "four", "", "", ""]
    assert [batch.ends[0].tolist() for batch in made[1:3]] == [[UNKNOWN, 0, 0, 0, 0, 0], [UNKNOWN, 1]]
    for hears in (True, False):
        whole = [words(batch.conditions["text"]) for batch in batches(module(root, text="answer", initiator=hears))]
        assert whole == [["One, two, three, four."], ["untimed"]]


def test_a_turn_that_is_cropped_has_the_words_of_its_beginning(tmp_path: Path, films: Path) -> None:
    spoken = [["one", 0.1, 0.3], ["two", 0.7, 0.8]]
    turns = [turn("r5", text="One two.", words=spoken), turn("r4", text="untimed"), turn("r2", text="Whole.")]
    root = folder(tmp_path, films, *(dialogue("dialogue", turn("i3", text="q"), some) for some in turns))
    made = batches(module(root, initiator=True, max_chunks=2, text="answer"))
    assert [words(batch.conditions["text"])[0] for batch in made] == ["one", "", "Whole."]


def test_captions_reach_the_model_where_there_are_any(tmp_path: Path, films: Path) -> None:
    answers = [turn("r5", caption="A man smiles."), turn("r4")]
    root = folder(tmp_path, films, *(dialogue("dialogue", turn("i3"), answer) for answer in answers))
    made = batches(module(root, caption=True))
    assert [words(batch.conditions["caption"])[0] for batch in made] == ["A man smiles.", ""]
    assert not made[1].conditions["caption"].mask.any()


def test_a_question_that_is_still_asked_tells_nothing_of_what_comes(tmp_path: Path, films: Path) -> None:
    """Neither its text nor a thinker's features: they are made from the whole of it."""
    starts = (8, 7, None)
    root = folder(
        tmp_path,
        films,
        *(dialogue("multi_turn", turn("i8", 0, text="q"), turn("r5", start)) for start in starts),
        dialogue("listening", turn("i8", text="q"), turn("r5")),
        dialogue("single", turn("r5")),
    )
    for hears in (True, False):
        made = batches(module(root, initiator=hears, features=2, text="question", thinker=Thinker()))
        known = [bool(batch.conditions["features"].mask.any()) for batch in made]
        assert known == [True, False, True, False, False]
        assert [bool(batch.conditions["text"].mask.any()) for batch in made] == known
        assert all(batch.conditions["features"].values.shape[2] == 2 for batch in made)


def test_branches_of_a_stage_are_drawn_by_weight_and_absent_ones_left_out(tmp_path: Path, films: Path, caplog) -> None:
    root = folder(
        tmp_path,
        films,
        *(dialogue("dialogue", turn("i3"), turn("r4")) for _ in range(3)),
        dialogue("listening", turn("i3"), turn("r2")),
    )
    entry = {"root": root, "weight": 1.0, "branch": {"dialogue": 3, "listening": 2, "multi_turn": 5, "single": 0}}
    caplog.set_level("INFO")
    data = module(root, sources=Source.read(entry, 0), initiator=True, batch_size=5)
    assert [(source.branch, source.weight) for source in data.sources] == [
        ("dialogue", pytest.approx(0.6)),
        ("listening", pytest.approx(0.4)),
    ]
    assert "branch=multi_turn" in caplog.text
    assert data.train is not None
    make, order = data.train
    drawn = Counter(make.samples[d.item].dialogue.branch for k in range(200) for d in order.batch(k, 5))  # type: ignore[attr-defined]
    assert drawn == {"dialogue": 600, "listening": 400}
    with pytest.raises(FolderError, match="branch=multi_turn or single"):
        module(root, sources=Source.read(entry | {"branch": {"multi_turn": 1, "single": 1}}, 0))
    for wrong in ({"talk": 1}, {"dialogue": -1}, {"dialogue": "x"}, {}, {"single": 0}):
        with pytest.raises(FolderError, match="with weights"):
            Source.read(entry | {"branch": wrong}, 0)


def test_branches_share_a_batch_and_a_dialogue_may_have_nothing_heard(tmp_path: Path, films: Path) -> None:
    root = folder(
        tmp_path,
        films,
        dialogue("single", turn("r5")),
        dialogue("dialogue", turn("i3"), turn("r4")),
        dialogue("listening", turn("i3"), turn("r2")),
    )
    data = module(root, initiator=True, batch_size=3)
    assert data.train is not None
    batch = data.train[0]([(number, generator_for(0, number)) for number in range(3)])
    assert batch.mask.sum(1).tolist() == [6, 6, 3]
    assert batch.heard_video.sum(1).tolist() == [0, 3, 2]
    (alone,) = batches(module(root, branch="single", initiator=True))
    assert alone.heard_video.tolist() == [[False]], "every rank trains what hears, whatever its batch"


@pytest.mark.parametrize("lacking", ["latents", "codes"])
def test_an_initiator_may_be_unseen_or_silent(tmp_path: Path, films: Path, lacking: str, monkeypatch: Any) -> None:
    from vidchat.data.loading import batches as module_of_batches

    load = module_of_batches.load_turn

    def without(cache: Any, some: Any) -> LoadedTurn:
        loaded = load(cache, some)
        if some.role == "initiator":
            setattr(loaded, lacking, None)
        return loaded

    monkeypatch.setattr(module_of_batches, "load_turn", without)
    root = folder(tmp_path, films, dialogue("dialogue", turn("i3"), turn("r4")))
    (batch,) = batches(module(root, initiator=True))
    there, gone = (
        (batch.heard_audio, batch.heard_video) if lacking == "latents" else (batch.heard_video, batch.heard_audio)
    )
    assert there.tolist() == [[True] * 3]
    assert gone.tolist() == [[False] * 3]
    assert not (batch.heard_latents if lacking == "latents" else batch.heard_codes).any()
    assert batch.heard_steps.tolist() == [[1, 2, 3]]
