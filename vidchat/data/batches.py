"""Dialogues to batches: which tokens an answer and its conditions are, and how they are laid side by side."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from vidchat.batch import ChunkBatch
from vidchat.data.cache import TokenCache
from vidchat.data.endless import Draw
from vidchat.data.shards import ShardError
from vidchat.data.tokens import Part, Piece, Tokens
from vidchat.dialogue import Clip, Dialogue, Role, Turn

log = logging.getLogger(__name__)
ROLES: dict[Role, int] = {"initiator": 0, "responder": 1}
ATTEMPTS = 20  # answers tried for one draw before a data set counts as broken


class TextEncoder(Protocol):
    """What is needed of a text tokenizer."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Conditions:
    """What an answer is made from, besides its reference.

    Attributes:
        text: The transcript of the answer or of the question, or `None`.
        initiator: The question's latents and codes.
        earlier_turns: Those of the turns before the question.
        voice: Codes of another clip of the responder.
        scores: Names of the answer's quality scores.
        features: Width of a thinker's features of the question; 0 for none.
        max_chunks: The longest answer. A longer one is cut to its beginning; in the single branch, into spans.
        max_turn_chunks: The longest other turn, by default `max_chunks`; of a longer one its end is kept, since what
            follows answers it.
        voice_chunks: The longest sample of a voice.
    """

    text: Literal["answer", "question"] | None = None
    initiator: bool = False
    earlier_turns: bool = False
    voice: bool = False
    scores: tuple[str, ...] = ()
    features: int = 0
    max_chunks: int = 25
    max_turn_chunks: int | None = None
    voice_chunks: int = 12

    @property
    def turn_chunks(self) -> int:
        """The longest turn that is not the answer."""
        return self.max_chunks if self.max_turn_chunks is None else self.max_turn_chunks

    @property
    def asks(self) -> bool:
        """Whether dialogues without a question cannot be used."""
        return self.initiator or self.features > 0

    def answer(self, dialogue: Dialogue) -> Piece:
        """Of a dialogue the answer's beginning; of the single branch, all of it in spans, to learn from everything."""
        part: Literal["first", "spans"] = "spans" if dialogue.branch == "single" else "first"
        return Piece(dialogue.answer, part, self.max_chunks)

    def turns(self, dialogue: Dialogue) -> list[tuple[Piece, Role]]:
        """The turns that condition the answer, in order: earlier ones, then the question."""
        chosen: list[Turn] = []
        for turn in dialogue.turns:
            if turn.clip is dialogue.question:
                chosen += [turn] if self.initiator else []
            elif turn.clip is not dialogue.answer and self.earlier_turns:
                chosen.append(turn)
        return [(self._turn(dialogue, turn.clip), turn.role) for turn in chosen]

    def question(self, dialogue: Dialogue) -> Piece | None:
        """What the thinker sees, if there is one."""
        clip = dialogue.question if self.features else None
        return None if clip is None else replace(self._turn(dialogue, clip), features=True)

    def _turn(self, dialogue: Dialogue, clip: Clip) -> Piece:
        # A listener's turn runs at the same time as the speaker's, from its beginning.
        part: Literal["first", "last"] = "first" if dialogue.branch == "listening" else "last"
        return Piece(clip, part, self.turn_chunks)

    def pieces(self, dialogue: Dialogue) -> list[Piece]:
        """Everything of a dialogue that is to be encoded; the question last, which may ask for features too."""
        question = self.question(dialogue)
        turns = [piece for piece, _ in self.turns(dialogue)]
        return [self.answer(dialogue), *turns, *([] if question is None else [question])]


class TurnKey(NamedTuple):
    """An encoded turn: the part of it that is there, its key, and its role."""

    part: Part
    key: str
    role: Role


@dataclass(frozen=True, slots=True)
class Item:
    """One answer to learn: a span of a dialogue's answer, and the keys of all its tokens.

    Attributes:
        dialogue: Whose answer it is.
        source: Which of the mixed sets it is from.
        answer: The answer's key, of which this is the span `span`.
        span: See above.
        turns: What conditions it.
        question: The key of what a thinker saw, or `None`.
        lengths: Chunks of the answer, and of all turns together.
        grid: (h, w) of the latents.
    """

    dialogue: Dialogue
    source: int
    answer: str
    span: int
    turns: tuple[TurnKey, ...]
    question: str | None
    lengths: tuple[int, int]
    grid: tuple[int, int]

    @property
    def speaker(self) -> tuple[int, str]:
        """Who answers; the same name in another set may be another person."""
        return self.source, self.dialogue.answer.speaker


