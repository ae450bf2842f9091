"""NUMA cells in the ledger, on both databases: what instances hold of them is counted exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from tests.store.test_ledger import (
    FACTS,
    PLAIN,
    SMALL,
    add_host,
    add_instances,
    claim,
    the_host,
    together,
)

from treadle.db.engine import Database
from treadle.db.schema import allocation
from treadle.hypervisor.base import NumaCell
from treadle.placement import cells, ledger
from treadle.placement.board import Board
from treadle.placement.cells import Cell, Share
from treadle.placement.ledger import Ratios, Room
from treadle.placement.views import snapshot
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import PlacementRequest

TWO = replace(FACTS, cells=(NumaCell(0, "0-3", 4, 4096), NumaCell(1, "4-7", 4, 4096)))
WIDE = replace(SMALL, vcpus=2, memory_mib=2048, nodes=2)


def held(database: Database, instance: int) -> list[Share]:
    text = database.read(lambda conn: conn.execute(
        sa.select(allocation.c.cells).where(allocation.c.instance_id == instance)
    ).scalar_one())
    return cells.shares_of(text)


def free(database: Database, host: int) -> list[tuple[int, int]]:
    """What the host's cells have left, and that it is what nobody holds."""
    found = the_host(database, host).cells
    shares = database.read(lambda conn: conn.execute(
        sa.select(allocation.c.cells).where(allocation.c.host_id == host)
    ).scalars().all())
    for cell in found:
        mine = [one for text in shares for one in cells.shares_of(text) if one.cell == cell.id]
        assert (cell.vcpus_used, cell.memory_used_mib) == (
            sum(one.vcpus for one in mine), sum(one.memory_mib for one in mine)
        )
        assert min(cell.free) >= 0 or not cell.vcpus_limit
    return [cell.free for cell in found]


def test_a_claim_counts_its_cells_down_and_a_release_up(database: Database) -> None:
    host = add_host(database, facts=TWO)
    first, second, third = add_instances(database, 3)
    assert claim(database, host, first, replace(WIDE, vcpus=3))
    assert held(database, first) == [Share(0, 2, 1024), Share(1, 1, 1024)]
    assert free(database, host) == [(2, 3072), (3, 3072)]
    assert claim(database, host, second, replace(SMALL, memory_mib=3072, nodes=1))
    assert free(database, host) == [(1, 0), (3, 3072)]
    before = the_host(database, host)
    assert not claim(database, host, third, WIDE), "one cell has no memory left"
    assert the_host(database, host) == before
    assert claim(database, host, third, SMALL), "who asks for no nodes is not held up"
    assert held(database, third) == []
    for one in (first, second, third):
        database.write(lambda conn, one=one: ledger.release(conn, one))
    assert free(database, host) == [(4, 4096), (4, 4096)]


def test_a_host_without_cells_takes_nobody_who_asks_for_nodes(database: Database) -> None:
    host = add_host(database)
    [one] = add_instances(database, 1)
    assert not claim(database, host, one, WIDE)
    assert claim(database, host, one)


def test_the_image_that_has_no_room_gives_the_cells_back(database: Database) -> None:
    host = add_host(database, facts=TWO)
    [one] = add_instances(database, 1)
    assert not claim(database, host, one, replace(WIDE, image_mib=10**6))
    assert free(database, host) == [(4, 4096), (4, 4096)]


def test_claims_that_come_together_never_take_more_than_a_cell_has(database: Database) -> None:
    host = add_host(database, facts=TWO)
    one_each = replace(SMALL, vcpus=1, memory_mib=512, nodes=1)
    some = add_instances(database, 12)
    rooms = [WIDE if n % 3 else one_each for n in range(12)]
    won = together([
        lambda one=one, room=room: claim(database, host, one, room)
        for one, room in zip(some, rooms, strict=True)
    ])
    free(database, host)
    assert any(won)
    gone = [one for one, took in zip(some, won, strict=True) if took]
    together([
        lambda one=one: database.write(lambda conn: ledger.release(conn, one)) for one in gone
    ])
    assert free(database, host) == [(4, 4096), (4, 4096)]


def test_facts_that_come_again_keep_what_is_taken(database: Database) -> None:
    ratios = Ratios(cpu=2.0, memory=1.0, disk=1.0, reserved_memory_mib=1024)
    host = add_host(database, facts=TWO, ratios=ratios)
    [one] = add_instances(database, 1)
    assert the_host(database, host).cells == (Cell(0, 8, 3584), Cell(1, 8, 3584))
    assert claim(database, host, one, WIDE)
    database.write(lambda conn: ledger.set_up(conn, host, TWO, "kvm"))
    assert free(database, host) == [(7, 2560), (7, 2560)]
    smaller = replace(TWO, cells=TWO.cells[:1])
    database.write(lambda conn: ledger.set_up(conn, host, smaller, "kvm"))
    assert the_host(database, host).cells == (Cell(0, 8, 3072, 1, 1024), Cell(1, 0, 0, 1, 1024))
    assert the_host(database, host).facts == smaller
    database.write(lambda conn: ledger.release(conn, one))
    assert the_host(database, host).cells == (Cell(0, 8, 3072),)


