"""The plan of cold moves: a table, and what must hold from every pair of sights."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from treadle.compute.lifecycle import ImageOnHost, Lost
from treadle.compute.moves import cold
from treadle.compute.moves.cold import Context, Do, Rest, Return, Send, Stay
from treadle.compute.moves.plan import (
    AwaitImage,
    Begin,
    Choose,
    Clean,
    End,
    Kind,
    Move,
    Seen,
    Stage,
    Wait,
)
from treadle.hypervisor.base import Domain, Power

UUID = "11111111-2222-4333-8444-555555555555"
MOVE = Move(
    1, "u", 1, Stage.QUEUED, 1, None, None, False, False, 100.0, False, 1, 128, 1024, 2, "", "",
    (), None, 0.0, 0.0, Kind.COLD, True,
)
READY = replace(MOVE, stage=Stage.READY, target_id=2)
MOVING, FINISHED, REVERTING = (
    replace(READY, stage=stage) for stage in (Stage.MOVING, Stage.FINISHED, Stage.REVERTING)
)
RUNS, PAUSED, OFF, SAVED, LEFT = (
    Domain(UUID, power)
    for power in (Power.RUNNING, Power.PAUSED, Power.OFF, Power.SAVED, Power.REMNANT)
)
STARTS = replace(OFF, autostart=True)
LOST = Lost.HOST
ANY = Context()
OVER = Context(undecided=False)


@pytest.mark.parametrize(("move", "here", "there", "context", "wanted"), [
    (MOVE, RUNS, None, ANY, Choose()),
    (MOVE, OFF, None, ANY, Choose()),
    (MOVE, None, None, ANY, End(Stage.FAILED, "it is not on its host")),
    (MOVE, LOST, None, ANY, Wait("the source does not answer")),
    (MOVE, RUNS, None, Context(unwanted=True), End(Stage.CANCELLED)),
    (MOVE, RUNS, None, Context(late=True), End(Stage.FAILED, "there was no time left")),
    (READY, RUNS, None, Context(image=ImageOnHost.PENDING), AwaitImage()),
    (READY, RUNS, None, Context(image=ImageOnHost.BROKEN),
     End(Stage.FAILED, "the target could not take its image")),
    (READY, OFF, LOST, ANY, End(Stage.FAILED, "the target does not answer")),
    (READY, OFF, OFF, ANY, End(Stage.FAILED, "a guest with its UUID is at the target already")),
    (READY, RUNS, LEFT, ANY, Begin()),
    (MOVING, RUNS, None, ANY, Do("shut_down")),
    (MOVING, RUNS, None, Context(patient=False), Do("power_off")),
    (MOVING, PAUSED, None, ANY, Do("power_off")),
    (MOVING, STARTS, None, ANY, Do("autostart")),
    (MOVING, OFF, None, ANY, Send()),
    (MOVING, OFF, LEFT, ANY, Send()),
    (MOVING, OFF, LEFT, Context(unwanted=True), Clean(target=True)),
    (MOVING, OFF, LEFT, Context(late=True), Clean(target=True)),
    (MOVING, OFF, LEFT, Context(trouble="full"), Clean(target=True)),
    (MOVING, OFF, None, Context(trouble="full"), End(Stage.FAILED, "full")),
    (MOVING, OFF, LOST, Context(trouble="full"), End(Stage.FAILED, "full")),
    (MOVING, OFF, LOST, ANY, Wait("the target does not answer")),
    (MOVING, OFF, LOST, Context(tries=9), End(Stage.FAILED, "the target does not answer")),
    (MOVING, LOST, LEFT, ANY, Wait("the source does not answer")),
    (MOVING, SAVED, LEFT, ANY, Clean(target=True)),
    (MOVING, SAVED, None, ANY, End(Stage.FAILED, "it is not on its host as it was")),
    (FINISHED, OFF, RUNS, ANY, Rest()),
    (FINISHED, RUNS, RUNS, ANY, Do("power_off")),
    (FINISHED, STARTS, RUNS, ANY, Do("autostart")),
    (FINISHED, OFF, RUNS, OVER, Clean(target=False)),
    (FINISHED, None, RUNS, OVER, End(Stage.DONE)),
    (FINISHED, LOST, RUNS, OVER, End(Stage.DONE)),
    (REVERTING, OFF, RUNS, ANY, Clean(target=True)),
    (REVERTING, OFF, None, ANY, Return()),
    (REVERTING, OFF, LOST, ANY, Wait("the target does not answer: the guest may run there")),
    (REVERTING, OFF, LOST, Context(off=True), Return(off=True)),
    (REVERTING, LOST, LOST, Context(off=True),
     Wait("the target does not answer: the guest may run there")),
    (REVERTING, LOST, None, ANY, Wait("the source does not answer")),
    (REVERTING, None, RUNS, ANY, Stay("what its former host kept of it is gone")),
])
def test_what_comes_next(
    move: Move, here: Seen, there: Seen, context: Context, wanted: cold.Action
) -> None:
    assert cold.plan(move, here, there, context) == wanted


SIGHTS: tuple[Seen, ...] = (RUNS, PAUSED, OFF, STARTS, SAVED, LEFT, None, LOST)
CONTEXTS = (
    ANY, OVER, Context(unwanted=True), Context(late=True), Context(trouble="x"),
    Context(patient=False), Context(tries=9), Context(off=True), Context(image=ImageOnHost.REFUSED),
)


@pytest.mark.parametrize("move", [MOVE, READY, MOVING, FINISHED, REVERTING],
                         ids=lambda move: str(move.stage))
def test_from_every_pair_of_sights_one_copy_stays_and_one_alone_may_run(move: Move) -> None:
    for here, there, context in product(SIGHTS, SIGHTS, CONTEXTS):
        action = cold.plan(move, here, there, context)
        at = (move.stage, here, there, context, action)
        if isinstance(action, Clean) and action.target:
            # Nothing but volumes, unless it is gone back from while the source has its own.
            back = move.stage is Stage.REVERTING and here not in (None, LOST)
            assert back or (move.stage is Stage.MOVING and there is LEFT), at
        elif isinstance(action, Clean):
            assert (move.stage, context) == (Stage.FINISHED, OVER), at
        elif isinstance(action, Return):
            assert move.stage is Stage.REVERTING, at
            assert there is None or (there is LOST and context.off), at
        elif isinstance(action, Send):
            assert move.stage is Stage.MOVING, at
            assert here is OFF, at
            assert there in (None, LEFT), at
        elif isinstance(action, End) and action.stage is Stage.DONE:
            assert (move.stage, context) == (Stage.FINISHED, OVER), at
