"""The rules of the benchmark in words: what a system is given, what counts, and how bad clips are scored."""

from __future__ import annotations

TOLERANCE = 0.2  # seconds that an answer may lack without being short: frame rates and chunks do not divide
GIVEN = (
    "Every system is given the same and nothing else of the true answer: the initiator's clip, the reference, "
    "answer_seconds (one number for the whole benchmark) and, in the protocol 'conditioned', the words to say."
)
COUNTED = (
    "What counts is an answer's span from its start to the true answer's end, or to answer_seconds if that is earlier. "
    "What is longer is cut there. What it has of the span is scored, and the share that it lacks counts as the "
    "worst value of every measure, in distances between sets as black frames and silence (where it lacks up to "
    f"{TOLERANCE:g} s, its last frame is held); the share that it has is its coverage. "
    "A set has no order: distances between sets deal the true answers' lengths out among a system's answers so that "
    "least is lacking, and each keeps its own where nothing is gained."
)
BAD = (
    "No pair is left out for a system's clip. The true answer is the ceiling: pair by pair, what is beyond its value "
    "counts as its value. A missing or unreadable clip, or one that a measure fails on, gets the worst value of every "
    "measure, and in distances between sets features farther from the truth than any clip's; so does, in a measure of "
    "audio, an answer without audio (none, or quieter than -60 dB) to which the truth has audio. Where the responder "
    "only listens, silence is no fault, measures of speech are not taken, and those of listening are. A pair whose "
    "true answer cannot be scored is left out for all systems, and named."
)
