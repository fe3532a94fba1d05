from __future__ import annotations

import numpy as np
import pytest
import torch

from vidchat.bench.faces import (
    CENTRE,
    STEP,
    CentredFace,
    FaceDetector,
    crops,
    detection_frames,
    detection_runs,
    region_boxes,
)
from vidchat.bench.proxy.identity import FaceAppearance
from vidchat.data.media.read import Media


def gradient(count, height, width):
    """Returns frames whose red is the column and whose green is the row."""
    frame = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    frame[:, 0] = torch.arange(width)
    frame[:, 1] = torch.arange(height)[:, None]
    return frame


@pytest.mark.parametrize("box", [(10.0, 20.0, 42.0, 60.0), (10.3, 20.7, 30.1, 33.9), (0.0, 0.0, 120.0, 100.0)])
def test_a_crop_holds_the_boxs_content_to_a_fraction_of_a_pixel(box):
    frames, boxes = gradient(40, 100, 120), np.tile(box, (40, 1))
    part = crops(frames, boxes, (4, 5)) * 255
    left, top, right, bottom = box
    x, y = left + (right - left) * (np.arange(5) + 0.5) / 5 - 0.5, top + (bottom - top) * (np.arange(4) + 0.5) / 4 - 0.5
    assert part.shape == (40, 3, 4, 5)
    assert part[39, 0, 2].numpy() == pytest.approx(x, abs=0.3)
    assert part[39, 1, :, 1].numpy() == pytest.approx(y, abs=0.3)


def test_boxes_may_move_and_may_leave_the_frame():
    frames = gradient(3, 50, 50)
    boxes = np.array([[0.0, 0, 10, 10], [-30, -30, -10, -10], [45, 45, 80, 80]])
    part = crops(frames, boxes, (2, 2)) * 255
    assert part[0, 0, 0].numpy() == pytest.approx([2, 7], abs=0.3)
    assert part[1, :2].abs().max() < 1e-4, "beyond the corner the corner goes on"
    assert float(part[2, 0, 0, 1]) == pytest.approx(49, abs=0.3)


def test_the_fixed_box_is_in_the_middle_and_regions_are_shares_of_it():
    faces = CentredFace()(Media(gradient(2, 200, 100), torch.zeros(1280), 25, 16000))
    assert faces.boxes[0] == pytest.approx(np.array(CENTRE) * [100, 200, 100, 200])
    assert faces.found.all()
    assert region_boxes(np.array([[10.0, 20, 30, 60]]), (0.5, 0.25, 1, 1))[0] == pytest.approx([20, 30, 30, 60])


class Stub(FaceDetector):
    """A detector without weights: a frame that is not black holds a face, in a box that its colour places."""

    def __init__(self):
        self._last = None

    def spec(self):
        return {"face": "stub"}

    def _best(self, frame):
        brightness = float(frame.float().mean())
        return np.array([10.0, 10, 30, 30]) + brightness / 50 if brightness else None


def clip_of(frames):
    return Media(frames, torch.zeros(640 * len(frames)), 25, 16000)


@pytest.mark.parametrize("detector", [Stub, CentredFace])
def test_a_frozen_face_is_found_and_does_not_drift_whatever_the_number_of_frames(detector):
    frame = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    metric = FaceAppearance(detector())
    reference = metric.read(clip_of(frame))
    for length in range(1, 201):
        frozen = metric.read(clip_of(frame.expand(length, -1, -1, -1)))
        values = metric.compare(frozen, frozen, reference, None)
        assert values["face found"] == 1, length
        assert values["ArcFace"] == pytest.approx(1, abs=1e-6), length
        assert values["identity drift"] == 0, length


def test_every_frame_has_the_result_of_the_detection_it_shares():
    for length in range(1, 201):
        runs, at = detection_runs(length), detection_frames(length)
        assert np.concatenate(runs).tolist() == list(range(length))
        assert max(map(len, runs)) <= STEP, length
        assert max(map(len, runs)) - min(map(len, runs)) <= 1, length
        dark = torch.arange(length) >= length // 2
        frames = torch.full((length, 3, 8, 8), 200, dtype=torch.uint8)
        frames[dark] = 0
        faces = Stub()(clip_of(frames))
        seen = {int(frame): not dark[frame] for frame in at}
        assert [bool(f) for f in faces.found] == [
            bool(seen[look]) for run, look in zip(runs, at.tolist(), strict=True) for _ in run
        ]
        if length >= 2 * STEP:
            assert float(faces.found.mean()) == pytest.approx(0.5, abs=STEP / length)
