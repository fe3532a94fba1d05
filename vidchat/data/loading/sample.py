"""A sample: some turns of a dialogue, which chunks of their clips are taken, and where these stand on the clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from vidchat.batch import UNKNOWN
from vidchat.data.loading.dialogues import BRANCHES, PARTS, ROLE_NAMES, Dialogues
from vidchat.data.loading.segment_table import SegmentTable
from vidchat.data.tokens.encoder import Part
from vidchat.data.tokens.track_index import key_of
from vidchat.dialogue import ChunkClock, Dialogue, Role
from vidchat.layout import Layout, TurnSpan, lay_out


class SampleTurn(NamedTuple):
    """The chunks of a turn that a sample has.

    Attributes:
        number: The row of the turn among those of all dialogues.
        position: The position of the turn in its dialogue.
        role: Who speaks, or listens.
        part: Which part of the clip is encoded.
        key: The key of its tokens.
        span: The index of the span.
        chunks: The number of chunks, without chunk 0.
        start: The step of the first chunk; `None` directly follows the turn before.
        begin: Where chunk 0 begins, in seconds from the clip's start; `None` if it is not known.
        length: The length of the clip in seconds; `None` if it is not known.
        end: Whether the last chunk is the turn's last, as in `ChunkBatch.ends`.
    """

    number: int
    position: int
    role: Role
    part: Part
    key: str
    span: int
    chunks: int
    start: int | None
    begin: float | None
    length: float | None
    end: int

    def text(self, dialogue: Dialogue, clock: ChunkClock) -> str | None:
        """Returns the transcript of these chunks, `None` if it is not known."""
        if self.begin is None:
            return None
        end = self.begin + clock.frames(self.chunks) / clock.fps
        return dialogue.turns[self.position].clip.text_between(self.begin, end, self.length)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one dialogue of a batch is made of.

    Attributes:
        dialogues: The dialogues of the source.
        row: The row of the dialogue.
        source: The index of the source.
        turns: The turns.
        layout: The places of their chunks, by the turns' positions in `turns`.
        asked: The position in the dialogue of the turn that the responder answers first; `None` unless it ends before.
        question: The key of this turn's tokens, or `None`.
        grid: (h, w) of the latents.
    """

    dialogues: Dialogues
    row: int
    source: int
    turns: tuple[SampleTurn, ...]
    layout: Layout
    asked: int | None
    question: str | None
    grid: tuple[int, int]

    @property
    def dialogue(self) -> Dialogue:
        """The dialogue; parsed anew each time."""
        return self.dialogues[self.row]

    @property
    def answer(self) -> SampleTurn:
        """The first turn of the responder."""
        return self.turns[self.layout.said[0].turn]


def make_sample(table: SegmentTable, source: int, number: int, row: int, span: int, grid: tuple[int, int]) -> Sample:
    """Returns a sample.

    Args:
        table: The segments of the source's folder.
        source: The index of the source.
        number: The row of its first turn of the responder among all turns.
        row: The row of its dialogue.
        span: The span of that turn's clip.
        grid: (h, w) of the latents.
    """
    dialogues = table.dialogues
    first = int(dialogues.first[row])
    whole = table.selection.whole(BRANCHES[dialogues.branch[row]])
    used = range(first, int(dialogues.first[row + 1])) if whole else [number]
    everything = [_turn(table, row, turn, turn - first, span) for turn in used]
    turns, layout = fit(everything, table.selection.max_steps)
    answer = turns[layout.said[0].turn]
    asked = _asked(table, row, answer, turns if whole else None)
    question = None if asked is None else key_of(int(dialogues.turns["segment"][first + asked]))
    return Sample(dialogues, row, source, turns, layout, asked, question, grid)


