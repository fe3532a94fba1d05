"""From samples to batches: the tokens of turns on their dialogue's clock, and conditions, padded to one length."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vidchat.batch import UNKNOWN, ChunkBatch, ConditionValues, collate, pad
from vidchat.conditions.text import MAX_TEXT
from vidchat.data.loading.endless import Draw
from vidchat.data.loading.sample import Sample, SampleTurn
from vidchat.data.loading.sample_index import SampleIndex
from vidchat.data.loading.selection import Selection
from vidchat.data.loading.shared_buffers import SharedBufferPool
from vidchat.data.tokens.shards import ShardError
from vidchat.data.tokens.token_cache import TokenCache
from vidchat.dialogue import Clip, Dialogue
from vidchat.layout import Place

log = logging.getLogger(__name__)
ATTEMPTS = 20  # samples tried for one draw before a data set counts as broken


class TextEncoder(Protocol):
    """The methods of a text tokenizer that loading needs."""

    def encode(self, text: str) -> list[int]: ...


@dataclass
class LoadedTurn:
    """The tokens of a turn, by chunk; those of chunk 0 come first.

    Attributes:
        latents: (T+1, C, h, w), or `None` for a person who is not seen.
        codes: (T+1, F, K), zeros for chunk 0; `None` for a person who is not heard.
    """

    latents: Tensor | None
    codes: Tensor | None


@dataclass
class Loaded:
    """A sample with the tokens of its turns and its conditions."""

    sample: Sample
    turns: list[LoadedTurn]
    conditions: dict[str, ConditionValues]

    @property
    def answer(self) -> LoadedTurn:
        """The first turn of the responder, who has all tokens that the model makes."""
        return self.turns[self.sample.layout.said[0].turn]

    @property
    def audible(self) -> bool:
        """Whether there is audio."""
        return self.answer.codes is not None

    def latents(self, places: Sequence[Place]) -> Tensor:
        """Returns the latents (n, C, h, w) of n places; zeros for who is not seen."""
        return _rows(places, [turn.latents for turn in self.turns], self.answer.latents)

    def codes(self, places: Sequence[Place]) -> Tensor:
        """Returns the codes (n, F, K) of n places; zeros for stills and who is not heard."""
        return _rows(places, [turn.codes for turn in self.turns], self.answer.codes)


class DialogueBatches:
    """Makes `ChunkBatch`es from drawn samples.

    A sample whose tokens cannot be read, or have impossible values, is replaced by one of like length.

    Args:
        samples: The samples that can be drawn.
        caches: Their tokens, by source.
        selection: What samples are made from.
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
        said, heard = self.samples.lengths.T
        return np.lexsort((heard, said, self.samples.shapes)).astype(np.int32)

    def __call__(self, draws: list[Draw]) -> ChunkBatch:
        samples = [self.samples[index] for index, _ in draws]
        for sample in samples:
            self._prefetch(sample)
        with ExitStack() as stack:
            for cache in dict.fromkeys(self.caches):
                stack.enter_context(cache.borrowing())
            return self.buffers.to_trainer(self._collate(list(map(self._load_or_next, samples, draws))))

    def _collate(self, loaded: list[Loaded]) -> ChunkBatch:
        said = [sample.sample.layout.said for sample in loaded]
        latents, mask = self._pad([sample.latents(places) for sample, places in zip(loaded, said, strict=True)])
        codes = [sample.codes(places) for sample, places in zip(loaded, said, strict=True) if sample.audible]
        batch = ChunkBatch(
            latents,
            steps=_padded([[place.step for place in places] for places in said]),
            stills=_padded([[place.chunk == 0 for place in places] for places in said]),
            mask=mask,
            codes=pad(codes, torch.long)[0] if codes else None,
            ends=_padded([_ends(sample.sample) for sample in loaded]).masked_fill_(~mask, UNKNOWN),
        )
        if self.selection.hears:
            self._add_heard(batch, loaded)
        for name in self.selection.conditions:
            values = [sample.conditions[name] for sample in loaded]
            batch.conditions[name] = collate(values, self.dtype, self.buffers.empty)
        return batch

    def _add_heard(self, batch: ChunkBatch, loaded: list[Loaded]) -> None:
        """Adds the initiator's columns; at least one, if only of padding, so that ranks train the same weights."""
        heard = [sample.sample.layout.heard for sample in loaded]
        turns = [[sample.turns[place.turn] for place in places] for sample, places in zip(loaded, heard, strict=True)]
        batch.heard_latents = self._pad([x.latents(places) for x, places in zip(loaded, heard, strict=True)])[0]
        batch.heard_steps = _padded([[place.step for place in places] for places in heard])
        batch.heard_video = _padded([[turn.latents is not None for turn in some] for some in turns]).bool()
        batch.heard_audio = _padded([[turn.codes is not None for turn in some] for some in turns]).bool()
        if batch.codes is not None:
            codes = [sample.codes(places) for sample, places in zip(loaded, heard, strict=True)]
            batch.heard_codes = pad(codes, torch.long)[0]

    def _pad(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return pad(tensors, self.dtype, self.buffers.empty)

    def _prefetch(self, sample: Sample) -> None:
        """Begins to fetch a sample's tokens: reading a whole batch at once from a disk is several times faster."""
        for turn in sample.turns:
            self.caches[sample.source].prefetch(turn.key, turn.span)

    def _load_or_next(self, sample: Sample, draw: Draw) -> Loaded:
        """Loads the sample of a draw, or the next in length whose tokens can be read.

        Which ones can be read depends on the files alone, so what is loaded is still a function of the draw.
        """
        (index, generator), grid, why = draw, sample.grid, ""
        number = index
        for attempt in range(ATTEMPTS):
            if attempt == 1:
                (position,) = np.flatnonzero(self.alike == index).tolist()
            if attempt:
                number = int(self.alike[(position + attempt) % len(self.alike)])
                sample = self.samples[number]
            if sample.grid != grid:
                continue
            try:
                return self._load(number, sample, generator)
            except ShardError as error:
                why = str(error)
                log.warning("skipped a sample of dialogue %s: %s", sample.dialogue.id, why)
        raise ShardError(f"the data are bad: {ATTEMPTS} samples in a row could not be used, the last: {why}")

    def _load(self, number: int, sample: Sample, generator: torch.Generator) -> Loaded:
        cache = self.caches[sample.source]
        loaded = Loaded(sample, [load_turn(cache, turn) for turn in sample.turns], {})
        example = LoadedExample(self, number, loaded, generator)
        for name, condition in self.selection.conditions.items():
            loaded.conditions[name] = condition.from_dialogue(example)
        return loaded

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


def load_turn(cache: TokenCache, turn: SampleTurn) -> LoadedTurn:
    """Returns the tokens of a turn; raises `ShardError` if they cannot be read."""
    stored = cache.load(turn.key, turn.span)
    # A turn whose beginning is left out has more chunks before chunk 0 than a clip has.
    first = stored.latents.shape[0] - 1 - turn.chunks if turn.part == "last" else 0
    latents, codes = stored.latents[first : first + turn.chunks + 1], stored.codes
    if codes is not None:
        codes = codes[first : first + turn.chunks]
        codes = torch.cat([torch.zeros_like(codes[:1]), codes])
    return LoadedTurn(latents, codes)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Returns rows of numbers as (B, n), padded with zeros; (B, n) bool if they are bool."""
    return pad([torch.tensor(row) if row else torch.zeros(0, dtype=torch.long) for row in rows])[0]


def _ends(sample: Sample) -> list[int]:
    """Returns for each said place whether it is the last of its turn; see `ChunkBatch.ends`."""
    turns = ((place.chunk, sample.turns[place.turn]) for place in sample.layout.said)
    return [UNKNOWN if chunk == 0 else turn.end if chunk == turn.chunks else 0 for chunk, turn in turns]


def _rows(places: Sequence[Place], turns: Sequence[Tensor | None], like: Tensor | None) -> Tensor:
    """Returns the tokens (n, ...) of n places, by chunk (T+1, ...) of each turn; zeros for a turn without any."""
    assert like is not None, "the responder is seen, and audible where anybody is"
    parts = [like[:0]] if not places else []
    for turn, chunks in _runs(places):
        tokens = turns[turn]
        parts.append(like.new_zeros(chunks.stop - chunks.start, *like.shape[1:]) if tokens is None else tokens[chunks])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _runs(places: Sequence[Place]) -> Iterator[tuple[int, slice]]:
    """Yields a turn and consecutive chunks of it, for places in order."""
    first = 0
    for k, place in enumerate(places, 1):
        following = places[k] if k < len(places) else None
        if following is None or (following.turn, following.chunk) != (place.turn, place.chunk + 1):
            yield place.turn, slice(places[first].chunk, place.chunk + 1)
            first = k


class LoadedExample:
    """A sample as its conditions see it: see `vidchat.conditions.base.Example`.

    Args:
        batches: The maker of batches that loads the sample.
        number: The index of the sample.
        loaded: The sample with the tokens of its turns.
        generator: The generator of its random choices.
    """

    def __init__(self, batches: DialogueBatches, number: int, loaded: Loaded, generator: torch.Generator) -> None:
        self._batches, self._number, self._loaded, self._sample = batches, number, loaded, loaded.sample
        self._cache, self._generator = batches.caches[self._sample.source], generator

    @cached_property
    def dialogue(self) -> Dialogue:
        return self._sample.dialogue

    @property
    def clip(self) -> Clip:
        return self.dialogue.turns[self._sample.answer.position].clip

    @property
    def answer_text(self) -> str | None:
        clock, turns = self._cache.encoder.clock, self._sample.turns
        texts = [turn.text(self.dialogue, clock) for turn in turns if turn.role == "responder"]
        return None if None in texts else "\n".join(text for text in texts if text)

    @property
    def question_text(self) -> str | None:
        asked = self._sample.asked
        if asked is None:
            return None
        heard = next((turn for turn in self._sample.turns if turn.position == asked), None)
        whole = self.dialogue.turns[asked].clip.text
        return whole if heard is None else heard.text(self.dialogue, self._cache.encoder.clock)

    def text_ids(self, text: str | None) -> Tensor:
        return self._batches.text_ids(text, self.dialogue)

    def scores(self, names: Sequence[str]) -> Tensor:
        known = self._batches.selection.scores
        mean, std = np.array(self._batches.statistics).T
        turn = np.array([self._sample.answer.number])
        scores = (self._sample.dialogues.scores(turn, known)[0] - mean) / std
        return torch.from_numpy(scores[[known.index(name) for name in names]])

    def voice(self, chunks: int) -> Tensor:
        """Returns (n, F, K), the first chunks of codes of another clip of the speaker, drawn at random."""
        codes, voices = self._loaded.answer.codes, self._batches.voices
        assert codes is not None, "conditions that need a voice are left out without audio"
        own = {(turn.key, turn.span) for turn in self._sample.turns}
        others = [] if voices is None else [clip for clip in voices.of(self._number) if clip not in own]
        if not others:
            return codes[:0]
        key, span = others[int(torch.randint(len(others), (), generator=self._generator))]
        return self._cache.load_codes(key, span)[:chunks]

    def thinker_features(self) -> Tensor | None:
        question = self._sample.question
        return None if question is None else self._cache.load_features(question)