@pytest.mark.parametrize(("room", "vcpus", "memory_mib", "nodes", "fits", "shares"), [
    (WIDE, 4, 4096, 2, True, [(0, 2, 2048), (1, 2, 2048)]),
    (WIDE, 2, 1024, 2, True, [(0, 1, 512), (1, 1, 512)]),
    (WIDE, 2, 2048, 0, True, []),
    (WIDE, 2, 2048, 1, False, [(0, 1, 1024), (1, 1, 1024)]),
    (SMALL, 2, 2048, 2, True, [(0, 1, 1024), (1, 1, 1024)]),
    (SMALL, 1, 512, 0, True, []),
    (SMALL, 5, 1024, 1, False, []),
])
def test_another_size_keeps_its_cells(
    database: Database, room: Room, vcpus: int, memory_mib: int, nodes: int, fits: bool,
    shares: list[tuple[int, int, int]],
) -> None:
    host = add_host(database, facts=TWO)
    [one] = add_instances(database, 1)
    assert claim(database, host, one, room)
    assert fits is database.write(
        lambda conn: ledger.resize(conn, one, vcpus, memory_mib, 1000, nodes)
    )
    assert held(database, one) == [Share(*share) for share in shares]
    free(database, host)


def test_a_move_takes_cells_there_and_gives_those_here_back(database: Database) -> None:
    here, there = (add_host(database, f"fake://h{n}", TWO) for n in (1, 2))
    first, second = add_instances(database, 2)
    assert claim(database, here, first, WIDE)
    assert claim(database, there, second, replace(SMALL, nodes=1))
    taken = ledger.Taken()
    exact = replace(WIDE, cells=(1, 0))
    assert database.write(lambda conn: taken.hold(conn, there, exact))
    assert cells.shares_of(taken.cells) == [Share(1, 1, 1024), Share(0, 1, 1024)]
    database.write(lambda conn: ledger.moved(conn, first, there, taken.cells))
    assert free(database, here) == [(4, 4096), (4, 4096)]
    assert free(database, there) == [(2, 2048), (3, 3072)]
    room = replace(WIDE, vcpus=4, nodes=1)
    assert database.write(lambda conn: taken.hold(conn, here, room))

    class Move:
        vcpus, memory_mib, disk_mib, cells = 4, 2048, 1000, taken.cells

    left = database.write(lambda conn: ledger.exchange(conn, first, here, Move()))
    assert held(database, first) == [Share(0, 4, 2048)]
    assert free(database, here) == [(0, 2048), (4, 4096)]
    database.write(lambda conn: ledger.let_go(conn, left.host_id, left))
    assert free(database, there) == [(3, 3072), (4, 4096)]


def test_cells_that_are_named_are_taken_or_none(database: Database) -> None:
    host = add_host(database, facts=TWO)
    first, second = add_instances(database, 2)
    assert claim(database, host, first, replace(SMALL, vcpus=4, nodes=1))
    assert not claim(database, host, second, replace(SMALL, nodes=1, cells=(0,)))
    assert not claim(database, host, second, replace(SMALL, nodes=1, cells=(7,)))
    assert claim(database, host, second, replace(SMALL, nodes=1, cells=(1,)))
    assert held(database, second) == [Share(1, 1, 1024)]


def test_the_scheduler_sees_what_is_free_and_what_is_held(database: Database) -> None:
    host = add_host(database, facts=TWO, ratios=PLAIN)
    [one] = add_instances(database, 1)
    board = Board(database, Scheduler("first-fit", ("state", "capacity", "numa"), {}))

    def rank(uuid: str) -> int:
        request = PlacementRequest(uuid, 4, 4096, 1000, numa_nodes=2)
        room = Room(4, 4096, 1000, SMALL.sha256, 0, 2)
        return len(board.rank(request, room).ranking)

    assert rank("u-a") == 1
    assert [view.numa for view in board.look()] == [((2, 2048), (2, 2048))]
    board.let_go("u-a")
    assert claim(database, host, one, replace(WIDE, vcpus=6, memory_mib=2048))
    assert [view.numa for view in database.read(snapshot)] == [((1, 3072), (1, 3072))]
    assert rank("u-b") == 0
