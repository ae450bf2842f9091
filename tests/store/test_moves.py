"""Moves: the plan's table, and whole moves on simulated hosts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from treadle.compute.lifecycle import ImageOnHost, Lost
from treadle.compute.moves.plan import (
    Arrive,
    AwaitImage,
    Begin,
    Choose,
    Clean,
    Context,
    End,
    Move,
    Resume,
    Seen,
    Stage,
    Wait,
    plan,
)
from treadle.hypervisor.base import Domain, Power

UUID = "11111111-2222-4333-8444-555555555555"
MOVE = Move(
    1, "u", 1, Stage.QUEUED, 1, None, None, False, False, 100.0, False, 1, 128, 1024, 2, "", "",
    (), None, 0.0, 0.0,
)
READY = replace(MOVE, stage=Stage.READY, target_id=2)
MOVING = replace(READY, stage=Stage.MOVING)
RUNS, PAUSED, OFF, LEFT = (
    Domain(UUID, power) for power in (Power.RUNNING, Power.PAUSED, Power.OFF, Power.REMNANT)
)
HALF, STUCK = (
    Domain(UUID, power, split=True) for power in (Power.RUNNING, Power.PAUSED)
)
FRONT, REST = (replace(half, torn=True) for half in (HALF, STUCK))
LOST = Lost.HOST
FAILED = Stage.FAILED


@pytest.mark.parametrize(("move", "here", "there", "context", "wanted"), [
    (MOVE, RUNS, None, Context(), Choose),
    (MOVE, OFF, None, Context(), End),
    (MOVE, LOST, None, Context(), Wait),
    (MOVE, RUNS, None, Context(unwanted=True), End),
    (READY, RUNS, None, Context(image=ImageOnHost.PENDING), AwaitImage),
    (READY, RUNS, None, Context(image=ImageOnHost.REFUSED), End),
    (READY, PAUSED, LEFT, Context(), Begin),
    (READY, RUNS, RUNS, Context(), End),
    (READY, RUNS, LOST, Context(), End),
    (READY, RUNS, None, Context(late=True), End),
    (MOVING, RUNS, LOST, Context(), Wait),
    (MOVING, None, RUNS, Context(), Arrive),
    (MOVING, LEFT, RUNS, Context(), Arrive),
    (MOVING, PAUSED, RUNS, Context(), Arrive),
    (MOVING, LOST, RUNS, Context(), Arrive),
    (MOVING, LEFT, PAUSED, Context(), Arrive),
    (MOVING, RUNS, PAUSED, Context(), Clean),
    (MOVING, LOST, PAUSED, Context(), Wait),
    (MOVING, RUNS, LEFT, Context(), Clean),
    (MOVING, LOST, LEFT, Context(), Clean),
    (MOVING, LEFT, OFF, Context(), End),
    (MOVING, RUNS, None, Context(), End),
    (MOVING, PAUSED, None, Context(unwanted=True), End),
    (MOVING, STUCK, HALF, Context(), Wait),
    (MOVING, STUCK, HALF, Context(unwanted=True), Wait),
    (MOVING, STUCK, HALF, Context(unwanted=True, late=True), Arrive),
    (MOVING, STUCK, STUCK, Context(unwanted=True, late=True), Wait),
    (MOVING, None, STUCK, Context(), Arrive),
    (MOVING, LOST, HALF, Context(), Wait),
    (MOVING, LOST, HALF, Context(late=True), Arrive),
    (MOVING, STUCK, HALF, Context(unwanted=True, deleted=True), Arrive),
    (MOVING, None, HALF, Context(), Arrive),
    (MOVING, STUCK, RUNS, Context(), Arrive),
    (MOVING, REST, FRONT, Context(), Resume),
    (MOVING, REST, FRONT, Context(unwanted=True), Resume),
    (MOVING, REST, FRONT, Context(late=True), Resume),
    (MOVING, REST, FRONT, Context(unwanted=True, deleted=True), Arrive),
    (MOVING, REST, HALF, Context(), Wait),
    (MOVING, STUCK, FRONT, Context(), Wait),
    (MOVING, RUNS, FRONT, Context(late=True), Wait),
    (MOVING, LOST, FRONT, Context(), Wait),
    (MOVING, LOST, FRONT, Context(source_off=True), Arrive),
    (MOVING, LOST, FRONT, Context(late=True), Arrive),
    (MOVING, OFF, FRONT, Context(), Arrive),
    (MOVING, STUCK, LEFT, Context(), Arrive),
    (MOVING, STUCK, None, Context(), End),
    (replace(MOVING, stage=Stage.ARRIVED), LEFT, RUNS, Context(), Clean),
    (replace(MOVING, stage=Stage.ARRIVED), LOST, RUNS, Context(), End),
    (replace(MOVING, stage=Stage.ARRIVED), None, LOST, Context(), End),
])
def test_what_comes_next(
    move: Move, here: Seen, there: Seen, context: Context, wanted: type[object]
) -> None:
    assert isinstance(plan(move, here, there, context), wanted)


@pytest.mark.parametrize("here", [RUNS, PAUSED, STUCK, REST, OFF, LEFT, None, LOST])
@pytest.mark.parametrize("there", [RUNS, PAUSED, HALF, STUCK, FRONT, OFF, LEFT, None, LOST])
@pytest.mark.parametrize("move", [MOVE, READY, MOVING, replace(MOVING, stage=Stage.ARRIVED)])
def test_what_runs_alone_is_never_removed(move: Move, here: Seen, there: Seen) -> None:
    """From every pair of sights: no act may take away the only copy that may be alive."""
    action = plan(move, here, there, Context())
    alive = (RUNS, PAUSED, LOST)
    if isinstance(action, Clean) and action.target:
        assert there not in (RUNS, HALF, STUCK, FRONT)
        assert there is not PAUSED or here in (RUNS, PAUSED, STUCK, REST)
    if isinstance(action, Clean) and not action.target:
        assert move.stage is Stage.ARRIVED
    if isinstance(action, Arrive):
        if there in (HALF, STUCK, FRONT):
            assert here not in (*alive, STUCK, REST), "it needs what is there"
        elif there in (OFF, LEFT):
            assert here in (STUCK, REST), "which can never go on"
        else:
            assert there is RUNS or (there is PAUSED and here not in alive)
    if isinstance(action, Resume):
        assert (here, there) == (REST, FRONT)
    if isinstance(action, Begin):
        assert move.stage is Stage.READY
