"""/treadle/v1: what an operator needs and no other API has a word for.

Reading and changing need the admin token of the state folder. Errors are
`{"error": {"type", "message"}}` with the status of `faults.STATUS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import sqlalchemy as sa
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from treadle.api.context import Context, answer, host_number, number
from treadle.api.failure import Evacuation, fence_body, hosts_evacuate, hosts_fence_confirmed
from treadle.api.faults import message_of, status_of
from treadle.api.moves import Migration, hosts_drain, instances_migrate, moves_show
from treadle.api.placement import (
    DryRun,
    instances_decision,
    named,
    placements_dry_run,
    record,
    scheduler_show,
)
from treadle.compute import actions, consoles, store
from treadle.compute.inventory import register_host, register_image
from treadle.compute.kinds import HOST_KIND
from treadle.compute.model import word
from treadle.controller import queue
from treadle.db.schema import orphan
from treadle.errors import Conflict, InvalidInput, NotFound
from treadle.hypervisor.base import ConsoleKind
from treadle.image import store as images
from treadle.image.sources import image_name, parse_source
from treadle.placement import ledger
from treadle.placement.ledger import Host

log = structlog.get_logger("treadle.api")
PREFIX = "/treadle/v1"
CONSOLE_BYTES = 64 * 1024

Endpoint = Callable[[Context, Request], Awaitable[Any]]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]


class NewHost(msgspec.Struct, forbid_unknown_fields=True):
    """A host to add: any libvirt URI. Its name is its address, unless another is given."""

    uri: Annotated[str, msgspec.Meta(pattern=r"\A[!-~]{3,1024}\Z")]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None


class NewImage(msgspec.Struct, forbid_unknown_fields=True):
    """An image to add: a path, USER@ADDRESS:/path or a URL."""

    source: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None


class NewConsole(msgspec.Struct, forbid_unknown_fields=True):
    """A console to get at: "serial" or "vnc"."""

    kind: ConsoleKind = ConsoleKind.SERIAL


class NewFlavor(msgspec.Struct, forbid_unknown_fields=True):
    """A flavor to add. Memory in MiB, disk in GiB."""

    vcpus: Size
    memory_mib: Size
    disk_gib: Size
    id: Size | None = None


def _printable(text: str, field: str = "name") -> str:
    """A text that can be shown in one line. Errors: `InvalidInput`."""
    if not text.isprintable():
        raise InvalidInput(field, text, "use printable characters only")
    return text


def host_body(host: Host) -> dict[str, Any]:
    """A host for people who run it. Memory and disk in MiB."""
    facts = None
    if host.facts is not None:
        facts = asdict(host.facts) | {
            "capabilities": sorted(host.facts.capabilities),
            "cells": [cell._asdict() for cell in host.facts.cells],
        }
    return {
        "id": host.id, "uri": host.uri, "name": host.name, "state": host.state,
        "error": host.error, "note": host.note, "virt_type": host.virt_type,
        "instances": host.instances, "seen_at": host.seen_at,
        "vcpus": {"limit": host.vcpus_limit, "used": host.vcpus_used},
        "memory_mib": {"limit": host.memory_limit_mib, "used": host.memory_used_mib},
        "disk_mib": {"limit": host.disk_limit_mib, "used": host.disk_used_mib},
        "numa": [{
            "id": cell.id,
            "vcpus": {"limit": cell.vcpus_limit, "used": cell.vcpus_used},
            "memory_mib": {"limit": cell.memory_limit_mib, "used": cell.memory_used_mib},
        } for cell in host.cells],
        "facts": facts, "fence": fence_body(host),
    }


async def hosts_list(context: Context, _request: Request) -> Any:
    """All hosts."""
    return {"hosts": [host_body(host) for host in await context.read(ledger.list_hosts)]}


async def hosts_add(context: Context, request: Request) -> Any:
    """Register a host; it is reached in the background."""
    wanted = await context.body(request, NewHost)
    try:
        context.driver(wanted.uri).close()
        address = urlsplit(wanted.uri).hostname or "localhost"
    except ValueError as error:
        raise InvalidInput("uri", wanted.uri, "it is not a URI") from error
    name = _printable(wanted.name or address)

    def add(conn: sa.Connection) -> Host | None:
        id = register_host(
            conn, context.settings.host_defaults, wanted.uri, name
        )
        return ledger.get_host(conn, id)

    host = await context.write(add)
    assert host is not None
    return host_body(host)


async def hosts_show(context: Context, request: Request) -> Any:
    """One host."""
    id = host_number(request)
    host = await context.read(lambda conn: ledger.get_host(conn, id))
    if host is None:
        raise NotFound(f"there is no host {id}")
    return host_body(host)


async def hosts_remove(context: Context, request: Request) -> Any:
    """Forget an empty host."""
    id = host_number(request)

    def remove(conn: sa.Connection) -> None:
        if ledger.get_host(conn, id) is None:
            raise NotFound(f"there is no host {id}")
        if not ledger.remove_host(conn, id):
            raise Conflict(f"host {id} has instances: destroy them first")
        queue.enqueue(conn, HOST_KIND, str(id), lane=id)

    await context.write(remove)
    return {}


class Disabling(msgspec.Struct, forbid_unknown_fields=True):
    """Why a host is disabled, for people."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None


