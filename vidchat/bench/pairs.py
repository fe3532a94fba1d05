"""Reads a benchmark folder: `pairs.jsonl`, perhaps `candidates.jsonl`, and the files that they name.

The first line of `pairs.jsonl` is the header of the benchmark: the rules in words, the length of answers, and the size
at which they are scored. Every other line is a pair.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidchat.bench.protocol import file_hash, text_hash
from vidchat.bench.rules import BAD, COUNTED, GIVEN
from vidchat.data.folder import inside
from vidchat.data.media.read import MediaError, length_of
from vidchat.dialogue import Clip
from vidchat.runtime.atomic import write_text

PAIRS, CANDIDATES, BENCHMARK = "pairs.jsonl", "candidates.jsonl", "benchmark"
PLAIN = re.compile(r"[\w\-][\w\-. ]*")  # characters of an id, which names files
LONGEST_ID = 200  # bytes: a file name has at most 255, and a suffix follows
BAD_ENTRY = (ValueError, KeyError, TypeError, AttributeError, OverflowError)  # all errors that a line of JSON can raise


class PairsError(ValueError):
    """Error about a benchmark folder that cannot be read; its message is one sentence that says what to do."""


@dataclass(frozen=True)
class Candidate:
    """A candidate reply to a question.

    Attributes:
        text: Words of the reply.
        score: Score of an answer that is nearest to this reply, 0.2 ... 1.0.
        recordings: Audio files of the reply, for metrics without a speech recogniser; may be empty.
    """

    text: str
    score: float
    recordings: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Pair:
    """One question of the benchmark.

    Attributes:
        id: Name of the pair, and of the file of the generated clip.
        initiator: Clip to be answered.
        truth: True answer; scoring begins at its `start`, one frame after the reference.
        reference: Image of the responder.
        candidates: Candidate replies, best first; empty if none were made.
        answer_seconds: Length of an answer, the same for every pair; `None` for the length of the truth.
        branch: Branch of the dialogue; in `listening` the true answer says nothing.
    """

    id: str
    initiator: Clip
    truth: Clip
    reference: Path
    candidates: tuple[Candidate, ...] = ()
    answer_seconds: float | None = None
    branch: str = "dialogue"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark folder.

    Attributes:
        pairs: Pairs, at least one, in the order of the file.
        answer_seconds: Length of an answer, the same for every pair.
        size: Size (height, width) at which clips are scored, or `None` if the file does not state it.
    """

    pairs: tuple[Pair, ...]
    answer_seconds: float
    size: tuple[int, int] | None


def read_benchmark(folder: Path) -> Benchmark:
    """Reads a benchmark folder as `vidchat bench make` writes it.

    The files that a pair names need not exist: scoring and answering report the pair and go on. Without a header,
    answers are as long as the longest true answer.

    Raises:
        PairsError: There is no such folder, or a line is invalid.
    """
    folder = Path(folder)
    if not (folder / PAIRS).is_file():
        raise PairsError(f"{folder}: has no {PAIRS}; make one by `vidchat bench make`")
    candidates = _read_candidates(folder)
    settings: Mapping[str, Any] = {}
    pairs: dict[str, Pair] = {}
    for index, (where, entry) in enumerate(_lines(folder / PAIRS)):
        try:
            if index == 0 and isinstance(entry, dict) and BENCHMARK in entry:
                settings = _parse_header(entry[BENCHMARK])
                continue
            pair = _pair(folder, entry, candidates)
        except BAD_ENTRY as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else error
            raise PairsError(f"{where}: {what}") from None
        if pair.id in pairs:
            raise PairsError(f"{where}: the id '{pair.id}' was used before")
        pairs[pair.id] = pair
    if not pairs:
        raise PairsError(f"{folder / PAIRS}: holds no pair")
    seconds = settings.get("answer_seconds") or longest_answer([pair.truth for pair in pairs.values()])
    complete = tuple(replace(pair, answer_seconds=seconds) for pair in pairs.values())
    return Benchmark(complete, seconds, settings.get("size"))


def read_pairs(folder: Path) -> list[Pair]:
    """Reads the pairs of a benchmark folder."""
    return list(read_benchmark(folder).pairs)


def header(answer_seconds: float, size: tuple[int, int]) -> Mapping[str, Any]:
    """Returns the first line of `pairs.jsonl`: length and size of answers, and the rules in words."""
    rules = {"given": GIVEN, "counted": COUNTED, "bad_clips": BAD}
    return {BENCHMARK: {"answer_seconds": answer_seconds, "width": size[1], "height": size[0], **rules}}


def longest_answer(truths: Iterable[Clip]) -> float:
    """Returns the length of the longest true answer, in seconds rounded up to hundredths.

    Raises:
        PairsError: No true answer can be opened.
    """
    lengths, why = [], ""
    for clip in truths:
        try:
            lengths.append((length_of(clip.path) if clip.end is None else clip.end) - clip.start)
        except (MediaError, OSError) as error:  # scoring reports it
            why = why or f"; the first: {' '.join(str(error).split())}"
    if not lengths or max(lengths) <= 0:
        raise PairsError(f"no true answer can be opened, so there is nothing to compare with{why}")
    return math.ceil(100 * max(lengths) - 1e-6) / 100


