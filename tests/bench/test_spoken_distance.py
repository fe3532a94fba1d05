from __future__ import annotations

import numpy as np
import pytest

from vidchat.bench.spoken_distance import cepstra, nearest_sentence, warped_distance


def test_warping_is_a_distance_that_forgives_tempo():
    rng = np.random.default_rng(0)
    word = rng.normal(size=(30, 4))
    slow = word.repeat(2, axis=0)
    assert warped_distance(word, word) == pytest.approx(0, abs=1e-6)
    assert warped_distance(word, slow) == pytest.approx(0, abs=1e-6)
    assert warped_distance(word, rng.normal(size=(30, 4))) > 1
    other = rng.normal(size=(20, 4))
    assert warped_distance(word, other) == pytest.approx(warped_distance(other, word))


def test_warping_equals_the_textbook_recursion():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    cost = np.linalg.norm(a[:, None] - b[None], axis=-1)
    best = np.full((8, 6), np.inf)
    best[0, 0] = 0
    for i in range(1, 8):
        for j in range(1, 6):
            c = cost[i - 1, j - 1]
            best[i, j] = min(best[i - 1, j - 1] + 2 * c, best[i - 1, j] + c, best[i, j - 1] + c)
    assert warped_distance(a, b) == pytest.approx(best[7, 5] / 12)


def test_a_sentence_is_nearest_to_itself_said_slower_and_silence_does_not_fail():
    rng = np.random.default_rng(2)
    one, two = (rng.normal(size=8000).cumsum().astype(np.float32) / 100 for _ in range(2))
    spoken = {"one": [cepstra(one, 16000)], "two": [cepstra(two, 16000)]}
    assert nearest_sentence(one.repeat(2), spoken, 32000) == "one"
    assert nearest_sentence(two, spoken, 16000) == "two"
    assert nearest_sentence(np.zeros(8000, np.float32), spoken, 16000) in spoken