async def hosts_disable(context: Context, request: Request) -> Any:
    """Place nothing more on the host; what runs there goes on."""
    id = host_number(request)
    reason = (await context.body(request, Disabling)).reason
    if reason is not None:
        _printable(reason, "reason")
    return await _switched(context, id, lambda conn: ledger.disable_host(conn, id, reason))


async def hosts_enable(context: Context, request: Request) -> Any:
    """Place on the host again."""
    id = host_number(request)
    return await _switched(context, id, lambda conn: ledger.enable_host(conn, id))


async def _switched(context: Context, id: int, switch: Callable[[sa.Connection], None]) -> Any:
    def change(conn: sa.Connection) -> Host | None:
        switch(conn)
        return ledger.get_host(conn, id)

    host = await context.write(change)
    if host is None:
        raise NotFound(f"there is no host {id}")
    return host_body(host)


async def images_list(context: Context, _request: Request) -> Any:
    """All images."""
    return {"images": [asdict(one) for one in await context.read(images.list_images)]}


async def images_add(context: Context, request: Request) -> Any:
    """Register an image; it is read in the background."""
    wanted = await context.body(request, NewImage)
    source = parse_source(wanted.source)
    name = _printable(wanted.name or image_name(source))

    def add(conn: sa.Connection) -> images.Image | None:
        return images.get(conn, register_image(conn, wanted.source, name))

    image = await context.write(add)
    assert image is not None
    return asdict(image)


async def flavors_list(context: Context, _request: Request) -> Any:
    """All flavors."""
    return {"flavors": [asdict(one) for one in await context.read(store.list_flavors)]}


async def flavors_add(context: Context, request: Request) -> Any:
    """Offer a flavor."""
    wanted = await context.body(request, NewFlavor)

    def add(conn: sa.Connection) -> store.Flavor:
        id = wanted.id or store.next_flavor_id(conn)
        if wanted.id is not None and store.get_flavor(conn, id) is not None:
            raise Conflict(f"there is a flavor {id}: leave the id out, or choose another")
        flavor = store.Flavor(id, wanted.vcpus, wanted.memory_mib, wanted.disk_gib)
        store.put_flavor(conn, flavor)
        return flavor

    return asdict(await context.write(add))


async def instances_show(context: Context, request: Request) -> Any:
    """One instance with its action log, deleted ones too."""
    name = request.path_params["id"]

    def read(conn: sa.Connection) -> dict[str, Any]:
        instance = named(conn, name)
        return {
            "id": instance.id, "uuid": instance.uuid, "name": instance.name,
            "state": word(instance), "fault": instance.fault,
            "host": instance.host_id, "address": instance.address, "image": instance.image_id,
            "flavor": {
                "id": instance.flavor_id, "vcpus": instance.vcpus,
                "memory_mib": instance.memory_mib, "disk_gib": instance.disk_gib,
            },
            "created_at": instance.created_at, "launched_at": instance.launched_at,
            "deleted_at": instance.deleted_at, "actions": store.actions(conn, instance.id),
        }

    return await context.read(read)


async def instances_console(context: Context, request: Request) -> Any:
    """The end of what the guest printed on its serial port, as it is."""
    place = await _place(context, number(request))
    text = await asyncio.to_thread(
        consoles.console_bytes, context.fleet, place, CONSOLE_BYTES
    )
    return Response(text, media_type="application/octet-stream")