def write_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines atomically."""
    write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


def pairs_hash(pairs: Sequence[Pair]) -> str:
    """Returns a hash of all pairs, in order."""
    return text_hash(map(pair_hash, pairs))


def pair_hash(pair: Pair) -> str:
    """Returns a hash of a pair: contents of its files, spans, texts, speakers, and length; without its candidates."""
    clips = [_content(clip) for clip in (pair.initiator, pair.truth)]
    return text_hash([pair.id, *clips, content_hash(pair.reference), repr((pair.answer_seconds, pair.branch))])


def _content(clip: Clip) -> str:
    return repr((content_hash(clip.path), clip.start, clip.end, clip.text, clip.speaker))


def content_hash(path: Path) -> str:
    """Returns the hash of a file, or `missing`."""
    try:
        return file_hash(path)
    except OSError:
        return "missing"


def candidates_hash(pairs: Sequence[Pair]) -> str:
    """Returns a hash of all candidate replies: scores, words and recordings."""
    return text_hash(
        repr((pair.id, reply.score, reply.text, [content_hash(path) for path in reply.recordings]))
        for pair in pairs
        for reply in pair.candidates
    )


def check_id(name: object) -> str:
    """Returns the id if it can name a file.

    Raises:
        ValueError: It is not a string, is too long, or holds characters that a file name may not hold.
    """
    if not isinstance(name, str) or not PLAIN.fullmatch(name):
        raise ValueError(f"the id {shortened(name)} cannot name a file; use letters, digits, '-', '_', '.'")
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_ID:
        raise ValueError(f"the id {shortened(name)} is too long to name a file; use at most {LONGEST_ID} bytes")
    return name


def shortened(name: object) -> str:
    """Returns the start of an invalid id, for an error message."""
    text = repr(name)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def _parse_header(line: Any) -> Mapping[str, Any]:
    """Parses `answer_seconds` and `size` of the header."""
    seconds, sides = line.get("answer_seconds"), [line.get("height"), line.get("width")]
    if seconds is not None and not (type(seconds) in (int, float) and 0 < seconds < math.inf):
        raise ValueError(f"'answer_seconds' must be a number of seconds above 0, not {seconds!r}")
    if sides == [None, None]:
        return {"answer_seconds": seconds, "size": None}
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"'width' and 'height' must be numbers of pixels, not {sides[1]!r} and {sides[0]!r}")
    return {"answer_seconds": seconds, "size": tuple(sides)}


def _pair(folder: Path, entry: Any, candidates: Mapping[str, tuple[Candidate, ...]]) -> Pair:
    name = check_id(entry["id"])
    return Pair(
        id=name,
        initiator=_clip(folder, entry["initiator"], f"the initiator of {name}"),
        truth=_clip(folder, entry["truth"], f"the responder of {name}"),
        reference=inside(folder, entry["reference"], media=False),
        candidates=candidates.get(name, ()),
        branch=str(entry.get("branch", "dialogue")),
    )


def _clip(folder: Path, entry: Any, default_speaker: str) -> Clip:
    """Parses a clip; an unknown speaker gets a name that no other clip has."""
    text, speaker = entry.get("text"), entry["speaker"]
    if not isinstance(text, str | None):
        raise ValueError(f"'text' must be a string, not {text!r}")
    return Clip(
        path=inside(folder, entry["clip"], media=False),
        speaker=default_speaker if speaker is None else str(speaker),
        text=text,
        start=_seconds(entry.get("start", 0.0)),
        end=None if entry.get("end") is None else _seconds(entry["end"]),
        truth=entry.get("truth") or {},
    )


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"'start' and 'end' must be seconds, not {value!r}")
    return seconds


def _read_candidates(folder: Path) -> dict[str, tuple[Candidate, ...]]:
    if not (folder / CANDIDATES).is_file():
        return {}
    candidates = {}
    for where, entry in _lines(folder / CANDIDATES):
        try:
            candidates[str(entry["id"])] = tuple(
                Candidate(
                    str(reply["text"]),
                    float(reply["worth"]),
                    tuple(inside(folder, name) for name in reply.get("sounds", ())),
                )
                for reply in entry["candidates"]
            )
        except BAD_ENTRY as error:
            raise PairsError(
                f"{where}: {error!r} in the candidates; make them anew by `vidchat bench candidates`"
            ) from None
    return candidates


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        raise PairsError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entry = json.loads(line)
                json.dumps(entry, ensure_ascii=False).encode()  # a lone surrogate could not be written or printed
            except (ValueError, RecursionError) as error:
                raise PairsError(f"{path} line {number}: is not JSON ({error})") from None
            yield f"{path} line {number}", entry
