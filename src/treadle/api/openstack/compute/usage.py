"""What projects have used, and what other services tell of servers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute.common import (
    COUNT,
    LONGEST,
    TEXT,
    TRUE,
    UUID_TEXT,
    Body,
    closed,
    following,
    one_of,
    part,
    precise,
    queries,
    query,
)
from treadle.api.openstack.compute.server_moves import every_migration
from treadle.api.openstack.wire import Ask, Call, Reply, Schema, page_of
from treadle.compute import census, store
from treadle.compute.census import Stay
from treadle.compute.kinds import KIND
from treadle.compute.model import State
from treadle.controller import queue
from treadle.errors import InvalidInput, NotFound
from treadle.placement import ledger

PAGES = 40
HOUR_S = 3600.0
FORMATS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%d %H:%M:%S.%f")
LIST = queries(
    query("start", "end", "detailed"),
    query("start", "end", "detailed", "marker", limit=COUNT, since=PAGES),
)
SHOW = queries(query("start", "end"), query("start", "end", "marker", limit=COUNT, since=PAGES))


# -- usage of projects


@dataclass(frozen=True, slots=True)
class Period:
    """From when to when, in seconds since 1970, and when that was asked."""

    begin: float
    end: float
    now: float


def _period(ask: Ask, now: float) -> Period:
    begin = _time("start", ask.query.get("start", ("",))[0], now)
    end = _time("end", ask.query.get("end", ("",))[0], now)
    if begin > end or (begin == end and "start" in ask.query):
        raise InvalidInput("start", precise(begin),
                           "Invalid start time. The start time cannot occur after the end time.")
    return Period(begin, min(end, now), now)


def _time(field: str, text: str, now: float) -> float:
    if not text:
        return now
    for form in FORMATS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    raise InvalidInput(field, text, "Datetime is in invalid format")


def _hours(stay: Stay, period: Period) -> float:
    stop = min(period.end, stay.deleted_at or period.end)
    return max(0.0, stop - max(period.begin, stay.launched_at)) / HOUR_S


def _server(stay: Stay, period: Period) -> Body:
    return {
        "instance_id": stay.uuid, "name": stay.name, "tenant_id": stay.project_id,
        "flavor": stay.flavor, "hours": _hours(stay, period), "vcpus": stay.vcpus,
        "memory_mb": stay.memory_mib, "local_gb": stay.disk_gib,
        "started_at": precise(stay.launched_at), "ended_at": precise(stay.deleted_at),
        "state": stay.state if stay.deleted_at is None else "terminated",
        "uptime": int((stay.deleted_at or period.now) - stay.launched_at),
    }


def _sums(stays: Iterable[Stay], period: Period, *, detailed: bool) -> list[Body]:
    """One summary a project, in the order in which they come."""
    found: dict[str, Body] = {}
    for stay in stays:
        total = found.setdefault(stay.project_id, {
            "tenant_id": stay.project_id, "total_hours": 0.0, "total_vcpus_usage": 0.0,
            "total_memory_mb_usage": 0.0, "total_local_gb_usage": 0.0,
            "start": precise(period.begin), "stop": precise(period.end),
            **({"server_usages": []} if detailed else {}),
        })
        hours = _hours(stay, period)
        total["total_hours"] += hours
        total["total_vcpus_usage"] += hours * stay.vcpus
        total["total_memory_mb_usage"] += hours * stay.memory_mib
        total["total_local_gb_usage"] += hours * stay.disk_gib
        if detailed:
            total["server_usages"].append(_server(stay, period))
    return list(found.values())


def _uuid(stay: Stay) -> str:
    return stay.uuid


async def _stays(
    ask: Ask, path: str, project: str | None
) -> tuple[Sequence[Stay], Period, list[Body]]:
    page = page_of(ask) if ask.minor >= PAGES else None

    def read(conn: sa.Connection) -> tuple[Sequence[Stay], Period]:
        period = _period(ask, census.time(conn))
        return census.stays(
            conn, period.begin, period.end, project, page.marker if page else None,
            page.limit if page else None,
        ), period

    stays, period = await ask.read(read)
    return stays, period, following(ask, path, page, stays, _uuid) if page else []


async def listed(ask: Ask) -> Body:
    """What all projects have used."""
    path = "/os-simple-tenant-usage"
    if ask.request.scope["path"].endswith("/"):
        raise NotFound("A project without an id has no usage.")
    stays, period, next_page = await _stays(ask, path, None)
    # OpenStack's own clients say True, and nova knows only 1.
    detailed = ask.query.get("detailed", ("0",))[0].lower() in TRUE
    body: Body = {"tenant_usages": _sums(stays, period, detailed=detailed)}
    return body | ({"tenant_usages_links": next_page} if next_page else {})


async def show(ask: Ask) -> Body:
    """What one project has used, server by server."""
    project = ask.path["project_id"]
    ask.check(ask.call.rule, {"project_id": project})
    path = f"/os-simple-tenant-usage/{project}"
    stays, period, next_page = await _stays(ask, path, project)
    sums = _sums(stays, period, detailed=True)
    body: Body = {"tenant_usage": sums[0] if sums else {}}
    return body | ({"tenant_usage_links": next_page} if next_page else {})


# -- the audit log


async def audit_log(ask: Ask) -> Body:
    """Which hosts have reported the usage of the last whole month: none does, it is not needed."""
    return {"instance_usage_audit_logs": await _audit(ask, datetime.now(UTC))}


async def audit_log_before(ask: Ask) -> Body:
    """The same for the last whole month before a time."""
    text = ask.path["before"]
    for form in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S.%f"):
        try:
            before = datetime.strptime(text, form)
        except ValueError:
            continue
        return {"instance_usage_audit_log": await _audit(ask, before)}
    raise InvalidInput("before", text, f"Invalid timestamp for date {text}")


async def _audit(ask: Ask, before: datetime) -> Body:
    end = datetime(before.year, before.month, 1)
    last = end - timedelta(days=1) if end > datetime(1, 1, 31) else end
    names = [one.name for one in await ask.read(ledger.list_hosts)]
    return {
        "period_beginning": str(datetime(last.year, last.month, 1)), "period_ending": str(end),
        "num_hosts": len(names), "num_hosts_done": 0, "num_hosts_running": 0,
        "num_hosts_not_run": len(names), "hosts_not_run": names, "total_instances": 0,
        "total_errors": 0, "log": {},
        "overall_status": f"{'ALL' if not names else f'0 of {len(names)}'} hosts done. 0 errors.",
    }


# -- events that other services tell of

_NAMES = ("network-changed", "network-vif-plugged", "network-vif-unplugged",
          "network-vif-deleted")
_LATER = ((51, "volume-extended"), (76, "power-update"), (82, "accelerator-request-bound"),
          (93, "volume-reimaged"))
TAGGED = frozenset({"volume-extended", "power-update", "accelerator-request-bound"})


def _events(*names: str) -> Body:
    event = closed({
        "name": one_of(*names), "server_uuid": UUID_TEXT,
        "status": one_of("failed", "completed", "in-progress"),
        "tag": {**TEXT, "maxLength": LONGEST},
    }, ["name", "server_uuid"])
    return closed({"events": {"type": "array", "minItems": 1, "items": event}}, ["events"])


EVENTS = Schema((1, _events(*_NAMES)), *(
    (minor, _events(*_NAMES, *(name for since, name in _LATER if since <= minor)))
    for minor, _ in _LATER
))


async def tell_events(ask: Ask) -> Reply:
    """Have the servers looked at that something has befallen. Each event has its own code."""
    events: list[Body] = ask.body["events"]

    def write(conn: sa.Connection) -> list[Body]:
        known = store.by_uuids(conn, [one["server_uuid"].lower() for one in events])
        answered = []
        for event in events:
            instance = known.get(event["server_uuid"].lower())
            if instance is None or instance.state is State.DELETED:
                code = 404
            elif event["name"] in TAGGED and event.get("tag") is None:
                code = 400
            elif instance.host_id is None:
                code = 422
            else:
                code = 200
                queue.wake(conn, KIND, [instance.uuid])
            status = "completed" if code == 200 else "failed"
            answered.append({**event, "status": status, "code": code})
        return answered

    answered = await ask.write(write)
    failed = any(one["code"] != 200 for one in answered)
    return Reply({"events": answered}, 207 if failed else 200)


# -- migrations

_FILTERS = ("hidden", "host", "instance_uuid", "source_compute", "status", "migration_type")
MIGRATION_PAGES, BEFORE, OWNERS = 59, 66, 80


def _single(**schemas: Any) -> Body:
    return {name: {"type": "array", "items": schema, "maxItems": 1}
            for name, schema in schemas.items()}


_ANY = {name: {"type": "array"} for name in _FILTERS}
_PAGED = {**_ANY, **_single(limit=COUNT, marker=TEXT, **{"changes-since": TEXT})}
_BEFORE = {**_PAGED, **_single(**{"changes-before": TEXT})}
MIGRATIONS = Schema(
    (1, {"type": "object", "properties": _ANY}), (MIGRATION_PAGES, closed(_PAGED)),
    (BEFORE, closed(_BEFORE)), (OWNERS, closed({**_BEFORE, **_single(
        user_id=TEXT, project_id=TEXT)})),
)


async def migrations(ask: Ask) -> Body:
    """Moves of servers from host to host."""
    times = {}
    for name, since in (("changes-since", MIGRATION_PAGES), ("changes-before", BEFORE)):
        text = ask.one(name) if ask.minor >= since else None
        if text is not None:
            try:
                at = datetime.fromisoformat(text)
            except ValueError as error:
                raise InvalidInput(name, text, "it is no time in ISO 8601") from error
            times[name] = at if at.tzinfo else at.replace(tzinfo=UTC)
    if len(times) == 2 and times["changes-before"] < times["changes-since"]:
        raise InvalidInput("changes-since", ask.one("changes-since"), "The value of changes-since "
                           "must be less than or equal to changes-before.")
    bounds = {name: at.timestamp() for name, at in times.items()}
    first, last = bounds.get("changes-since"), bounds.get("changes-before")
    found = [
        one for changed, one in await ask.read(lambda conn: every_migration(conn, ask))
        if (first is None or changed >= first) and (last is None or changed <= last)
        and all(one[shown] == ask.one(name) for name, shown in _SHOWN.items() if ask.one(name))
        and ask.one("host") in (None, one["source_compute"], one["dest_compute"])
    ]
    if ask.minor < MIGRATION_PAGES:
        return {"migrations": found}
    page = page_of(ask)
    shown = part(found, page, lambda one: str(one["uuid"]))
    body: Body = {"migrations": list(shown)}
    links = following(ask, "/os-migrations", page, shown, lambda one: str(one["uuid"]))
    return body | ({"migrations_links": links} if links else {})


_SHOWN = {
    "instance_uuid": "instance_uuid", "source_compute": "source_compute", "status": "status",
    "migration_type": "migration_type", "user_id": "user_id", "project_id": "project_id",
}
"""Filters that are what a migration shows, to the letter."""


CALLS = [
    Call("GET", "/v2.1/os-simple-tenant-usage", listed, "compute:usage:list", query=LIST),
    Call("GET", "/v2.1/os-simple-tenant-usage/{project_id}", show, "compute:usage:get",
         query=SHOW),
    Call("GET", "/v2.1/os-instance_usage_audit_log", audit_log, "compute:usage:audit_log"),
    Call("GET", "/v2.1/os-instance_usage_audit_log/{before}", audit_log_before,
         "compute:usage:audit_log"),
    Call("POST", "/v2.1/os-server-external-events", tell_events, "compute:external_events:create",
         body=EVENTS),
    Call("GET", "/v2.1/os-migrations", migrations, "compute:migrations:list", query=MIGRATIONS),
]