async def _place(context: Context, id: int) -> consoles.Place:
    """Where an instance is. Errors: `NotFound`, `Conflict`."""
    def read(conn: sa.Connection) -> consoles.Place:
        found = consoles.place_of(conn, actions.require(conn, id).uuid)
        if found is None:
            raise Conflict(f"instance {id} is on no host yet")
        return found

    return await context.read(read)


async def instances_open_console(context: Context, request: Request) -> Any:
    """A token for the instance's console: for one client, once, to be shown at the WebSocket."""
    id = number(request)
    wanted = await context.body(request, NewConsole)
    seconds = context.settings.console.token_s
    opened = await context.write(lambda conn: consoles.open_console(
        conn, actions.require(conn, id), wanted.kind, seconds
    ))
    return {
        "kind": opened.kind, "token": opened.token, "socket": opened.socket, "page": opened.page,
        "seconds": seconds,
    }


async def instances_diagnostics(context: Context, request: Request) -> Any:
    """What the instance's guest uses now, as its host counts it."""
    place = await _place(context, number(request))
    return asdict(await asyncio.to_thread(consoles.diagnostics, context.fleet, place))


async def orphans_list(context: Context, _request: Request) -> Any:
    """Domains on our hosts with Treadle's mark that no row knows. They are never touched."""
    rows = await context.read(lambda conn: conn.execute(sa.select(orphan)).all())
    return {"orphans": [dict(row._mapping) for row in rows]}


ROUTES: tuple[tuple[str, str, Endpoint, int], ...] = (
    ("GET", "/hosts", hosts_list, 200),
    ("POST", "/hosts", hosts_add, 201),
    ("GET", "/hosts/{id}", hosts_show, 200),
    ("DELETE", "/hosts/{id}", hosts_remove, 200),
    ("POST", "/hosts/{id}/disable", hosts_disable, 200),
    ("POST", "/hosts/{id}/enable", hosts_enable, 200),
    ("GET", "/hosts/{id}/drain", hosts_drain, 200),
    ("POST", "/hosts/{id}/fence-confirmed", hosts_fence_confirmed, 202),
    ("POST", "/hosts/{id}/evacuate", hosts_evacuate, 202),
    ("GET", "/images", images_list, 200),
    ("POST", "/images", images_add, 201),
    ("GET", "/flavors", flavors_list, 200),
    ("POST", "/flavors", flavors_add, 201),
    ("GET", "/instances/{id}", instances_show, 200),
    ("GET", "/instances/{id}/decision", instances_decision, 200),
    ("GET", "/instances/{id}/console", instances_console, 200),
    ("POST", "/instances/{id}/console", instances_open_console, 201),
    ("GET", "/instances/{id}/diagnostics", instances_diagnostics, 200),
    ("GET", "/orphans", orphans_list, 200),
    ("POST", "/instances/{id}/migrate", instances_migrate, 202),
    ("GET", "/moves/{id}", moves_show, 200),
    ("POST", "/placements:dry-run", placements_dry_run, 200),
    ("GET", "/record", record, 200),
    ("GET", "/scheduler", scheduler_show, 200),
)
BODIES: dict[tuple[str, str], type[Any]] = {
    ("POST", "/hosts"): NewHost, ("POST", "/images"): NewImage, ("POST", "/flavors"): NewFlavor,
    ("POST", "/instances/{id}/console"): NewConsole,
    ("POST", "/instances/{id}/migrate"): Migration,
    ("POST", "/hosts/{id}/disable"): Disabling,
    ("POST", "/hosts/{id}/evacuate"): Evacuation,
    ("POST", "/placements:dry-run"): DryRun,
}
"""What the calls that take a body take, for the OpenAPI document."""

CHECK_THEMSELVES: frozenset[Endpoint] = frozenset({placements_dry_run, instances_decision})
"""What projects may ask too."""


def _route(context: Context, method: str, path: str, run: Endpoint, status: int) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            if run not in CHECK_THEMSELVES:
                context.check_admin(request)
            made = await run(context, request)
            return made if isinstance(made, Response) else answer(made, status)
        except ClientDisconnect:
            return answer({}, 400)
        except Exception as error:
            code = status_of(error)
            kind = type(error).__name__ if code != 500 else "InternalError"
            if code == 500:
                log.exception("request_failed", path=path)
            return answer({"error": {"type": kind, "message": message_of(error)}}, code)

    return Route(PREFIX + path, endpoint, methods=[method])


def routes(context: Context) -> list[Route]:
    """The routes of this face."""
    return [_route(context, *row) for row in ROUTES]
