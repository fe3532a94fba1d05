"""Questions and answers: the right answer depends on the words of the question and on the initiator's feeling.

Six topics and two feelings give twelve answers. An answer shows whether both were understood: a happy question about
tea is answered "oh yes i love tea", a sad one "never mind the tea".
"""

from __future__ import annotations

from dataclasses import dataclass

TOPICS = ("tea", "music", "snow", "dancing", "pancakes", "dogs")
FEELINGS = ("happy", "sad")
QUESTIONS = ("do you like {topic}?", "what about the {topic}?")
ANSWERS = {"happy": "oh yes i love {topic}", "sad": "never mind the {topic}"}
"""Answers by the initiator's feeling, which the responder shares."""


@dataclass(frozen=True)
class Case:
    """The topic and the feeling of a question.

    Attributes:
        topic: Topic of the initiator's words.
        expression: Feeling of the initiator, seen in the face and heard in the voice.
    """

    topic: str
    expression: str

    @property
    def answer(self) -> str:
        """The words of the right answer."""
        return ANSWERS[self.expression].format(topic=self.topic)

    def question(self, phrasing: int) -> str:
        """The words of the question, in one of `len(QUESTIONS)` phrasings."""
        return QUESTIONS[phrasing % len(QUESTIONS)].format(topic=self.topic)


def cases() -> tuple[Case, ...]:
    """Returns all cases in a fixed order."""
    return tuple(Case(topic, expression) for topic in TOPICS for expression in FEELINGS)


def candidate_answers() -> tuple[str, ...]:
    """Returns all possible answers; one of them is right for a question."""
    return tuple(case.answer for case in cases())
