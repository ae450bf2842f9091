"""The classic API: plain HTTP, JSON answers, small integer ids. No logic of its own.

Each call is a row of `CALLS`: its path, the key and value that its answer has when it fails, and
the arguments that it takes. An answer that fails has that value and an `error` that says what to
change.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import sqlalchemy as sa
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from treadle.api.context import Context, answer, built
from treadle.api.faults import message_of, status_of
from treadle.compute import actions, creating, store
from treadle.compute.creating import Wish
from treadle.compute.model import SETTLED, Goal, Instance, State, is_settled, word
from treadle.errors import CannotPlace, InvalidInput, NotAvailable, NotFound, RetryLater
from treadle.image import store as images
from treadle.image.store import ImageStatus
from treadle.placement import ledger

log = structlog.get_logger("treadle.api")

NUMBER = re.compile(r"[0-9]{1,18}")
SHORT = {"pmid": "physical machine", "instance_type": "instance type", "image_id": "image"}
"""Arguments whose columns hold no more than `SHORT_MAX`, and what they count."""
SHORT_MAX = 2**31 - 1
DELETE_WAIT_S = 60.0
ACT_SLACK_S = 30.0
WAIT_SLACK_S = 10.0

Arguments = Mapping[str, str]
Endpoint = Callable[[Context, Arguments, str], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class CallSpec:
    """One call. `key` and `zero` are what a failing answer has; no key: only the `error`."""

    path: str
    run: Endpoint
    key: str
    zero: int
    arguments: frozenset[str]
    changes: bool = False

    @property
    def failure(self) -> dict[str, int]:
        """What a failing answer has besides its `error`."""
        return {self.key: self.zero} if self.key else {}


# -- arguments


def number(arguments: Arguments, name: str) -> int:
    """A required positive whole number. Errors: `InvalidInput`."""
    text = arguments.get(name)
    if text is None:
        raise InvalidInput(name, "", f"it is missing: add {name}=NUMBER")
    return _number(name, text)


def _number(name: str, text: str) -> int:
    value = int(text) if NUMBER.fullmatch(text) else 0
    if value < 1:
        raise InvalidInput(name, text, "it must be a whole number from 1 up")
    if name in SHORT and value > SHORT_MAX:
        raise NotFound(f"there is no {SHORT[name]} {value}")
    return value


def optional(arguments: Arguments, name: str) -> int | None:
    """A positive whole number that may be left out. Errors: `InvalidInput`."""
    return None if name not in arguments else number(arguments, name)


# -- calls


async def vm_create(context: Context, arguments: Arguments, request_id: str) -> Any:
    """Make instances and say how it went, or with wait=0 that it has been taken on."""
    if "name" not in arguments:
        raise InvalidInput("name", "", "it is missing: add name=NAME")
    wait = arguments.get("wait", "1")
    if wait not in ("0", "1"):
        raise InvalidInput("wait", wait, "it must be 0 or 1")
    count = optional(arguments, "count")
    guest = context.settings.guest
    limits = context.settings.controller
    wish = Wish(
        name=arguments["name"],
        flavor=number(arguments, "instance_type"),
        image=optional(arguments, "image_id"),
        count=1 if count is None else count,
        user_data=guest.user_data,
        ssh_keys=tuple(guest.ssh_keys),
        rollback=wait == "1" or (count or 1) > 1,
    )
    made = await context.write(partial(
        creating.create, wish=wish, request_id=request_id,
        build_deadline_s=limits.build_deadline_s,
    ))
    if wait == "1":
        for one in made:
            seen = await context.settled(
                one.uuid, built, limits.build_deadline_s + WAIT_SLACK_S,
                just_asked=one is made[0],
            )
            if seen is None or not _runs(seen):
                raise await _not_built(context, [m.uuid for m in made], seen)
    ids = [one.id for one in made]
    return {"vmid": ids[0]} if count is None else {"vmid": ids[0], "vmids": ids}


def _runs(made: Instance) -> bool:
    """Whether a build has ended well; somebody else may have paused or stopped it since."""
    return SETTLED.get(made.state) not in (None, Goal.DELETED, Goal.FAILED) and made.goal not in (
        Goal.DELETED, Goal.FAILED
    )


async def _not_built(
    context: Context, uuids: list[str], failed: Instance | None
) -> CannotPlace:
    """The error to answer, once nothing of the request is left behind (or the time is up)."""
    for one in uuids:
        await context.settled(one, lambda i: i.state is State.DELETED, DELETE_WAIT_S)
    reason = failed.fault if failed is not None and failed.fault else "it was deleted meanwhile"
    return CannotPlace(reason)


async def vm_query(context: Context, arguments: Arguments, _request_id: str) -> Any:
    """One instance."""
    vmid = number(arguments, "vmid")
    instance = await context.glance(lambda conn: actions.require(conn, vmid))
    body: dict[str, Any] = {
        "vmid": instance.id, "name": instance.name, "instance_type": instance.flavor_id,
        "pmid": instance.host_id or 0, "state": word(instance),
    }
    if instance.address:
        body["ip"] = instance.address
    if instance.fault:
        body["reason"] = instance.fault
    return body


async def vm_destroy(context: Context, arguments: Arguments, request_id: str) -> Any:
    """End an instance, and say so when it is gone."""
    vmid = number(arguments, "vmid")
    instance = await context.write(
        lambda conn: actions.delete(conn, vmid, request_id=request_id)
    )
    seen = await context.settled(
        instance.uuid, lambda i: i.state is State.DELETED, DELETE_WAIT_S, just_asked=True
    )
    if seen is not None and seen.state is not State.DELETED:
        raise RetryLater(
            f"VM {vmid} could not be removed yet, its machine does not answer: it is removed when "
            "the machine is back"
        )
    return {"status": 1}


async def vm_act(
    action: str, context: Context, arguments: Arguments, request_id: str
) -> Any:
    """One step of the life cycle, answered when it has been carried out."""
    vmid = number(arguments, "vmid")
    hard = arguments.get("hard", "0")
    if hard not in ("0", "1"):
        raise InvalidInput("hard", hard, "it must be 0 or 1")
    limits = context.settings.controller
    asks_the_guest = action == "stop" or (action == "reboot" and hard == "0")
    patience = limits.stop_deadline_s if asks_the_guest else limits.build_deadline_s
    before = await context.write(lambda conn: actions.act(
        conn, vmid, action, request_id=request_id, deadline_s=patience, hard=hard == "1"
    ))
    already = before.goal is actions.ACTIONS[action].goal and action != "reboot"
    seen = await context.settled(
        before.uuid, is_settled, patience + ACT_SLACK_S, just_asked=not already
    )
    if seen is None or seen.goal is not actions.ACTIONS[action].goal or not is_settled(seen):
        why = seen.fault if seen is not None and seen.fault else "it took too long"
        raise RetryLater(f"VM {vmid} did not {action}: {why}")
    return {"status": 1}


async def vm_list(context: Context, _arguments: Arguments, _request_id: str) -> Any:
    """All instances."""
    return {"vmids": await context.read(store.live_ids)}


async def vm_types(context: Context, _arguments: Arguments, _request_id: str) -> Any:
    """What sizes there are."""
    flavors = await context.read(store.list_flavors)
    return {"types": [
        {"tid": f.id, "cpu": f.vcpus, "ram": f.memory_mib, "disk": f.disk_gib} for f in flavors
    ]}


async def pm_list(context: Context, _arguments: Arguments, _request_id: str) -> Any:
    """All physical machines."""
    return {"pmids": [host.id for host in await context.read(ledger.list_hosts)]}


async def pm_query(context: Context, arguments: Arguments, _request_id: str) -> Any:
    """One physical machine: what can be given out, and what of it is free."""
    pmid = number(arguments, "pmid")
    host = await context.read(lambda conn: _host(conn, pmid))
    body: dict[str, Any] = {
        "pmid": host.id,
        "capacity": {
            "cpu": host.vcpus_limit, "ram": host.memory_limit_mib,
            "disk": host.disk_limit_mib // 1024,
        },
        "free": {
            "cpu": host.vcpus_limit - host.vcpus_used,
            "ram": host.memory_limit_mib - host.memory_used_mib,
            "disk": (host.disk_limit_mib - host.disk_used_mib) // 1024,
        },
        "vms": host.instances,
        "state": host.state,
        "address": host.name,
    }
    if host.error:
        body["reason"] = host.error
    return body


async def pm_listvms(context: Context, arguments: Arguments, _request_id: str) -> Any:
    """The instances on one physical machine."""
    pmid = number(arguments, "pmid")

    def read(conn: sa.Connection) -> list[int]:
        _host(conn, pmid)
        return store.ids_on_host(conn, pmid)

    return {"vmids": await context.read(read)}


def _host(conn: sa.Connection, pmid: int) -> ledger.Host:
    host = ledger.get_host(conn, pmid)
    if host is None:
        raise NotFound(f"there is no physical machine {pmid}")
    return host


async def image_list(context: Context, _arguments: Arguments, _request_id: str) -> Any:
    """The images that can be used, or soon can."""
    found = await context.read(images.list_images)
    return {"images": [
        {"id": one.id, "name": one.name} for one in found
        if one.visibility == "public" and one.state in (ImageStatus.NEW, ImageStatus.ACTIVE)
    ]}


async def no_volumes(_context: Context, _arguments: Arguments, _request_id: str) -> Any:
    """Volumes are not part of this version."""
    raise NotAvailable("this Treadle has no volume storage yet")


def _calls() -> list[CallSpec]:
    vmid, none = frozenset({"vmid"}), frozenset[str]()
    stopping = vmid | {"hard"}
    create = frozenset({"name", "instance_type", "image_id", "count", "wait"})
    volume, both = frozenset({"volumeid"}), frozenset({"vmid", "volumeid"})
    return [
        CallSpec("/vm/create", vm_create, "vmid", 0, create, changes=True),
        CallSpec("/vm/query", vm_query, "vmid", 0, vmid),
        CallSpec("/vm/destroy", vm_destroy, "status", 0, vmid, changes=True),
        *(
            CallSpec(f"/vm/{action}", partial(vm_act, action), "status", 0, takes, changes=True)
            for action, takes in (
                ("start", vmid), ("stop", stopping), ("reboot", stopping), ("pause", vmid),
                ("resume", vmid), ("suspend", vmid),
            )
        ),
        CallSpec("/vm/list", vm_list, "vmids", 0, none),
        CallSpec("/vm/types", vm_types, "types", 0, none),
        CallSpec("/pm/list", pm_list, "pmids", 0, none),
        CallSpec("/pm/listvms", pm_listvms, "vmids", 0, frozenset({"pmid"})),
        CallSpec("/pm/query", pm_query, "pmid", 0, frozenset({"pmid"})),
        CallSpec("/image/list", image_list, "images", 0, none),
        CallSpec("/volume/create", no_volumes, "volumeid", 0, frozenset({"name", "size"}),
                 changes=True),
        CallSpec("/volume/query", no_volumes, "", 0, volume),
        CallSpec("/volume/destroy", no_volumes, "status", 0, volume, changes=True),
        CallSpec("/volume/attach", no_volumes, "status", 0, both, changes=True),
        CallSpec("/volume/detach", no_volumes, "status", 0, both, changes=True),
    ]


CALLS = _calls()


# -- HTTP


async def _arguments(request: Request, spec: CallSpec, max_body: int) -> Arguments:
    pairs = _pairs(request.scope["query_string"])
    if request.method == "POST":
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_body:
                raise InvalidInput("body", f"{len(body)} bytes and more", f"at most {max_body}")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and kind not in ("application/x-www-form-urlencoded", ""):
            raise InvalidInput("Content-Type", kind, "use application/x-www-form-urlencoded")
        pairs += _pairs(bytes(body))
    arguments: dict[str, str] = {}
    for name, value in pairs:
        if name not in spec.arguments:
            known = ", ".join(sorted(spec.arguments)) or "none"
            raise InvalidInput("argument", name, f"{spec.path} takes {known}")
        if name in arguments:
            raise InvalidInput(name, value, "it is given twice")
        arguments[name] = value
    return arguments


def _pairs(text: bytes) -> list[tuple[str, str]]:
    if not text:
        return []
    try:
        return parse_qsl(
            text.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict",
            max_num_fields=20,
        )
    except ValueError as error:
        raise InvalidInput(
            "arguments", text[:60].decode("latin-1"), "write NAME=VALUE&NAME=VALUE, URL-encoded"
        ) from error


def _route(context: Context, spec: CallSpec) -> Route:
    max_body = context.settings.server.max_body_kib * 1024

    async def endpoint(request: Request) -> Response:
        request_id = f"req-{uuid.uuid4()}"
        try:
            context.check_local(request)
            if spec.changes:
                context.check_not_cross_site(request)
            arguments = await _arguments(request, spec, max_body)
            return answer(await spec.run(context, arguments, request_id))
        except ClientDisconnect:
            return answer({}, 400)
        except Exception as error:
            status = status_of(error)
            if status == 500:
                log.exception("request_failed", path=spec.path, request_id=request_id)
            return answer({**spec.failure, "error": message_of(error)}, status)

    route = Route(spec.path, endpoint, methods=["GET", "POST"] if spec.changes else ["GET"])
    if spec.changes and route.methods:
        # It comes with GET by itself, but whoever sends it expects nothing to change.
        route.methods.discard("HEAD")
    return route


def routes(context: Context) -> list[Route]:
    """The routes of this face."""
    return [_route(context, spec) for spec in CALLS]
