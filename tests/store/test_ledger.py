"""The capacity ledger on both databases: what is taken is never more than what is there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from treadle.db.engine import Database
from treadle.db.schema import allocation, host, host_image, image, instance, orphan
from treadle.hypervisor.base import HostFacts
from treadle.placement import ledger
from treadle.placement.ledger import Host, HostStatus, ImageState, Ratios, Room
from treadle.placement.views import snapshot

PATIENCE_S = 20.0
SHA = "a" * 64
OTHER = "b" * 64
PLAIN = Ratios(cpu=1.0, memory=1.0, disk=1.0, reserved_memory_mib=0)
FACTS = HostFacts(
    hostname="h1", host_uuid="u", vcpus=8, memory_mib=8192, disk_mib=100_000, arch="x86_64",
    virt_types=("kvm", "qemu"), libvirt_version="9.0", hypervisor="QEMU", hypervisor_version="7.2",
    capabilities=frozenset({"suspend", "console"}), load=0.25,
)
SMALL = Room(vcpus=1, memory_mib=1024, disk_mib=1000, sha256=SHA, image_mib=100)


def add_host(
    database: Database, uri: str = "fake://h1", facts: HostFacts = FACTS, ratios: Ratios = PLAIN
) -> int:
    def write(conn: sa.Connection) -> int:
        id = ledger.add_host(conn, uri, uri.partition("//")[2], ratios)
        ledger.set_up(conn, id, facts, "kvm")
        return id

    return database.write(write)


def add_instances(database: Database, count: int, sha256: str = SHA, **values: Any) -> list[int]:
    """Rows that an allocation can refer to, of an image of their own."""
    def write(conn: sa.Connection) -> list[int]:
        found = conn.execute(sa.select(image.c.id).where(image.c.sha256 == sha256)).scalar()
        image_id = found or conn.execute(sa.insert(image).values(
            name="i", source=f"/{sha256}", sha256=sha256, state="active", added_at=0.0,
        ).returning(image.c.id)).scalar_one()
        first = conn.execute(sa.select(sa.func.count()).select_from(instance)).scalar_one()
        return [
            conn.execute(sa.insert(instance).values({
                "uuid": f"u-{first + n}", "name": "n", "flavor_id": 1, "vcpus": 1,
                "memory_mib": 1024, "disk_gib": 1, "image_id": image_id, "mac": "m",
                "goal": "running", "state": "building", "phase": "queued", "deadline": 0.0,
                "batch": "b", "created_at": 0.0, **values,
            }).returning(instance.c.id)).scalar_one()
            for n in range(count)
        ]

    return database.write(write)


def the_host(database: Database, id: int) -> Host:
    found = database.read(lambda conn: ledger.get_host(conn, id))
    assert found is not None
    return found


def used(database: Database, id: int) -> tuple[int, int, int, int]:
    one = the_host(database, id)
    return one.vcpus_used, one.memory_used_mib, one.disk_used_mib, one.instances


def claim(database: Database, host_id: int, instance_id: int, room: Room = SMALL) -> bool:
    return database.write(lambda conn: ledger.claim(conn, host_id, instance_id, room))


def together(works: list[Callable[[], Any]]) -> list[Any]:
    """Run them all at the same moment, a thread each."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        start.wait(PATIENCE_S)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [f.result(PATIENCE_S) for f in [pool.submit(run, work) for work in works]]


def assert_balanced(database: Database) -> None:
    """What the hosts say is used is the sum of what is taken of them."""
    def read(conn: sa.Connection) -> None:
        for one in ledger.list_hosts(conn):
            taken = conn.execute(sa.select(
                sa.func.coalesce(sa.func.sum(allocation.c.vcpus), 0),
                sa.func.coalesce(sa.func.sum(allocation.c.memory_mib), 0),
                sa.func.coalesce(sa.func.sum(allocation.c.disk_mib), 0), sa.func.count(),
            ).where(allocation.c.host_id == one.id)).one()
            images = conn.execute(sa.select(
                sa.func.coalesce(sa.func.sum(host_image.c.size_mib), 0)
            ).where(host_image.c.host_id == one.id)).scalar_one()
            assert (one.vcpus_used, one.memory_used_mib, one.disk_used_mib, one.instances) == (
                taken[0], taken[1], taken[2] + images, taken[3]
            )

    database.read(read)


