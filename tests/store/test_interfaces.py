"""Asking for an instance's network card, or for its end: what it makes of the row, and who may."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from tests.store.test_life import ADMIN, FACTS, TENANT, due, set_up, settled, the

from treadle.compute import actions, changes, interfaces, store
from treadle.compute.creating import mac_of
from treadle.compute.model import Instance, Mode, State, Task, is_settled
from treadle.db.engine import Database
from treadle.errors import Conflict, InvalidInput, InvalidState, Locked, NotFound
from treadle.placement import ledger


def ask(database: Database, one: Instance, what: str, **more: Any) -> Instance:
    function = getattr(interfaces, what)
    database.write(lambda conn: function(conn, one.id, request_id="req-1", **more))
    return the(database, one.id)


def without(database: Database, state: State = State.RUNNING, **values: Any) -> Instance:
    return settled(database, state, networked=False, mac="", **values)


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED, State.STOPPED])
def test_a_wish_changes_the_card_and_its_number(database: Database, state: State) -> None:
    set_up(database)
    one = without(database, state)
    given = ask(database, one, "attach")
    assert given.mac == mac_of(UUID(one.uuid))
    assert (given.goal, given.generation, given.revision) == (one.goal, 2, 2)
    assert given.task is Task.ATTACHING_INTERFACE
    assert changes.plugged(given)
    assert not is_settled(given)
    assert due(database)
    log = database.read(lambda conn: store.actions(conn, one.id))
    assert (log[-1]["action"], log[-1]["finished_at"]) == ("attach_interface", None)
    # What is under way is not overtaken.
    with pytest.raises(InvalidState, match="attaching_interface"):
        ask(database, one, "detach")
    assert json.loads(given.before) == {"networked": False, "mac": "", "address": None}


def test_it_is_taken_with_its_address(database: Database) -> None:
    set_up(database)
    one = settled(database, address="10.0.0.9")
    taken = ask(database, one, "detach")
    assert (taken.mac, taken.address, taken.generation) == ("", None, 2)
    assert taken.task is Task.DETACHING_INTERFACE
    assert json.loads(taken.before) == {"networked": True, "mac": one.mac, "address": "10.0.0.9"}
    row = database.read(lambda conn: store.columns(conn, one.id, ("networked",)))
    assert row == {"networked": False}


@pytest.mark.parametrize(("values", "error"), [
    ({"state": State.SUSPENDED}, InvalidState), ({"mode": Mode.RESCUED}, InvalidState),
    ({"mode": Mode.RESIZED}, InvalidState), ({"task": Task.REBOOTING}, InvalidState),
    ({"locked_by": "owner"}, Locked), ({"kept": 7}, Conflict),
], ids=["suspended", "rescued", "resized", "busy", "locked", "kept"])
def test_what_is_not_so_now_is_refused(
    database: Database, values: dict[str, Any], error: type[Exception]
) -> None:
    set_up(database)
    if "mode" in values:
        values = {**values, "settled_mode": values["mode"]}
    for make, what in ((settled, "detach"), (without, "attach")):
        one = make(database, **values)
        with pytest.raises(error):
            ask(database, one, what, by=TENANT)
        assert the(database, one.id) == one
    if error is Locked:
        assert ask(database, one, "attach", by=ADMIN).mac


def test_there_is_one_card_or_none(database: Database) -> None:
    set_up(database)
    with pytest.raises(InvalidInput, match="one network"):
        ask(database, settled(database), "attach")
    with pytest.raises(NotFound, match="no interface"):
        ask(database, without(database), "detach")


def test_a_host_that_gives_no_card_to_what_runs_is_named(database: Database) -> None:
    set_up(database)
    facts = replace(FACTS, hypervisor="lxc", capabilities=frozenset())
    database.write(lambda conn: ledger.set_up(conn, 1, facts, "lxc"))
    one = settled(database)
    with pytest.raises(Conflict, match=r"hypervisor of its host \(lxc\) has no plug"):
        ask(database, one, "detach")
    off = settled(database, State.STOPPED)
    assert ask(database, off, "detach").mac == ""
    assert actions.NEEDED["attach_interface"] == "plug"
