"""Hosts that share their storage: who they are, and what each may give out, on both databases."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa
from tests.store.test_ledger import FACTS, PLAIN, SMALL, add_instances, the_host

from treadle.compute.hosts import next_task
from treadle.db.engine import Database
from treadle.hypervisor.base import HostFacts
from treadle.placement import ledger, storages
from treadle.placement.ledger import ImageState
from treadle.placement.storages import Heirs

SHA = SMALL.sha256


def facts(name: str, *seen: str, connection: int = 1) -> HostFacts:
    """Of a host that sees the tokens; its own is "uuid.number"."""
    return replace(
        FACTS, hostname=name, host_uuid=f"uuid-{name}",
        storage_token=f"uuid-{name}.{connection}", storage_others=seen,
    )


def add(database: Database, *hosts: HostFacts) -> None:
    """They are 1, 2, …, and have looked in that order."""

    def write(conn: sa.Connection) -> None:
        for one in hosts:
            id = ledger.add_host(conn, f"fake://{one.hostname}", one.hostname, PLAIN)
            ledger.set_up(conn, id, one, "kvm")

    database.write(write)


def look(database: Database, id: int, seen: HostFacts) -> None:
    def write(conn: sa.Connection) -> None:
        ledger.set_up(conn, id, seen, "kvm")
        storages.level(conn, id)

    database.write(write)


def test_who_shares_and_who_only_has_a_copy(database: Database) -> None:
    add(
        database, facts("a", "uuid-b.1"), facts("b", "uuid-a.1"),
        facts("c", "uuid-a.1", "uuid-b.1"),  # made from a's disk: a and b have never seen it
        facts("d"), facts("e", "uuid-gone.1"),
    )

    def read(id: int) -> tuple[tuple[int, ...], Heirs]:
        return database.read(lambda conn: (storages.together(conn, id), storages.heirs(conn, id)))

    assert read(1) == ((1, 2, 3), Heirs(frozenset({2}), known=True))
    assert read(2) == ((1, 2, 3), Heirs(frozenset({1}), known=True))
    assert read(3) == ((1, 2, 3), Heirs(frozenset(), known=True))
    assert read(4) == ((4,), Heirs(frozenset(), known=False))
    assert read(5) == ((5,), Heirs(frozenset(), known=False)), "the other is no host any more"
    assert database.read(lambda conn: storages.unmet(
        conn, 3, facts("c", "uuid-a.1", "uuid-b.1")
    )) == [1, 2]
    assert database.read(lambda conn: storages.unmet(conn, 1, facts("a", "uuid-b.1"))) == []


def test_a_host_that_was_prepared_anew_is_waited_for_and_then_known_again(
    database: Database
) -> None:
    add(database, facts("a", "uuid-b.1", connection=2), facts("b", "uuid-a.1"))
    assert database.read(lambda conn: storages.heirs(conn, 1)) == Heirs(frozenset(), known=True)
    look(database, 2, facts("b", "uuid-a.1", "uuid-a.2", connection=3))
    assert database.read(lambda conn: storages.heirs(conn, 1)).ids == {2}


def test_what_is_free_is_given_out_once(database: Database) -> None:
    add(database, facts("a", "uuid-b.1"), facts("b", "uuid-a.1"))
    look(database, 1, facts("a", "uuid-b.1"))
    [id] = add_instances(database, 1)
    big = replace(SMALL, disk_mib=40_000)
    assert database.write(lambda conn: ledger.claim(conn, 1, id, big))
    for number, host in ((1, facts("a", "uuid-b.1")), (2, facts("b", "uuid-a.1"))):
        look(database, number, host)
        limits = [the_host(database, one).disk_limit_mib for one in (1, 2)]
        assert sum(limits) == FACTS.disk_mib
        assert limits == [40_100 + 29_950, 29_950]
    # A host that does not answer gives out nothing, and keeps what it has.
    database.write(lambda conn: ledger.set_down(conn, 1, "silent"))
    look(database, 2, facts("b", "uuid-a.1"))
    assert [the_host(database, one).disk_limit_mib for one in (1, 2)] == [40_100, 59_900]


def test_one_image_in_one_storage_is_one_thing(database: Database) -> None:
    add(database, facts("a", "uuid-b.1"), facts("b", "uuid-a.1"))
    add_instances(database, 1)

    def task() -> tuple[int, bool, bool] | None:
        found = database.read(lambda conn: next_task(conn, (1, 2), SHA))
        return None if found is None else (found.host.id, found.wanted, found.alone)

    assert task() is None
    for id in (1, 2):
        assert database.write(lambda conn, id=id: ledger.want_image(conn, id, SHA, 100))
    assert task() == (1, True, False)
    database.write(lambda conn: ledger.set_image(conn, 1, SHA, ImageState.READY))
    assert task() == (2, True, False)
    database.write(lambda conn: ledger.set_image(conn, 2, SHA, ImageState.EVICTING))
    assert task() == (2, False, False), "the file is the first one's too"
    database.write(lambda conn: ledger.set_image(conn, 1, SHA, ImageState.EVICTING))
    assert task() == (1, False, True)
