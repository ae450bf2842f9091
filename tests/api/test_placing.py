"""Zones, aggregates, groups and hints on a whole controller: what is asked for is kept."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cloudkit import ROOMY, Cloud, Start, until

from treadle.compute import actions, creating, store
from treadle.compute.model import Instance, State
from treadle.config import Settings
from treadle.db.schema import aggregate, aggregate_host, allocation, instance, server_group
from treadle.placement.ledger import CHANGED, note
from treadle.placement.views import snapshot
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.simulate import Outcome, replay
from treadle.scheduler.simulate_cloud import before, cloud_now
from treadle.scheduler.simulate_trace import Trace

HOSTS = tuple(f"fake://h{n}{ROOMY}" for n in (1, 2, 3, 4))


def ask(cloud: Cloud, count: int, **wish: Any) -> list[int]:
    def create(conn: sa.Connection) -> list[int]:
        made = creating.create(
            conn, creating.Wish("vm", 1, None, count, project_id="p", **wish),
            request_id="r", build_deadline_s=30.0,
        )
        return [one.id for one in made]

    return cloud.treadle.database.write(create)


def ends(cloud: Cloud, ids: list[int]) -> list[Instance]:
    def look() -> list[Instance]:
        found = [cloud.treadle.database.read(lambda conn, id=id: store.get(conn, id)) for id in ids]
        return [one for one in found if one and one.state in (State.RUNNING, State.ERROR)]

    until(lambda: len(look()) == len(ids), "all of them")
    return look()


def group(cloud: Cloud, policy: str) -> int:
    return cloud.treadle.database.write(lambda conn: conn.execute(
        sa.insert(server_group).values(
            uuid=policy, project_id="p", user_id="u", name="g", policy=policy, created_at=0.0,
        ).returning(server_group.c.id)
    ).scalar_one())


def put_into(cloud: Cloud, host: int, zone: str | None, said: str) -> None:
    def write(conn: sa.Connection) -> None:
        id = conn.execute(sa.insert(aggregate).values(
            uuid=f"a{host}", name=f"a{host}", availability_zone=zone, metadata=said, created_at=0.0,
        ).returning(aggregate.c.id)).scalar_one()
        conn.execute(sa.insert(aggregate_host).values(aggregate_id=id, host_id=host))
        note(conn, CHANGED, host)

    cloud.treadle.database.write(write)


def drained(cloud: Cloud, name: str) -> Outcome:
    """What would come of the cloud's instances without one host."""
    now, moved = cloud_now(cloud.native("GET", "/record").json(), "here").drained([name])
    scheduler = Scheduler("best-fit", Settings().scheduler.filters, {})
    return replay(before(Trace("", (), 0.0, 3600.0), moved), now.hosts, scheduler,
                  running=now.running)


def test_members_asked_for_at_once_come_to_different_hosts(start: Start) -> None:
    cloud = start(*HOSTS)
    found = ends(cloud, ask(cloud, 6, group=group(cloud, "anti-affinity")))
    placed = Counter(one.host_id for one in found if one.state is State.RUNNING)
    assert sorted(placed.values()) == [1, 1, 1, 1]
    failed = [one.fault or "" for one in found if one.state is State.ERROR]
    assert len(failed) == 2
    assert all("4 hosts have members of the group" in fault for fault in failed)
    assert (drained(cloud, "h2").placed, drained(cloud, "h2").refused) == (0, 1)


def test_members_asked_for_at_once_come_to_one_host(start: Start) -> None:
    cloud = start(*HOSTS)
    found = ends(cloud, ask(cloud, 6, group=group(cloud, "affinity")))
    assert [one.state for one in found] == [State.RUNNING] * 6
    assert len({one.host_id for one in found}) == 1


def test_zone_aggregate_and_hints_are_kept(start: Start) -> None:
    cloud = start(*HOSTS)
    put_into(cloud, 2, "west", '{"disk": "ssd"}')
    put_into(cloud, 3, "west", '{"max_instances": "1"}')
    [plain] = ends(cloud, ask(cloud, 1, zone="west"))
    assert plain.host_id in (2, 3)
    some = ends(cloud, ask(cloud, 6, zone="west"))
    on = Counter(one.host_id for one in [plain, *some])
    assert set(on) <= {2, 3}
    assert on[3] <= 1
    found = drained(cloud, "h2")
    assert (found.vms, found.placed) == (on[2], 1 - on[3])
    [pinned] = ends(cloud, ask(cloud, 1, hints={"host": "h4"}))
    assert pinned.host_id == 4
    [apart] = ends(cloud, ask(cloud, 1, hints={"different_host": pinned.uuid}))
    assert apart.host_id != 4
    [near] = ends(cloud, ask(cloud, 1, hints={"same_host": [pinned.uuid]}))
    assert near.host_id == 4
    [nowhere] = ends(cloud, ask(cloud, 1, zone="east"))
    assert nowhere.state is State.ERROR
    assert "in another zone than east" in (nowhere.fault or "")


