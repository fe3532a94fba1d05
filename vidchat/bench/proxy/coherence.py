"""Proxy of dialogue coherence: finds the candidate reply whose recording is nearest to the answer's audio."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from vidchat.bench.clips import is_silent
from vidchat.bench.metric import Column, Features, Metric
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.bench.spoken_distance import Floats, cepstra, warped_distance
from vidchat.data.media.read import Media
from vidchat.data.media.waveform import resample, to_float

RATE = 16000


class NearestSpoken(Metric):
    """Score of the nearest candidate by dynamic time warping over cepstra of its recordings; silence scores 0.

    It needs recordings of the candidates, so it suits closed sets such as the rendered dyads. It compares sounds, not
    meanings: for a free reply the nearest candidate is arbitrary.
    """

    dimension = "dialogue coherence"
    doubt = "It compares sounds with those of the candidates, not meanings: for a free reply the nearest is arbitrary."
    columns = (Column("coherence", "higher", worst=0.0),)
    needs_candidates = True
    turns = "speaking"

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "nearest spoken candidate, time warping over mel cepstra",
            "libraries": versions("scipy", "transformers"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        if is_silent(media.waveform):
            return {"cepstra": np.zeros((0, 1), np.float32)}
        return {"cepstra": cepstra(media.waveform.numpy(), media.sample_rate)}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        spoken = [candidate for candidate in pair.candidates if candidate.recordings]
        if len(spoken) < 2:
            return {"coherence": float("nan")}
        if not len(generated["cepstra"]):
            return {"coherence": 0.0}
        answer = generated["cepstra"]
        distances = [min(warped_distance(answer, _read_cepstra(path)) for path in c.recordings) for c in spoken]
        return {"coherence": spoken[int(np.argmin(distances))].score}


@lru_cache(maxsize=64)
def _read_cepstra(path: Path) -> Floats:
    rate, samples = wavfile.read(path)
    mono = to_float(samples if samples.ndim == 1 else samples[:, 0])
    return cepstra(resample(mono, rate, RATE), RATE)
