"""Hard group rules on both databases: no race breaks them."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from tests.store.test_ledger import SMALL, add_host, add_instances, assert_balanced, together

from treadle.compute import changes, placing, store
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import Kind, Stage
from treadle.db.engine import Database
from treadle.db.schema import allocation, instance, server_group
from treadle.placement import groups, ledger


def add_group(database: Database, policy: str, max_per_host: int | None = None) -> int:
    return database.write(lambda conn: conn.execute(
        sa.insert(server_group).values(
            uuid=f"g-{policy}-{max_per_host}", project_id="p", user_id="u", name="g",
            policy=policy, max_per_host=max_per_host, created_at=0.0,
        ).returning(server_group.c.id)
    ).scalar_one())


def place(database: Database, hosts: list[int], group: int, one: int) -> int | None:
    """As the reconciler claims: down one order, under the group's rule."""
    def take(conn: sa.Connection) -> int | None:
        allowed = groups.rule(conn, group, one)
        for host in hosts:
            if allowed(host) and ledger.claim(conn, host, one, SMALL):
                return host
        return None

    return database.write(take)


def on_hosts(database: Database) -> Counter[int]:
    return Counter(database.read(
        lambda conn: conn.execute(sa.select(allocation.c.host_id)).scalars().all()
    ))


@pytest.mark.parametrize(("policy", "most", "placed"), [
    ("anti-affinity", None, [1, 1, 1]), ("anti-affinity", 2, [2, 2, 2]), ("affinity", None, [8]),
    ("soft-anti-affinity", None, [8]), ("soft-affinity", None, [8]),
])
def test_members_that_are_placed_at_once_keep_the_rule(
    database: Database, policy: str, most: int | None, placed: list[int]
) -> None:
    """Eight at once, and all of them like the same host best."""
    hosts = [add_host(database, f"fake://h{n}") for n in (1, 2, 3)]
    group = add_group(database, policy, most)
    some = add_instances(database, 8, group_id=group)
    together([lambda one=one: place(database, hosts, group, one) for one in some])
    assert sorted(on_hosts(database).values()) == placed
    assert_balanced(database)


def test_affinity_holds_where_the_likings_differ(database: Database) -> None:
    hosts = [add_host(database, f"fake://h{n}") for n in (1, 2, 3)]
    group = add_group(database, "affinity")
    some = add_instances(database, 6, group_id=group)
    together([
        lambda n=n, one=one: place(database, hosts[n % 3:] + hosts[:n % 3], group, one)
        for n, one in enumerate(some)
    ])
    assert list(on_hosts(database).values()) == [6]


def test_a_rule_holds_its_group_until_the_end_and_no_other(database: Database) -> None:
    host = add_host(database)
    group, other = add_group(database, "anti-affinity"), add_group(database, "affinity")
    [one, second] = add_instances(database, 2, group_id=group)
    [third] = add_instances(database, 1, group_id=other)
    assert place(database, [host], group, one) == host
    assert place(database, [host], group, second) is None
    assert place(database, [host], other, third) == host
    database.write(lambda conn: ledger.release(conn, one))
    assert place(database, [host], group, second) == host


def test_an_instance_does_not_count_against_itself(database: Database) -> None:
    host = add_host(database)
    group = add_group(database, "anti-affinity")
    [one] = add_instances(database, 1, group_id=group)
    place(database, [host], group, one)
    assert database.write(lambda conn: groups.rule(conn, group, one)(host))
    assert not database.write(lambda conn: groups.rule(conn, group, one + 1)(host))


@pytest.mark.parametrize(("policy", "stage", "free"), [
    ("anti-affinity", Stage.READY, [3]), ("anti-affinity", Stage.MOVING, [3]),
    ("anti-affinity", Stage.FINISHED, [3]), ("affinity", Stage.MOVING, []),
    ("affinity", Stage.DONE, [1]), ("anti-affinity", Stage.DONE, [2, 3]),
])
def test_a_member_that_is_being_moved_is_on_both_hosts(
    database: Database, policy: str, stage: Stage, free: list[int]
) -> None:
    hosts = [add_host(database, f"fake://h{n}") for n in (1, 2, 3)]
    group = add_group(database, policy)
    goer, other = add_instances(database, 2, group_id=group)
    landed = stage is Stage.FINISHED
    place(database, [hosts[1] if landed else hosts[0]], group, goer)
    database.write(lambda conn: moves.insert(
        conn, instance_id=goer, kind=Kind.COLD if landed else Kind.LIVE, stage=stage,
        source_id=hosts[0], target_id=hosts[1], deadline=1e12, revision=2, user_id="",
        project_id="", held=stage is not Stage.DONE,
    ))

    def may(conn: sa.Connection) -> list[int]:
        allowed = groups.rule(conn, group, other)
        return [n for n, host in enumerate(hosts, 1) if allowed(host)]

    assert database.write(may) == free


