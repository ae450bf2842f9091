"""The part of /treadle/v1 that asks the scheduler: dry runs, decisions, the record of all.

Operators see hosts and amounts; a project sees counts for each reason, of its own alone.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from starlette.requests import Request

from treadle.api.context import Context
from treadle.compute import forecast, store
from treadle.compute.forecast import Question
from treadle.compute.model import Instance
from treadle.errors import Forbidden, InvalidInput, NotFound
from treadle.identity.model import Caller
from treadle.placement.views import snapshot

Amount = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]
HostIds = Annotated[list[Annotated[int, msgspec.Meta(ge=1)]], msgspec.Meta(max_length=10_000)]
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class DryRun(msgspec.Struct, forbid_unknown_fields=True):
    """What would be asked for: a flavor's number or the amounts. Memory in MiB, disk in GiB."""

    flavor: Annotated[int, msgspec.Meta(ge=1)] | None = None
    vcpus: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)] | None = None
    memory_mib: Amount | None = None
    disk_gib: Amount | None = None
    image: Annotated[int, msgspec.Meta(ge=1)] | None = None
    count: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    zone: Word | None = None
    only_hosts: HostIds | None = None
    excluded_hosts: HostIds = []
    capabilities: Annotated[list[Word], msgspec.Meta(max_length=64)] = []
    extra_specs: Annotated[dict[Word, str], msgspec.Meta(max_length=128)] = {}


async def project_of(context: Context, request: Request, rule: str) -> str | None:
    """The project that asks, None for an operator: by X-Auth-Token, or by the admin token.

    Errors: `Unauthorized`, `Forbidden`.
    """
    token = request.headers.get("x-auth-token")
    if token is None:
        context.check_admin(request)
        return None
    caller: Caller = await context.tokens.check(token)
    context.rules.check(rule, caller)
    if caller.is_admin:
        return None
    if not caller.project_id:
        raise Forbidden("this needs a token of a project")
    return caller.project_id


async def placements_dry_run(context: Context, request: Request) -> Any:
    """Where instances would go: the whole order with each weigher's share, and who refuses why."""
    project = await project_of(context, request, "treadle:dry_run")
    wanted: DryRun = await context.body(request, DryRun)
    if project is not None and (wanted.only_hosts is not None or wanted.excluded_hosts):
        named = wanted.only_hosts or wanted.excluded_hosts
        raise InvalidInput("hosts", named, "only operators may name hosts: leave it out")
    question = Question(
        wanted.flavor, wanted.vcpus, wanted.memory_mib, wanted.disk_gib, wanted.image,
        wanted.count, wanted.zone,
        None if wanted.only_hosts is None else frozenset(wanted.only_hosts),
        frozenset(wanted.excluded_hosts), frozenset(wanted.capabilities), wanted.extra_specs,
        project,
    )
    asked, views = await context.read(
        lambda conn: (
            forecast.request_of(conn, question),
            snapshot(conn, ends=context.scheduler.goes_by_lifetimes),
        )
    )
    found = await asyncio.to_thread(
        forecast.dry_run, context.scheduler, views, asked, wanted.count
    )
    return forecast.whole(found) if project is None else forecast.counts(found)


async def instances_decision(context: Context, request: Request) -> Any:
    """Why the instance is where it is, or nowhere: the record of its last placement."""
    project = await project_of(context, request, "treadle:show_decision")
    name = request.path_params["id"]

    def read(conn: sa.Connection) -> dict[str, Any] | None:
        one = named(conn, name)
        if project is not None and one.project_id != project:
            raise NotFound(no_instance(name))
        return store.last_decision(conn, one.id)

    record = await context.read(read)
    if record is None:
        raise NotFound(f"instance {name} has not been placed")
    return record if project is None else forecast.public_decision(record)


def no_instance(name: str) -> str:
    """What is said where there is none, or not for this caller."""
    return f"there is no instance {name[:40]!r}"


def named(conn: sa.Connection, name: str) -> Instance:
    """The instance by its small number or its UUID, deleted ones too. Errors: `NotFound`."""
    found = None
    if name.isascii() and name.isdecimal() and len(name) <= 18:
        found = store.get(conn, int(name))
    elif UUID.fullmatch(name):
        found = store.by_uuid(conn, name)
    if found is None:
        raise NotFound(no_instance(name))
    return found


async def scheduler_show(context: Context, _request: Request) -> Any:
    """What ranks the hosts, and how often each plug-in was broken since this process started."""
    scheduler = context.scheduler
    return {
        "policy": scheduler.policy, "filters": scheduler.filters, "weighers": scheduler.weighers,
        "keeps_scores": scheduler.keeps_scores,
        "faults": [
            {"kind": kind, "plugin": name, "count": count}
            for (kind, name), count in sorted(scheduler.faults.items())
        ],
    }


async def record(context: Context, request: Request) -> Any:
    """The hosts and the instances, with what was asked for each: to be replayed elsewhere."""
    context.check_admin(request)
    text = request.query_params.get("since", "0")
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise InvalidInput("since", text, "whole seconds since 1970 are needed")
    since = float(text)
    return await context.read(lambda conn: forecast.recorded(conn, since))
