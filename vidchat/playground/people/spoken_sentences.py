"""Spoken sentences without faces: a folder data set with many voices and words, to train audio codecs on.

The rendered dyads have few sentences and few kinds of voice, too few to train a codec. So two thirds of the sentences
here are random words in any timbre, pitch and pace, and one third are sentences of the dyads in their voices. Val has
other sentences, and test has timbres that train lacks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from vidchat.data.media.write import write_clip
from vidchat.dialogue import Split
from vidchat.playground.people.person import BUILDS
from vidchat.playground.people.script import cases
from vidchat.playground.people.speaker_voice import PROSODY, Voice, random_voice, speak
from vidchat.runtime.atomic import write_text

TIMBRES = ("m1", "m2", "m3", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5", "Lee", "linda", "john", "steph", "adam")
UNHEARD = ("m4", "m8", "Annie", "Michael")
"""Timbres of the test split only."""
FRAMES = (
    "do you like the {} and the {}", "yes i really like {} with {}", "no i do not care for {} or {}",
    "tell me about your {} in {}", "there are nine {} and three {}", "{} {} {}", "my favourite {} is the {}",
    "where did you see that {} near the {}", "sorry we should talk about {} and {} later",
    "how many {} are there in {}", "set {} by the {} now", "i think that {} will {} again",
    "please {} with {} soon", "what a {} {}",
)  # fmt: skip
_WORDS = """
apple bread coffee tea river mountain garden window yellow purple green little quickly singing happy angry sad
tired music guitar violin thunder weather winter summer spring autumn orange banana cherry chocolate cheese
pizza soup salad fish chicken bird elephant tiger rabbit monkey horse camera picture movie theatre station
village london paris bicycle airplane submarine rocket planet jupiter moonlight sunshine shadow whisper shouting
question answer number letter pencil paper hammer kitchen bedroom bathroom office meeting monday tuesday
wednesday thursday friday weekend holiday birthday present family mother father brother sister teacher doctor
engineer farmer football tennis swimming walking dancing dreaming sleeping thinking zebra journey judge vision
treasure thick thin path bother church cheap ship sheep jump you university house boy toy voice choice hear
share poor pure blue bin lay place white red again word fox vegetable strength splash structure twelve sixth
month clothes rhythm queue zoo snow pancakes dogs one two four five seven eight zero
"""
WORDS = tuple(_WORDS.split())
QUIET = (0.1, 0.35)
"""Seconds of silence before and after a sentence, drawn from this range."""


@dataclass(frozen=True)
class SpeechSettings:
    """Settings of a speech data set; equal settings give equal data sets.

    Attributes:
        sentences: Number of sentences.
        seed: Seed of all random choices.
        fps: Frames per second; each frame is 16x16 and black.
        sample_rate: Samples per second of the waveforms (files hold AAC at 48 kHz).
    """

    sentences: int = 3000
    seed: int = 0
    fps: int = 25
    sample_rate: int = 16000


def render_speech(output: Path, settings: SpeechSettings) -> Path:
    """Writes the data set; returns the manifest's path. The manifest is written last, clips that exist are kept.

    Raises:
        espeak.SpeechError: espeak-ng is missing.
    """
    output = Path(output)
    (output / "clips").mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(_render_sentence(output, number, settings))
        for number in track(range(settings.sentences), "speaking sentences")
    ]
    write_text(output / "dialogues.jsonl", "\n".join(lines) + "\n")
    return output / "dialogues.jsonl"


def _render_sentence(output: Path, number: int, settings: SpeechSettings) -> dict[str, Any]:
    rng = np.random.default_rng((settings.seed, number))
    split: Split = "test" if number % 50 == 0 else "val" if number % 50 == 1 else "train"
    text, voice = _anything(rng, split) if split == "test" or rng.random() < 2 / 3 else _dyadic(rng)
    clip = output / "clips" / f"s{number:06d}.mp4"
    if not clip.exists():
        _write(clip, text, voice, rng, settings)
    turn = {
        "role": "responder",
        "speaker": voice.variant,
        "clip": f"clips/{clip.name}",
        "text": text,
        "truth": {"voice": voice.record()},
    }
    return {"id": clip.stem, "split": split, "branch": "single", "tier": "pretrain", "turns": [turn]}


def _anything(rng: np.random.Generator, split: Split) -> tuple[str, Voice]:
    """Draws random words and any voice."""
    frame = FRAMES[rng.integers(len(FRAMES))]
    text = frame.format(*(WORDS[rng.integers(len(WORDS))] for _ in range(frame.count("{}"))))
    timbres = UNHEARD if split == "test" else TIMBRES
    low, high = (15, 98) if rng.random() < 0.5 else (30, 70)
    pitch, intonation, rate = rng.integers(low, high + 1), rng.integers(20, 91), rng.integers(130, 221)
    return text, Voice(timbres[rng.integers(len(timbres))], int(pitch), int(intonation), int(rate))


def _dyadic(rng: np.random.Generator) -> tuple[str, Voice]:
    """Draws a sentence of the dyads and one of their voices."""
    every = cases()
    case = every[rng.integers(len(every))]
    text = case.answer if rng.random() < 0.5 else case.question(int(rng.integers(2)))
    voice = random_voice(rng, BUILDS[rng.integers(len(BUILDS))])
    return text, voice.feeling(list(PROSODY)[rng.integers(len(PROSODY))])


def _write(clip: Path, text: str, voice: Voice, rng: np.random.Generator, settings: SpeechSettings) -> None:
    spoken = speak(text, voice, settings.sample_rate).waveform * rng.uniform(0.4, 1.25)
    before, after = (round(rng.uniform(*QUIET) * settings.sample_rate) for _ in range(2))
    frames = -(-(before + len(spoken) + after) * settings.fps // settings.sample_rate)
    waveform = np.zeros(frames * settings.sample_rate // settings.fps, dtype=np.float32)
    waveform[before : before + len(spoken)] = spoken
    black = torch.zeros(frames, 3, 16, 16, dtype=torch.uint8)
    write_clip(clip, black, torch.from_numpy(waveform), settings.fps, settings.sample_rate)