# -- hosts


def test_a_host_that_is_new_takes_nothing_until_it_has_answered(database: Database) -> None:
    id = database.write(lambda conn: ledger.add_host(conn, "fake://h1", "h1", PLAIN))
    [instance_id] = add_instances(database, 1)
    found = the_host(database, id)
    assert (found.status, found.state, found.facts, found.vcpus_limit) == (
        HostStatus.NEW, "down", None, 0
    )
    assert not claim(database, id, instance_id)
    database.write(lambda conn: ledger.set_up(conn, id, FACTS, "kvm"))
    assert claim(database, id, instance_id)


def test_facts_come_back_as_they_were_given(database: Database) -> None:
    id = add_host(database)
    found = the_host(database, id)
    assert found.facts == FACTS
    assert (found.virt_type, found.state, found.error) == ("kvm", "up", None)
    assert found.seen_at is not None
    [view] = database.read(snapshot)
    assert (view.state, view.arch, view.capabilities) == ("up", "x86_64", FACTS.capabilities)
    assert view.load == 0.25


def test_a_known_uri_keeps_its_id_and_is_enabled_again(database: Database) -> None:
    id = add_host(database)
    database.write(lambda conn: ledger.disable_host(conn, id, "taken out"))
    assert the_host(database, id).state == "disabled"
    again = database.write(lambda conn: ledger.add_host(conn, "fake://h1", "new name", PLAIN))
    found = the_host(database, again)
    assert (again, found.name, found.state, found.note) == (id, "new name", "up", None)


def test_ids_of_hosts_are_not_given_out_again(database: Database) -> None:
    id = add_host(database)
    assert database.write(lambda conn: ledger.remove_host(conn, id))
    assert add_host(database) > id


def test_overcommit_and_the_hosts_own_memory_make_the_limits(database: Database) -> None:
    id = add_host(database, ratios=Ratios(4.0, 1.5, 2.0, reserved_memory_mib=1024))
    found = the_host(database, id)
    assert (found.vcpus_limit, found.memory_limit_mib, found.disk_limit_mib) == (
        32, (8192 - 1024) * 1.5, 200_000
    )


def test_a_host_smaller_than_its_own_memory_gives_none_away(database: Database) -> None:
    id = add_host(database, ratios=Ratios(reserved_memory_mib=10_000))
    assert the_host(database, id).memory_limit_mib == 0


def test_a_ratio_never_gives_out_a_part_that_is_not_there(database: Database) -> None:
    facts = replace(FACTS, vcpus=3, memory_mib=1001, disk_mib=1001)
    id = add_host(database, facts=facts, ratios=Ratios(0.9, 0.999, 0.999, 0))
    found = the_host(database, id)
    assert (found.vcpus_limit, found.memory_limit_mib, found.disk_limit_mib) == (2, 999, 999)


def test_a_host_that_shrinks_below_its_use_keeps_what_it_has_and_takes_no_more(
    database: Database,
) -> None:
    id = add_host(database)
    first, second, third = add_instances(database, 3)
    assert claim(database, id, first)
    assert claim(database, id, second)
    tiny = replace(FACTS, vcpus=1, memory_mib=512, disk_mib=10)
    database.write(lambda conn: ledger.set_up(conn, id, tiny, "kvm"))
    found = the_host(database, id)
    assert (found.vcpus_limit, found.memory_limit_mib, found.disk_limit_mib) == (2, 2048, 2100)
    assert not claim(database, id, third)
    database.write(lambda conn: ledger.release(conn, first))
    database.write(lambda conn: ledger.set_up(conn, id, tiny, "kvm"))
    assert the_host(database, id).vcpus_limit == 1
    assert not claim(database, id, third)
    assert_balanced(database)


