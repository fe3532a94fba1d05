"""Encounters to a folder data set: both people's tracks as clips, dialogues of four branches as spans of them.

Beside `dialogues.jsonl` lies `encounters.jsonl`: for each encounter everything that is known of both people, frame by
frame. A run that was interrupted goes on where it stopped, as `render` does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidchat.data.media.write import ClipWriter
from vidchat.dialogue import Branch, Split
from vidchat.playground.people.cast import Plan, plan_dialogues
from vidchat.playground.people.cuts import clip_name, draw_cuts, record
from vidchat.playground.people.encounter import Encounter, stage
from vidchat.playground.people.face import draw_face
from vidchat.playground.people.pairing import pair_again
from vidchat.playground.people.render import MANIFEST, claim, run_jobs
from vidchat.playground.people.track import Track, perform_tracks
from vidchat.runtime.atomic import write_text

VERSION = 3
"""Version of what is drawn and spoken; raised when equal settings give other clips."""
ENCOUNTERS = "encounters.jsonl"


@dataclass(frozen=True)
class EncounterSettings:
    """Settings of a data set of encounters; equal settings give equal data sets.

    Attributes:
        encounters: Number of encounters; at least 4.
        cuts: Dialogues of each encounter, at most.
        single: Weight of the branch `single` among the dialogues; 0 leaves it out.
        dialogue: Weight of the branch `dialogue`.
        listening: Weight of the branch `listening`.
        multi_turn: Weight of the branch `multi_turn`.
        pairings: Questions to each training answer, its own and others with the same meaning; no more clips.
        splits: Splits that are rendered; the people of the others exist, but are not drawn.
        seed: Seed of every choice.
        height: Height of the frames in pixels.
        width: Width of the frames in pixels.
        fps: Frames per second.
        sample_rate: Samples per second of the waveforms (files hold AAC at 48 kHz).
    """

    encounters: int = 100
    cuts: int = 5
    single: float = 1.0
    dialogue: float = 2.0
    listening: float = 2.0
    multi_turn: float = 3.0
    pairings: int = 4
    splits: tuple[Split, ...] = ("train", "val", "test")
    seed: int = 0
    height: int = 96
    width: int = 96
    fps: int = 25
    sample_rate: int = 16000

    def __post_init__(self) -> None:
        if self.cuts < 1 or min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise ValueError(
                f"{self.cuts} cuts with the weights {self.weights} make no dialogues; give at least 1 cut, weights of "
                "0 or more, and one weight above 0"
            )

    @property
    def weights(self) -> dict[Branch, float]:
        """Weights by branch."""
        return {
            "single": self.single,
            "dialogue": self.dialogue,
            "listening": self.listening,
            "multi_turn": self.multi_turn,
        }


def plan_encounters(settings: EncounterSettings) -> list[Plan]:
    """Returns the plans of the encounters to render; each person answers in one of them.

    Raises:
        ValueError: There are too few encounters for three splits.
    """
    plans = plan_dialogues(settings.encounters, settings.seed, per_speaker=1)
    return [plan for plan in plans if plan.split in settings.splits]


def render_encounters(output: Path, settings: EncounterSettings, workers: int | None = None) -> Path:
    """Writes the data set; returns the manifest's path.

    Args:
        output: Folder to write, made if missing. A half-rendered one with the same settings is completed.
        settings: What to render.
        workers: Number of processes; `None` is one per CPU.

    Raises:
        ValueError: The folder holds a data set with other settings, or the settings cannot be met.
        espeak.SpeechError: espeak-ng is missing.
    """
    output = Path(output)
    plans = plan_encounters(settings)
    claim(output, {"version": VERSION, **asdict(settings), "splits": list(settings.splits)})
    job = partial(render_encounter, output=output, settings=settings)
    made = list(run_jobs(job, plans, (os.cpu_count() or 1) if workers is None else max(1, workers)))
    write_text(output / ENCOUNTERS, _lines(one["encounter"] for one in made))
    dialogues = [dialogue for one in made for dialogue in one["dialogues"]]
    write_text(output / MANIFEST, _lines(dialogues + pair_again(dialogues, settings.pairings, settings.seed)))
    return output / MANIFEST


def render_encounter(plan: Plan, output: Path, settings: EncounterSettings) -> dict[str, Any]:
    """Performs, draws and writes one encounter; returns its truth and its dialogues. Clips that exist are kept."""
    encounter = stage(plan, settings.fps, settings.sample_rate)
    tracks = perform_tracks(encounter, settings.sample_rate)
    for person, track in enumerate(tracks):
        path = output / clip_name(encounter, person)
        if not path.exists():
            write_track(path, track, settings)
    cuts = draw_cuts(encounter, settings.weights, settings.cuts)
    return {
        "encounter": _truth(encounter, tracks),
        "dialogues": [
            record(f"{encounter.id}_{n}", branch, cut, encounter, tracks) for n, (branch, cut) in enumerate(cuts)
        ],
    }


def write_track(path: Path, track: Track, settings: EncounterSettings) -> None:
    """Draws the frames and writes them with the audio, a second at a time."""
    size = (settings.height, settings.width)
    with ClipWriter(path, settings.fps, settings.sample_rate) as writer:
        for first in range(0, len(track.poses), settings.fps):
            poses = track.poses[first : first + settings.fps]
            frames = np.stack([draw_face(track.speaker.identity, pose, size) for pose in poses])
            second = first // settings.fps * settings.sample_rate
            waveform = track.waveform[second : second + settings.sample_rate]
            writer.write(torch.from_numpy(frames).permute(0, 3, 1, 2), torch.from_numpy(waveform))


def _truth(encounter: Encounter, tracks: tuple[Track, Track]) -> dict[str, Any]:
    people = [
        {"role": role, "speaker": track.speaker.name, "clip": clip_name(encounter, person), **track.truth()}
        for person, (role, track) in enumerate(zip(("initiator", "responder"), tracks, strict=True))
    ]
    turns = [
        {"person": t.person, "exchange": t.exchange, "text": t.text, "first": t.first, "last": t.last,
         "expression": t.expression, "interrupted": t.interrupted}
        for t in encounter.turns
    ]  # fmt: skip
    return {
        "id": encounter.id, "split": encounter.plan.split, "fps": encounter.fps, "frames": encounter.frames,
        "turns": turns, "people": people,
    }  # fmt: skip


def _lines(records: Iterable[Any]) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)
