"""Tests of the tests: each of these defects, put into the code on purpose, must fail the sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import merging
import pytest
import sqlalchemy as sa
import sweep as sweeping
from memory import Clock, world_time
from scenarios import SCENARIOS
from sweep import Case, Wrong, sweep
from world import World

from treadle.compute import changes, lifecycle, reconciler
from treadle.compute.lifecycle import Action, Call, Context, Lost, Release
from treadle.compute.model import Goal, Instance, Phase
from treadle.compute.snapshots import SnapshotHandler
from treadle.controller import queue
from treadle.db.schema import work
from treadle.hypervisor.base import Domain
from treadle.placement import ledger


def first_wrong(tmp_path: Path, names: Sequence[str], faults: Sequence[str] = ()) -> Wrong | None:
    """The first case of these scenarios that goes wrong; a start that is never reached is one."""
    for scenario in SCENARIOS:
        if scenario.name not in names:
            continue
        clock = Clock()
        with world_time(clock):
            world = World(tmp_path, scenario.sizes, clock=clock)
            try:
                _, wrong = sweep(
                    world, scenario, stop_after=1,
                    only=lambda case: not faults or case.fault in faults,
                )
            except AssertionError as never:
                return Wrong(Case(scenario.name, 0, "the start", "none", False), (str(never),))
        if wrong:
            return wrong[0]
    return None


def mine(ticket: queue.Ticket) -> sa.ColumnElement[bool]:
    """The ticket's row, whoever holds it: the fence left out."""
    return sa.and_(work.c.kind == ticket.kind, work.c.id == ticket.id)


def _without_fence(real: Callable[..., Any]) -> Callable[..., Any]:
    def unfenced(conn: sa.Connection, ticket: queue.Ticket, *args: Any, **more: Any) -> Any:
        token = conn.execute(sa.select(work.c.token).where(mine(ticket))).scalar()
        if token is not None:
            ticket = replace(ticket, token=token)
        return real(conn, ticket, *args, **more)

    return unfenced


def test_commits_without_a_fence_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("finish", "carry", "remove"):
        monkeypatch.setattr(queue, name, _without_fence(getattr(queue, name)))
    assert first_wrong(tmp_path, ["create"], ["overtaken"])


def test_acts_without_a_look_at_the_lease_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MARGIN_S", -1e9)
    wrong = first_wrong(tmp_path, ["stop"], ["stall"])
    assert wrong is not None
    assert "without a lease" in str(wrong)


def test_an_inverted_plan_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lifecycle._move

    def inverted(instance: Instance, seen: Domain, context: Context) -> Action:
        action = real(instance, seen, context)
        turned = {"start": "power_off", "shut_down": "start", "pause": "resume"}
        if isinstance(action, Call):
            return Call(turned.get(action.verb, action.verb))
        return action

    monkeypatch.setattr(lifecycle, "_move", inverted)
    assert first_wrong(tmp_path, ["create"])
    monkeypatch.setattr(lifecycle, "_move", real)
    assert first_wrong(tmp_path, ["create"], ["crash"]) is None


def test_a_lost_wake_up_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deaf(conn: sa.Connection, kind: str, ids: Sequence[str]) -> int:
        known = sa.select(sa.func.count()).where(work.c.kind == kind, work.c.id.in_(ids))
        return int(conn.execute(known).scalar_one())

    monkeypatch.setattr(queue, "wake", deaf)
    assert first_wrong(tmp_path, ["stop", "delete a running one"])


