"""From samples to batches: the tokens of answers and turns, and conditions, padded to one length."""

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
ATTEMPTS = 20  # samples tried for one draw before a data set counts as broken


class TextEncoder(Protocol):
    """The methods of a text tokenizer that loading needs."""

    def encode(self, text: str) -> list[int]: ...


@dataclass
class Loaded:
    """The tokens of a sample, the turns before it, and its conditions."""

    answer: Tokens
    turns: list[tuple[Tensor, Tensor | None, Role]]
    conditions: dict[str, ConditionValues]


class DialogueBatches:
    """Makes `ChunkBatch`es from drawn samples.

    A sample whose tokens cannot be read, or have impossible values, is replaced by one of like length.

    Args:
        samples: The samples that can be drawn.
        caches: Their tokens, by source.
        selection: What answers are made from.
        text_tokenizer: The tokenizer of transcripts.
        statistics: Mean and standard deviation of each score, in the order of `selection.scores`.
        dtype: The dtype of latents and features; by default the cache's, which is fewer bytes to hand over.
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
        """(n,) the samples by shape, then length; made when the first one cannot be read."""
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
        codes = [sample.answer.codes for sample in loaded if sample.answer.codes is not None]
        latents, mask = self._pad([sample.answer.latents for sample in loaded])
        batch = ChunkBatch(latents, mask[:, 1:], pad(codes, torch.long)[0] if codes else None)
        if self.selection.initiator or self.selection.earlier_turns:
            self._add_turns(batch, loaded)
        for name in self.selection.conditions:
            values = [sample.conditions[name] for sample in loaded]
            batch.conditions[name] = collate(values, self.dtype, self.buffers.empty)
        return batch

    def _pad(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return pad(tensors, self.dtype, self.buffers.empty)

    def _prefetch(self, sample: Sample) -> None:
        """Begins to fetch a sample's tokens: reading a whole batch at once from a disk is several times faster."""
        cache = self.caches[sample.source]
        cache.prefetch(sample.answer, sample.span)
        for turn in sample.turns:
            cache.prefetch(turn.key)

    def _load_or_next(self, index: int, generator: torch.Generator) -> Loaded:
        """Loads a sample, or the next in length whose tokens can be read.

        Which ones can be read depends on the files alone, so what is loaded is still a function of the draw.
        """
        number, why = index, ""
        for attempt in range(ATTEMPTS):
            if attempt == 1:
                (position,) = np.flatnonzero(self.alike == index).tolist()
            if attempt:
                number = int(self.alike[(position + attempt) % len(self.alike)])
            sample = self.samples[number]
            if attempt and sample.grid != self.samples[index].grid:
                continue
            try:
                return self._load(number, sample, generator)
            except ShardError as error:
                why = str(error)
                log.warning("skipped an answer of dialogue %s: %s", sample.dialogue.id, why)
        raise ShardError(f"the data are bad: {ATTEMPTS} answers in a row could not be used, the last: {why}")

    def _load(self, number: int, sample: Sample, generator: torch.Generator) -> Loaded:
        cache, selection = self.caches[sample.source], self.selection
        stored = cache.load(sample.answer, sample.span)
        codes = None if stored.codes is None else stored.codes[: selection.max_chunks]
        answer = Tokens(stored.latents[: selection.max_chunks + 1], codes)
        turns = [self._load_turn(cache, turn) for turn in sample.turns]
        example = LoadedExample(self, number, sample, answer, generator)
        conditions = {name: condition.from_dialogue(example) for name, condition in selection.conditions.items()}
        return Loaded(answer, turns, conditions)

    def _load_turn(self, cache: TokenCache, turn: TurnKey) -> tuple[Tensor, Tensor | None, Role]:
        tokens = cache.load(turn.key)
        # Chunk 0 of a turn is its first frame alone, without audio: the others pair with their codes.
        chunks = slice(-self.selection.turn_chunks, None) if turn.part == "last" else slice(self.selection.turn_chunks)
        return tokens.latents[1:][chunks], None if tokens.codes is None else tokens.codes[chunks], turn.role

    def text_ids(self, text: str | None, dialogue: Dialogue) -> Tensor:
        """Returns the ids (n,) of a dialogue's text; if there are too many, the first, and warns once."""
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
        for sample in loaded:
            latents.append(torch.cat([sample.answer.latents[:0], *(turn for turn, _, _ in sample.turns)]))
            roles.append(torch.tensor([ROLES[role] for turn, _, role in sample.turns for _ in turn]).long())
            if sample.answer.codes is not None:
                codes.append(torch.cat([sample.answer.codes[:0], *(c for _, c, _ in sample.turns if c is not None)]))
        batch.turn_latents, batch.turn_mask = self._pad(latents)
        batch.turn_roles = pad(roles)[0]
        batch.turn_codes = pad(codes, torch.long)[0] if codes else None


class LoadedExample:
    """A sample as its conditions see it: see `vidchat.conditions.base.Example`.

    Args:
        batches: The maker of batches that loads the sample.
        number: The index of the sample.
        sample: The sample.
        answer: The tokens of its answer.
        generator: The generator of its random choices.
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
        """Returns (n, F, K), the first chunks of codes of another clip of the speaker, drawn at random."""
        assert self._answer.codes is not None, "conditions that need a voice are left out without audio"
        voices = self._batches.voices
        others = [] if voices is None else [clip for clip in voices.of(self._number) if clip[0] != self._sample.answer]
        if not others:
            return self._answer.codes[:0]
        key, span = others[int(torch.randint(len(others), (), generator=self._generator))]
        return self._cache.load_codes(key, span)[:chunks]

    def thinker_features(self) -> Tensor:
        assert self._sample.question is not None, "dialogues without a question are left out"
        return self._cache.load_features(self._sample.question)