def test_a_host_goes_down_once_and_says_why(database: Database) -> None:
    id = add_host(database)
    assert database.write(lambda conn: ledger.set_down(conn, id, "no route"))
    assert not database.write(lambda conn: ledger.set_down(conn, id, "still none"))
    found = the_host(database, id)
    assert (found.state, found.error, found.facts) == ("down", "still none", FACTS)
    [instance_id] = add_instances(database, 1)
    assert not claim(database, id, instance_id)
    database.write(lambda conn: ledger.set_up(conn, id, FACTS, "kvm"))
    assert (the_host(database, id).error, the_host(database, id).state) == (None, "up")
    assert claim(database, id, instance_id)


def test_a_disabled_host_takes_nothing(database: Database) -> None:
    id = add_host(database)
    database.write(lambda conn: ledger.disable_host(conn, id, "repair"))
    [instance_id] = add_instances(database, 1)
    assert not claim(database, id, instance_id)
    [view] = database.read(snapshot)
    assert view.state == "disabled"


def test_only_an_empty_host_is_removed_and_nothing_of_it_stays(database: Database) -> None:
    id = add_host(database)
    [instance_id] = add_instances(database, 1)
    assert claim(database, id, instance_id)
    insert = sa.insert(orphan).values(host_id=id, uuid="stray", power="running", seen_at=0.0)
    database.write(lambda conn: conn.execute(insert).rowcount)
    assert not database.write(lambda conn: ledger.remove_host(conn, id))
    assert the_host(database, id).instances == 1
    database.write(lambda conn: ledger.release(conn, instance_id))
    assert database.write(lambda conn: ledger.remove_host(conn, id))

    def left(conn: sa.Connection) -> int:
        return sum(
            conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in (host, host_image, orphan, allocation)
        )

    assert database.read(left) == 0


def test_the_table_itself_refuses_more_than_there_is(database: Database) -> None:
    id = add_host(database)
    for values in (
        {"vcpus_used": 9}, {"memory_used_mib": 8193}, {"disk_used_mib": 100_001},
        {"vcpus_used": -1}, {"memory_used_mib": -1}, {"disk_used_mib": -1}, {"instances": -1},
        {"vcpus_limit": -1},
    ):
        with pytest.raises(IntegrityError):
            database.write(
                lambda conn, v=values: conn.execute(sa.update(host).values(v)).rowcount
            )
    assert used(database, id) == (0, 0, 0, 0)


# -- claim and release


def test_a_claim_takes_room_for_the_instance_and_once_for_its_image(database: Database) -> None:
    id = add_host(database)
    first, second = add_instances(database, 2)
    assert claim(database, id, first)
    assert used(database, id) == (1, 1024, 1100, 1)
    assert claim(database, id, second)
    assert used(database, id) == (2, 2048, 2100, 2)
    assert database.read(lambda conn: ledger.image_state(conn, id, SHA)) is ImageState.WANTED
    assert_balanced(database)


def test_a_release_gives_back_what_the_instance_held_and_keeps_the_image(
    database: Database,
) -> None:
    id = add_host(database)
    [instance_id] = add_instances(database, 1)
    assert claim(database, id, instance_id)
    database.write(lambda conn: ledger.release(conn, instance_id))
    assert used(database, id) == (0, 0, 100, 0)
    database.write(lambda conn: ledger.release(conn, instance_id))
    assert used(database, id) == (0, 0, 100, 0)
    assert_balanced(database)


