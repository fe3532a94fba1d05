"""What an answer is made from: which parts of a dialogue's clips are encoded, and condition it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vidchat.data.tokens.encoder import Piece
from vidchat.dialogue import Clip, Dialogue, Role, Turn


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
        question, answer = dialogue.question, dialogue.answer
        for turn in dialogue.turns:
            if turn.clip is question:
                chosen += [turn] if self.initiator else []
            elif turn.clip is not answer and self.earlier_turns:
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
