"""Dialogues of all branches, derived from the clips of a source video by the paper's definitions.

The paper leaves some thresholds open: the largest gap between two turns and the smallest difference between two SyncNet
scores. The defaults of `BranchSettings` set them.
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
    *("track_start_s", "track_end_s", "timed_words", "caption", "at_s"),
    *("text", "asr_no_speech", "asr_compression", "sync_confidence", "speech", "clarity", "dialogue", "turn", "role"),
    *("given_branch", "more_scores", "truth", *TIER_COLUMNS),
)


@dataclass(frozen=True)
class BranchSettings:
    """Thresholds that decide which clips make a dialogue.

    Attributes:
        gap_s: Dialogue: longest pause between a turn and its answer, in seconds.
        overlap_s: Dialogue and multi-turn: longest overlap of an answer with the turn before it, in seconds.
        sync_difference: Listening, talker in the same scene: lower bound of the talker's SyncNet confidence minus the
            listener's.
        sync_below: Listening, unseen talker: upper bound of the listener's SyncNet confidence.
        asr_above: Listening, unseen talker: lower bound of the transcript's mean log probability.
        no_speech_below: Listening, unseen talker: largest probability that nobody talks.
        compression_below: Listening, unseen talker: largest compression ratio of the transcript.
        context_s: Multi-turn, contextual: longest time T from an earlier turn's start to the question, in seconds.
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
class DerivedDialogue:
    """A dialogue derived from the clips of a video.

    Attributes:
        id: Name that is unique in the data set.
        branch: Branch of the dialogue.
        kind: Kind of the listening or multi-turn dialogue, else empty.
        turns: (role, clip, voice_only) of each turn; voice_only marks a turn that is only the voice heard in the clip.
        judged: Number of last turns that decide the tier: all but an unseen talker's.
    """

    id: str
    branch: Branch
    kind: Kind
    turns: tuple[tuple[str, Row, bool], ...]
    judged: int


def find_dialogues(
    clips: Sequence[Row], settings: BranchSettings, branches: Iterable[Branch]
) -> Iterator[DerivedDialogue]:
    """Yields the dialogues of one video's clips, which must be in order of time."""
    selected = set(branches)
    for dialogue in _source_dialogues([clip for clip in clips if clip["dialogue"] is not None]):
        if dialogue.branch in selected and not (dialogue.branch == "single" and len(dialogue.turns) == 1):
            yield dialogue
    free = [clip for clip in clips if clip["dialogue"] is None]
    turns = main_turns(free)
    if "single" in selected:
        for clip in clips:
            if clip["dialogue"] is not None and clip["role"] is None:
                continue  # a long recording; its turns are clips too
            yield DerivedDialogue(f"single/{clip['clip']}", "single", "", (("responder", clip, False),), 1)
    if "dialogue" in selected:
        for question, answer in answered_turns(turns, settings):
            pair = (("initiator", question, False), ("responder", answer, False))
            yield DerivedDialogue(f"dialogue/{answer['clip']}", "dialogue", "", pair, 2)
    if "listening" in selected:
        yield from find_listening(free, settings)
    if "multi_turn" in selected:
        yield from find_contextual(turns, settings)
        yield from find_sequential(turns, settings)


def main_turns(clips: Sequence[Row]) -> list[Row]:
    """Returns the turns of the two main speakers in order of time; of two tracks of a voice, the one in better sync."""
    best: dict[tuple[Any, Any], Row] = {}
    for clip in clips:
        if clip["voice"] in ("A", "B") and not clip["listens"]:
            key = (clip["start_s"] if clip["scene"] is None else clip["scene"], clip["voice"])
            if key not in best or _sync(clip) > _sync(best[key]):
                best[key] = clip
    return sorted(best.values(), key=lambda clip: (clip["start_s"], _onset(clip), clip["clip"]))


def answered_turns(turns: Sequence[Row], settings: BranchSettings) -> Iterator[tuple[Row, Row]]:
    """Yields (question, answer): neighbouring turns of A and B, or B and A, in one scene or close in time."""
    for question, answer in pairwise(turns):
        if question["voice"] != answer["voice"] and _near(question, answer, settings.gap_s, settings.overlap_s):
            yield question, answer


def find_listening(clips: Sequence[Row], settings: BranchSettings) -> Iterator[DerivedDialogue]:
    """Yields a talker's audio and a listener's video of the same time."""
    for _, group in groupby(clips, key=lambda clip: (clip["start_s"], clip["end_s"], clip["scene"])):
        scene = list(group)
        talkers = [clip for clip in scene if not is_silent(clip) and is_voice(clip["voice"])]
        talker = max(talkers, key=_sync, default=None)
        for clip in scene:
            if not is_silent(clip):
                continue
            if talker is not None and _listens_to(clip, talker, settings):
                turns = (("initiator", talker, False), ("responder", clip, False))
                yield DerivedDialogue(f"listening/{clip['clip']}", "listening", "co_present", turns, 2)
            elif talker is None and _hears_unseen_talker(clip, settings):
                turns = (("initiator", clip, True), ("responder", clip, False))
                yield DerivedDialogue(f"listening/{clip['clip']}", "listening", "unseen", turns, 1)


