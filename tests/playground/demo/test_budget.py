from __future__ import annotations

from dataclasses import replace

import pytest

from vidchat.playground.demo.budget import (
    ENCOUNTERS_PER_STEP,
    FEWEST_CONVERSATIONS,
    FEWEST_STEPS,
    SHARES,
    START_UP,
    Speed,
    announce,
    make_plan,
    read_plan,
    steps_that_fit,
    write_plan,
)

QUICK = Speed(step=0.5, encounter=0.6, conversation=2.0, comparison=0.02, threads=2, precision="bf16-mixed")
SLOW = replace(QUICK, step=2.2, encounter=3.0, precision="32-true")


@pytest.mark.parametrize("speed", [QUICK, SLOW])
@pytest.mark.parametrize("minutes", [8, 15, 60])
def test_a_plan_fills_the_time_limit_and_no_more(speed, minutes):
    plan = make_plan(speed, minutes, spent=60, conversations=16, seed=0)
    training = sum(plan.steps) * speed.step + len(SHARES) * START_UP
    assert plan.seconds == pytest.approx(plan.encounters * speed.encounter + training + speed.talking(16))
    spent = 60 + plan.seconds
    assert 0.98 * 60 * minutes <= spent <= 60 * minutes + speed.step


def test_a_slower_machine_trains_less_on_fewer_people():
    quick, slow = (make_plan(speed, 15, 60, 16, 0) for speed in (QUICK, SLOW))
    assert sum(slow.steps) < sum(quick.steps) / 3
    assert slow.encounters == pytest.approx(ENCOUNTERS_PER_STEP * sum(slow.steps), rel=0.05)
    assert quick.encounters == pytest.approx(ENCOUNTERS_PER_STEP * sum(quick.steps), rel=0.05)


def test_a_plan_without_time_can_still_run():
    plan = make_plan(SLOW, 0.1, spent=60, conversations=16, seed=0)
    assert plan.encounters >= 4
    assert min(plan.steps) >= 1


def test_the_announcement_states_times_and_what_to_expect():
    first, second, *more = announce(make_plan(QUICK, 15, 60, 16, 0), 840)
    assert "0.50 s" in first
    assert "15 minutes" in second
    assert not more
    assert "MINUTES=60" in announce(make_plan(SLOW, 15, 60, 16, 0), 840)[-1]


def test_a_machine_too_slow_for_the_smallest_plan_talks_with_fewer_and_says_how_much_longer_it_takes():
    plan = make_plan(replace(SLOW, conversation=8.0), 6, spent=270, conversations=16, seed=0)
    assert plan.conversations == FEWEST_CONVERSATIONS
    lines = announce(plan, 90)
    assert f"{FEWEST_CONVERSATIONS} conversations" in lines[1]
    assert f"takes {(plan.seconds - 90) / 60:.1f} min more than the limit" in lines[2]


def test_the_last_stage_takes_the_steps_that_the_time_left_allows():
    plan = make_plan(QUICK, 15, 60, 16, 0)
    left = plan.steps[2] * QUICK.step + START_UP + QUICK.talking(16)
    assert steps_that_fit(plan, left, QUICK) == pytest.approx(plan.steps[2], abs=1)
    assert steps_that_fit(plan, left, replace(QUICK, step=1.0)) == pytest.approx(plan.steps[2] / 2, abs=1)
    assert steps_that_fit(plan, 100 * left, QUICK) == int(1.5 * plan.steps[2])
    assert steps_that_fit(plan, -5, QUICK) == FEWEST_STEPS
    least = make_plan(SLOW, 1, 60, 16, 0)
    assert steps_that_fit(least, -5, SLOW) == least.steps[2]


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = make_plan(QUICK, 15, 60, 16, 3)
    assert read_plan(tmp_path / "plan.json") is None
    write_plan(tmp_path / "deep" / "plan.json", plan)
    assert read_plan(tmp_path / "deep" / "plan.json") == plan