def test_a_move_and_a_create_at_once_keep_the_rule(database: Database) -> None:
    """Both like the same host best."""
    hosts = [add_host(database, f"fake://h{n}") for n in (1, 2, 3)]
    group = add_group(database, "anti-affinity")
    some = add_instances(database, 4, group_id=group)
    goer = some[0]
    place(database, [hosts[0]], group, goer)

    def move() -> None:
        def hold(conn: sa.Connection) -> None:
            allowed = groups.rule(conn, group, goer)
            for host in hosts[1:]:
                if allowed(host) and ledger.hold(conn, host, SMALL) is not None:
                    moves.insert(
                        conn, instance_id=goer, kind=Kind.LIVE, stage=Stage.READY,
                        source_id=hosts[0], target_id=host, deadline=1e12, revision=2,
                        user_id="", project_id="", held=True,
                    )
                    return

        database.write(hold)

    together([move, *(lambda one=one: place(database, hosts, group, one) for one in some[1:])])
    taken = on_hosts(database)
    for held in database.read(moves.held):
        taken[held.holder or 0] += 1
    assert sorted(taken.items()) == [(host, 1) for host in hosts]


def asked(database: Database, id: int) -> Any:
    def read(conn: sa.Connection) -> Any:
        one = store.get(conn, id)
        assert one is not None
        room = replace(SMALL, nodes=changes.nodes_held(one))
        return placing.request_of(conn, one, room, with_flavors=False)

    return database.read(read)


def test_a_request_says_what_the_row_says(database: Database) -> None:
    hosts = [add_host(database, f"fake://h{n}") for n in (1, 2, 3)]
    group = add_group(database, "anti-affinity", 3)
    specs = (
        '{"extra_specs": {"disk": "ssd", "hw:numa_nodes": "2", "trait:GPU": "required",'
        ' "pci_passthrough:alias": "nic:2,gpu:1"}}'
    )
    [mate] = add_instances(database, 1, group_id=group, project_id="p")
    place(database, [hosts[2]], group, mate)
    database.write(lambda conn: store.update(conn, mate, host_id=hosts[2]))
    [stranger] = add_instances(database, 1, project_id="q", host_id=hosts[1])
    uuids = database.read(lambda conn: {
        row.id: row.uuid for row in conn.execute(sa.select(instance.c.id, instance.c.uuid))
    })
    hints = (
        f'{{"different_host": ["{uuids[mate]}", "{uuids[stranger]}"], "host": "h1",'
        ' "query": ["=", "$x", 1]}'
    )
    [one] = add_instances(
        database, 1, group_id=group, project_id="p", availability_zone="a", flavor=specs,
        scheduler_hints=hints, excluded=str(hosts[0]), uuid="0000002a-u",
    )
    request = asked(database, one)
    assert request.zone == "a"
    assert request.only_hosts == {hosts[0]}
    assert request.tried_hosts == {hosts[0]}
    # The stranger's host is not: nobody learns where another project's instances are.
    assert request.excluded_hosts == {hosts[0], hosts[2]}
    assert (request.group, request.group_hosts, request.max_per_host) == (
        "anti-affinity", ((hosts[2], 1),), 3
    )
    assert dict(request.extra_specs)["disk"] == "ssd"
    assert request.capabilities == {"GPU", "images"}
    assert (request.numa_nodes, request.pci) == (2, (("gpu", 1), ("nic", 2)))
    assert request.tenant == "p"


def test_same_host_as_a_strangers_is_no_host(database: Database) -> None:
    host = add_host(database)
    add_instances(database, 1, project_id="q", host_id=host, uuid="the-other")
    [one] = add_instances(
        database, 1, project_id="p", scheduler_hints='{"same_host": "the-other"}', uuid="0000002a-u"
    )
    assert asked(database, one).only_hosts == frozenset()


def test_the_second_waits_for_the_first(database: Database) -> None:
    """The lock is held until the commit: a member that comes between sees where the first went."""
    hosts = [add_host(database, f"fake://h{n}") for n in (1, 2)]
    group = add_group(database, "anti-affinity")
    first, second = add_instances(database, 2, group_id=group)
    inside, go_on = threading.Event(), threading.Event()
    found: list[int | None] = []

    def slowly(conn: sa.Connection) -> None:
        assert groups.rule(conn, group, first)(hosts[0])
        inside.set()
        assert go_on.wait(20)
        assert ledger.claim(conn, hosts[0], first, SMALL)

    def then() -> None:
        assert inside.wait(20)
        go_on.set()
        found.append(place(database, hosts, group, second))

    threads = [
        threading.Thread(target=lambda: database.write(slowly)), threading.Thread(target=then)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [hosts[1]]
