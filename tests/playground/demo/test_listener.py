from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vidchat.data.media.pixels import from_bytes, to_bytes
from vidchat.dialogue import Clip, Dialogue, Turn
from vidchat.playground.demo.conversation import AnswerReader, questions
from vidchat.playground.demo.decay import decay
from vidchat.playground.demo.listener import find_nods, nod_f1, nod_f1_shuffled, shut_share
from vidchat.playground.demo.pixels import MouthReader, NodReader
from vidchat.playground.people.cuts import all_cuts, record
from vidchat.playground.people.encounter import stage
from vidchat.playground.people.face import draw_face
from vidchat.playground.people.render_encounters import EncounterSettings, plan_encounters
from vidchat.playground.people.track import perform_tracks
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec

pytest.importorskip("espeakng_loader", reason="voices need the extra 'demo'")
DEMO = Path(__file__).parents[3] / "checkpoints" / "demo"


@pytest.fixture(scope="module")
def encounters():
    plans = plan_encounters(EncounterSettings(encounters=40, seed=7))[:9]
    return [(encounter, perform_tracks(encounter, 16000)) for encounter in (stage(plan, 25, 16000) for plan in plans)]


def draw(part, tracks):
    track = tracks[part.person]
    poses = track.poses[part.first : part.last + 1]
    frames = np.stack([draw_face(track.speaker.identity, pose, (96, 96)) for pose in poses])
    dip = np.sin(np.pi * track.nod[part.first : part.last + 1]) ** 2
    return torch.from_numpy(frames).permute(0, 3, 1, 2), dip, [pose.mouth for pose in poses]


@pytest.fixture(scope="module")
def listeners(encounters):
    """Listening clips of people that the readers do not know, ends of the phrases they hear, and fitted readers."""
    fitted = [
        draw(all_cuts(encounter)[branch][0][-1], tracks)
        for encounter, tracks in encounters[:4]
        for branch in ("listening", "single")
    ]
    clips, dips, openings = zip(*fitted, strict=True)
    parts = [(all_cuts(encounter)["listening"][-1][1], tracks) for encounter, tracks in encounters[4:]]
    ends = [[end - part.first / 25 for _, end in part.turn.phrases] for part, _ in parts]
    frames = [draw(part, tracks)[0] for part, tracks in parts]
    return frames, ends, NodReader().fit(clips, dips), MouthReader().fit(clips, openings)


def round_trip(frames):
    tokenizer = StackedVAE.load(DEMO / "video_vae")
    with torch.no_grad():
        decoded = tokenizer.decode(tokenizer.encode(from_bytes(frames)))
    return to_bytes(decoded[0].transpose(0, 1))


@pytest.mark.parametrize(
    ("through", "ceiling"), [(lambda frames: frames, 0.9), (round_trip, 0.85)], ids=["true clips", "round trip"]
)
def test_listeners_nod_when_a_phrase_ends_and_keep_their_mouths_shut(listeners, through, ceiling):
    frames, ends, nod_reader, mouth_reader = listeners
    frames = [through(clip) for clip in frames]
    nods = [find_nods(nod_reader.read(clip), 25) for clip in frames]
    assert nod_f1(nods, ends) >= ceiling
    assert nod_f1_shuffled(nods, ends) < nod_f1(nods, ends) - 0.3
    assert shut_share([mouth_reader.read(clip) for clip in frames]) > 0.95


def test_who_does_not_nod_and_who_nods_too_soon_or_too_often_scores_less(listeners):
    _, ends, nod_reader, _ = listeners
    still = [find_nods(nod_reader.read(clip[:1].expand(50, -1, -1, -1)), 25) for clip in listeners[0]]
    assert nod_f1(still, ends) == 0
    assert nod_f1([[end - 0.4 for end in one] for one in ends], ends) == 0
    assert nod_f1([[*(end + 0.2 for end in one), *(end + 0.3 for end in one)] for one in ends], ends) < 0.7
    assert nod_f1([[end + 0.2 for end in one] for one in ends], ends) == 1


def test_an_open_mouth_is_not_shut(encounters, listeners):
    speaking = [draw(all_cuts(encounter)["single"][0][0], tracks)[0] for encounter, tracks in encounters[4:6]]
    assert shut_share([listeners[3].read(clip) for clip in speaking]) < 0.8


@pytest.mark.parametrize("coded", [False, True], ids=["true clips", "round trip"])
def test_first_and_later_answers_are_read_right(encounters, coded):
    codec = StftCodec.load(DEMO / "audio_codec")
    reader = AnswerReader([encounters[0][1][1].speaker.voice.record()], 16000)
    right, numbers = [], set()
    for encounter, tracks in encounters[1:5]:
        cut = max(all_cuts(encounter)["multi_turn"], key=len, default=None)
        if cut is None:
            continue
        line = record("x", "multi_turn", cut, encounter, tracks)
        dialogue = Dialogue(
            "x",
            tuple(Turn(turn["role"], Clip(Path("x"), turn["speaker"], truth=turn["truth"])) for turn in line["turns"]),
        )
        for asked in questions(dialogue):
            part = cut[asked.turn]
            waveform = torch.from_numpy(tracks[1].waveform[part.first * 640 : part.last * 640])[None]
            with torch.no_grad():
                waveform = codec.decode(codec.encode(waveform)) if coded else waveform
            exchange = encounter.exchanges[part.turn.exchange]
            assert (asked.kind, asked.case, asked.long) == (exchange.kind, exchange.case, len(exchange.answer) > 1)
            assert asked.interrupted == part.turn.interrupted
            if asked.interrupted:
                continue
            right.append(reader.read(waveform[0].numpy(), asked.kind, asked.long) == asked.case)
            numbers.add(asked.number)
    assert {1, 2} <= numbers
    assert np.mean(right) > 0.8


def test_an_answer_that_roughens_or_blurs_is_told_from_a_still_one():
    frame = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    still = frame.expand(50, -1, -1, -1)
    same = decay(still, frame, 25)
    assert same.psnr_first == same.psnr_last
    assert (same.sharpness_first, same.sharpness_last) == (pytest.approx(1), pytest.approx(1))
    noise = torch.linspace(0, 40, 50)[:, None, None, None] * torch.randn(50, 3, 32, 32)
    rough = decay((still + noise).clamp(0, 255).to(torch.uint8), frame, 25)
    assert rough.psnr_last < rough.psnr_first - 6
    blurred = still.clone()
    blurred[25:] = torch.nn.functional.avg_pool2d(still[25:].float(), 3, 1, 1).to(torch.uint8)
    assert decay(blurred, frame, 25).sharpness_last < 0.7