@pytest.mark.parametrize(
    "room",
    [
        replace(SMALL, vcpus=9), replace(SMALL, memory_mib=8193), replace(SMALL, disk_mib=100_001),
        replace(SMALL, disk_mib=99_901), replace(SMALL, image_mib=99_001),
    ],
    ids=["vcpus", "memory", "disk", "disk-with-image", "image"],
)
def test_a_claim_that_is_short_of_anything_takes_nothing(database: Database, room: Room) -> None:
    id = add_host(database)
    [instance_id] = add_instances(database, 1)
    assert not claim(database, id, instance_id, room)
    assert used(database, id) == (0, 0, 0, 0)
    assert database.read(lambda conn: ledger.image_state(conn, id, SHA)) is None
    assert_balanced(database)


def test_a_claim_may_take_the_very_last_of_everything(database: Database) -> None:
    id = add_host(database)
    [instance_id] = add_instances(database, 1)
    whole = Room(8, 8192, 99_900, SHA, 100)
    assert claim(database, id, instance_id, whole)
    assert used(database, id) == (8, 8192, 100_000, 1)


def test_a_claim_on_a_host_that_is_not_there_takes_nothing(database: Database) -> None:
    [instance_id] = add_instances(database, 1)
    assert not claim(database, 77, instance_id)


def test_an_instance_cannot_hold_room_twice(database: Database) -> None:
    first = add_host(database)
    second = add_host(database, "fake://h2")
    [instance_id] = add_instances(database, 1)
    assert claim(database, first, instance_id)
    with pytest.raises(IntegrityError):
        claim(database, second, instance_id)
    assert used(database, second) == (0, 0, 0, 0)
    assert_balanced(database)


def test_sixteen_who_want_the_last_room_leave_one_winner(database: Database) -> None:
    id = add_host(database, facts=replace(FACTS, vcpus=1))
    ids = add_instances(database, 16)
    won = together([lambda one=one: claim(database, id, one) for one in ids])
    assert sorted(won) == [False] * 15 + [True]
    assert used(database, id) == (1, 1024, 1100, 1)
    assert_balanced(database)


def test_an_image_is_counted_once_however_many_claims_come_together(database: Database) -> None:
    id = add_host(database, facts=replace(FACTS, vcpus=64, memory_mib=1 << 20))
    ids = add_instances(database, 16)
    assert all(together([lambda one=one: claim(database, id, one) for one in ids]))
    assert used(database, id) == (16, 16 * 1024, 16 * 1000 + 100, 16)
    assert_balanced(database)


def test_claims_and_releases_that_cross_leave_the_ledger_balanced(database: Database) -> None:
    hosts = [add_host(database, f"fake://h{n}", replace(FACTS, vcpus=3)) for n in range(2)]
    ids = add_instances(database, 8)
    claimed = []

    def live(one: int) -> None:
        for turn in range(6):
            if claim(database, hosts[(one + turn) % 2], one):
                claimed.append(one)
                database.write(lambda conn: ledger.release(conn, one))

    together([lambda one=one: live(one) for one in ids])
    assert claimed
    for id in hosts:
        assert used(database, id) == (0, 0, 100, 0)
    assert_balanced(database)


# -- images on hosts


def want(database: Database, host_id: int, sha256: str = SHA, size_mib: int = 100) -> bool:
    return database.write(lambda conn: ledger.want_image(conn, host_id, sha256, size_mib))


def set_image(database: Database, host_id: int, state: ImageState, sha256: str = SHA) -> None:
    database.write(lambda conn: ledger.set_image(conn, host_id, sha256, state, "why"))


def test_an_image_that_did_not_come_gives_its_room_back_and_may_be_wanted_again(
    database: Database,
) -> None:
    id = add_host(database)
    for state in (ImageState.REFUSED, ImageState.BROKEN):
        assert want(database, id)
        assert used(database, id)[2] == 100
        set_image(database, id, state)
        assert used(database, id)[2] == 0
        assert database.read(lambda conn: ledger.image_state(conn, id, SHA)) is state
        set_image(database, id, state)  # told twice
        assert used(database, id)[2] == 0
    assert want(database, id, size_mib=150)
    assert used(database, id)[2] == 150
    assert_balanced(database)