Voices = dict[tuple[int, str], list[tuple[str, int]]]


def voices_of(items: Sequence[Item]) -> Voices:
    """Of each speaker the answers, as (key, span), each once."""
    found: dict[tuple[int, str], set[tuple[str, int]]] = {}
    for item in items:
        found.setdefault(item.speaker, set()).add((item.answer, item.span))
    return {speaker: sorted(answers) for speaker, answers in found.items()}


@dataclass
class Loaded:
    """An item's tokens."""

    item: Item
    answer: Tokens
    turns: list[tuple[Tensor, Tensor | None, Role]]
    voice: Tensor | None
    features: Tensor | None


class DialogueBatches:
    """Makes `ChunkBatch`es from drawn items.

    An item whose tokens cannot be read gives way to one of like length.

    Args:
        items: What can be drawn.
        caches: Their tokens, by source.
        conditions: Which conditions are made.
        text_tokenizer: Transcripts to ids.
        statistics: Mean and standard deviation of each score, in the order of `conditions.scores`.
        dtype: Of latents and features; by default the cache's, which is fewer bytes to hand over.
    """

    def __init__(
        self,
        items: list[Item],
        caches: list[TokenCache],
        conditions: Conditions,
        text_tokenizer: TextEncoder | None,
        statistics: list[tuple[float, float]],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = dtype
        self.items, self.caches, self.conditions = items, caches, conditions
        self.text_tokenizer, self.statistics = text_tokenizer, statistics
        self.voices = voices_of(items) if conditions.voice else {}
        self.alike = sorted(range(len(items)), key=lambda i: (items[i].grid, items[i].lengths, i))
        self._place = {index: place for place, index in enumerate(self.alike)}
        for cache in caches:
            cache.share_damage()  # now, before there are other processes

    def __call__(self, draws: list[Draw]) -> ChunkBatch:
        for index, _ in draws:
            self._ahead(self.items[index])
        with ExitStack() as stack:
            for cache in dict.fromkeys(self.caches):
                stack.enter_context(cache.borrowing())
            return self._collate([self._load_or_next(*draw) for draw in draws])

    def _collate(self, loaded: list[Loaded]) -> ChunkBatch:
        items = [one.item for one in loaded]
        codes = [one.answer.codes for one in loaded if one.answer.codes is not None]
        latents, mask = pad([one.answer.latents for one in loaded], self.dtype)
        batch = ChunkBatch(latents, mask[:, 1:], pad(codes, torch.long)[0] if codes else None)
        chosen = self.conditions
        if chosen.text is not None:
            batch.text_ids, batch.text_mask = pad([self._text(item) for item in items])
        if chosen.initiator or chosen.earlier_turns:
            self._add_turns(batch, loaded)
        if chosen.voice and codes:
            voices = [codes[0][:0] if one.voice is None else one.voice for one in loaded]
            batch.voice_codes, batch.voice_mask = pad(voices, torch.long)
        if chosen.scores:
            batch.scores, batch.score_mask = self._scores(items)
        if chosen.features:
            features = [one.features for one in loaded if one.features is not None]
            batch.features, batch.feature_mask = pad(features, self.dtype)
        return batch

    def _ahead(self, item: Item) -> None:
        """Begins to fetch an item's tokens: a disk that is asked for a whole batch at once is several times faster."""
        cache = self.caches[item.source]
        cache.ahead(item.answer, item.span)
        for turn in item.turns:
            cache.ahead(turn.key)

    def _load_or_next(self, index: int, generator: torch.Generator) -> Loaded:
        """An item's tokens, or those of the next in length whose tokens can be read.

        Which can be read depends on the files alone, so what is loaded is still a function of the draw.
        """
        place, told = self._place[index], ""
        for attempt in range(ATTEMPTS):
            item = self.items[self.alike[(place + attempt) % len(self.alike)]]
            if attempt and item.grid != self.items[index].grid:
                continue
            try:
                return self._load(item, generator)
            except ShardError as error:
                told = str(error)
                log.warning("skipped an answer of dialogue %s: %s", item.dialogue.id, told)
        raise ShardError(f"{ATTEMPTS} answers in a row could not be read, the last: {told}")

    def _load(self, item: Item, generator: torch.Generator) -> Loaded:
        cache, chosen = self.caches[item.source], self.conditions
        answer = cache.load(item.answer, item.span)
        count = chosen.max_chunks
        codes = None if answer.codes is None else answer.codes[:count]
        turns = [self._load_turn(cache, turn) for turn in item.turns]
        voice = self._voice(item, generator) if codes is not None and chosen.voice else None
        features = cache.load_features(item.question) if item.question is not None else None
        return Loaded(item, Tokens(answer.latents[: count + 1], codes), turns, voice, features)

    def _load_turn(self, cache: TokenCache, turn: TurnKey) -> tuple[Tensor, Tensor | None, Role]:
        tokens = cache.load(turn.key)
        # Chunk 0 of a turn is its first picture alone, without sound: the others pair with their codes.
        kept = slice(-self.conditions.turn_chunks, None) if turn.part == "last" else slice(self.conditions.turn_chunks)
        return tokens.latents[1:][kept], None if tokens.codes is None else tokens.codes[kept], turn.role

    def _voice(self, item: Item, generator: torch.Generator) -> Tensor | None:
        """The first chunks of codes of another clip of the speaker, drawn at random; `None` where there is none."""
        others = [voice for voice in self.voices[item.speaker] if voice[0] != item.answer]
        if not others:
            return None
        name, span = others[int(torch.randint(len(others), (), generator=generator))]
        return self.caches[item.source].load_codes(name, span)[: self.conditions.voice_chunks]

    def _text(self, item: Item) -> Tensor:
        clip = item.dialogue.answer if self.conditions.text == "answer" else item.dialogue.question
        text = clip.text if clip is not None else None
        ids = self.text_tokenizer.encode(text) if text and self.text_tokenizer is not None else []
        return torch.tensor(ids, dtype=torch.long)

    def _add_turns(self, batch: ChunkBatch, loaded: list[Loaded]) -> None:
        latents, codes, roles = [], [], []
        for one in loaded:
            latents.append(torch.cat([one.answer.latents[:0], *(turn for turn, _, _ in one.turns)]))
            roles.append(torch.tensor([ROLES[role] for turn, _, role in one.turns for _ in turn]).long())
            if one.answer.codes is not None:
                codes.append(torch.cat([one.answer.codes[:0], *(c for _, c, _ in one.turns if c is not None)]))
        batch.turn_latents, batch.turn_mask = pad(latents, self.dtype)
        batch.turn_roles = pad(roles)[0]
        batch.turn_codes = pad(codes, torch.long)[0] if codes else None

    def _scores(self, items: list[Item]) -> tuple[Tensor, Tensor]:
        values = torch.zeros(len(items), len(self.conditions.scores))
        mask = torch.zeros_like(values, dtype=torch.bool)
        for row, item in enumerate(items):
            known = item.dialogue.answer.scores
            for column, (name, (mean, std)) in enumerate(zip(self.conditions.scores, self.statistics, strict=True)):
                if name in known:
                    values[row, column], mask[row, column] = (known[name] - mean) / std, True
        return values, mask


def pad(parts: Sequence[Tensor], dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """B tensors (n_i, ...) to (B, max n_i, ...) filled up with zeros, and the mask (B, max n_i) of what is there.

    Nothing at all still takes one place, masked, so that no dimension is 0. The result has `dtype`, or the parts'.
    """
    longest = max(1, *(len(part) for part in parts))
    lengths = torch.tensor([len(part) for part in parts])
    padded = _zeros((len(parts), longest, *parts[0].shape[1:]), dtype or parts[0].dtype)
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
    return padded, torch.arange(longest)[None] < lengths[:, None]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros; in a loader's process, in the memory that it shares with the training process, which spares a copy."""
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)  # fresh shared memory is zero
