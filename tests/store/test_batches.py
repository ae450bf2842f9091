"""Instances that are placed together: what is held for them, and when they are not."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from tests.store.test_ledger import SMALL, add_host, together
from tests.waiting import wait_for

from treadle.db.engine import Database
from treadle.placement import board as boards
from treadle.placement.board import Board
from treadle.placement.ledger import Room
from treadle.scheduler.columns import BoolArray, HostColumns
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import PlacementRequest
from treadle.scheduler.policies import FirstFit
from treadle.scheduler.registry import Registry

FILTERS = ("state", "capacity")


class Last(FirstFit):
    """Places a batch on the last host, and one alone on the first."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def place(
        self, requests: Sequence[PlacementRequest], hosts: HostColumns, _passing: BoolArray, /
    ) -> list[int | None]:
        self.asked.append(len(requests))
        self.gate.wait(20)
        if self.broken:
            raise ZeroDivisionError
        return [int(np.max(hosts.ids))] * (len(requests) - 1) + [None]


@pytest.fixture
def policy() -> Iterator[Last]:
    one = Last()
    yield one
    one.gate.set()


@pytest.fixture
def scheduler(policy: Last) -> Scheduler:
    registry = Registry()
    registry.add("policy", "last", lambda: policy)
    return Scheduler("last", FILTERS, {}, registry)


def wants(*names: str) -> list[tuple[PlacementRequest, Room]]:
    return [(PlacementRequest(name, 1, 1024, 1000, batch="b"), SMALL) for name in names]


def first(board: Board, name: str) -> int:
    [(request, room)] = wants(name)
    return int(board.rank(request, room).ranking.ids[0])


def shown(board: Board) -> list[int]:
    return [view.vcpus_used for view in board.look()]


def test_a_batch_is_placed_once_and_its_room_held(
    database: Database, scheduler: Scheduler, policy: Last
) -> None:
    low, high = (add_host(database, f"fake://h{n}") for n in (1, 2))
    board = Board(database, scheduler, 20.0)
    together([lambda: board.plan("b", lambda: wants("u-1", "u-2", "u-3")) for _ in range(3)])
    assert policy.asked == [3]
    assert shown(board) == [0, 2]
    assert first(board, "u-1") == high
    assert shown(board) == [0, 2], "held on, for itself"
    assert first(board, "u-3") == low, "the policy left it out"
    assert first(board, "u-9") == low
    board.let_go("u-1")
    assert first(board, "u-1") == low, "what was chosen counts once"
    assert first(board, "u-2") == high


def test_what_is_held_for_one_that_never_comes_is_given_up(
    database: Database, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_host(database)
    board = Board(database, scheduler, 20.0)
    board.plan("b", lambda: wants("u-1", "u-2", "u-3"))
    assert shown(board) == [2]
    monkeypatch.setattr(boards, "PLAN_S", -1.0)
    first(board, "u-4")
    assert shown(board) == [1]


def test_one_that_comes_too_late_is_not_waited_for(
    database: Database, scheduler: Scheduler, policy: Last
) -> None:
    low, _ = (add_host(database, f"fake://h{n}") for n in (1, 2))
    policy.gate.clear()
    board = Board(database, scheduler, 0.05)
    board.plan("b", lambda: wants("u-1", "u-2"))
    assert first(board, "u-1") == low
    policy.gate.set()
    board = Board(database, scheduler, 20.0)
    board.plan("c", lambda: wants("u-1", "u-2"))
    wait_for(lambda: len(policy.asked) == 2, 5, "the second batch")
    assert first(board, "u-1") != low


@pytest.mark.parametrize("names", [[], ["u-1"], [f"u-{n}" for n in range(65)]])
def test_one_alone_and_too_many_are_placed_one_by_one(
    database: Database, scheduler: Scheduler, policy: Last, names: list[str]
) -> None:
    add_host(database)
    board = Board(database, scheduler, 20.0)
    board.plan("b", lambda: wants(*names))
    assert (policy.asked, shown(board)) == ([], [0])


def test_a_broken_policy_is_counted_and_they_are_placed_one_by_one(
    database: Database, scheduler: Scheduler, policy: Last
) -> None:
    host = add_host(database)
    policy.broken = True
    board = Board(database, scheduler, 20.0)
    board.plan("b", lambda: wants("u-1", "u-2"))
    assert scheduler.faults["policy", "last"] == 1
    assert first(board, "u-1") == host


def test_a_policy_that_cannot_is_never_asked(database: Database) -> None:
    add_host(database)
    board = Board(database, Scheduler("best-fit", FILTERS, {}), 20.0)
    assert not board.batches.wanted
    board.plan("b", lambda: pytest.fail("nobody has to say what they need"))