def test_a_wake_up_lost_during_a_pass_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is made due, but not counted: the pass that is under way covers it up."""
    real = queue.wake

    def uncounted(conn: sa.Connection, kind: str, ids: Sequence[str]) -> int:
        found = real(conn, kind, ids)
        conn.execute(sa.update(work).where(work.c.kind == kind, work.c.id.in_(ids)).values(
            wake=work.c.wake - 1
        ))
        return found

    monkeypatch.setattr(queue, "wake", uncounted)
    wrong = first_wrong(tmp_path, ["create"], ["delete"])
    assert wrong is not None
    assert "not as wanted" in str(wrong)


def test_a_wake_up_lost_after_a_refused_act_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = queue.carry

    def covering(conn: sa.Connection, ticket: queue.Ticket, *args: Any, **more: Any) -> Any:
        return real(conn, ticket, *args, **more)

    monkeypatch.setattr(reconciler, "replace", lambda one, **values: (
        one if "wake" in values else replace(one, **values)
    ))
    monkeypatch.setattr(queue, "carry", covering)
    assert first_wrong(tmp_path, ["stop after two refusals"])


def test_a_forgotten_release_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "release", lambda _conn, _id: None)
    assert first_wrong(tmp_path, ["delete a running one"])


def test_a_second_home_for_what_was_started_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that does not answer is left although the guest may run there."""
    real = lifecycle._host_lost

    def hasty(instance: Instance, context: Context) -> Action:
        if instance.phase is Phase.DEFINED and instance.goal is Goal.RUNNING:
            return Release(again=True)
        return real(instance, context)

    monkeypatch.setattr(lifecycle, "_host_lost", hasty)
    wrong = first_wrong(tmp_path, ["create"])
    assert wrong is not None
    assert "runs on two hosts" in str(wrong)


def test_a_delete_that_does_not_wait_for_its_host_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lifecycle._remove

    def hasty(instance: Instance, seen: Domain | Lost | None) -> Action:
        if instance.host_id is not None and seen is not Lost.HOST:
            return Release(again=False)
        return real(instance, seen)

    monkeypatch.setattr(lifecycle, "_remove", hasty)
    assert first_wrong(tmp_path, ["delete a running one"])


def test_room_that_is_taken_twice_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ledger.claim

    def greedy(conn: sa.Connection, host_id: int, instance_id: int, room: ledger.Room) -> bool:
        taken = real(conn, host_id, instance_id, room)
        if taken:
            ledger._TAKE(conn, {"h": host_id, "v": 1, "m": 0, "d": 0, "n": 0})
        return taken

    monkeypatch.setattr(ledger, "claim", greedy)
    assert first_wrong(tmp_path, ["create"])


def test_a_refused_wish_that_stays_in_the_row_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "undone", lambda one, _on=0: {"mode": one.settled_mode})
    wrong = first_wrong(tmp_path, ["rescue"], ["refused"])
    assert wrong is not None
    assert "rescued with" in str(wrong)


def test_a_disk_whose_number_comes_back_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebuild that goes by the number that is there already."""
    real = changes.rebuilt

    def same(instance: Instance, image_id: int, others: dict[str, Any]) -> dict[str, Any]:
        changed = real(instance, image_id, others)
        return {**changed, "generation": instance.generation}

    monkeypatch.setattr(changes, "rebuilt", same)
    wrong = first_wrong(tmp_path, ["rebuild"], ["crash"])
    assert wrong is not None
    assert "its disks are" in str(wrong)


def test_room_that_a_revert_keeps_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ledger.resize

    def hoards(conn: sa.Connection, id: int, *size: int) -> bool:
        held = ledger._HELD(conn, {"i": id}).one()
        now = (held.vcpus, held.memory_mib, held.disk_mib)
        return real(conn, id, *map(max, now, size))

    monkeypatch.setattr(ledger, "resize", hoards)
    wrong = first_wrong(tmp_path, ["revert a resize"], ["crash"])
    assert wrong is not None
    assert "it holds" in str(wrong)


def test_a_copy_that_is_forgotten_on_the_host_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untidy(self: SnapshotHandler, ticket: queue.Ticket, _loaded: Any) -> None:
        self._db.write(lambda conn: queue.complete(conn, ticket))

    monkeypatch.setattr(SnapshotHandler, "_tidy", untidy)
    wrong = first_wrong(tmp_path, ["make an image"], ["crash"])
    assert wrong is not None
    assert "a copy of its disk is left" in str(wrong)


def test_a_host_that_would_not_start_what_shall_run_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "autostart_differs", lambda _goal, _seen: False)
    wrong = first_wrong(tmp_path, ["mend an undefined one"], ["crash"])
    assert wrong is not None
    assert "would not start it" in str(wrong)


def test_worlds_that_are_taken_for_one_and_are_not_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the rows are left out of what makes a world, cases are merged that end otherwise."""
    monkeypatch.setattr(merging, "likeness", lambda world, _memory: b"%d" % len(world.rows()))
    monkeypatch.setattr(sweeping, "PROVE_ONE_OF", 1)
    wrong = first_wrong(tmp_path, ["stop"], ["delete", "stall"])
    assert wrong is not None
    assert "taken for one that ends otherwise" in str(wrong)
