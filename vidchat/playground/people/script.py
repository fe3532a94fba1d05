"""What is asked and what is answered: the right answer depends on the words of the question and on the asker's feeling.

Six topics times two feelings give twelve answers. The words of an answer tell both what was heard and what was seen:
asked happily about tea, "oh yes i love tea"; asked sadly, "never mind the tea".
"""

from __future__ import annotations

from dataclasses import dataclass

TOPICS = ("tea", "music", "snow", "dancing", "pancakes", "dogs")
FEELINGS = ("happy", "sad")
QUESTIONS = ("do you like {topic}?", "what about the {topic}?")
ANSWERS = {"happy": "oh yes i love {topic}", "sad": "never mind the {topic}"}
"""By the asker's feeling; the responder shares it."""


@dataclass(frozen=True)
class Case:
    """One of the things that can be understood.

    Attributes:
        topic: From the asker's words.
        expression: The asker's feeling, seen in the face and heard in the voice.
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
    """All of them, in a fixed order."""
    return tuple(Case(topic, expression) for topic in TOPICS for expression in FEELINGS)


def candidate_answers() -> tuple[str, ...]:
    """Every answer that somebody could give; for one question, one of them is right."""
    return tuple(case.answer for case in cases())
