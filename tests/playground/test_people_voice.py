import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidchat.playground.people import espeak
from vidchat.playground.people.speaker_voice import PEAK, Voice, random_voice, speak

pytest.importorskip("espeakng_loader", reason="voices need the extra 'demo'")

BREATHY = Voice("f2", 90, 50, 180)  # draws noise, which the engine seeds by the clock by default
PROGRAM = """
import hashlib
from vidchat.playground.people.speaker_voice import Voice, speak
speak("something else was said before", Voice("m1", 40, 50, 170))
print(hashlib.sha256(speak("do you like tea?", Voice("f2", 90, 50, 180)).waveform.tobytes()).hexdigest())
"""


def fundamental(waveform: np.ndarray, sample_rate: int = 16000) -> float:
    """Returns the median pitch in Hz, by autocorrelation."""
    pitches = []
    lags = np.arange(sample_rate // 450, sample_rate // 60)
    for i in range(0, len(waveform) - 800, 400):
        window = waveform[i : i + 800] - waveform[i : i + 800].mean()
        correlation = np.correlate(window, window, "full")[799:]
        if correlation[0] > 2 and correlation[lags].max() > 0.5 * correlation[0]:
            pitches.append(sample_rate / lags[correlation[lags].argmax()])
    return float(np.median(pitches))


def test_the_same_samples_in_any_process():
    here = hashlib.sha256(speak("do you like tea?", BREATHY).waveform.tobytes()).hexdigest()
    again = hashlib.sha256(speak("do you like tea?", BREATHY).waveform.tobytes()).hexdigest()
    elsewhere = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert here == again == elsewhere.stdout.strip()


def test_the_words_are_those_of_the_text_with_their_times():
    said = speak("what about the pancakes?", BREATHY)
    assert [word.text for word in said.words] == ["what", "about", "the", "pancakes"]
    times = [time for word in said.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(said.seconds, abs=1e-3)
    assert 0.8 < said.seconds < 2.2
    assert np.abs(said.waveform).max() == pytest.approx(PEAK, abs=1e-4)
    assert np.abs(said.waveform[:16]).max() > 0.005  # no silence at the ends


def test_any_sample_rate_keeps_the_time():
    slow, fast = (speak("tea", BREATHY, rate) for rate in (8000, 24000))
    assert slow.seconds == pytest.approx(fast.seconds, abs=0.03)


def test_registers_follow_the_build():
    pitch = {}
    for build in ("man", "woman", "child"):
        voices = [random_voice(np.random.default_rng(i), build) for i in range(6)]
        pitch[build] = [fundamental(speak("never mind the music", voice).waveform) for voice in voices]
    assert max(pitch["man"]) < min(pitch["woman"])
    assert max(pitch["woman"]) < min(pitch["child"])


def test_sorrow_is_slower_and_lower():
    voice = Voice("f3", 50, 50, 175)
    happy, sad = (speak("do you like tea?", voice.feeling(name)) for name in ("happy", "sad"))
    assert sad.seconds > 1.1 * happy.seconds
    assert fundamental(sad.waveform) < fundamental(happy.waveform)


def test_an_unknown_voice_is_refused():
    with pytest.raises(espeak.SpeechError, match="nobody"):
        speak("tea", replace(BREATHY, variant="nobody"))


def test_a_long_path_to_the_data_is_shortened(tmp_path):
    deep = tmp_path.joinpath(*["a-folder-deep-down"] * 10)
    deep.mkdir(parents=True)
    (deep / "voice").write_text("here")
    short = espeak._short(deep)
    assert len(str(short)) < espeak._LONGEST_PATH
    assert (short / "voice").read_text() == "here"
    assert espeak._short(Path("/usr")) == Path("/usr")