def _listens_to(clip: Row, talker: Row, settings: BranchSettings) -> bool:
    if clip["listens"]:
        return True
    known = clip["sync_confidence"] is not None and talker["sync_confidence"] is not None
    return known and talker["sync_confidence"] - clip["sync_confidence"] > settings.sync_difference


def _hears_unseen_talker(clip: Row, settings: BranchSettings) -> bool:
    """Returns whether an unseen person talks: the transcript is valid, and the mouth seen does not move with it."""
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


def find_contextual(turns: Sequence[Row], settings: BranchSettings) -> Iterator[DerivedDialogue]:
    """Yields a question and its answer, preceded by the earlier turns with text that give context."""
    index = {clip["clip"]: k for k, clip in enumerate(turns)}
    for question, answer in answered_turns(turns, settings):
        begin, now = question["start_s"], index[question["clip"]]
        before = [
            clip
            for clip in turns[max(0, now - settings.max_turns) : now]
            if begin - settings.context_s <= clip["start_s"] and clip["text"]
        ]
        if before and settings.max_turns > 2:
            conversation = [*before[-(settings.max_turns - 2) :], question, answer]
            name = f"multi_turn/contextual/{answer['clip']}"
            yield DerivedDialogue(name, "multi_turn", "contextual", _roles(conversation), len(conversation))


def find_sequential(turns: Sequence[Row], settings: BranchSettings) -> Iterator[DerivedDialogue]:
    """Yields conversations without long pauses, split after `max_turns`."""
    run: list[Row] = []
    for clip in turns:
        if run and not (len(run) < settings.max_turns and _near(run[-1], clip, settings.delta_t_s, settings.overlap_s)):
            yield from _conversation(run)
            run = []
        run.append(clip)
    yield from _conversation(run)


def _conversation(run: Sequence[Row]) -> Iterator[DerivedDialogue]:
    if len(run) > 2 and len({clip["voice"] for clip in run}) == 2:
        name = f"multi_turn/sequential/{run[-1]['clip']}"
        yield DerivedDialogue(name, "multi_turn", "sequential", _roles(run), len(run))


def _roles(turns: Sequence[Row]) -> tuple[tuple[str, Row, bool], ...]:
    """Returns the turns with their roles; the responder is the person who talks last."""
    responder = turns[-1]["voice"]
    return tuple(("responder" if clip["voice"] == responder else "initiator", clip, False) for clip in turns)


def _source_dialogues(clips: Sequence[Row]) -> Iterator[DerivedDialogue]:
    """Yields the dialogues that the source itself defines."""
    turns: dict[str, list[Row]] = {}
    for clip in clips:
        turns.setdefault(clip["dialogue"], []).append(clip)
    for name, own in turns.items():
        own.sort(key=lambda clip: clip["turn"])
        if own[0]["role"] is None:
            yield from _exchanged(name, own)
            continue
        default: Branch = "single" if len(own) == 1 else "dialogue" if len(own) == 2 else "multi_turn"
        branch: Branch = own[0]["given_branch"] or default
        yield DerivedDialogue(name, branch, "", tuple((clip["role"], clip, False) for clip in own), len(own))


def _exchanged(name: str, turns: Sequence[Row]) -> Iterator[DerivedDialogue]:
    """Yields a dialogue for each turn, in which that turn is the responder's and the others are initiators'."""
    for answer in turns:
        heard = tuple(("initiator", clip, False) for clip in turns if clip is not answer)
        yield DerivedDialogue(
            f"{name}/{answer['speaker']}",
            answer["given_branch"] or "dialogue",
            "",
            (*heard, ("responder", answer, False)),
            len(turns),
        )


def _near(first: Row, second: Row, gap_s: float, overlap_s: float) -> bool:
    same_scene = first["scene"] is not None and first["scene"] == second["scene"]
    return same_scene or -overlap_s <= second["start_s"] - first["end_s"] <= gap_s


def _sync(clip: Row) -> float:
    return -1.0 if clip["sync_confidence"] is None else float(clip["sync_confidence"])


def _onset(clip: Row) -> float:
    """Returns the time at which the person of a clip begins to talk, in seconds from the clip's start."""
    return min((s["start_s"] for s in clip["speech"] or () if s["speaker"] == clip["voice"]), default=0.0)
