"""Dialogues to batches: which tokens an answer and what is heard are, what conditions it, laid side by side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vidchat.batch import INITIATOR, RESPONDER, ChunkBatch, ConditionValues, collate, pad
from vidchat.conditions.text import MAX_TEXT
from vidchat.data.loading.endless import Draw
from vidchat.data.loading.sample_index import Sample, SampleIndex, TurnKey
from vidchat.data.loading.selection import Selection
from vidchat.data.loading.shared_buffers import SharedBufferPool
from vidchat.data.tokens.encoder import Tokens
from vidchat.data.tokens.shards import ShardError
from vidchat.data.tokens.token_cache import TokenCache
from vidchat.dialogue import Dialogue, Role

log = logging.getLogger(__name__)
ROLES: dict[Role, int] = {"initiator": INITIATOR, "responder": RESPONDER}
ATTEMPTS = 20  # answers tried for one draw before a data set counts as broken


class TextEncoder(Protocol):
    """What is needed of a text tokenizer."""

    def encode(self, text: str) -> list[int]: ...


@dataclass
class Loaded:
    """An item's tokens, the turns that are heard before it, and what conditions it."""

    answer: Tokens
    turns: list[tuple[Tensor, Tensor | None, Role]]
    conditions: dict[str, ConditionValues]


