"""The rows of instances on both databases: what is written comes back, whatever it says."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from treadle.compute import store
from treadle.compute.model import Goal, Instance, Phase, State
from treadle.compute.store import Flavor, Step
from treadle.db.engine import Database
from treadle.hypervisor.base import HostFacts, ImageSpec
from treadle.image import store as images
from treadle.image.store import ImageStatus
from treadle.placement import ledger
from treadle.placement.ledger import HostStatus, ImageState, Ratios, Room

SHA = "a" * 64
FACTS = HostFacts("h", "u", 64, 1 << 20, 1 << 20, "x86_64", ("kvm",), "9.0", "QEMU", "7.2")

ODD_TEXTS = {
    "quotes": "it's \"quoted\" `so` \\'",
    "sql": "x'; DROP TABLE instance; --",
    "bound": ":name %s %(x)s ? ${y} {z} $1",
    "xml": "<domain type='kvm'>&amp;<![CDATA[ ]]></domain>",
    "path": "../../etc/passwd",
    "control": "".join(map(chr, range(1, 32))) + "\x7f\x85\u2028",
    "letters": "Ключ 鍵 \U0001f9f5 é ﷺ \u202e",
    "like": "100%_a\\b",
    "space": "  around  ",
    "long": "x" * 10_000,
    "json": '{"a": [1, null, "\\u0000"]}',
    "empty": "",
}


@pytest.fixture(params=list(ODD_TEXTS))
def odd(request: pytest.FixtureRequest) -> str:
    return ODD_TEXTS[request.param]


def new_image(conn: sa.Connection, source: str = "/images/tiny.qcow2") -> int:
    id = images.add(conn, source, "tiny")
    images.set_active(
        conn, id, path=source, sha256=SHA, format="qcow2", size_bytes=2_500_000,
        virtual_bytes=1 << 30,
    )
    return id


def new_host(conn: sa.Connection, uri: str = "fake://h1") -> int:
    id = ledger.add_host(conn, uri, uri, Ratios(reserved_memory_mib=0))
    ledger.set_up(conn, id, FACTS, "kvm")
    return id


def values(image_id: int, **changes: Any) -> dict[str, Any]:
    return {
        "uuid": "11111111-2222-3333-4444-555555555555", "name": "web", "flavor_id": 3, "vcpus": 2,
        "memory_mib": 2048, "disk_gib": 10, "image_id": image_id, "mac": "02:00:00:00:00:01",
        "user_data": "#cloud-config", "ssh_keys": "ssh-ed25519 AAAA me\nssh-rsa BBBB you",
        "goal": Goal.PAUSED, "state": State.SUSPENDED, "phase": Phase.DEFINED, "revision": 7,
        "generation": 5, "settled_generation": 4, "graceful": True, "deadline": 1234.5,
        "attempts": 2, "excluded": "3,17", "batch": "b-1", "rollback": True, "address": "10.0.0.9",
        "fault": "it broke", "launched_at": 99.25, "deleted_at": 100.75, **changes,
    }


def add(database: Database, **changes: Any) -> int:
    def write(conn: sa.Connection) -> int:
        found = images.first(conn)
        image_id = new_image(conn) if found is None else found.id
        [id] = store.insert(conn, [values(image_id, **changes)])
        return id

    return database.write(write)


def the(database: Database, id: int) -> Instance:
    found = database.read(lambda conn: store.get(conn, id))
    assert found is not None
    return found


# -- round trips


def test_every_column_comes_back_as_it_was_written(database: Database) -> None:
    host_id = database.write(new_host)
    id = add(database, host_id=host_id)
    found = the(database, id)
    assert found == Instance(
        id=id, uuid="11111111-2222-3333-4444-555555555555", name="web", flavor_id=3, vcpus=2,
        memory_mib=2048, disk_gib=10, image_id=found.image_id, mac="02:00:00:00:00:01",
        user_data="#cloud-config", ssh_keys=("ssh-ed25519 AAAA me", "ssh-rsa BBBB you"),
        goal=Goal.PAUSED, state=State.SUSPENDED, phase=Phase.DEFINED, revision=7, generation=5,
        settled_generation=4, graceful=True, deadline=1234.5, attempts=2,
        excluded=frozenset({3, 17}), batch="b-1", rollback=True, host_id=host_id,
        address="10.0.0.9", fault="it broke", created_at=found.created_at, launched_at=99.25,
        deleted_at=100.75,
    )
    assert database.read(lambda conn: store.by_uuid(conn, found.uuid)) == found
    assert database.read(lambda conn: store.on_host(conn, host_id)) == [found]
    assert database.read(lambda conn: store.of_batch(conn, "b-1")) == [found]
    assert database.read(lambda conn: store.by_uuids(conn, [found.uuid, "no"])) == {
        found.uuid: found
    }


def test_what_is_left_out_has_its_default(database: Database) -> None:
    keep = {
        "uuid", "name", "flavor_id", "vcpus", "memory_mib", "disk_gib", "mac", "goal", "state",
        "phase", "deadline", "batch",
    }

    def write(conn: sa.Connection) -> int:
        image_id = new_image(conn)
        row = {name: value for name, value in values(image_id).items() if name in keep}
        [id] = store.insert(conn, [{**row, "image_id": image_id}])
        return id

    found = the(database, database.write(write))
    assert (found.user_data, found.ssh_keys, found.excluded) == ("", (), frozenset())
    assert (found.revision, found.generation, found.settled_generation) == (1, 1, 0)
    assert (found.graceful, found.rollback, found.attempts) == (False, False, 0)
    assert (found.host_id, found.address, found.fault) == (None, None, None)
    assert (found.launched_at, found.deleted_at) == (None, None)


def test_every_state_goal_and_phase_comes_back(database: Database) -> None:
    id = add(database)
    for name, kind in (("goal", Goal), ("state", State), ("phase", Phase)):
        for value in kind:
            database.write(lambda conn, n=name, v=value: store.update(conn, id, **{n: v}))
            assert getattr(the(database, id), name) is value


def test_an_update_changes_what_it_names_and_that_row_alone(database: Database) -> None:
    id = add(database)
    other = add(database, uuid="another")
    before, neighbour = the(database, id), the(database, other)
    database.write(lambda conn: store.update(
        conn, id, fault=None, deadline=9.5, graceful=False, excluded="1,2,3", attempts=3,
    ))
    assert the(database, id) == replace(
        before, fault=None, deadline=9.5, graceful=False, excluded=frozenset({1, 2, 3}), attempts=3
    )
    assert the(database, other) == neighbour


def test_text_of_every_shape_comes_back(database: Database, odd: str) -> None:
    id = add(database, user_data=odd, fault=odd, name=odd[:255])
    found = the(database, id)
    assert (found.user_data, found.fault, found.name) == (odd, odd, odd[:255])
    database.write(lambda conn: store.update(conn, id, address=odd, fault=odd + odd))
    assert (the(database, id).address, the(database, id).fault) == (odd, odd + odd)


def test_a_public_key_with_an_odd_comment_stays_one_key(database: Database) -> None:
    keys = ("ssh-ed25519 AAAA it's <me> & \"you\"", "ssh-rsa BBBB é%_\\")
    id = add(database, ssh_keys="\n".join(keys))
    assert the(database, id).ssh_keys == keys


def test_a_public_key_with_a_separator_of_unicode_stays_one_key(database: Database) -> None:
    keys = ("ssh-ed25519 AAAA me\u2028and\x85me", "ssh-rsa BBBB you")
    id = add(database, ssh_keys="\n".join(keys))
    assert the(database, id).ssh_keys == keys


def test_ids_are_in_order_and_never_used_again(database: Database) -> None:
    first, second = add(database, uuid="a"), add(database, uuid="b")
    assert second > first > 0
    gone = sa.text("DELETE FROM instance WHERE id = :id")
    database.write(lambda conn: conn.execute(gone, {"id": second}).rowcount)
    assert add(database, uuid="c") > second


def test_a_uuid_is_taken_once(database: Database) -> None:
    add(database)
    with pytest.raises(IntegrityError):
        add(database)


def test_what_is_not_there_is_none(database: Database) -> None:
    assert database.read(lambda conn: store.get(conn, 10**17)) is None
    assert database.read(lambda conn: store.by_uuid(conn, "no' OR '1'='1")) is None
    assert database.read(lambda conn: store.load(conn, "no")) is None
    assert database.read(lambda conn: store.by_uuids(conn, [])) == {}


def test_lists_leave_out_the_deleted_and_the_elsewhere(database: Database) -> None:
    host_id = database.write(new_host)
    other = database.write(lambda conn: new_host(conn, "fake://h2"))
    here = add(database, uuid="a", host_id=host_id, state=State.RUNNING)
    error = add(database, uuid="b", state=State.ERROR)
    there = add(database, uuid="c", host_id=other, state=State.STOPPED)
    gone = add(database, uuid="d", state=State.DELETED)
    assert database.read(store.live_ids) == [here, error, there]
    assert database.read(lambda conn: store.ids_on_host(conn, host_id)) == [here]
    assert the(database, gone).state is State.DELETED


# -- what a pass loads


def test_a_pass_loads_the_host_and_the_image_with_the_instance(database: Database) -> None:
    id = add(database)
    uuid = the(database, id).uuid
    bare = database.read(lambda conn: store.load(conn, uuid))
    assert bare is not None
    assert bare.instance == the(database, id)
    assert bare.image == ImageSpec(SHA, "qcow2", 2_500_000, 1 << 30)
    assert (bare.host_uri, bare.host_name, bare.host_status) == (None, None, None)
    assert (bare.image_on_host, bare.image_error) == (None, None)

    def place(conn: sa.Connection) -> None:
        host_id = new_host(conn)
        assert ledger.claim(conn, host_id, id, Room(1, 1, 1, SHA, 3))
        ledger.set_image(conn, host_id, SHA, ImageState.REFUSED, "no room")
        store.update(conn, id, host_id=host_id)

    database.write(place)
    placed = database.read(lambda conn: store.load(conn, uuid))
    assert placed is not None
    assert (placed.host_uri, placed.host_name, placed.host_status) == (
        "fake://h1", "fake://h1", HostStatus.UP
    )
    assert (placed.image_on_host, placed.image_error) == (ImageState.REFUSED, "no room")
    assert placed.now > 1_000_000_000


def test_those_that_wait_for_an_image_are_found(database: Database) -> None:
    host_id = database.write(new_host)
    other = database.write(lambda conn: new_host(conn, "fake://h2"))
    add(database, uuid="waits", host_id=host_id, phase=Phase.PLACED)
    add(database, uuid="elsewhere", host_id=other, phase=Phase.PLACED)
    add(database, uuid="defined", host_id=host_id, phase=Phase.DEFINED, settled_generation=5)
    add(database, uuid="renewed", host_id=host_id, phase=Phase.DEFINED)

    def waiting(sha256: str) -> list[str]:
        return database.read(lambda conn: store.waiting_for_image(conn, host_id, sha256))

    assert sorted(waiting(SHA)) == ["renewed", "waits"]
    assert waiting("b" * 64) == []


# -- the action log and the decisions


def test_the_action_log_tells_what_was_asked_and_how_it_went(database: Database) -> None:
    id = add(database)
    other = add(database, uuid="other")

    def write(conn: sa.Connection) -> None:
        store.begin_action(conn, id, "req-1", "create", 1)
        store.log_step(conn, id, 1, Step("place", 4, 10.0, 10.5, "ok"))
        store.log_step(conn, id, 1, Step("define", 4, 11.0, 11.5, "error", "it's full"))
        store.end_actions(conn, id, 1, "error", "given up")
        store.begin_action(conn, id, "req-2", "delete", 2)
        store.begin_action(conn, other, "req-3", "create", 1)

    database.write(write)
    first, second = database.read(lambda conn: store.actions(conn, id))
    assert first["request_id"] == "req-1"
    assert (first["action"], first["outcome"], first["message"]) == ("create", "error", "given up")
    assert first["finished_at"] >= first["started_at"]
    assert first["steps"] == [
        {"name": "place", "host": 4, "started_at": 10.0, "finished_at": 10.5, "outcome": "ok",
         "message": None},
        {"name": "define", "host": 4, "started_at": 11.0, "finished_at": 11.5, "outcome": "error",
         "message": "it's full"},
    ]
    assert (second["action"], second["finished_at"], second["outcome"], second["steps"]) == (
        "delete", None, None, []
    )
    assert [one["request_id"] for one in database.read(
        lambda conn: store.actions(conn, other)
    )] == ["req-3"]
    assert database.read(lambda conn: store.actions(conn, 10**12)) == []


def test_an_action_that_has_ended_is_not_ended_again(database: Database) -> None:
    id = add(database)
    database.write(lambda conn: store.begin_action(conn, id, "r", "create", 1))
    database.write(lambda conn: store.begin_action(conn, id, "r", "stop", 2))
    database.write(lambda conn: store.end_actions(conn, id, 1, "ok"))
    database.write(lambda conn: store.end_actions(conn, id, 2, "error", "late"))
    create, stop = database.read(lambda conn: store.actions(conn, id))
    assert (create["outcome"], create["message"]) == ("ok", None)
    assert (stop["outcome"], stop["message"]) == ("error", "late")


def test_messages_of_every_shape_are_kept(database: Database, odd: str) -> None:
    id = add(database)
    record = {"said": odd, "nested": [{odd[:50]: None}], "n": 1.5}

    def write(conn: sa.Connection) -> None:
        store.begin_action(conn, id, "r", "create", 1)
        store.log_step(conn, id, 1, Step("start", None, 1.0, 2.0, "error", odd))
        store.end_actions(conn, id, 1, "error", odd)
        store.record_decision(conn, id, None, record)

    database.write(write)
    [action] = database.read(lambda conn: store.actions(conn, id))
    assert (action["message"], action["steps"][0]["message"]) == (odd, odd)
    assert database.read(lambda conn: store.last_decision(conn, id)) == record


def test_the_newest_decision_is_the_one_that_is_told(database: Database) -> None:
    id = add(database)
    assert database.read(lambda conn: store.last_decision(conn, id)) is None
    for number in range(3):
        database.write(lambda conn, n=number: store.record_decision(conn, id, n, {"number": n}))
    assert database.read(lambda conn: store.last_decision(conn, id)) == {"number": 2}


def test_the_decision_that_chose_its_host_is_told_before_one_that_came_to_nothing(
    database: Database
) -> None:
    id, here = add(database), database.write(new_host)
    database.write(lambda conn: store.update(conn, id, host_id=here))
    for number, host in enumerate((here, None, here, here + 1)):
        database.write(
            lambda conn, n=number, h=host: store.record_decision(conn, id, h, {"number": n})
        )
    assert database.read(lambda conn: store.last_decision(conn, id)) == {"number": 2}


# -- flavors


def test_flavors_are_offered_replaced_and_retired(database: Database) -> None:
    small, large = Flavor(1, 1, 512, 1), Flavor(2**30, 4096, 1 << 26, 1 << 16)
    for flavor in (large, small):
        database.write(lambda conn, f=flavor: store.put_flavor(conn, f))
    assert database.read(store.list_flavors) == [small, large]
    assert database.read(lambda conn: store.get_flavor(conn, large.id)) == large
    database.write(lambda conn: store.put_flavor(conn, replace(small, vcpus=2)))
    assert database.read(lambda conn: store.get_flavor(conn, 1)) == replace(small, vcpus=2)
    database.write(lambda conn: store.retire_flavors(conn, [1]))
    assert [f.id for f in database.read(store.list_flavors)] == [1]
    assert database.read(lambda conn: store.get_flavor(conn, large.id)) is None
    assert database.read(store.next_flavor_id) == large.id + 1
    database.write(lambda conn: store.put_flavor(conn, large))
    assert database.read(store.list_flavors)[-1] == large
    database.write(lambda conn: store.retire_flavors(conn, []))
    assert database.read(store.list_flavors) == []


def test_the_first_flavor_has_number_one(database: Database) -> None:
    assert database.read(store.next_flavor_id) == 1


# -- images


def test_an_image_goes_from_new_to_active_and_keeps_its_id(database: Database) -> None:
    id = database.write(lambda conn: images.add(conn, "/images/a.qcow2", "a"))
    found = database.read(lambda conn: images.get(conn, id))
    assert found is not None
    told = asdict(found)
    assert {name: told[name] for name in list(told)[:10]} == {
        "id": id, "name": "a", "source": "/images/a.qcow2", "state": ImageStatus.NEW, "path": None,
        "sha256": None, "format": None, "size_bytes": None, "virtual_bytes": None, "error": None,
    }
    assert (found.visibility, found.project_id, found.deleted_at) == ("public", "", None)
    database.write(lambda conn: images.set_error(conn, id, "not now", final=False))
    assert database.write(lambda conn: images.set_active(
        conn, id, path="/p", sha256=SHA, format="raw", size_bytes=1 << 40, virtual_bytes=1 << 45,
    ))
    active = database.read(lambda conn: images.get(conn, id))
    assert active is not None
    assert (active.state, active.error, active.size_bytes, active.virtual_bytes) == (
        ImageStatus.ACTIVE, None, 1 << 40, 1 << 45
    )
    assert database.write(lambda conn: images.add(conn, "/images/a.qcow2", "b")) == id
    again = database.read(lambda conn: images.get(conn, id))
    assert again is not None
    assert (again.name, again.state, again.sha256) == ("b", ImageStatus.NEW, SHA)
    database.write(lambda conn: images.set_error(conn, id, "gone", final=True))
    assert database.read(images.list_images)[0].state is ImageStatus.ERROR


def test_an_image_in_use_cannot_become_another(database: Database) -> None:
    id = add(database, state=State.RUNNING)
    image_id = the(database, id).image_id

    def become(sha256: str) -> bool:
        return database.write(lambda conn: images.set_active(
            conn, image_id, path="/p", sha256=sha256, format="raw", size_bytes=1, virtual_bytes=1,
        ))

    assert become(SHA)
    assert not become("b" * 64)
    assert database.read(lambda conn: images.get(conn, image_id)).sha256 == SHA  # type: ignore[union-attr]
    database.write(lambda conn: store.update(conn, id, state=State.DELETED))
    assert become("b" * 64)


def test_a_source_of_every_shape_is_one_image(database: Database, odd: str) -> None:
    id = database.write(lambda conn: images.add(conn, "/" + odd[:2000], odd[:255]))
    assert database.write(lambda conn: images.add(conn, "/" + odd[:2000], odd[:255])) == id
    found = database.read(lambda conn: images.get(conn, id))
    assert found is not None
    assert (found.source, found.name) == ("/" + odd[:2000], odd[:255])


def test_the_first_image_is_the_one_with_the_smallest_id(database: Database) -> None:
    assert database.read(images.first) is None
    ids = [database.write(lambda conn, n=n: images.add(conn, f"/{n}", n)) for n in ("z", "a")]
    first = database.read(images.first)
    assert first is not None
    assert first.id == min(ids)
    assert [one.id for one in database.read(images.list_images)] == ids
