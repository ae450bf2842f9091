"""What users can ask of an instance that is there: what each asking makes of its row, who may ask,
and what is refused, on both databases."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa

from treadle.compute import actions, changes, creating, quota, store
from treadle.compute.actions import Caller, Rebuild
from treadle.compute.creating import Wish
from treadle.compute.model import (
    SETTLED,
    Goal,
    Instance,
    Mode,
    Phase,
    State,
    Task,
    is_settled,
    task_state,
    vm_state,
)
from treadle.controller import queue
from treadle.db.engine import Database
from treadle.db.schema import host as host_table
from treadle.db.schema import work
from treadle.errors import (
    CannotPlace,
    Conflict,
    InvalidInput,
    InvalidState,
    Locked,
    QuotaExceeded,
)
from treadle.hypervisor.base import HostFacts
from treadle.image import store as images
from treadle.image.store import ImageStatus
from treadle.placement import ledger
from treadle.placement.ledger import Ratios, Room

GIB = 1 << 30
FACTS = HostFacts(
    "h", "u", 4, 4096, 100 * 1024, "x86_64", ("kvm",), "9.0", "QEMU", "7.2",
    frozenset(actions.NEEDED.values()),
)
PATIENT: dict[str, Any] = {"request_id": "req-1", "deadline_s": 60.0}
TENANT = Caller("user", "project", is_admin=False)
ADMIN = Caller("root", "admin", is_admin=True)


def set_up(database: Database) -> None:
    """A host of four cores; two images; flavors of 1, 2 and 8 cores, and one with less disk."""
    def write(conn: sa.Connection) -> None:
        for id, vcpus, memory, disk in ((1, 1, 512, 10), (2, 2, 1024, 20), (3, 8, 512, 10),
                                        (4, 2, 512, 5)):
            store.put_flavor(conn, store.Flavor(id, vcpus, memory, disk))
        for number in (1, 2):
            id = images.add(conn, f"/{number}.qcow2", f"image-{number}")
            images.set_active(conn, id, path=f"/{number}.qcow2", sha256=str(number) * 64,
                              format="qcow2", size_bytes=1000, virtual_bytes=GIB)
        host = ledger.add_host(conn, "fake://h1", "h1", Ratios(1, 1, 1, 0))
        ledger.set_up(conn, host, FACTS, "kvm")

    database.write(write)


def settled(database: Database, state: State = State.RUNNING, **values: Any) -> Instance:
    """One that has come to rest on the host, or, offloaded or given up, on none."""
    def write(conn: sa.Connection) -> int:
        [made] = creating.create(
            conn, Wish("web", 1, 1, project_id="project", user_id="user"), request_id="r",
            build_deadline_s=300,
        )
        placed = state not in (State.OFFLOADED, State.ERROR)
        if placed:
            assert ledger.claim(conn, 1, made.id, Room(1, 512, 10 * 1024, "1" * 64, 1))
        store.update(
            conn, made.id, state=state, goal=SETTLED[state], settled_generation=1,
            phase=Phase.DEFINED if placed else Phase.QUEUED, host_id=1 if placed else None,
            launched_at=1.0, **values,
        )
        store.end_actions(conn, made.id, 1, "ok")
        conn.execute(sa.delete(work))
        queue.enqueue(conn, "instance", made.uuid, delay=600.0)
        return made.id

    return the(database, database.write(write))


def the(database: Database, id: int) -> Instance:
    found = database.read(lambda conn: store.get(conn, id))
    assert found is not None
    return found


def ask(database: Database, id: int, name: str, *args: Any, **more: Any) -> Instance:
    """The instance after the function of that name in `actions` was called."""
    function = getattr(actions, name)
    database.write(lambda conn: function(conn, id, *args, **more))
    return the(database, id)


def due(database: Database) -> bool:
    return bool(database.write(lambda conn: queue.claim(conn, 100, 30.0)))


def used(database: Database) -> tuple[int, int, int]:
    row = database.read(lambda conn: conn.execute(sa.select(host_table)).one())
    return row.vcpus_used, row.memory_used_mib, row.disk_used_mib


VM_STATES = {
    "active": {"state": State.RUNNING}, "stopped": {"state": State.STOPPED},
    "paused": {"state": State.PAUSED}, "suspended": {"state": State.SUSPENDED},
    "rescued": {"state": State.RUNNING, "mode": Mode.RESCUED, "settled_mode": Mode.RESCUED,
                "rescue_image_id": 2},
    "resized": {"state": State.RUNNING, "mode": Mode.RESIZED, "settled_mode": Mode.RESIZED},
    "shelved": {"state": State.STOPPED, "mode": Mode.SHELVED, "settled_mode": Mode.SHELVED,
                "shelf_image_id": 2},
    "shelved_offloaded": {"state": State.OFFLOADED, "mode": Mode.SHELVED,
                          "settled_mode": Mode.SHELVED, "shelf_image_id": 2},
    "soft-delete": {"state": State.STOPPED, "mode": Mode.SOFT_DELETED,
                    "settled_mode": Mode.SOFT_DELETED},
    "error": {"state": State.RUNNING, "mode": Mode.ERROR, "settled_mode": Mode.ERROR},
}
ACTIVE = {"active"}
TABLE: dict[str, tuple[set[str], str, tuple[Any, ...], dict[str, Any], Task]] = {
    # action: the states that OpenStack allows it in, our function, its arguments, its task
    "start": ({"stopped"}, "act", ("start",), {"strict": True, **PATIENT}, Task.POWERING_ON),
    "stop": ({"active", "paused", "error"}, "act", ("stop",), {"strict": True, **PATIENT},
             Task.POWERING_OFF),
    "pause": (ACTIVE, "act", ("pause",), {"strict": True, **PATIENT}, Task.PAUSING),
    "unpause": ({"paused"}, "act", ("unpause",), {"strict": True, **PATIENT}, Task.UNPAUSING),
    "suspend": (ACTIVE, "act", ("suspend",), {"strict": True, **PATIENT}, Task.SUSPENDING),
    "resume": ({"suspended"}, "act", ("resume",), {"strict": True, **PATIENT}, Task.RESUMING),
    "reboot": (ACTIVE, "act", ("reboot",), {"strict": True, **PATIENT}, Task.REBOOTING),
    "hard reboot": ({"active", "stopped", "paused", "suspended", "error"}, "act", ("reboot",),
                    {"strict": True, "hard": True, **PATIENT}, Task.REBOOTING_HARD),
    "rescue": ({"active", "stopped", "error"}, "rescue", (None,), PATIENT, Task.RESCUING),
    "unrescue": ({"rescued"}, "unrescue", (), PATIENT, Task.UNRESCUING),
    "rebuild": ({"active", "stopped", "error"}, "rebuild", (Rebuild(2),), PATIENT,
                Task.REBUILDING),
    "resize": ({"active", "stopped"}, "resize", (2,), PATIENT, Task.RESIZE_PREP),
    "revertResize": ({"resized"}, "revert_resize", (), PATIENT, Task.RESIZE_REVERTING),
    "createImage": ({"active", "stopped", "paused", "suspended"}, "create_image", ("snap",),
                    {"request_id": "req-1"}, Task.IMAGE_SNAPSHOT),
    "shelve": ({"active", "stopped", "paused", "suspended"}, "shelve", (), PATIENT,
               Task.SHELVING),
    "shelveOffload": ({"shelved"}, "shelve_offload", (), {"request_id": "req-1"},
                      Task.SHELVING_OFFLOADING),
    "unshelve": ({"shelved", "shelved_offloaded"}, "unshelve", (), PATIENT, Task.UNSHELVING),
    "restore": ({"soft-delete"}, "restore", (), PATIENT, Task.RESTORING),
}


@pytest.mark.parametrize("state", VM_STATES)
@pytest.mark.parametrize("action", TABLE)
def test_each_action_is_taken_in_the_states_of_openstacks_table_and_says_what_it_does(
    sqlite_database: Any, action: str, state: str
) -> None:
    database = sqlite_database
    set_up(database)
    allowed, function, args, more, task = TABLE[action]
    before = settled(database, **VM_STATES[state])
    assert (vm_state(before), task_state(before)) == (state, None)
    if state in allowed:
        after = ask(database, before.id, function, *args, **more)
        assert task_state(after) == task, "before it is answered"
        assert vm_state(after) == state, "until it has been done"
        assert after.revision == before.revision + 1
        assert due(database)
        for other, what, how in (
            ("act", ("pause",), {"strict": True, **PATIENT}),
            ("create_image", ("again",), {"request_id": "req-2"}),
        ):
            with pytest.raises(InvalidState) as busy:
                ask(database, before.id, other, *what, **how)
            assert (busy.value.attribute, busy.value.state) == ("task_state", task)
    else:
        with pytest.raises(InvalidState) as refused:
            ask(database, before.id, function, *args, **more)
        assert (refused.value.attribute, refused.value.state) == ("vm_state", state)
        assert the(database, before.id) == before
        assert not due(database)


# -- locks


def test_a_locked_one_is_changed_by_administrators_alone(database: Database) -> None:
    set_up(database)
    one = settled(database)
    locked = ask(database, one.id, "lock", request_id="r", reason="mine", by=TENANT)
    assert (locked.locked_by, locked.locked_reason) == ("owner", "mine")
    for function, args, more in (
        ("act", ("pause",), PATIENT), ("rescue", (None,), PATIENT), ("resize", (2,), PATIENT),
        ("rebuild", (Rebuild(),), PATIENT), ("shelve", (), PATIENT),
        ("create_image", ("x",), {"request_id": "r"}), ("delete", (), {"request_id": "r"}),
        ("soft_delete", (), PATIENT),
    ):
        with pytest.raises(Locked):
            ask(database, one.id, function, *args, by=TENANT, **more)
    assert the(database, one.id) == locked
    assert ask(database, one.id, "act", "pause", by=ADMIN, **PATIENT).goal is Goal.PAUSED
    free = ask(database, one.id, "unlock", request_id="r", by=TENANT)
    assert (free.locked_by, free.locked_reason) == (None, None)


def test_an_administrators_lock_is_not_the_owners_to_open(database: Database) -> None:
    set_up(database)
    one = settled(database)
    assert ask(database, one.id, "lock", request_id="r", by=ADMIN).locked_by == "admin"
    assert ask(database, one.id, "lock", request_id="r", reason="x", by=TENANT).locked_by == "admin"
    with pytest.raises(Locked, match="administrator"):
        ask(database, one.id, "unlock", request_id="r", by=TENANT)
    assert ask(database, one.id, "unlock", request_id="r", by=ADMIN).locked_by is None
    names = [entry["action"] for entry in
             database.read(lambda conn: store.actions(conn, one.id))]
    assert names == ["create", "lock", "unlock"]


# -- what comes of what


def test_a_size_holds_the_larger_of_both_until_it_is_decided(database: Database) -> None:
    set_up(database)
    one = settled(database)
    assert used(database)[0] == 1
    big = ask(database, one.id, "resize", 2, **PATIENT)
    assert (big.vcpus, big.memory_mib, big.disk_gib, big.disks) == (2, 1024, 20, (2, 1))
    assert big.generation == 2
    assert used(database)[:2] == (2, 1024)
    database.write(lambda conn: store.update(
        conn, one.id, task=None, settled_mode=Mode.RESIZED, settled_generation=2
    ))
    small = ask(database, one.id, "revert_resize", **PATIENT)
    assert (small.vcpus, small.disks, small.generation) == (1, (1,), 3)
    assert used(database)[:2] == (2, 1024), "until it is back"
    assert changes.undone(small)["vcpus"] == 2
    assert json.loads(changes.undone(small)["before"])["vcpus"] == 1


@pytest.mark.parametrize(("disk", "specs", "most"), [
    (10, {"max_vcpus": "4", "max_memory_mib": "2048"}, (4, 2048)),
    (10, {"max_vcpus": "1", "max_memory_mib": "much"}, (2, 1024)),
    (20, {"max_memory_mib": "4096"}, (2, 4096)), (10, {}, None),
], ids=["both", "neither", "larger disk", "none"])
def test_what_it_can_come_to_is_its_flavors_word_and_only_more_is_growth(
    database: Database, disk: int, specs: dict[str, str], most: tuple[int, int] | None
) -> None:
    set_up(database)
    flavor = store.Flavor(5, 2, 1024, disk, extra_specs={
        f"treadle:{key}": text for key, text in specs.items()
    })
    database.write(lambda conn: store.put_flavor(conn, flavor))
    one = settled(database)
    assert one.most is None
    grown = ask(database, one.id, "resize", 5, **PATIENT)
    assert grown.most == most
    assert ("disk_gib" in changes.grown(grown)) is (disk > one.disk_gib)
    assert changes.grown(grown) >= {"vcpus", "memory_mib"}
    database.write(lambda conn: store.update(
        conn, one.id, task=None, settled_mode=Mode.RESIZED, settled_generation=2
    ))
    back = ask(database, one.id, "revert_resize", **PATIENT)
    assert back.most is None
    assert not changes.grown(back)


def test_a_confirmed_size_lets_the_old_one_go_at_once(database: Database) -> None:
    set_up(database)
    one = settled(database)
    ask(database, one.id, "resize", 2, **PATIENT)
    database.write(lambda conn: store.update(
        conn, one.id, task=None, settled_mode=Mode.RESIZED, settled_generation=2
    ))
    done = ask(database, one.id, "confirm_resize", request_id="r")
    assert (vm_state(done), task_state(done), done.before) == ("active", None, "")
    assert is_settled(done)
    assert used(database)[:2] == (2, 1024)


@pytest.mark.parametrize(("flavor", "error", "says"), [
    (3, CannotPlace, "no room"), (1, InvalidInput, "already"), (4, InvalidInput, "smaller"),
])
def test_a_size_that_cannot_be_is_refused_and_changes_nothing(
    database: Database, flavor: int, error: type[Exception], says: str
) -> None:
    set_up(database)
    one = settled(database)
    held = used(database)
    with pytest.raises(error, match=says):
        ask(database, one.id, "resize", flavor, **PATIENT)
    assert the(database, one.id) == one
    assert used(database) == held


def test_a_size_beyond_the_quota_is_refused(database: Database) -> None:
    set_up(database)
    one = settled(database)
    database.write(lambda conn: quota.set_limits(conn, "project", {"cores": 1}))
    with pytest.raises(QuotaExceeded):
        ask(database, one.id, "resize", 2, by=TENANT, **PATIENT)
    assert the(database, one.id) == one
    assert ask(database, one.id, "resize", 2, **PATIENT).vcpus == 2, "the operator may"


def test_a_rebuild_keeps_what_it_does_not_name(database: Database) -> None:
    set_up(database)
    one = settled(database, user_data="#!", description="old")
    after = ask(database, one.id, "rebuild", Rebuild(
        2, name="new", columns={"description": "fresh"}
    ), **PATIENT)
    assert (after.uuid, after.mac, after.host_id, after.user_data) == (
        one.uuid, one.mac, one.host_id, "#!"
    )
    assert (after.name, after.image_id, after.disks) == ("new", 2, (after.revision,))
    back = changes.undone(after)
    assert (back["name"], back["image_id"], back["disks"], back["description"]) == (
        "web", 1, "1", "old"
    )


def test_one_that_was_given_up_is_rebuilt_anew(database: Database) -> None:
    set_up(database)
    one = settled(database, State.ERROR, fault="no host")
    after = ask(database, one.id, "rebuild", Rebuild(), **PATIENT)
    assert (after.state, after.goal, after.phase, after.host_id) == (
        State.BUILDING, Goal.RUNNING, Phase.QUEUED, None
    )
    with pytest.raises(InvalidState):
        ask(database, settled(database, State.ERROR).id, "act", "reboot", hard=True, strict=True,
            **PATIENT)


def test_an_image_that_cannot_be_used_is_refused(database: Database) -> None:
    set_up(database)
    one = settled(database)
    database.write(lambda conn: images.update(conn, 2, state=ImageStatus.INACTIVE))
    for function, wanted in (("rescue", 2), ("rebuild", Rebuild(2))):
        with pytest.raises(Conflict, match="cannot be used"):
            ask(database, one.id, function, wanted, **PATIENT)
    assert the(database, one.id) == one


def test_an_image_of_it_belongs_to_its_project_and_is_private(database: Database) -> None:
    set_up(database)
    one = settled(database)
    after = ask(database, one.id, "create_image", "snap", request_id="r",
                properties={"note": "mine"}, by=TENANT)
    made = database.read(lambda conn: images.get(conn, after.snapshot_image_id or 0))
    assert made is not None
    assert (made.state, made.name, made.project_id, made.visibility) == (
        ImageStatus.SAVING, "snap", "project", "private"
    )
    assert made.min_disk_gib == 10
    assert made.properties["instance_uuid"] == one.uuid
    assert made.properties["note"] == "mine"
    ask(database, one.id, "delete", request_id="r")
    gone = database.read(lambda conn: images.get(conn, made.id))
    assert gone is not None
    assert gone.deleted_at is not None


def test_it_comes_off_the_shelf_where_it_is_told_to(database: Database) -> None:
    set_up(database)
    one = settled(database, **VM_STATES["shelved_offloaded"])
    after = ask(database, one.id, "unshelve", zone="east", host_id=1, **PATIENT)
    assert (after.only_host_id, after.disk_image_id, after.shelf_image_id) == (1, 2, None)
    assert (after.disks, after.phase) == ((after.revision,), Phase.QUEUED)
    zone = database.read(lambda conn: store.columns(conn, one.id, ("availability_zone",)))
    assert zone == {"availability_zone": "east"}
    back = changes.undone(after)
    assert (back["shelf_image_id"], back["disk_image_id"], back["disks"]) == (2, None, "1")
    here = settled(database, **VM_STATES["shelved"])
    with pytest.raises(InvalidState):
        ask(database, here.id, "unshelve", host_id=1, **PATIENT)


def test_a_soft_delete_can_be_taken_back_and_one_of_what_never_ran_cannot(
    database: Database,
) -> None:
    set_up(database)
    one = settled(database)
    gone = ask(database, one.id, "soft_delete", **PATIENT)
    assert (gone.goal, gone.mode, task_state(gone)) == (
        Goal.STOPPED, Mode.SOFT_DELETED, "soft-deleting"
    )
    assert ask(database, one.id, "soft_delete", **PATIENT) == gone
    never = settled(database)
    database.write(lambda conn: store.update(conn, never.id, launched_at=None))
    assert ask(database, never.id, "soft_delete", **PATIENT).goal is Goal.DELETED


def test_an_administrator_can_say_what_it_is(database: Database) -> None:
    set_up(database)
    one = settled(database)
    stuck = ask(database, one.id, "rescue", 2, **PATIENT)
    bad = ask(database, one.id, "reset_state", "error", request_id="r")
    assert (vm_state(bad), task_state(bad), bad.rescue_image_id) == ("error", None, None)
    assert bad.generation == stuck.generation + 1, "a host may have been told of the rescue"
    assert bad.fault
    good = ask(database, one.id, "reset_state", "active", request_id="r")
    assert (vm_state(good), task_state(good), good.fault) == ("active", None, None)
    outcomes = [(entry["action"], entry["outcome"]) for entry in
                database.read(lambda conn: store.actions(conn, one.id))]
    assert outcomes == [
        ("create", "ok"), ("rescue", "error"), ("resetState", "ok"), ("resetState", "ok"),
    ]
    nowhere = settled(database, **VM_STATES["shelved_offloaded"])
    with pytest.raises(InvalidState):
        ask(database, nowhere.id, "reset_state", "active", request_id="r")
    with pytest.raises(InvalidInput):
        ask(database, one.id, "reset_state", "fine", request_id="r")


def test_who_asked_is_in_the_log(database: Database) -> None:
    set_up(database)
    one = settled(database)
    ask(database, one.id, "act", "pause", by=TENANT, **PATIENT)
    entry = database.read(lambda conn: store.actions(conn, one.id))[-1]
    assert (entry["action"], entry["request_id"]) == ("pause", "req-1")
