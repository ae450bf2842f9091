"""Moves: every fault at every seam of a move, from each of its stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import OF_MOVES
from scenarios import Do, Scenario, act, ends, look, moved_until, running, told
from sweep import each_ends_as_wanted, of
from world import World

from treadle.compute.model import State
from treadle.hypervisor.fake_host import Fault, FaultKind

R, S, P, D = State.RUNNING, State.STOPPED, State.PAUSED, State.DELETED
MOVED = ends(R, guest_stops=(S,))


def queued(world: World) -> None:
    """One that runs, and whose move was asked for."""
    running(world)
    world.act(1, "migrate")


def ending_there(start: Do) -> Do:
    """The same, where moves go on at their target before all memory is there."""

    def begin(world: World) -> None:
        world.post_copy = True
        start(world)

    return begin


def torn(world: World) -> None:
    """One whose move was broken off when it had gone on at its target, and its controller dies."""
    world.machines[1].faults = [Fault("move", 1, FaultKind.PARTED)]
    ending_there(moved_until("before resume_move"))(world)
    world.machines[1].faults = []


SCENARIOS = [
    Scenario("move", told(flavor=6), act("migrate"), MOVED),
    Scenario("move a paused one", told("pause"), act("migrate"), ends(P)),
    Scenario("a move taken up when begun", moved_until("before move"), look, MOVED),
    Scenario("a move taken up when made", moved_until("after move"), look, MOVED),
    Scenario("delete one that is being moved", moved_until("before move"), act("delete"), ends(D)),
    Scenario("delete one that has been moved", moved_until("after move"), act("delete"), ends(D)),
    Scenario("end a move that is queued", queued, act("abort"), MOVED),
    Scenario("end a move that was begun", moved_until("before move"), act("abort"), MOVED),
    Scenario("end a move that was made", moved_until("after move"), act("abort"), MOVED),
    Scenario("move by post-copy", ending_there(told(flavor=6)), act("migrate"), MOVED),
    Scenario("a post-copy taken up", ending_there(moved_until("amid move")), look, MOVED),
    Scenario("a torn one", torn, look, MOVED),
    Scenario("delete a torn one", torn, act("delete"), ends(D)),
    Scenario("end the move of a torn one", torn, act("abort"), MOVED),
]
AT_LEAST = {
    "move": 600, "move a paused one": 600, "a move taken up when begun": 400,
    "a move taken up when made": 500, "delete one that is being moved": 250,
    "delete one that has been moved": 300, "end a move that is queued": 80,
    "end a move that was begun": 220, "end a move that was made": 300,
    "move by post-copy": 600, "a post-copy taken up": 300, "a torn one": 300,
    "delete a torn one": 200, "end the move of a torn one": 300,
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_every_fault_at_every_seam_of_a_move(scenario: Scenario, tmp_path: Path) -> None:
    each_ends_as_wanted(tmp_path, scenario, AT_LEAST[scenario.name], only=of(OF_MOVES))
