from __future__ import annotations

import torch

from vidchat.data.media.read import read_clip
from vidchat.dialogue import ChunkClock, Clip
from vidchat.generation.conversation import GeneratedChunk
from vidchat.generation.heard import Heard
from vidchat.generation.talk import Step
from vidchat.model.generation_state import Chunk
from vidchat.playground.demo.answers import said_turns, write_film

CLOCK = ChunkClock(fps=25, temporal_stride=4, sample_rate=16000, hop=320)
HEARD = Step(Heard(Chunk(None), torch.full((4, 3, 32, 32), 200, dtype=torch.uint8), torch.zeros(2560)), None)
SAID = Step(None, GeneratedChunk(torch.ones(1, 3, 4, 32, 32), torch.ones(1, 2560) / 2, torch.zeros(1), None))
STEPS = [HEARD, HEARD, SAID, SAID, SAID, HEARD, SAID]
IMAGE = torch.full((3, 32, 32), 90, dtype=torch.uint8)


def test_each_turn_of_the_responder_is_a_clip_after_its_still():
    first, second = said_turns(STEPS, IMAGE, CLOCK)
    assert (len(first.frames), len(second.frames)) == (13, 5)
    assert (len(first.waveform), len(second.waveform)) == (3 * 2560, 2560)
    assert first.frames[0].unique().tolist() == [90]
    assert first.frames[1:].unique().tolist() == [255]


def test_a_film_shows_both_people_at_every_step(tmp_path):
    write_film(tmp_path / "film.mp4", STEPS, IMAGE, CLOCK)
    frames = read_clip(Clip(tmp_path / "film.mp4", ""), fps=25, size=(32, 64), sample_rate=16000).frames.float()
    assert len(frames) == 4 * len(STEPS)
    initiator, responder = frames[..., 4:28].mean((1, 2, 3)), frames[..., 36:60].mean((1, 2, 3))
    assert (initiator - 200).abs().max() < 12
    assert (responder[:8] - 90).abs().max() < 12, "the reference is shown before the first answer"
    assert (responder[8:] - 255).abs().max() < 12, "the last frame stays while the next question is heard"
