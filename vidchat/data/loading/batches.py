"""Dialogues to batches: which tokens an answer and its conditions are, and how they are laid side by side."""

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

from vidchat.batch import MOST_TEXT, ChunkBatch
from vidchat.data.loading.conditions import Conditions
from vidchat.data.loading.endless import Draw
from vidchat.data.loading.items import Item, Items, TurnKey
from vidchat.data.loading.lending import Lender
from vidchat.data.tokens.cache import TokenCache
from vidchat.data.tokens.encoder import Tokens
from vidchat.data.tokens.shards import ShardError
from vidchat.dialogue import Dialogue, Role

log = logging.getLogger(__name__)
ROLES: dict[Role, int] = {"initiator": 0, "responder": 1}
ATTEMPTS = 20  # answers tried for one draw before a data set counts as broken


class TextEncoder(Protocol):
    """What is needed of a text tokenizer."""

    def encode(self, text: str) -> list[int]: ...


@dataclass
class Loaded:
    """An item's tokens, and its number."""

    number: int
    item: Item
    answer: Tokens
    turns: list[tuple[Tensor, Tensor | None, Role]]
    voice: Tensor | None
    features: Tensor | None


class DialogueBatches:
    """Makes `ChunkBatch`es from drawn items.

    An item whose tokens cannot be read, or hold what no tokenizer makes, gives way to one of like length.

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
        items: Items,
        caches: list[TokenCache],
        conditions: Conditions,
        text_tokenizer: TextEncoder | None,
        statistics: list[tuple[float, float]],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = dtype
        self.items, self.caches, self.conditions = items, caches, conditions
        self.text_tokenizer, self.statistics = text_tokenizer, statistics
        self.voices = items.voices() if conditions.voice else None
        self.lender = Lender()
        self._shortened: set[str] = set()  # dialogues whose text is longer than models read
        for cache in caches:
            cache.share_damage()  # now, before there are other processes

    @cached_property
    def alike(self) -> np.ndarray:
        """(n,) the items by shape, then length; made when the first sample cannot be read."""
        answers, turns = self.items.lengths.T
        return np.lexsort((turns, answers, self.items.shapes)).astype(np.int32)

    def __call__(self, draws: list[Draw]) -> ChunkBatch:
        for index, _ in draws:
            self._ahead(self.items[index])
        with ExitStack() as stack:
            for cache in dict.fromkeys(self.caches):
                stack.enter_context(cache.borrowing())
            return self.lender.hand_over(self._collate([self._load_or_next(*draw) for draw in draws]))

    def _collate(self, loaded: list[Loaded]) -> ChunkBatch:
        codes = [one.answer.codes for one in loaded if one.answer.codes is not None]
        latents, mask = self._pad([one.answer.latents for one in loaded])
        batch = ChunkBatch(latents, mask[:, 1:], pad(codes, torch.long)[0] if codes else None)
        chosen = self.conditions
        if chosen.text is not None:
            batch.text_ids, batch.text_mask = pad([self._text(one.item.dialogue) for one in loaded])
        if chosen.initiator or chosen.earlier_turns:
            self._add_turns(batch, loaded)
        if chosen.voice and codes:
            voices = [codes[0][:0] if one.voice is None else one.voice for one in loaded]
            batch.voice_codes, batch.voice_mask = pad(voices, torch.long)
        if chosen.scores:
            batch.scores, batch.score_mask = self._scores([one.number for one in loaded])
        if chosen.features:
            features = [one.features for one in loaded if one.features is not None]
            batch.features, batch.feature_mask = self._pad(features)
        return batch

    def _pad(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return pad(parts, self.dtype, self.lender)

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
        number, told = index, ""
        for attempt in range(ATTEMPTS):
            if attempt == 1:
                (place,) = np.flatnonzero(self.alike == index).tolist()
            if attempt:
                number = int(self.alike[(place + attempt) % len(self.alike)])
            item = self.items[number]
            if attempt and item.grid != self.items[index].grid:
                continue
            try:
                return self._load(number, item, generator)
            except ShardError as error:
                told = str(error)
                log.warning("skipped an answer of dialogue %s: %s", item.dialogue.id, told)
        raise ShardError(f"the data are bad: {ATTEMPTS} answers in a row could not be used, the last: {told}")

    def _load(self, number: int, item: Item, generator: torch.Generator) -> Loaded:
        cache, chosen = self.caches[item.source], self.conditions
        answer = cache.load(item.answer, item.span)
        count = chosen.max_chunks
        codes = None if answer.codes is None else answer.codes[:count]
        turns = [self._load_turn(cache, turn) for turn in item.turns]
        voice = self._voice(number, item, generator) if codes is not None else None
        features = cache.load_features(item.question) if item.question is not None else None
        return Loaded(number, item, Tokens(answer.latents[: count + 1], codes), turns, voice, features)

    def _load_turn(self, cache: TokenCache, turn: TurnKey) -> tuple[Tensor, Tensor | None, Role]:
        tokens = cache.load(turn.key)
        # Chunk 0 of a turn is its first picture alone, without sound: the others pair with their codes.
        kept = slice(-self.conditions.turn_chunks, None) if turn.part == "last" else slice(self.conditions.turn_chunks)
        return tokens.latents[1:][kept], None if tokens.codes is None else tokens.codes[kept], turn.role

    def _voice(self, number: int, item: Item, generator: torch.Generator) -> Tensor | None:
        """The first chunks of codes of another clip of the speaker, drawn at random; `None` where there is none."""
        others = [] if self.voices is None else [one for one in self.voices.of(number) if one[0] != item.answer]
        if not others:
            return None
        name, span = others[int(torch.randint(len(others), (), generator=generator))]
        return self.caches[item.source].load_codes(name, span)[: self.conditions.voice_chunks]

    def _text(self, dialogue: Dialogue) -> Tensor:
        clip = dialogue.answer if self.conditions.text == "answer" else dialogue.question
        text = clip.text if clip is not None else None
        ids = self.text_tokenizer.encode(text) if text and self.text_tokenizer is not None else []
        if len(ids) > MOST_TEXT and dialogue.id not in self._shortened:
            self._shortened.add(dialogue.id)
            log.warning(
                "dialogue %s: of its text of %d tokens the first %d are read (%d such so far in this process)",
                dialogue.id, len(ids), MOST_TEXT, len(self._shortened),
            )  # fmt: skip
        ids = ids[:MOST_TEXT]
        return torch.tensor(ids, dtype=torch.long)

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

    def _scores(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """(B, S) standardised scores, zero where there is none, and (B, S) where there is one."""
        values = self.items.scores(numbers)
        mean, std = np.array(self.statistics).T
        scores = np.nan_to_num((values - mean) / std)
        return torch.from_numpy(scores).float(), torch.from_numpy(~np.isnan(values))


def pad(
    parts: Sequence[Tensor], dtype: torch.dtype | None = None, lender: Lender | None = None
) -> tuple[Tensor, Tensor]:
    """B tensors (n_i, ...) to (B, max n_i, ...) filled up with zeros, and the mask (B, max n_i) of what is there.

    Nothing at all still takes one place, masked, so that no dimension is 0. The result has `dtype`, or the parts'.
    """
    longest = max(1, *(len(part) for part in parts))
    lengths = torch.tensor([len(part) for part in parts])
    shape, dtype = (len(parts), longest, *parts[0].shape[1:]), dtype or parts[0].dtype
    padded = torch.empty(shape, dtype=dtype) if lender is None else lender.empty(shape, dtype)
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
        row[len(part) :] = 0
    return padded, torch.arange(longest)[None] < lengths[:, None]
