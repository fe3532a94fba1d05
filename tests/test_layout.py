from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidchat.layout import Place, TurnSpan, lay_out


def steps(places: tuple[Place, ...]) -> list[tuple[int, int]]:
    return [(place.step, place.chunk) for place in places]


def test_a_single_turn_continues_from_the_reference() -> None:
    layout = lay_out([TurnSpan("responder", 3)])
    assert steps(layout.said) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert layout.heard == ()


def test_a_dialogue_has_a_still_beside_the_last_heard_chunk() -> None:
    layout = lay_out([TurnSpan("initiator", 2), TurnSpan("responder", 2)])
    assert steps(layout.heard) == [(1, 1), (2, 2)]
    assert steps(layout.said) == [(0, 0), (2, 0), (3, 1), (4, 2)]


def test_listening_lays_both_people_side_by_side() -> None:
    layout = lay_out([TurnSpan("initiator", 3, 7), TurnSpan("responder", 3, 7)])
    assert steps(layout.heard) == [(1, 1), (2, 2), (3, 3)]
    assert steps(layout.said) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_pauses_and_interruptions_keep_their_time() -> None:
    turns = [TurnSpan("initiator", 2, 0), TurnSpan("responder", 4, 3), TurnSpan("initiator", 3, 5)]
    turns.append(TurnSpan("responder", 1, 9))
    layout = lay_out(turns)
    assert steps(layout.heard) == [(1, 1), (2, 2), (6, 1), (7, 2), (8, 3)]
    assert steps(layout.said) == [(0, 0), (3, 0), (4, 1), (5, 2), (6, 3), (7, 4), (9, 0), (10, 1)]
    assert [place.turn for place in layout.said] == [1, 1, 1, 1, 1, 1, 3, 3]


def test_there_is_a_step_for_the_still_between_two_turns_of_the_responder() -> None:
    turns = [TurnSpan("responder", 2), TurnSpan("responder", 1), TurnSpan("initiator", 1)]
    layout = lay_out(turns)
    assert steps(layout.said) == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)]
    assert steps(layout.heard) == [(5, 1)]


def test_a_dialogue_without_a_responder_is_refused() -> None:
    with pytest.raises(ValueError, match="responder"):
        lay_out([TurnSpan("initiator", 2)])


spans = st.builds(
    TurnSpan,
    st.sampled_from(["initiator", "responder"]),
    st.integers(1, 5),
    st.none() | st.integers(0, 12),
)


@given(st.lists(spans, min_size=1, max_size=6).filter(lambda turns: any(t.role == "responder" for t in turns)))
def test_every_layout_gives_each_person_one_chunk_a_step(turns: list[TurnSpan]) -> None:
    layout = lay_out(turns)
    for places in (layout.said, layout.heard):
        assert all(a.step < b.step for a, b in itertools.pairwise(places))
    assert layout.said[0].step == layout.said[0].chunk == 0
    for role, places in (("responder", layout.said), ("initiator", layout.heard)):
        chunks = {(place.turn, place.chunk) for place in places if place.chunk}
        assert chunks == {(k, c) for k, t in enumerate(turns) if t.role == role for c in range(1, t.chunks + 1)}
    for before, after in itertools.pairwise(layout.said):
        if after.chunk:  # each chunk directly follows the chunk or the still that predicts it
            assert after.step == before.step + 1
            assert (before.turn, before.chunk) == (after.turn, after.chunk - 1)
    assert min(place.step for place in layout.said[1:] + layout.heard if place.chunk) == 1