def fit(turns: list[SampleTurn], max_steps: int | None) -> tuple[tuple[SampleTurn, ...], Layout]:
    """Lays turns out, without the earliest if they last longer than `max_steps`, and without what comes after the end.

    The last turn of the responder is always kept. What is heard after its end has no output that sees it.
    """
    layout = lay_out([TurnSpan(turn.role, turn.chunks, turn.start) for turn in turns])
    last = layout.said[-1]
    first = {place.turn: place.step for place in (*layout.heard, *layout.said) if place.chunk == 1}
    earliest = -math.inf if max_steps is None else last.step - max_steps + 1
    kept = [k for k in range(len(turns)) if k == last.turn or earliest <= first[k] <= last.step]
    if len(kept) < len(turns):
        layout = lay_out([TurnSpan(turns[k].role, turns[k].chunks, first[k]) for k in kept])
    end = layout.said[-1].step
    return tuple(turns[k] for k in kept), Layout(layout.said, tuple(p for p in layout.heard if p.step <= end))


def _turn(table: SegmentTable, row: int, number: int, position: int, span: int) -> SampleTurn:
    """Returns the chunks of a turn that are taken, as far as its tokens and the manifest tell where they are."""
    dialogues, clock = table.dialogues, table.cache.encoder.clock
    part, role = PARTS[dialogues.turns["part"][number]], ROLE_NAMES[dialogues.turns["role"][number]]
    key = key_of(int(dialogues.turns["segment"][number]))
    seconds, start = _known(dialogues.turns["seconds"][number]), _step(table, row, number)
    stored = [shape[0] - 1 for shape in table.cache.shapes(key)]
    span = span if part == "spans" else 0
    chunks = min(stored[span], table.selection.limit(role))
    cut = stored[span] > chunks
    begin: float | None = 0.0
    if part == "spans":
        begin, cut = span * clock.frames(table.cache.longest) / clock.fps, cut or span < len(stored) - 1
    elif part == "last" and cut:
        lost = _lost(table, row, number, stored[0], chunks, start)
        begin = None if seconds is None else lost * clock.temporal_stride / clock.fps
        start, cut = None if start is None else start + lost, False
    length = seconds
    if seconds is None and begin is not None and not cut:
        length = begin + clock.frames(chunks) / clock.fps
    end = 0 if cut else UNKNOWN if dialogues.turns["together"][number] else 1  # both may go on after the recording
    return SampleTurn(number, position, role, part, key, span, chunks, start, begin, length, end)


def _lost(table: SegmentTable, row: int, number: int, stored: int, chunks: int, start: int | None) -> int:
    """Returns how many chunks a turn has before those that are taken, which are its last ones.

    It follows from the clip's length, else from where the next turn starts; else it is what the tokens show.
    """
    clock, seconds = table.cache.encoder.clock, _known(table.dialogues.turns["seconds"][number])
    every = stored
    if seconds is not None:
        every = clock.chunks(round(seconds * clock.fps))
    elif start is not None and number + 1 < table.dialogues.first[row + 1]:
        following = _step(table, row, number + 1)
        every = stored if following is None else following - start
    return max(stored, every) - chunks


def _step(table: SegmentTable, row: int, number: int) -> int | None:
    """Returns the step that a turn starts at, the first turn's being 0 if it is not known."""
    start = _known(table.dialogues.turns["start"][number])
    if start is None:
        return 0 if number == table.dialogues.first[row] else None
    return round(start * table.cache.encoder.clock.chunks_per_second)


def _asked(table: SegmentTable, row: int, answer: SampleTurn, turns: tuple[SampleTurn, ...] | None) -> int | None:
    """Returns the position of the turn that a turn of the responder answers, if it ends before.

    Args:
        table: The segments of the folder.
        row: The row of the dialogue.
        answer: The turn of the responder.
        turns: The turns that are heard; `None` if nothing is.
    """
    back = int(table.dialogues.turns["back"][answer.number])
    if not back:
        return None
    position, number = answer.position - back, answer.number - back
    if turns is not None and all(turn.position != position for turn in turns):
        return None
    if answer.start is None:
        return position
    if turns is None and not table.selection.features:  # it may not be encoded
        seconds, clock = _known(table.dialogues.turns["seconds"][number]), table.cache.encoder.clock
        start, chunks = _step(table, row, number), None if seconds is None else clock.chunks(round(seconds * clock.fps))
    else:
        heard = next((turn for turn in turns or () if turn.position == position), None)
        heard = heard or _turn(table, row, number, position, 0)
        start, chunks = heard.start, heard.chunks
    ends_before = start is None or (chunks is not None and start + chunks <= answer.start)
    return position if ends_before else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
