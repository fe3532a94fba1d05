"""Speech synthesis by espeak-ng through ctypes, bit-equal for equal arguments.

The engine keeps hidden state between utterances that its interface cannot clear: the same sentence is a few samples
longer or shorter the second time. So it is initialised once, and a forked child speaks every utterance from that
state. Needs the optional extra `demo` (`espeakng-loader`; the library is
GPL-3.0-or-later).
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT = 2, 1, 0x8000
_UTF8, _PHONEMES = 1, 0x100  # what stands in [[ ]] is phonemes
_RATE, _PITCH, _RANGE = 1, 3, 4
_WORD = 1
_LONGEST_PATH = 150
"""espeak-ng copies its data path into 160 characters."""


class SpeechError(RuntimeError):
    """espeak-ng is missing, or refused a voice or a text."""


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speech:
    """Output of the engine.

    Attributes:
        samples: int16 (n,).
        sample_rate: Samples per second.
        words: First character and first sample of every word.
    """

    samples: NDArray[np.int16]
    sample_rate: int
    words: tuple[tuple[int, int], ...]


def synthesise(text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> Speech:
    """Speaks a text.

    Args:
        text: English.
        voice: An espeak-ng voice with its variant, e.g. `en-us+f3`.
        rate: Words per minute, 80..450.
        pitch: 0..99, 50 is the variant's own.
        pitch_range: Intonation, 0..99, 50 is the variant's own.

    Raises:
        SpeechError: The engine is not installed, or it refused the voice or the text.
    """
    library, sample_rate, variants = _engine()
    if voice.partition("+")[2] not in {"", *variants}:
        # The engine would speak with the plain voice and say nothing.
        raise SpeechError(
            f"espeak-ng has no variant for the voice {voice!r}; choose one of {', '.join(sorted(variants))}"
        )
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        gc.disable()  # The child must not finalise anything that it shares with its parent.
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(_speak(library, text, voice, {_RATE: rate, _PITCH: pitch, _RANGE: pitch_range}), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise SpeechError(f"espeak-ng died while speaking {text!r} with the voice {voice!r}; report this")
    samples, words = pickle.loads(answer)  # Written by our own child a moment ago.
    if samples is None:
        raise SpeechError(
            f"espeak-ng refused {text!r} with the voice {voice!r}; is the voice one of `espeak-ng --voices`?"
        )
    return Speech(np.frombuffer(samples, dtype=np.int16), sample_rate, tuple(words))


def _speak(
    library: ctypes.CDLL, text: str, voice: str, parameters: dict[int, int]
) -> tuple[bytes | None, list[tuple[int, int]]]:
    """In the child: samples as bytes (`None`: refused) and the words' beginnings."""
    chunks: list[bytes] = []
    words: list[tuple[int, int]] = []

    def collect(samples: object, count: int, events: object) -> int:
        if samples:
            chunks.append(ctypes.string_at(samples, 2 * count))  # type: ignore[arg-type]
        index = 0
        while events[index].type:  # type: ignore[index]
            event = events[index]  # type: ignore[index]
            if event.type == _WORD:
                words.append((event.text_position - 1, event.sample))
            index += 1
        return 0

    callback = _Callback(collect)
    library.espeak_SetSynthCallback(callback)
    # An unknown voice would silently leave the last one in place.
    failed = library.espeak_SetVoiceByName(voice.encode())
    for parameter, value in parameters.items():
        failed = failed or library.espeak_SetParameter(parameter, value, 0)
    data = text.encode()
    failed = failed or library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8 | _PHONEMES, None, None)
    return (None if failed else b"".join(chunks)), words


@cache
def _engine() -> tuple[ctypes.CDLL, int, frozenset[str]]:
    """The initialised library, its sample rate, and the names of the voices' variants; once per process."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise SpeechError("rendering voices needs espeak-ng; install it with: pip install 'vidchat[demo]'") from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = _short(Path(espeakng_loader.get_data_path()))
    sample_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _PHONEME_EVENTS | _DONT_EXIT)
    if sample_rate <= 0:
        raise SpeechError(f"espeak-ng could not read its data at {data}; reinstall espeakng-loader")
    library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # Breathy voices draw noise, otherwise seeded by the time of day.
    return library, sample_rate, frozenset(path.name for path in (data / "voices" / "!v").iterdir())


_links: list[tempfile.TemporaryDirectory[str]] = []
"""Kept open as long as the process lives: the engine reads voices through them."""


def _short(data: Path) -> Path:
    """The data folder, through a link in the temporary folder if its own path is too long for the engine."""
    if len(str(data)) < _LONGEST_PATH:
        return data
    folder = tempfile.TemporaryDirectory(prefix="espeak-")
    _links.append(folder)
    link = Path(folder.name) / "espeak-ng-data"
    link.symlink_to(data, target_is_directory=True)
    return link
