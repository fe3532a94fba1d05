"""The branches of a source video: which of its clips make a dialogue, by the paper's definitions.

The paper leaves some thresholds open (written as defaults here): how near two turns are, and how far two SyncNet scores
must lie apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Literal

from vidchat.data.manifest.speakervid.names import is_voice
from vidchat.data.manifest.tiers import TIER_COLUMNS, is_silent
from vidchat.dialogue import Branch

Row = Mapping[str, Any]
Kind = Literal["", "co_present", "unseen", "contextual", "sequential"]
BRANCH_COLUMNS = (
    *("clip", "source", "video", "media", "speaker", "voice", "scene", "listens", "start_s", "end_s", "duration_s"),
    *("text", "asr_no_speech", "asr_compression", "sync_confidence", "speech", "clarity", "dialogue", "turn", "role"),
    *("given_branch", "more_scores", "truth", *TIER_COLUMNS),
)


@dataclass(frozen=True)
class BranchSettings:
    """Thresholds that decide which clips make a dialogue.

    Attributes:
        gap_s: Dialogue: longest pause between a turn and its answer, in seconds.
        overlap_s: Dialogue and multi-turn: longest time by which an answer begins before the turn ends, in seconds.
        sync_difference: Listening, talker in the same scene: SyncNet confidence of the talker minus the listener's,
            above this.
        sync_below: Listening, unseen talker: SyncNet confidence of the listener, below this.
        asr_above: Listening, unseen talker: mean log probability of the transcript, above this.
        no_speech_below: Listening, unseen talker: probability that nobody talks, at most this.
        compression_below: Listening, unseen talker: compression ratio of the transcript, at most this.
        context_s: Multi-turn, contextual: time before the question in which earlier turns begin, in seconds (T).
        delta_t_s: Multi-turn, sequential: longest pause between neighbouring turns, in seconds.
        max_turns: Multi-turn: largest number of turns; longer conversations are split.
    """

    gap_s: float = 2.0
    overlap_s: float = 0.5
    sync_difference: float = 2.0
    sync_below: float = 1.5
    asr_above: float = -1.0
    no_speech_below: float = 0.8
    compression_below: float = 2.5
    context_s: float = 30.0
    delta_t_s: float = 1.0
    max_turns: int = 8


@dataclass(frozen=True)
class Found:
    """A dialogue among the clips of a video.

    Attributes:
        id: Name that is unique in the data set.
        branch: Branch of the dialogue.
        kind: Kind of the listening or multi-turn branch, else empty.
        turns: Role and clip of each turn, and whether the turn is only the voice that is heard in the clip.
        judged: Number of last turns that decide the tier; only the words of the others are used.
    """

    id: str
    branch: Branch
    kind: Kind
    turns: tuple[tuple[str, Row, bool], ...]
    judged: int


def find(clips: Sequence[Row], settings: BranchSettings, branches: Iterable[Branch]) -> Iterator[Found]:
    """Yields the dialogues of one video's clips, which are in order of time."""
    given = [clip for clip in clips if clip["dialogue"] is not None]
    wanted, turns = set(branches), talk([clip for clip in clips if clip["dialogue"] is None])
    for found in _given(given):
        if found.branch in wanted and not (found.branch == "single" and len(found.turns) == 1):
            yield found
    if "single" in wanted:
        for clip in clips:
            yield Found(f"single/{clip['clip']}", "single", "", (("responder", clip, False),), 1)
    if "dialogue" in wanted:
        for question, answer in pairs(turns, settings):
            turn = (("initiator", question, False), ("responder", answer, False))
            yield Found(f"dialogue/{answer['clip']}", "dialogue", "", turn, 2)
    if "listening" in wanted:
        yield from listening([clip for clip in clips if clip["dialogue"] is None], settings)
    if "multi_turn" in wanted:
        yield from contextual(turns, settings)
        yield from sequential(turns, settings)


def talk(clips: Sequence[Row]) -> list[Row]:
    """Returns the turns of the two main speakers in order of time; the track in better sync where a voice has two."""
    best: dict[tuple[Any, Any], Row] = {}
    for clip in clips:
        if clip["voice"] in ("A", "B") and not clip["listens"]:
            place = (clip["start_s"] if clip["scene"] is None else clip["scene"], clip["voice"])
            if place not in best or _sync(clip) > _sync(best[place]):
                best[place] = clip
    return sorted(best.values(), key=lambda clip: (clip["start_s"], _onset(clip), clip["clip"]))


def pairs(turns: Sequence[Row], settings: BranchSettings) -> Iterator[tuple[Row, Row]]:
    """Yields neighbouring turns of A and B (or B and A) that are in one scene or close in time."""
    for question, answer in pairwise(turns):
        if question["voice"] != answer["voice"] and _near(question, answer, settings.gap_s, settings.overlap_s):
            yield question, answer