BROKEN = """
import numpy as np
class Odd:
    name = "odd"
    row_local = True
    def passes(self, hosts, request, /):
        raise ZeroDivisionError("by design")
    def reason(self, host, request, /):
        return "odd"
class OddPolicy:
    def rank(self, request, hosts, rng, /):
        return "nonsense"
"""


def test_a_broken_plug_in_is_named_counted_and_fallen_back_from(
    start: Start, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "odd_plugins.py").write_text(BROKEN)
    info = tmp_path / "odd_plugins-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugins\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[treadle.filters]\nodd = odd_plugins:Odd\n"
        "[treadle.policies]\nodd = odd_plugins:OddPolicy\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("odd_plugins", None)
    chosen = {"scheduler.policy": "odd", "scheduler.filters": ["state", "odd", "capacity"]}
    cloud = start(settings={**chosen, "scheduler.on_filter_fault": "skip"})
    [one] = ends(cloud, ask(cloud, 1))
    assert one.state is State.RUNNING
    shown = cloud.native("GET", "/scheduler").json()
    assert shown["policy"] == "odd"
    faults = {(f["kind"], f["plugin"]): f["count"] for f in shown["faults"]}
    assert faults.keys() == {("filter", "odd"), ("policy", "odd")}
    assert all(faults.values())
    record = cloud.native("GET", f"/instances/{one.id}/decision").json()
    assert any("first-fit has ordered the hosts" in note for note in record["notes"])

    strict = start(settings=chosen)
    [failed] = ends(strict, ask(strict, 1))
    assert failed.state is State.ERROR
    assert "the filter 'odd' is broken" in (failed.fault or "")


def test_lifetimes_are_learnt_live_and_at_a_start(start: Start, tmp_path: Path) -> None:
    chosen = {"settings": {"scheduler.policy": "lifetime-aware"}, "folder": tmp_path / "same"}
    cloud = start(*HOSTS, **chosen)
    database = cloud.treadle.database

    def lives(one: Instance) -> float:
        """How many seconds from its beginning to the end that is expected of it."""
        row = database.read(lambda conn: conn.execute(
            sa.select(allocation).where(allocation.c.instance_id == one.id)
        ).one())
        busy = {view.id: view.busy_until for view in database.read(
            lambda conn: snapshot(conn, ends=True)
        )}
        assert busy[row.host_id] == row.ends_at
        return float(row.ends_at - one.created_at)

    [first] = ends(cloud, ask(cloud, 1))
    assert lives(first) == 3600.0
    database.write(lambda conn: conn.execute(
        sa.update(instance).values(created_at=instance.c.created_at - 7200)
    ))
    database.write(lambda conn: actions.delete(conn, first.id, request_id="r"))
    cloud.treadle.signals.work_is_due()
    until(lambda: not cloud.guests() and not cloud.open_work())
    [second] = ends(cloud, ask(cloud, 1))
    known = lives(second)
    assert 7200 <= known < 7260
    cloud.stop()
    again = start(*HOSTS, **chosen)
    database = again.treadle.database
    [third] = ends(again, ask(again, 1))
    assert lives(third) == known


TIGHT = ("fake://small?vcpus=1&memory_mib=65536", "fake://big?vcpus=16&memory_mib=65536")
"""Where best fit puts the first member of a group, there is room for four."""


@pytest.mark.parametrize(("limit_s", "run"), [(20.0, 6), (0.0, 4)])
def test_a_group_asked_for_at_once_is_placed_at_once(
    start: Start, limit_s: float, run: int
) -> None:
    settings = {"scheduler.policy": "solver", "scheduler.batch_limit_s": limit_s}
    cloud = start(*TIGHT, settings=settings)
    found = ends(cloud, ask(cloud, 6, group=group(cloud, "affinity")))
    assert [one.state for one in found].count(State.RUNNING) == run
    [host] = {one.host_id for one in found if one.state is State.RUNNING}
    name = {2: "big", 1: "small"}[host or 0]
    assert name == ("big" if run == 6 else "small")
    assert sorted(vcpus for vcpus, _, _ in cloud.used()) == [0, run]
    record = cloud.native("GET", f"/instances/{found[0].id}/decision").json()
    said = any("at once" in note for note in record["notes"])
    assert said is (run == 6)
    [alone] = ends(cloud, ask(cloud, 1))
    assert alone.state is State.RUNNING