def test_an_image_that_is_being_removed_and_wanted_again_is_counted_once(
    database: Database,
) -> None:
    id = add_host(database)
    assert want(database, id)
    set_image(database, id, ImageState.EVICTING)
    assert used(database, id)[2] == 100
    assert want(database, id)
    assert used(database, id)[2] == 100
    assert database.read(lambda conn: ledger.image_state(conn, id, SHA)) is ImageState.WANTED
    assert_balanced(database)


def test_an_image_that_is_off_the_host_has_given_its_room_back(database: Database) -> None:
    id = add_host(database)
    assert want(database, id)
    database.write(lambda conn: ledger.forget_image(conn, id, SHA))
    assert used(database, id)[2] == 0
    database.write(lambda conn: ledger.forget_image(conn, id, SHA))
    assert used(database, id)[2] == 0
    assert database.read(lambda conn: ledger.image_state(conn, id, SHA)) is None


def test_the_snapshot_names_the_images_that_are_there_or_coming(database: Database) -> None:
    id = add_host(database)
    for number, state in enumerate(ImageState):
        want(database, id, str(number) * 64)
        set_image(database, id, state, str(number) * 64)
    [view] = database.read(snapshot)
    assert view.images == {
        str(n) * 64 for n, state in enumerate(ImageState)
        if state in (ImageState.READY, ImageState.WANTED)
    }


def cached(database: Database, host_id: int, *digits: str, size_mib: int = 1000) -> None:
    """Images that are on the host, the least recently used first."""
    for number, digit in enumerate(digits):
        assert want(database, host_id, digit * 64, size_mib)
        set_image(database, host_id, ImageState.READY, digit * 64)
        database.write(lambda conn, d=digit, n=number: conn.execute(
            sa.update(host_image).where(host_image.c.sha256 == d * 64).values(used_at=float(n))
        ).rowcount)


def evict(database: Database, host_id: int, share: float) -> list[str]:
    found = database.write(lambda conn: list(ledger.evict(conn, host_id, share)))
    return [sha256[0] for sha256 in found]


def test_the_least_recently_used_images_go_first_and_no_more_than_needed(
    database: Database,
) -> None:
    id = add_host(database)
    cached(database, id, *"12345")
    assert evict(database, id, 0.05) == []
    assert evict(database, id, 0.03) == ["1", "2"]
    assert database.read(lambda conn: ledger.image_state(conn, id, "1" * 64)) is (
        ImageState.EVICTING
    )
    # Their room is theirs until they are off the host.
    assert used(database, id)[2] == 5000


def test_images_that_are_leaving_already_are_not_replaced_by_others(database: Database) -> None:
    id = add_host(database)
    cached(database, id, *"12345")
    assert evict(database, id, 0.03) == ["1", "2"]
    assert evict(database, id, 0.03) == []


def test_an_image_in_use_is_never_evicted(database: Database) -> None:
    id = add_host(database)
    other = add_host(database, "fake://h2")
    cached(database, id, *"123")
    cached(database, other, *"1")
    add_instances(database, 1, "1" * 64, host_id=id, state="running", phase="defined")
    add_instances(database, 1, "2" * 64, host_id=id)
    add_instances(database, 1, "3" * 64, host_id=other)
    assert evict(database, id, 0.0) == ["3"]
    assert evict(database, other, 0.0) == ["1"]


def test_an_image_that_is_still_coming_is_not_evicted(database: Database) -> None:
    id = add_host(database)
    assert want(database, id)
    assert evict(database, id, 0.0) == []


def test_using_an_image_again_makes_it_the_last_to_go(database: Database) -> None:
    id = add_host(database)
    cached(database, id, *"123")
    assert want(database, id, "1" * 64)
    assert evict(database, id, 0.01) == ["2", "3"]


def test_evicting_on_a_host_that_is_gone_does_nothing(database: Database) -> None:
    assert evict(database, 77, 0.0) == []
