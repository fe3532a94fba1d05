"""Dialogues to batches: which tokens an answer and its conditions are, and how they are laid side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vidchat.batch import ChunkBatch
from vidchat.data.cache import TokenCache
from vidchat.data.endless import Draw
from vidchat.data.tokens import Piece, Tokens
from vidchat.dialogue import Dialogue, Role, Turn

ROLES: dict[Role, int] = {"initiator": 0, "responder": 1}


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
        max_chunks: The longest answer.
        max_turn_chunks: The longest other turn; of a longer one its end is kept, since what follows answers it.
        voice_chunks: The longest sample of a voice.
    """

    text: Literal["answer", "question"] | None = None
    initiator: bool = False
    earlier_turns: bool = False
    voice: bool = False
    scores: tuple[str, ...] = ()
    max_chunks: int = 25
    max_turn_chunks: int = 25
    voice_chunks: int = 12

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
        # A listener's turn runs at the same time as the speaker's, from its beginning.
        part: Literal["first", "last"] = "first" if dialogue.branch == "listening" else "last"
        return [(Piece(turn.clip, part, self.max_turn_chunks), turn.role) for turn in chosen]

    def pieces(self, dialogue: Dialogue) -> list[Piece]:
        """Everything of a dialogue that is to be encoded."""
        return [self.answer(dialogue), *(piece for piece, _ in self.turns(dialogue))]


@dataclass(frozen=True)
class Item:
    """One answer to learn: a span of a dialogue's answer, with the names of all its token files."""

    dialogue: Dialogue
    answer: str
    span: int
    turns: tuple[tuple[str, Role], ...]
    voices: tuple[tuple[str, int], ...] = ()  # (token file, span) of the responder's other clips


def with_voices(items: list[Item]) -> list[Item]:
    """The items, each knowing the other answers of its speaker among them."""
    by_speaker: dict[str, set[tuple[str, int]]] = {}
    for item in items:
        by_speaker.setdefault(item.dialogue.answer.speaker, set()).add((item.answer, item.span))
    return [
        Item(
            item.dialogue,
            item.answer,
            item.span,
            item.turns,
            tuple(sorted(v for v in by_speaker[item.dialogue.answer.speaker] if v[0] != item.answer)),
        )
        for item in items
    ]


class DialogueBatches:
    """Makes `ChunkBatch`es from drawn items.

    Args:
        items: What can be drawn.
        cache: Their tokens.
        conditions: Which conditions are made.
        text_tokenizer: Transcripts to ids.
        statistics: Mean and standard deviation of each score, in the order of `conditions.scores`.
    """

    def __init__(
        self,
        items: list[Item],
        cache: TokenCache,
        conditions: Conditions,
        text_tokenizer: TextEncoder | None,
        statistics: list[tuple[float, float]],
    ) -> None:
        self.items, self.cache, self.conditions = items, cache, conditions
        self.text_tokenizer, self.statistics = text_tokenizer, statistics

    def __call__(self, draws: list[Draw]) -> ChunkBatch:
        items = [self.items[index] for index, _ in draws]
        answers = [self.cache.load(item.answer, item.span) for item in items]
        codes = [answer.codes for answer in answers if answer.codes is not None]
        batch = ChunkBatch(
            latents=pad([answer.latents for answer in answers])[0],
            chunk_mask=pad([answer.latents[1:] for answer in answers])[1],
            codes=pad(codes)[0] if codes else None,
        )
        chosen = self.conditions
        if chosen.text is not None:
            batch.text_ids, batch.text_mask = pad([self._text(item) for item in items])
        if chosen.initiator or chosen.earlier_turns:
            self._add_turns(batch, items, answers[0])
        if chosen.voice and codes:
            voices = [self._voice(item, draw[1], codes[0]) for item, draw in zip(items, draws, strict=True)]
            batch.voice_codes, batch.voice_mask = pad(voices)
        if chosen.scores:
            batch.scores, batch.score_mask = self._scores(items)
        return batch

    def _text(self, item: Item) -> Tensor:
        clip = item.dialogue.answer if self.conditions.text == "answer" else item.dialogue.question
        text = clip.text if clip is not None else None
        ids = self.text_tokenizer.encode(text) if text and self.text_tokenizer is not None else []
        return torch.tensor(ids, dtype=torch.long)

    def _add_turns(self, batch: ChunkBatch, items: list[Item], like: Tokens) -> None:
        latents, codes, roles = [], [], []
        for item in items:
            turns = [(self.cache.load(name), role) for name, role in item.turns]
            # Chunk 0 of a turn is its first picture alone, without sound: the others pair with their codes.
            latents.append(torch.cat([like.latents[:0], *(tokens.latents[1:] for tokens, _ in turns)]))
            roles.append(torch.tensor([ROLES[role] for tokens, role in turns for _ in tokens.latents[1:]]).long())
            if like.codes is not None:
                codes.append(torch.cat([like.codes[:0], *(t.codes for t, _ in turns if t.codes is not None)]))
        batch.turn_latents, batch.turn_mask = pad(latents)
        batch.turn_roles = pad(roles)[0]
        batch.turn_codes = pad(codes)[0] if codes else None

    def _voice(self, item: Item, generator: torch.Generator, like: Tensor) -> Tensor:
        """The first chunks of codes of another clip of the speaker, drawn at random; empty where there is none."""
        if not item.voices:
            return like[:0]
        name, span = item.voices[int(torch.randint(len(item.voices), (), generator=generator))]
        codes = self.cache.load(name, span).codes
        assert codes is not None
        return codes[: self.conditions.voice_chunks]

    def _scores(self, items: list[Item]) -> tuple[Tensor, Tensor]:
        values = torch.zeros(len(items), len(self.conditions.scores))
        mask = torch.zeros_like(values, dtype=torch.bool)
        for row, item in enumerate(items):
            known = item.dialogue.answer.scores
            for column, (name, (mean, std)) in enumerate(zip(self.conditions.scores, self.statistics, strict=True)):
                if name in known:
                    values[row, column], mask[row, column] = (known[name] - mean) / std, True
        return values, mask


def pad(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """B tensors (n_i, ...) to (B, max n_i, ...) filled up with zeros, and the mask (B, max n_i) of what is there.

    Nothing at all still takes one place, masked, so that no dimension is 0.
    """
    longest = max(1, *(len(part) for part in parts))
    lengths = torch.tensor([len(part) for part in parts])
    padded = pad_sequence(list(parts), batch_first=True)
    if padded.shape[1] == 0:
        padded = padded.new_zeros(len(parts), 1, *padded.shape[2:])
    return padded, torch.arange(longest)[None] < lengths[:, None]
