"""Plans to a folder data set: draws, speaks and writes, on several processes.

A run that was interrupted goes on where it stopped: clips appear whole or not at all, what they were made with lies in
`settings.json`, and `dialogues.jsonl`, without which the folder is no data set, is written last.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidchat.data.media.write import write_clip
from vidchat.dialogue import Role
from vidchat.playground.people.cast import Plan, plan_dialogues
from vidchat.playground.people.face import draw_face
from vidchat.playground.people.pairing import pair_again
from vidchat.playground.people.performance import Performance, perform
from vidchat.playground.people.script import cases
from vidchat.playground.people.speaker_voice import Voice, speak
from vidchat.runtime.atomic import write_text

VERSION = 2
"""Version of the renderer, raised when equal settings give other clips."""
MANIFEST, SETTINGS = "dialogues.jsonl", "settings.json"


@dataclass(frozen=True)
class RenderSettings:
    """Settings of a rendered data set; equal settings give equal data sets.

    Attributes:
        dialogues: Number of performed dialogues.
        pairings: Questions to each training answer, its own and others about the same; more dialogues, no more clips.
        seed: Seed of all random choices.
        height: Height of the frames in pixels.
        width: Width of the frames in pixels.
        fps: Frames per second.
        sample_rate: Samples per second of the waveforms (files hold AAC at 48 kHz).
    """

    dialogues: int = 200
    pairings: int = 4
    seed: int = 0
    height: int = 96
    width: int = 96
    fps: int = 25
    sample_rate: int = 16000


def render(output: Path, settings: RenderSettings, workers: int | None = None) -> Path:
    """Write the data set; returns the manifest's path.

    Args:
        output: The folder; made if missing. A half-rendered one with the same settings is completed.
        settings: What to render.
        workers: Processes; `None` is one per CPU.

    Raises:
        ValueError: The folder holds a data set with other settings, or the settings cannot be met.
        espeak.SpeechError: espeak-ng is missing.
    """
    output = Path(output)
    plans = plan_dialogues(settings.dialogues, settings.seed)
    claim(output, {"version": VERSION, **asdict(settings)})
    job = partial(render_dialogue, output=output, settings=settings)
    processes = (os.cpu_count() or 1) if workers is None else max(1, workers)
    records = list(run_jobs(job, plans, processes))
    records += pair_again(records, settings.pairings, settings.seed)
    write_text(output / MANIFEST, "".join(f"{json.dumps(record)}\n" for record in records))
    return output / MANIFEST


def render_dialogue(plan: Plan, output: Path, settings: RenderSettings) -> dict[str, Any]:
    """Perform, draw and write one dialogue; returns its line of the manifest. Clips that exist are kept."""
    rng = np.random.default_rng(plan.seed)
    question, answer = plan.case.question(plan.phrasing), plan.case.answer
    turns = []
    scripts: tuple[tuple[Role, Any, str], ...] = (
        ("initiator", plan.initiator, question),
        ("responder", plan.responder, answer),
    )
    for role, speaker, text in scripts:
        performance = perform(speaker, role, text, plan.case.expression, rng, settings.fps, settings.sample_rate)
        clip = f"clips/{plan.id}_{'a' if role == 'initiator' else 'b'}.mp4"
        if not (output / clip).exists():
            write_performance(output / clip, performance, settings)
        truth = {**performance.truth(), "topic": plan.case.topic}
        turns.append({"role": role, "speaker": speaker.name, "clip": clip, "text": text.strip("?"), "truth": truth})
    return {"id": plan.id, "split": plan.split, "branch": "dialogue", "tier": "sft", "turns": turns}


def write_performance(path: Path, performance: Performance, settings: RenderSettings) -> None:
    """Draw the frames and write them with the audio."""
    size = (settings.height, settings.width)
    drawn = np.stack([draw_face(performance.speaker.identity, pose, size) for pose in performance.poses])
    frames = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    write_clip(path, frames, torch.from_numpy(performance.waveform), settings.fps, settings.sample_rate)


def candidate_waveforms(
    truth: dict[str, Any], samples: int, sample_rate: int = 16000
) -> dict[str, NDArray[np.float32]]:
    """Every answer that could be given, in this responder's voice and with the feeling that goes with it.

    The measure "is the generated answer the right one" compares the generated audio with each of these.

    Args:
        truth: The `truth` of the right answer's turn: whose voice, and when the speech begins.
        samples: Length of each waveform; what does not fit is cut.
        sample_rate: Samples per second of the waveforms.

    Returns:
        Words of the answer -> float32 (samples,), beginning when the true answer begins.
    """
    voice = Voice(**truth["voice"])
    first = round(truth["words"][0][1] * sample_rate)
    waveforms = {}
    for case in cases():
        waveform = np.zeros(samples, dtype=np.float32)
        spoken = speak(case.answer, voice.feeling(case.expression), sample_rate).waveform[: max(0, samples - first)]
        waveform[first : first + len(spoken)] = spoken
        waveforms[case.answer] = waveform
    return waveforms


def run_jobs(job: partial[dict[str, Any]], plans: list[Plan], workers: int) -> Iterator[dict[str, Any]]:
    """The jobs' results in order, with a progress bar."""
    columns = (TextColumn("rendering dialogues"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(plans))
        for record in map(job, plans) if workers == 1 else _parallel(job, plans, workers):
            progress.advance(task)
            yield record


def _parallel(job: partial[dict[str, Any]], plans: list[Plan], workers: int) -> Iterator[dict[str, Any]]:
    # Spawned, not forked: a fork of a process that has used PyAV or torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(job, plans, chunksize=2)


def claim(output: Path, wanted: dict[str, Any]) -> None:
    """Makes the folder and notes what is rendered into it, or refuses one that holds something else."""
    note = output / SETTINGS
    if note.exists():
        found = json.loads(note.read_text())
        if found != wanted:
            raise ValueError(f"{output} holds a data set made with {found}; choose another --output, or delete it")
    elif output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty and was not rendered here; choose another --output")
    (output / "clips").mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(wanted, indent=1))
