from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vidchat.data.manifest.silence import other_speech, silence

RATE = 1000
spans = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 30), st.sampled_from("AB")), max_size=8)


@settings(deadline=None, max_examples=200)
@given(spans, st.sampled_from(["A", "B", "None", None]))
def test_other_speech_is_where_only_others_talk(speech: list[tuple[int, int, str]], voice: str | None) -> None:
    """Compared at every tenth of a second."""
    speech_rows = [{"start_s": s / 10, "end_s": (s + n) / 10, "speaker": who} for s, n, who in speech]
    spans_found = other_speech(speech_rows, voice)
    for tick in range(130):
        time = tick / 10 + 0.05
        talking = {t["speaker"] for t in speech_rows if t["start_s"] < time < t["end_s"]}
        assert any(s < time < e for s, e in spans_found) == bool(talking and voice not in talking)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans_found))


def test_silenced_spans_are_silent_and_the_rest_is_unchanged() -> None:
    waveform = np.ones(1000, np.float32)
    quiet = silence(waveform, [(0.2, 0.4), (0.9, 5.0), (-1.0, 0.05)], RATE)
    assert not quiet[200:400].any()
    assert not quiet[900:].any()
    assert not quiet[:50].any()
    assert (quiet[65:185] == 1).all()
    assert (quiet[415:885] == 1).all()
    assert (np.diff(quiet[395:415]) >= 0).all()
    assert np.abs(np.diff(quiet)).max() < 0.11, "no abrupt steps"
    assert (waveform == 1).all()
