"""What users can ask of instances, and what each asking leaves behind in the database."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from treadle.compute import model, store
from treadle.compute.actions import ACTIONS, act, delete
from treadle.compute.creating import Wish, create, mac_of
from treadle.compute.model import SETTLED, Goal, Instance, Phase, State
from treadle.controller import queue
from treadle.db.engine import Database
from treadle.db.schema import instance, work
from treadle.errors import Conflict, InvalidInput, NotFound, RetryLater, TreadleError
from treadle.image import store as images

SHA = "a" * 64
GIB = 1 << 30
RESTING = [State.RUNNING, State.STOPPED, State.PAUSED, State.SUSPENDED, State.ERROR]


def set_up(database: Database, virtual_bytes: int = GIB) -> None:
    """One flavor and one image that can be used."""
    def write(conn: sa.Connection) -> None:
        store.put_flavor(conn, store.Flavor(1, 1, 512, 1))
        id = images.add(conn, "/tiny.qcow2", "tiny")
        images.set_active(conn, id, path="/tiny.qcow2", sha256=SHA, format="qcow2",
                          size_bytes=1000, virtual_bytes=virtual_bytes)

    database.write(write)


def make(database: Database, name: str = "web", **changes: Any) -> list[Instance]:
    wish = Wish(**{"name": name, "flavor": 1, "image": None, **changes})
    made = database.write(lambda conn: create(conn, wish, request_id="r", build_deadline_s=300))
    found = [database.read(lambda conn, m=m: store.get(conn, m.id)) for m in made]
    assert [one.uuid for one in found if one] == [m.uuid for m in made]
    return [one for one in found if one]


def in_state(
    database: Database, state: State, goal: Goal | None = None, **values: Any
) -> Instance:
    """An instance that has come to rest in a state, or is on its way to a goal."""
    [one] = make(database)
    database.write(lambda conn: store.update(
        conn, one.id, state=state, goal=goal or SETTLED[state], phase=Phase.DEFINED,
        settled_generation=1, **values,
    ))
    database.write(lambda conn: conn.execute(sa.delete(work)).rowcount)
    database.write(lambda conn: queue.enqueue(conn, "instance", one.uuid, delay=600.0))
    return the(database, one.id)


def the(database: Database, id: int) -> Instance:
    found = database.read(lambda conn: store.get(conn, id))
    assert found is not None
    return found


def ask(database: Database, id: int, action: str) -> Instance:
    return database.write(
        lambda conn: act(conn, id, action, request_id=f"req-{action}", deadline_s=60.0)
    )


def end(database: Database, id: int) -> Instance:
    return database.write(lambda conn: delete(conn, id, request_id="req-delete"))


def counts(database: Database) -> tuple[int, int]:
    return database.read(lambda conn: tuple(
        conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        for table in (instance, work)
    ))


def due(database: Database) -> set[str]:
    return {t.id for t in database.write(lambda conn: queue.claim(conn, 100, 30.0))}


def last_action(database: Database, id: int) -> dict[str, Any]:
    return database.read(lambda conn: store.actions(conn, id))[-1]


# -- create


def test_a_wish_becomes_a_row_with_work_and_an_entry_of_the_log(database: Database) -> None:
    set_up(database)
    [one] = make(database, user_data="#!", ssh_keys=("ssh-rsa A a", "ssh-rsa B b"), rollback=True)
    assert (one.name, one.flavor_id, one.vcpus, one.memory_mib, one.disk_gib) == (
        "web", 1, 1, 512, 1
    )
    assert (one.goal, one.state, one.phase) == (Goal.RUNNING, State.BUILDING, Phase.QUEUED)
    assert (one.user_data, one.ssh_keys, one.rollback) == (
        "#!", ("ssh-rsa A a", "ssh-rsa B b"), True
    )
    assert (one.revision, one.generation, one.settled_generation, one.host_id) == (1, 1, 0, None)
    assert one.mac == mac_of(uuid.UUID(one.uuid))
    assert 290 < one.deadline - one.created_at < 310
    assert model.word(one) == "building"
    entry = last_action(database, one.id)
    assert (entry["action"], entry["request_id"], entry["outcome"]) == ("create", "r", None)
    assert due(database) == {one.uuid}


def test_many_are_numbered_and_belong_together(database: Database) -> None:
    set_up(database)
    made = make(database, name="web", count=100)
    assert [one.name for one in made] == [f"web-{n}" for n in range(1, 101)]
    assert len({one.batch for one in made}) == 1
    assert len({one.mac for one in made}) == len({one.uuid for one in made}) == 100
    assert [one.id for one in made] == sorted(one.id for one in made)
    assert due(database) == {one.uuid for one in made}


def test_an_address_on_the_wire_is_local_and_for_one_machine() -> None:
    for _ in range(200):
        mac = mac_of(uuid.uuid4())
        first = int(mac[:2], 16)
        assert len(mac) == 17
        assert first & 0b11 == 0b10


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"flavor": 9}, NotFound, "no instance type 9: there are 1"),
        ({"flavor": 0}, NotFound, "no instance type 0"),
        ({"flavor": -1}, NotFound, "no instance type -1"),
        ({"image": 9}, NotFound, "no image 9: there are 1"),
        ({"count": 0}, InvalidInput, "from 1 to 100"),
        ({"count": -1}, InvalidInput, "from 1 to 100"),
        ({"count": 101}, InvalidInput, "from 1 to 100"),
        ({"name": ""}, InvalidInput, "name is ''"),
        ({"name": "x" * 64}, InvalidInput, "1 to 63"),
        ({"name": "x" * 60, "count": 100}, InvalidInput, "with its number"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_and_leaves_nothing(
    database: Database, changes: dict[str, Any], error: type[TreadleError], says: str
) -> None:
    set_up(database)
    with pytest.raises(error, match=says):
        make(database, **changes)
    assert counts(database) == (0, 0)


BAD_NAMES = [
    "", " ", "a b", "-a", "a-", ".a", "a.", "_a", "a_", "a'b", 'a"b', "a;b", "a/b", "../../etc",
    "..", ".", "/", "a\\b", "a\0b", "a\nb", "a\n", "\ta", "a\x7f", "<a>", "a&b", "a]]>b", "a:b",
    "a@b", "a,b", "a%00", "$(x)", "`x`", "é", "鍵", "a\u202eb", "a\u200bb", "\uff41", "x" * 64,
    "x" * 10_000, "a" * 62 + "-",
]
GOOD_NAMES = [
    "a", "A", "0", "web", "web-1", "web_1", "web.example.org", "a--b", "a..b", "x" * 63, "1.2.3.4",
    "null", "None", "true", "DROP",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:20])
def test_a_name_that_could_be_read_as_anything_else_is_refused(
    sqlite_database: Any, name: str
) -> None:
    set_up(sqlite_database)
    with pytest.raises(InvalidInput) as refused:
        make(sqlite_database, name=name)
    assert len(str(refused.value)) < 300
    assert counts(sqlite_database) == (0, 0)


def test_plain_names_are_taken_as_they_are(database: Database) -> None:
    set_up(database)
    for name in GOOD_NAMES:
        assert [one.name for one in make(database, name=name)] == [name]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.text(max_size=70))
def test_a_name_is_taken_as_it_is_or_refused(sqlite_database: Any, name: str) -> None:
    set_up(sqlite_database)
    try:
        [one] = make(sqlite_database, name=name)
    except InvalidInput:
        return
    assert one.name == name
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set(" '\"<>&/\\%$`;:")


def test_two_may_have_the_same_name(database: Database) -> None:
    set_up(database)
    assert make(database)[0].id != make(database)[0].id


def test_without_an_image_nothing_can_be_made(database: Database) -> None:
    database.write(lambda conn: store.put_flavor(conn, store.Flavor(1, 1, 512, 1)))
    with pytest.raises(NotFound, match="there is no image: add one"):
        make(database)


def test_an_image_that_is_still_read_is_asked_for_later(database: Database) -> None:
    set_up(database)
    id = database.write(lambda conn: images.add(conn, "/slow.qcow2", "slow"))
    with pytest.raises(RetryLater, match="still being read"):
        make(database, image=id)
    database.write(lambda conn: images.set_error(conn, id, "no route", final=False))
    with pytest.raises(RetryLater, match="no route"):
        make(database, image=id)
    database.write(lambda conn: images.set_error(conn, id, "it is a web page", final=True))
    with pytest.raises(Conflict, match="cannot be used: it is a web page"):
        make(database, image=id)
    assert counts(database) == (0, 0)


def test_a_flavor_smaller_than_its_image_is_refused_with_what_it_needs(database: Database) -> None:
    set_up(database, virtual_bytes=5 * GIB + 1)
    with pytest.raises(InvalidInput, match=r"1 GiB of disk and image tiny needs 6"):
        make(database)


def test_a_retired_flavor_is_not_to_be_had_and_what_runs_keeps_its_size(
    database: Database,
) -> None:
    set_up(database)
    [one] = make(database)
    database.write(lambda conn: store.put_flavor(conn, store.Flavor(1, 8, 4096, 9)))
    database.write(lambda conn: store.retire_flavors(conn, []))
    with pytest.raises(NotFound, match="there are none"):
        make(database)
    assert the(database, one.id).vcpus == 1


# -- act

ALLOWED = {
    "start": {State.STOPPED},
    "stop": {State.RUNNING, State.PAUSED},
    "reboot": {State.RUNNING},
    "pause": {State.RUNNING},
    "unpause": {State.PAUSED},
    "resume": {State.PAUSED, State.SUSPENDED},
    "suspend": {State.RUNNING, State.PAUSED},
}
ALREADY = {
    "start": State.RUNNING, "stop": State.STOPPED, "pause": State.PAUSED,
    "unpause": State.RUNNING, "resume": State.RUNNING, "suspend": State.SUSPENDED,
}
WISHES = {
    "start": Goal.RUNNING, "stop": Goal.STOPPED, "reboot": Goal.RUNNING, "pause": Goal.PAUSED,
    "unpause": Goal.RUNNING, "resume": Goal.RUNNING, "suspend": Goal.SUSPENDED,
}


def test_the_table_of_actions_is_whole() -> None:
    assert set(ACTIONS) == set(ALLOWED) == set(WISHES)


@pytest.mark.parametrize("state", RESTING)
@pytest.mark.parametrize("action", ALLOWED)
def test_an_action_is_allowed_from_the_states_it_makes_sense_in(
    sqlite_database: Any, action: str, state: State
) -> None:
    database = sqlite_database
    set_up(database)
    before = in_state(database, state, fault="an old one")
    if state in ALLOWED[action]:
        ask(database, before.id, action)
        after = the(database, before.id)
        assert after.goal is WISHES[action]
        assert after.state is state
        assert after.revision == before.revision + 1
        assert after.fault is None
        assert after.generation == before.generation + (action == "reboot")
        assert after.graceful is (action == "reboot")
        entry = last_action(database, before.id)
        assert (entry["action"], entry["request_id"]) == (action, f"req-{action}")
        assert due(database) == {before.uuid}
    elif ALREADY.get(action) is state:
        assert ask(database, before.id, action) == before
        assert the(database, before.id) == before
        assert due(database) == set()
    else:
        with pytest.raises(Conflict) as refused:
            ask(database, before.id, action)
        assert str(refused.value) == (
            f"VM {before.id} is {state}: it cannot be told to {action} now"
        )
        assert the(database, before.id) == before
        assert due(database) == set()


@pytest.mark.parametrize(
    ("state", "goal", "word"),
    [
        (State.BUILDING, Goal.RUNNING, "building"),
        (State.RUNNING, Goal.STOPPED, "stopping"),
        (State.RUNNING, Goal.PAUSED, "pausing"),
        (State.RUNNING, Goal.SUSPENDED, "suspending"),
        (State.STOPPED, Goal.RUNNING, "starting"),
        (State.PAUSED, Goal.RUNNING, "resuming"),
        (State.SUSPENDED, Goal.RUNNING, "resuming"),
        (State.RUNNING, Goal.DELETED, "deleting"),
        (State.ERROR, Goal.DELETED, "deleting"),
        (State.BUILDING, Goal.FAILED, "error"),
    ],
)
def test_while_something_is_done_nothing_else_may_be_asked_and_the_answer_says_what_it_is(
    sqlite_database: Any, state: State, goal: Goal, word: str
) -> None:
    set_up(sqlite_database)
    one = in_state(sqlite_database, state, goal)
    assert model.word(one) == word
    for action, rule in ACTIONS.items():
        if rule.goal is goal and action != "reboot" and state is not State.BUILDING:
            continue  # it is being done
        with pytest.raises(Conflict, match=f"VM {one.id} is {word}: it cannot be told to {action}"):
            ask(sqlite_database, one.id, action)
    assert the(sqlite_database, one.id) == one


def test_a_reboot_on_top_of_a_reboot_is_one_more(database: Database) -> None:
    set_up(database)
    one = in_state(database, State.RUNNING)
    ask(database, one.id, "reboot")
    assert model.word(the(database, one.id)) == "rebooting"
    ask(database, one.id, "reboot")
    assert the(database, one.id).generation == 3


def test_asking_for_what_is_not_there_says_so(database: Database) -> None:
    for action in ACTIONS:
        with pytest.raises(NotFound, match="there is no VM 77"):
            ask(database, 77, action)
    with pytest.raises(NotFound, match="there is no VM 77"):
        end(database, 77)


# -- delete


@pytest.mark.parametrize("state", [s for s in State if s is not State.DELETED])
@pytest.mark.parametrize("goal", [g for g in Goal if g is not Goal.DELETED])
def test_an_end_may_be_asked_for_at_any_time(
    sqlite_database: Any, state: State, goal: Goal
) -> None:
    set_up(sqlite_database)
    one = in_state(sqlite_database, state, goal)
    end(sqlite_database, one.id)
    after = the(sqlite_database, one.id)
    assert (after.goal, after.state, after.revision) == (Goal.DELETED, state, one.revision + 1)
    create_entry, delete_entry = sqlite_database.read(lambda conn: store.actions(conn, one.id))
    assert (create_entry["outcome"], create_entry["message"]) == ("error", "deleted meanwhile")
    assert (delete_entry["action"], delete_entry["outcome"]) == ("delete", None)
    assert due(sqlite_database) == {one.uuid}


def test_asking_for_the_end_twice_only_wakes_it(database: Database) -> None:
    set_up(database)
    one = in_state(database, State.RUNNING)
    end(database, one.id)
    first = the(database, one.id)
    end(database, one.id)
    assert the(database, one.id) == first
    assert len(database.read(lambda conn: store.actions(conn, one.id))) == 2


def test_what_has_ended_is_told_apart_from_what_never_was(database: Database) -> None:
    set_up(database)
    [one] = make(database)
    database.write(lambda conn: store.update(
        conn, one.id, state=State.DELETED, goal=Goal.DELETED, fault="no host had room"
    ))
    for asking in (lambda: end(database, one.id), lambda: ask(database, one.id, "start")):
        with pytest.raises(NotFound, match=f"VM {one.id} has been deleted: no host had room"):
            asking()


def test_the_id_of_a_deleted_one_is_not_given_out_again(database: Database) -> None:
    set_up(database)
    ids = []
    for _ in range(3):
        [one] = make(database)
        ids.append(one.id)
        database.write(lambda conn, i=one.id: store.update(conn, i, state=State.DELETED))
    assert ids == sorted(set(ids))


def test_a_row_that_has_lost_its_work_gets_it_back_with_the_next_wish(database: Database) -> None:
    set_up(database)
    one = in_state(database, State.RUNNING)
    database.write(lambda conn: conn.execute(sa.delete(work)).rowcount)
    ask(database, one.id, "stop")
    assert due(database) == {one.uuid}