def listening(clips: Sequence[Row], settings: BranchSettings) -> Iterator[Found]:
    """Yields pairs of a talker's audio and a listener's video at the same time."""
    for _, together in groupby(clips, key=lambda clip: (clip["start_s"], clip["end_s"], clip["scene"])):
        scene = list(together)
        talkers = [clip for clip in scene if not is_silent(clip) and is_voice(clip["voice"])]
        talker = max(talkers, key=_sync, default=None)
        for clip in scene:
            if not is_silent(clip):
                continue
            if talker is not None and _listens_to(clip, talker, settings):
                turns = (("initiator", talker, False), ("responder", clip, False))
                yield Found(f"listening/{clip['clip']}", "listening", "co_present", turns, 2)
            elif talker is None and _hears(clip, settings):
                turns = (("initiator", clip, True), ("responder", clip, False))
                yield Found(f"listening/{clip['clip']}", "listening", "unseen", turns, 1)


def _listens_to(clip: Row, talker: Row, settings: BranchSettings) -> bool:
    if clip["listens"]:
        return True
    known = clip["sync_confidence"] is not None and talker["sync_confidence"] is not None
    return known and talker["sync_confidence"] - clip["sync_confidence"] > settings.sync_difference


def _hears(clip: Row, settings: BranchSettings) -> bool:
    """Returns whether somebody unseen talks: the transcript is valid, and this mouth does not move with it."""
    sync, asr = clip["sync_confidence"], clip["asr_confidence"]
    return (
        bool(clip["text"])
        and sync is not None
        and sync < settings.sync_below
        and asr is not None
        and asr > settings.asr_above
        and (clip["asr_no_speech"] or 0.0) <= settings.no_speech_below
        and (clip["asr_compression"] or 0.0) <= settings.compression_below
    )


def contextual(turns: Sequence[Row], settings: BranchSettings) -> Iterator[Found]:
    """Yields a question and its answer, after the words of what was said shortly before."""
    place = {clip["clip"]: number for number, clip in enumerate(turns)}
    for question, answer in pairs(turns, settings):
        begins, now = question["start_s"], place[question["clip"]]
        before = [
            clip
            for clip in turns[max(0, now - settings.max_turns) : now]
            if begins - settings.context_s <= clip["start_s"] and clip["text"]
        ]
        if before and settings.max_turns > 2:
            said = [*before[-(settings.max_turns - 2) :], question, answer]
            yield Found(f"multi_turn/contextual/{answer['clip']}", "multi_turn", "contextual", _roles(said), 2)


def sequential(turns: Sequence[Row], settings: BranchSettings) -> Iterator[Found]:
    """Yields conversations without long pauses, split after `max_turns`."""
    run: list[Row] = []
    for clip in turns:
        if run and not (len(run) < settings.max_turns and _near(run[-1], clip, settings.delta_t_s, settings.overlap_s)):
            yield from _conversation(run)
            run = []
        run.append(clip)
    yield from _conversation(run)


def _conversation(run: Sequence[Row]) -> Iterator[Found]:
    if len(run) > 2 and len({clip["voice"] for clip in run}) == 2:
        name = f"multi_turn/sequential/{run[-1]['clip']}"
        yield Found(name, "multi_turn", "sequential", _roles(run), len(run))


def _roles(said: Sequence[Row]) -> tuple[tuple[str, Row, bool], ...]:
    """Returns the turns with their roles; the responder is who talks last."""
    answers = said[-1]["voice"]
    return tuple(("responder" if clip["voice"] == answers else "initiator", clip, False) for clip in said)


def _given(clips: Sequence[Row]) -> Iterator[Found]:
    """Yields the dialogues that the source itself names."""
    turns: dict[str, list[Row]] = {}
    for clip in clips:
        turns.setdefault(clip["dialogue"], []).append(clip)
    for name, own in turns.items():
        own.sort(key=lambda clip: clip["turn"])
        usual: Branch = "single" if len(own) == 1 else "dialogue" if len(own) == 2 else "multi_turn"
        branch: Branch = own[0]["given_branch"] or usual
        yield Found(name, branch, "", tuple((clip["role"], clip, False) for clip in own), len(own))


def _near(first: Row, second: Row, gap_s: float, overlap_s: float) -> bool:
    same_scene = first["scene"] is not None and first["scene"] == second["scene"]
    return same_scene or -overlap_s <= second["start_s"] - first["end_s"] <= gap_s


def _sync(clip: Row) -> float:
    return -1.0 if clip["sync_confidence"] is None else float(clip["sync_confidence"])


def _onset(clip: Row) -> float:
    """Returns the time at which the person of a clip first talks, in seconds from its beginning."""
    return min((s["start_s"] for s in clip["speech"] or () if s["speaker"] == clip["voice"]), default=0.0)
