"""The hosts in memory for ranking, on both databases: never behind what this process has done."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from tests.store.test_ledger import FACTS, PATIENCE_S, SMALL, add_host, add_instances

from treadle.db.engine import Database, note
from treadle.placement import board as boards
from treadle.placement import ledger
from treadle.placement.board import Board, Outlook
from treadle.placement.ledger import ImageState
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import PlacementRequest

FILTERS = ("state", "capacity")


@pytest.fixture
def spread() -> Scheduler:
    return Scheduler("worst-fit", FILTERS, {})


def rank(board: Board, uuid: str, **more: Any) -> Outlook:
    request = PlacementRequest(
        uuid, SMALL.vcpus, SMALL.memory_mib, SMALL.disk_mib, SMALL.sha256, SMALL.image_mib
    )
    return board.rank(request, SMALL, **more)


def take(database: Database, board: Board, host: int, instance: int, uuid: str) -> bool:
    def work(conn: sa.Connection) -> bool:
        if not ledger.claim(conn, host, instance, SMALL):
            return False
        note(conn, ledger.PLACED, uuid)
        return True

    try:
        return database.write(work)
    finally:
        board.let_go(uuid)


def shown(board: Board) -> dict[int, tuple[int, int, int]]:
    """What the board has of each host: instances, memory and disk in use."""
    return {
        host.id: (host.instances, host.memory_used_mib, host.disk_used_mib)
        for host in board.look()
    }


def test_what_is_held_counts_for_the_next(database: Database, spread: Scheduler) -> None:
    hosts = [add_host(database, f"fake://h{n}") for n in (1, 2, 3)]
    board = Board(database, spread)
    first = [int(rank(board, f"u-{n}").ranking.ids[0]) for n in range(3)]
    assert sorted(first) == hosts


def test_what_is_let_go_counts_no_more(database: Database, spread: Scheduler) -> None:
    add_host(database, "fake://h1")
    add_host(database, "fake://h2")
    board = Board(database, spread)
    first = int(rank(board, "u-0").ranking.ids[0])
    board.let_go("u-0")
    assert int(rank(board, "u-1").ranking.ids[0]) == first


def test_a_claim_is_counted_once(database: Database, spread: Scheduler) -> None:
    host = add_host(database)
    [instance] = add_instances(database, 1)
    board = Board(database, spread)
    rank(board, "u-0")
    assert take(database, board, host, instance, "u-0")
    assert shown(board) == {host: (1, SMALL.memory_mib, SMALL.disk_mib + SMALL.image_mib)}


def test_a_claim_that_is_rolled_back_is_not_counted(
    database: Database, spread: Scheduler
) -> None:
    host = add_host(database)
    [instance] = add_instances(database, 1)
    board = Board(database, spread)
    rank(board, "u-0")

    class Enough(Exception):
        pass

    def work(conn: sa.Connection) -> None:
        assert ledger.claim(conn, host, instance, SMALL)
        note(conn, ledger.PLACED, "u-0")
        raise Enough

    with pytest.raises(Enough):
        database.write(work)
    board.let_go("u-0")
    assert shown(board) == {host: (0, 0, 0)}


def test_everything_that_changes_a_host_is_seen(database: Database, spread: Scheduler) -> None:
    host = add_host(database)
    [instance] = add_instances(database, 1)
    board = Board(database, spread)

    def fits() -> bool:
        outlook = rank(board, "u-9")
        board.let_go("u-9")
        return bool(len(outlook.ranking))

    assert fits()
    assert database.write(lambda conn: ledger.set_down(conn, host, "gone"))
    assert not fits()
    database.write(lambda conn: ledger.set_up(conn, host, FACTS, "kvm"))
    assert fits()
    database.write(lambda conn: ledger.disable_host(conn, host, "for repair"))
    assert not fits()
    other = add_host(database, "fake://h2")
    assert fits()
    assert take(database, board, other, instance, "u-9")
    assert shown(board)[other][0] == 1
    database.write(lambda conn: ledger.release(conn, instance))
    assert shown(board)[other][0] == 0
    key = other, SMALL.sha256
    database.write(lambda conn: ledger.set_image(conn, *key, ImageState.REFUSED, "no"))
    assert shown(board)[other] == (0, 0, 0)
    assert database.write(lambda conn: ledger.want_image(conn, *key, 70))
    assert shown(board)[other] == (0, 0, 70)
    database.write(lambda conn: ledger.forget_image(conn, *key))
    assert shown(board)[other] == (0, 0, 0)
    assert database.write(lambda conn: ledger.remove_host(conn, other))
    assert set(shown(board)) == {host}


def test_no_for_want_of_room_is_exact_only_when_nothing_is_held(
    database: Database, spread: Scheduler
) -> None:
    add_host(database)
    board = Board(database, spread)
    big = PlacementRequest("big", 100, 1, 1)
    assert board.rank(big, SMALL).exact  # the first look reads everything
    assert not board.rank(big, SMALL).exact
    assert board.rank(big, SMALL, anew=True).exact
    rank(board, "u-0")
    assert not board.rank(big, SMALL, anew=True).exact


def test_hosts_that_were_never_reached_are_told(database: Database, spread: Scheduler) -> None:
    database.write(lambda conn: ledger.add_host(conn, "fake://n", "n", ledger.Ratios()))
    board = Board(database, spread)
    outlook = rank(board, "u-0")
    assert not len(outlook.ranking)
    assert outlook.unknown


def test_many_at_once_are_spread_evenly_and_never_over_the_limit(
    database: Database, spread: Scheduler
) -> None:
    hosts = [add_host(database, f"fake://h{n}") for n in range(4)]
    instances = add_instances(database, 34)  # there is room for 8 vCPUs on each: 32
    board = Board(database, spread)
    start = threading.Barrier(8)

    def place(number: int) -> int | None:
        if number < 8:
            start.wait(PATIENCE_S)
        uuid = f"u-{number}"
        for attempt in range(50):
            outlook = rank(board, uuid, anew=attempt > 0)
            for host in outlook.ranking:
                if take(database, board, host, instances[number], uuid):
                    return host
            board.let_go(uuid)
            if outlook.exact:
                return None
        raise AssertionError("it never came to an end")

    with ThreadPoolExecutor(8) as pool:
        found = Counter(pool.map(place, range(34)))
    assert found.pop(None) == 2
    assert found == dict.fromkeys(hosts, 8)
    assert not board._held


def test_what_another_process_does_is_seen_in_time(
    database: Database, spread: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = add_host(database)
    monkeypatch.setattr(boards, "REREAD_S", 0.0)
    monkeypatch.setattr(boards, "REREAD_SHARE", 1e9)
    board = Board(database, spread)
    assert len(rank(board, "u-0").ranking) == 1
    board.let_go("u-0")
    with database.engine.begin() as conn:  # past our own `write`, as another process does
        conn.execute(sa.text("UPDATE host SET enabled = false WHERE id = :h"), {"h": host})
    assert not len(rank(board, "u-0").ranking)