class DialogueBatches:
    """Makes `ChunkBatch`es from drawn items.

    A sample whose tokens cannot be read, or hold what no tokenizer makes, gives way to one of like length.

    Args:
        items: What can be drawn.
        caches: Their tokens, by source.
        selection: What answers are made from.
        text_tokenizer: Transcripts to ids.
        statistics: Mean and standard deviation of each score, in the order of `selection.scores`.
        dtype: Of latents and features; by default the cache's, which is fewer bytes to hand over.
    """

    def __init__(
        self,
        samples: SampleIndex,
        caches: list[TokenCache],
        selection: Selection,
        text_tokenizer: TextEncoder | None,
        statistics: list[tuple[float, float]],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = dtype
        self.samples, self.caches, self.selection = samples, caches, selection
        self.text_tokenizer, self.statistics = text_tokenizer, statistics
        self.voices = samples.voices() if selection.voice else None
        self.buffers = SharedBufferPool()
        self._shortened: set[str] = set()  # dialogues whose text is longer than models read
        for cache in caches:
            cache.share_damage()  # now, before there are other processes

    @cached_property
    def alike(self) -> np.ndarray:
        """(n,) the items by shape, then length; made when the first sample cannot be read."""
        answers, turns = self.samples.lengths.T
        return np.lexsort((turns, answers, self.samples.shapes)).astype(np.int32)

    def __call__(self, draws: list[Draw]) -> ChunkBatch:
        for index, _ in draws:
            self._prefetch(self.samples[index])
        with ExitStack() as stack:
            for cache in dict.fromkeys(self.caches):
                stack.enter_context(cache.borrowing())
            return self.buffers.to_trainer(self._collate([self._load_or_next(*draw) for draw in draws]))

    def _collate(self, loaded: list[Loaded]) -> ChunkBatch:
        codes = [one.answer.codes for one in loaded if one.answer.codes is not None]
        latents, mask = self._pad([one.answer.latents for one in loaded])
        batch = ChunkBatch(latents, mask[:, 1:], pad(codes, torch.long)[0] if codes else None)
        if self.selection.initiator or self.selection.earlier_turns:
            self._add_turns(batch, loaded)
        for name in self.selection.conditions:
            given = [one.conditions[name] for one in loaded]
            batch.conditions[name] = collate(given, self.dtype, self.buffers.empty)
        return batch

    def _pad(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return pad(parts, self.dtype, self.buffers.empty)

    def _prefetch(self, sample: Sample) -> None:
        """Begins to fetch an item's tokens: a disk that is asked for a whole batch at once is several times faster."""
        cache = self.caches[sample.source]
        cache.prefetch(sample.answer, sample.span)
        for turn in sample.turns:
            cache.prefetch(turn.key)

    def _load_or_next(self, index: int, generator: torch.Generator) -> Loaded:
        """An item's tokens, or those of the next in length whose tokens can be read.

        Which can be read depends on the files alone, so what is loaded is still a function of the draw.
        """
        number, told = index, ""
        for attempt in range(ATTEMPTS):
            if attempt == 1:
                (place,) = np.flatnonzero(self.alike == index).tolist()
            if attempt:
                number = int(self.alike[(place + attempt) % len(self.alike)])
            sample = self.samples[number]
            if attempt and sample.grid != self.samples[index].grid:
                continue
            try:
                return self._load(number, sample, generator)
            except ShardError as error:
                told = str(error)
                log.warning("skipped an answer of dialogue %s: %s", sample.dialogue.id, told)
        raise ShardError(f"the data are bad: {ATTEMPTS} answers in a row could not be used, the last: {told}")

    def _load(self, number: int, sample: Sample, generator: torch.Generator) -> Loaded:
        cache, chosen = self.caches[sample.source], self.selection
        whole = cache.load(sample.answer, sample.span)
        codes = None if whole.codes is None else whole.codes[: chosen.max_chunks]
        answer = Tokens(whole.latents[: chosen.max_chunks + 1], codes)
        turns = [self._load_turn(cache, turn) for turn in sample.turns]
        example = LoadedExample(self, number, sample, answer, generator)
        conditions = {name: condition.from_dialogue(example) for name, condition in chosen.conditions.items()}
        return Loaded(answer, turns, conditions)

    def _load_turn(self, cache: TokenCache, turn: TurnKey) -> tuple[Tensor, Tensor | None, Role]:
        tokens = cache.load(turn.key)
        # Chunk 0 of a turn is its first frame alone, without audio: the others pair with their codes.
        kept = slice(-self.selection.turn_chunks, None) if turn.part == "last" else slice(self.selection.turn_chunks)
        return tokens.latents[1:][kept], None if tokens.codes is None else tokens.codes[kept], turn.role

    def text_ids(self, text: str | None, dialogue: Dialogue) -> Tensor:
        """Ids (n,) of a text of a dialogue; if there are too many, the first, and the dialogue is named once."""
        ids = self.text_tokenizer.encode(text) if text and self.text_tokenizer is not None else []
        if len(ids) > MAX_TEXT and dialogue.id not in self._shortened:
            self._shortened.add(dialogue.id)
            log.warning(
                "dialogue %s: of its text of %d tokens the first %d are read (%d such so far in this process)",
                dialogue.id, len(ids), MAX_TEXT, len(self._shortened),
            )  # fmt: skip
        return torch.tensor(ids[:MAX_TEXT], dtype=torch.long)

    def _add_turns(self, batch: ChunkBatch, loaded: list[Loaded]) -> None:
        latents, codes, roles = [], [], []
        for one in loaded:
            latents.append(torch.cat([one.answer.latents[:0], *(turn for turn, _, _ in one.turns)]))
            roles.append(torch.tensor([ROLES[role] for turn, _, role in one.turns for _ in turn]).long())
            if one.answer.codes is not None:
                codes.append(torch.cat([one.answer.codes[:0], *(c for _, c, _ in one.turns if c is not None)]))
        batch.turn_latents, batch.turn_mask = self._pad(latents)
        batch.turn_roles = pad(roles)[0]
        batch.turn_codes = pad(codes, torch.long)[0] if codes else None


class LoadedExample:
    """A sample as its conditions see it: see `vidchat.conditions.base.Example`.

    Args:
        batches: What loads it.
        number: Number of the sample.
        item: The sample.
        answer: Its tokens.
        generator: Source of its random choices.
    """

    def __init__(
        self, batches: DialogueBatches, number: int, sample: Sample, answer: Tokens, generator: torch.Generator
    ) -> None:
        self._batches, self._number, self._sample, self._answer = batches, number, sample, answer
        self._cache, self._generator = batches.caches[sample.source], generator

    @cached_property
    def dialogue(self) -> Dialogue:
        return self._sample.dialogue

    def text_ids(self, text: str | None) -> Tensor:
        return self._batches.text_ids(text, self.dialogue)

    def scores(self, names: Sequence[str]) -> Tensor:
        known = self._batches.selection.scores
        mean, std = np.array(self._batches.statistics).T
        scores = (self._batches.samples.scores([self._number], known)[0] - mean) / std
        return torch.from_numpy(scores[[known.index(name) for name in names]])

    def voice(self, chunks: int) -> Tensor:
        """The first chunks of codes of another clip of the speaker, drawn at random."""
        assert self._answer.codes is not None, "conditions that need a voice are left out without audio"
        voices = self._batches.voices
        others = [] if voices is None else [one for one in voices.of(self._number) if one[0] != self._sample.answer]
        if not others:
            return self._answer.codes[:0]
        name, span = others[int(torch.randint(len(others), (), generator=self._generator))]
        return self._cache.load_codes(name, span)[:chunks]

    def thinker_features(self) -> Tensor:
        assert self._sample.question is not None, "dialogues without a question are left out"
        return self._cache.load_features(self._sample.question)
