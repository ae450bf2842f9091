"""Usage of projects, the audit log, events from outside, and migrations."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from computekit import Api, named, schema
from tempest.lib.api_schema.response.compute.v2_1 import (
    instance_usage_audit_logs,
    server_external_events,
    tenant_usages,
)
from tempest.lib.services.compute.migrations_client import MigrationsClient

from treadle.db.schema import instance, work

HOUR = 3600.0
START = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
DAY = "start=2020-01-01T00:00:00&end=2020-01-02T00:00:00"


def stay(api: Api, project: str, begin: float, end: float | None, tid: int = 1) -> str:
    """An instance of the project that ran from one hour to another of the first day of 2020."""
    id = api.cloud.create(named("vm"), tid=tid)

    def write(conn: sa.Connection) -> str:
        conn.execute(instance.update().where(instance.c.id == id).values(
            project_id=project, launched_at=START + begin * HOUR,
            deleted_at=None if end is None else START + end * HOUR,
        ))
        uuid: str = conn.execute(sa.select(instance.c.uuid).where(instance.c.id == id)).scalar_one()
        conn.execute(sa.delete(work).where(work.c.id == uuid))
        return uuid

    return api.cloud.treadle.database.write(write)


@pytest.mark.parametrize("minor", [1, 39, 40, 75, 104])
def test_usage_is_what_fell_into_the_time(api: Api, minor: int) -> None:
    project = named("project")
    path = f"/os-simple-tenant-usage/{project}?{DAY}"
    assert api.get(path, minor=minor) == {"tenant_usage": {}}
    ended = stay(api, project, 1, 3)
    before = stay(api, project, -48, -24)
    still = stay(api, project, 23, None, tid=2)
    stay(api, project, 25, None)
    usage = api.get(path, minor=minor, judge=tenant_usages.get_tenant_usage)["tenant_usage"]
    assert {key: value for key, value in usage.items() if key != "server_usages"} == {
        "tenant_id": project, "total_hours": 3.0, "total_vcpus_usage": 2 * 1 + 1 * 2.0,
        "total_memory_mb_usage": 2 * 512 + 1 * 1024.0, "total_local_gb_usage": 2 * 1 + 1 * 4.0,
        "start": "2020-01-01T00:00:00.000000", "stop": "2020-01-02T00:00:00.000000",
    }
    servers = {one["instance_id"]: one for one in usage["server_usages"]}
    assert set(servers) == {ended, still}
    assert before not in servers
    assert servers[ended]["state"] == "terminated"
    assert servers[ended]["uptime"] == 7200
    assert servers[ended]["ended_at"] == "2020-01-01T03:00:00.000000"
    assert servers[still]["state"] == "active"
    assert servers[still]["ended_at"] is None
    assert servers[still]["hours"] == 1.0
    assert servers[still]["uptime"] == pytest.approx(time.time() - START - 23 * HOUR, abs=60)
    assert (servers[still]["flavor"], servers[still]["local_gb"]) == ("type-2", 4)

    whole = api.get(f"/os-simple-tenant-usage?{DAY}", minor=minor,
                    judge=tenant_usages.list_tenant_usage)["tenant_usages"]
    mine = next(one for one in whole if one["tenant_id"] == project)
    assert mine == {key: value for key, value in usage.items() if key != "server_usages"}
    whole = api.get(f"/os-simple-tenant-usage?{DAY}&detailed=1", minor=minor,
                    judge=tenant_usages.list_tenant_usage)["tenant_usages"]
    mine = next(one for one in whole if one["tenant_id"] == project)
    for server in (*mine["server_usages"], *usage["server_usages"]):
        del server["uptime"]  # it goes on meanwhile
    assert mine == usage


def test_usage_comes_in_pages_from_240_on(api: Api) -> None:
    project = named("project")
    uuids = sorted(stay(api, project, 1, 2) for _ in range(3))
    path = f"/os-simple-tenant-usage/{project}?{DAY}"
    assert len(api.get(f"{path}&limit=1", minor=39)["tenant_usage"]["server_usages"]) == 3
    first = api.get(f"{path}&limit=2", minor=40)
    assert [one["instance_id"] for one in first["tenant_usage"]["server_usages"]] == uuids[:2]
    [link] = first["tenant_usage_links"]
    assert f"/v2.1/os-simple-tenant-usage/{project}?" in link["href"]
    rest = api.cloud.client.get(link["href"], headers={
        "X-Auth-Token": "admin", "OpenStack-API-Version": "compute 2.40",
    }).json()
    assert [one["instance_id"] for one in rest["tenant_usage"]["server_usages"]] == uuids[2:]
    assert "tenant_usage_links" not in rest
    last = api.get(f"{path}&limit=2&marker={uuids[2]}", minor=40)
    assert last == {"tenant_usage": {}}
    whole = api.get(f"/os-simple-tenant-usage?{DAY}&limit=1", minor=40)
    assert "/v2.1/os-simple-tenant-usage?" in whole["tenant_usages_links"][0]["href"]
    api.fails("GET", f"{path}&marker=nobody", minor=40, status=400)


def test_bad_times_are_refused(api: Api) -> None:
    for query in ("start=2020-01-02T00:00:00&end=2020-01-01T00:00:00", "start=yesterday",
                  "start=2099-01-01T00:00:00", DAY.replace("02T", "01T")):
        api.fails("GET", f"/os-simple-tenant-usage?{query}", status=400)
        api.fails("GET", f"/os-simple-tenant-usage/p?{query}", status=400)
    api.get("/os-simple-tenant-usage?start=2020-01-01%2000:00:00.5")
    # Without times it is the moment of the asking, in which nobody can have used anything.
    assert all(one["total_hours"] == 0 for one in api.get("/os-simple-tenant-usage")[
        "tenant_usages"])
    api.fails("GET", "/os-simple-tenant-usage?color=red", minor=75, status=400)
    mine = f"/os-simple-tenant-usage/{'1' * 32}"
    assert api.get(mine, by="reader") == {"tenant_usage": {}}
    api.fails("GET", mine, by="other", status=403)
    api.fails("GET", "/os-simple-tenant-usage", by="member", status=403)
    api.fails("GET", f"/os-simple-tenant-usage/?{DAY}", status=404)


def test_the_audit_log_says_that_nobody_reported(api: Api) -> None:
    path = "/os-instance_usage_audit_log"
    now = datetime.now(UTC)
    log = api.get(path, judge=instance_usage_audit_logs.list_instance_usage_audit_log)
    found = log["instance_usage_audit_logs"]
    assert found["period_ending"] == f"{now:%Y-%m}-01 00:00:00"
    assert (found["num_hosts"], sorted(found["hosts_not_run"]), found["overall_status"]) == (
        2, ["h1", "h2"], "0 of 2 hosts done. 0 errors."
    )
    judge = instance_usage_audit_logs.get_instance_usage_audit_log
    for before in ("2020-03-15 10:00:00", "2020-03-15%2010:00:00.5"):
        found = api.get(f"{path}/{before}", judge=judge)["instance_usage_audit_log"]
        assert (found["period_beginning"], found["period_ending"]) == (
            "2020-02-01 00:00:00", "2020-03-01 00:00:00"
        )
    api.get(f"{path}/0001-01-01 00:00:00")
    for bad in ("invalid_time", "2020-13-01 00:00:00", "2020-01-01"):
        api.fails("GET", f"{path}/{bad}", status=400)
    for place in (path, f"{path}/2020-03-15 10:00:00"):
        api.fails("GET", place, by="member", status=403)


def tell(api: Api, *events: dict[str, Any], minor: int = 1, status: int = 200) -> list[Any]:
    found: list[Any] = api.ok(
        "POST", "/os-server-external-events", {"events": list(events)}, minor=minor, by="service",
        status=status, judge=server_external_events.create if status == 200 else None,
    )["events"]
    return found


def test_events_have_servers_looked_at(api: Api) -> None:
    id = api.cloud.create("told")
    database = api.cloud.treadle.database
    uuid = database.read(lambda conn: conn.execute(
        sa.select(instance.c.uuid).where(instance.c.id == id)
    ).scalar_one())
    event = {"name": "network-changed", "server_uuid": uuid}
    wakes = sa.select(work.c.wake).where(work.c.id == uuid)
    before = database.read(lambda conn: conn.execute(wakes).scalar_one())
    told = tell(api, event, {**event, "status": "failed", "tag": "t"})
    assert told == [{**event, "status": "completed", "code": 200},
                    {**event, "status": "completed", "code": 200, "tag": "t"}]
    assert database.read(lambda conn: conn.execute(wakes).scalar_one()) >= before + 2


def test_each_event_has_its_own_code(api: Api) -> None:
    id = api.cloud.create("told")
    uuid = api.cloud.treadle.database.read(lambda conn: conn.execute(
        sa.select(instance.c.uuid).where(instance.c.id == id)
    ).scalar_one())
    stranger = {"name": "network-changed", "server_uuid": str(uuid4())}
    [answer] = tell(api, stranger, status=207)
    assert (answer["code"], answer["status"]) == (404, "failed")
    untagged = {"name": "power-update", "server_uuid": uuid}
    found = tell(api, untagged, {**untagged, "tag": "POWER_ON"}, stranger, minor=76, status=207)
    assert [one["code"] for one in found] == [400, 200, 404]
    assert api.cloud.ok(f"/vm/destroy?vmid={id}")
    [answer] = tell(api, {"name": "network-changed", "server_uuid": uuid}, status=207)
    assert answer["code"] == 404


@pytest.mark.parametrize(("event", "minor"), [
    ({"name": "x"}, 1), ({"name": "network-changed"}, 1), ({"server_uuid": str(uuid4())}, 1),
    ({"name": "network-changed", "server_uuid": "x"}, 1),
    ({"name": "network-changed", "server_uuid": str(uuid4()), "status": "good"}, 1),
    ({"name": "network-changed", "server_uuid": str(uuid4()), "color": 1}, 1),
    ({"name": "volume-extended", "server_uuid": str(uuid4())}, 50),
    ({"name": "power-update", "server_uuid": str(uuid4())}, 75),
    ({"name": "accelerator-request-bound", "server_uuid": str(uuid4())}, 81),
    ({"name": "volume-reimaged", "server_uuid": str(uuid4())}, 92),
])
def test_bad_events_are_refused(api: Api, event: dict[str, Any], minor: int) -> None:
    api.fails("POST", "/os-server-external-events", {"events": [event]}, minor=minor,
              by="service", status=400)
    api.fails("POST", "/os-server-external-events", {"events": []}, by="service", status=400)
    api.fails("POST", "/os-server-external-events", {"events": [event]}, by="member", status=403)


@pytest.mark.parametrize("minor", [1, 23, 58, 59, 66, 80, 104])
def test_there_are_no_migrations_yet(api: Api, minor: int) -> None:
    judge = schema(MigrationsClient, minor).list_migrations
    assert api.get("/os-migrations", minor=minor, judge=judge) == {"migrations": []}
    api.fails("GET", "/os-migrations", minor=minor, by="member", status=403)
    strict = 400 if minor >= 59 else 200
    for query in ("color=red", "marker=x", "limit=x", "changes-since=x"):
        assert api.call("GET", f"/os-migrations?{query}", minor=minor).status_code == strict
    now = datetime.now(UTC).replace(tzinfo=None)
    later = now + timedelta(days=1)
    span = f"changes-since={later.isoformat()}&changes-before={now.isoformat()}"
    assert api.call("GET", f"/os-migrations?{span}", minor=minor).status_code == strict
    owned = api.call("GET", "/os-migrations?project_id=x&user_id=y", minor=minor).status_code
    assert owned == (400 if 59 <= minor < 80 else 200)
