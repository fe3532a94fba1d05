import numpy as np
import pytest

from vidchat.playground.people.canvas import Frame
from vidchat.playground.people.face import draw_face
from vidchat.playground.people.head import EXPRESSIONS, Head, Pose
from vidchat.playground.people.person import BUILDS, STYLES, random_identity

SIZE = (64, 64)


def draw_identity(seed: int = 0, build="woman"):
    return random_identity(np.random.default_rng(seed), build)


def difference(a, b) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def test_equal_arguments_draw_equal_frames():
    person, pose = draw_identity(), Pose(mouth=0.4, tilt=3.0)
    first = draw_face(person, pose, SIZE)
    draw_face(draw_identity(1), Pose(), SIZE)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, draw_face(person, pose, SIZE))


@pytest.mark.parametrize("size", [(48, 80), (96, 64), (65, 63)])
def test_any_size(size):
    assert draw_face(draw_identity(), Pose(), size).shape == (*size, 3)


def test_every_style_and_feeling_is_drawn_differently():
    rng = np.random.default_rng(0)
    for build in BUILDS:
        seen = {}
        while set(seen) != set(STYLES[build]):
            person = random_identity(rng, build)
            seen[person.style] = person
        for person in seen.values():
            frames = [draw_face(person, Pose(expression=name), SIZE) for name in EXPRESSIONS]
            pairs = [(a, b) for i, a in enumerate(frames) for b in frames[:i]]
            assert min(difference(a, b) for a, b in pairs) > 0.1


def test_the_gap_between_the_lips_grows_with_the_opening():
    person = draw_identity()
    dark = [
        int((np.abs(draw_face(person, Pose(mouth=m), (96, 96)).astype(int) - (86, 26, 36)).sum(-1) < 40).sum())
        for m in (0.0, 0.3, 0.6, 1.0)
    ]
    assert dark == sorted(dark)
    assert dark[0] == 0
    assert dark[-1] > 12


def test_the_chin_drops_with_the_mouth():
    person = draw_identity()
    closed, opened = (Head.of(person, Pose(mouth=m)).contour[:, 1].max() for m in (0.0, 1.0))
    assert 0.005 < opened - closed < 0.05


def test_a_blink_hides_the_white_of_the_eyes():
    person = draw_identity(3)
    white = [(draw_face(person, Pose(blink=b), (96, 96))[30:60, 20:76].min(-1) > 225).sum() for b in (0.0, 1.0)]
    assert white[1] < white[0] / 2


def test_people_differ_and_repeat_from_their_seed():
    assert draw_identity(1) == draw_identity(1)
    faces = [draw_face(draw_identity(i, BUILDS[i % 3]), Pose(), SIZE) for i in range(9)]
    assert min(difference(a, b) for i, a in enumerate(faces) for b in faces[:i]) > 3


def test_a_frame_turns_about_its_pivot():
    frame = Frame(tilt=0.3, pivot=0.5)
    assert np.allclose(frame.apply(np.array([[0.0, 0.5]])), [[0.0, 0.5]])
    moved = frame.apply(np.array([[0.0, 0.0]]))
    assert moved[0, 0] > 0.1  # clockwise in a frame whose y points down


def test_an_unknown_feeling_is_named():
    with pytest.raises(ValueError, match="'bored'"):
        draw_face(draw_identity(), Pose(expression="bored"), SIZE)
