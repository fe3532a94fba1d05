"""The rules of the benchmark in words: inputs of a system, the scored span, and bad clips."""

from __future__ import annotations

TOLERANCE = 0.2  # seconds by which an answer may be too short, since frame rates and chunks do not divide evenly
GIVEN = (
    "Every system gets the same input and nothing else of the true answer: the initiator's clip, the reference, "
    "answer_seconds (one number for the whole benchmark) and, in the protocol 'conditioned', the words to say."
)
COUNTED = (
    "The scored span reaches from an answer's start to the true answer's end, or to answer_seconds if that is earlier; "
    "a longer answer is cut there. An answer is scored on what it has of the span, and the missing share counts as the "
    "worst value of every metric, in distances between sets as black frames and silence (if at most "
    f"{TOLERANCE:g} s are missing, the last frame is held); the share that it has is its coverage. "
    "A set has no order: in distances between sets, the true answers' lengths are assigned to a system's answers so "
    "that the fewest frames are missing, and each keeps its own where nothing is gained."
)
BAD = (
    "No pair is left out for a system's clip. The true answer is the ceiling: pair by pair, a value beyond the truth's "
    "counts as the truth's. A missing or unreadable clip, or one on which a metric fails, gets the worst value of "
    "every metric, and in distances between sets features farther from the truth than any clip's; in metrics of audio, "
    "so does an answer without audio (none, or quieter than -60 dB) if the truth has audio. Where the responder only "
    "listens, silence is no fault, and metrics of listening replace those of speech. A pair whose true answer cannot "
    "be scored is left out for all systems, and named."
)
