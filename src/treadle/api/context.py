"""What every face is given: the database, the hints, the settings."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from treadle.compute import store
from treadle.compute.fleet import Fleet
from treadle.compute.kinds import KIND
from treadle.compute.model import Goal, Instance, State
from treadle.config import Settings
from treadle.controller.signals import Signals
from treadle.db.engine import Database
from treadle.errors import Forbidden, InvalidInput, NotFound
from treadle.hypervisor.base import DriverFactory
from treadle.identity.login import Login
from treadle.identity.rules import Rules
from treadle.identity.tokens import Tokens
from treadle.identity.vault import Vault
from treadle.image.actions import Limits
from treadle.image.contents import Contents
from treadle.image.guard import Guard
from treadle.scheduler.engine import Scheduler

T = TypeVar("T")
B = TypeVar("B", bound=msgspec.Struct)

LOOK_ANYWAY_S = 0.5
HOST = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,255}")
_encode = msgspec.json.Encoder().encode


@dataclass
class Context:
    """Shared by all requests. `driver` makes a driver only to check that a URI can be taken;
    `fleet` is for consoles, counters and agents, never for changing what is wanted."""

    database: Database
    signals: Signals
    settings: Settings
    driver: DriverFactory
    fleet: Fleet
    admin_token: str
    tokens: Tokens
    rules: Rules
    login: Login
    scheduler: Scheduler
    contents: Contents
    vault: Vault
    roots: frozenset[str] = field(init=False, default=frozenset())
    """Paths at which OpenStack's services are served; `make_app` says so."""
    networks: tuple[Any, ...] = field(init=False)
    _shared: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.networks = tuple(
            ipaddress.ip_network(text) for text in self.settings.server.classic_networks
        )

    def shared(self, kind: Callable[[Database], T]) -> T:
        """The one `kind(database)` of this process: what requests keep for those that follow."""
        if kind not in self._shared:
            self._shared[kind] = kind(self.database)
        made: T = self._shared[kind]
        return made

    @cached_property
    def guard(self) -> Guard:
        """Where users' URLs may lead."""
        wanted = self.settings.image
        return Guard(tuple(map(ipaddress.ip_network, wanted.import_networks)), wanted.import_ports)

    @cached_property
    def image_limits(self) -> Limits:
        """What a project may have of images."""
        wanted = self.settings.image
        return Limits(wanted.project_images, wanted.project_gib << 30)

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """A read on a reader thread."""
        return await asyncio.wrap_future(self.database.submit_read(work))

    async def glance(self, work: Callable[[sa.Connection], T]) -> T:
        """A read of a few rows by their key."""
        found = self.database.glance(work)
        return found.result() if found.done() else await asyncio.wrap_future(found)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """A transaction; wakes the dispatcher once it is durable."""
        value = await asyncio.wrap_future(self.database.submit(work))
        self.signals.work_is_due()
        return value

    async def settled(
        self, uuid: str, done: Callable[[Instance], bool], seconds: float, *,
        just_asked: bool = False,
    ) -> Instance | None:
        """Wait until `done` holds of the instance; what it is then, or at the end of the time.

        `just_asked`: it cannot hold yet, so the first look is spared.
        """
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def hint() -> None:
            loop.call_soon_threadsafe(changed.set)

        undo = self.signals.listen((KIND, uuid), hint)
        end = loop.time() + seconds
        try:
            while True:
                left = end - loop.time()
                if not just_asked:
                    instance = await self.glance(lambda conn: store.by_uuid(conn, uuid))
                    if instance is None or done(instance) or left <= 0:
                        return instance
                just_asked = False
                try:
                    # Another process may do it: no hint comes from there.
                    await asyncio.wait_for(changed.wait(), min(LOOK_ANYWAY_S, max(left, 0.0)))
                    changed.clear()
                except TimeoutError:
                    continue
        finally:
            undo()

    def base(self, request: Request) -> str:
        """The address under which the caller reaches this process, without a path."""
        if self.settings.server.public_url:
            return self.settings.server.public_url
        host = request.headers.get("host", "")
        if not HOST.fullmatch(host):
            server = request.scope.get("server") or ("localhost", None)
            host = server[0] if server[1] is None else f"{server[0]}:{server[1]}"
        return f"{request.scope['scheme']}://{host}"

    async def body(self, request: Request, kind: type[B]) -> B:
        """The request's JSON as `kind`. Errors: `InvalidInput`."""
        most = self.settings.server.max_body_kib * 1024
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise InvalidInput("body", f"{len(body)} bytes and more", f"at most {most}")
        try:
            return msgspec.json.decode(bytes(body), type=kind)
        except msgspec.MsgspecError as error:
            raise InvalidInput("body", bytes(body[:60]).decode("latin-1"), str(error)) from error

    # -- who may call

    @cached_property
    def own_names(self) -> frozenset[str]:
        """Names under which this machine may be addressed, in lower case."""
        host = socket.gethostname().lower()
        return frozenset({"localhost", host, *(n.lower() for n in self.settings.server.names)})

    def check_local(self, request: Request) -> None:
        """Let only callers from the settings' networks pass. Errors: `Forbidden`."""
        client = request.client.host if request.client else ""
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError as error:
            raise Forbidden("this API answers callers with an IP address only") from error
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if not any(address in network for network in self.networks):
            raise Forbidden(
                "this API answers callers from this machine only: add your network to "
                "server.classic_networks in the settings"
            )

    def check_not_cross_site(self, request: HTTPConnection) -> None:
        """Refuse what a web page of another origin caused. Errors: `Forbidden`."""
        headers = request.headers
        host = headers.get("host", "")
        name = host_name(host)
        if name not in self.own_names and not is_address(name):
            raise Forbidden(
                "the Host header names another machine: add the name to server.names in the "
                "settings if it is this one"
            )
        site = headers.get("sec-fetch-site", "none")
        origin = headers.get("origin")
        foreign = origin is not None and origin.lower() not in (
            f"http://{host.lower()}", f"https://{host.lower()}"
        )
        if foreign or site not in ("none", "same-origin"):
            raise Forbidden("a web page of another site may not do this")

    def check_admin(self, request: Request) -> None:
        """Let only the holder of the admin token pass. Errors: `Forbidden`."""
        given = request.headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {self.admin_token}".encode()):
            raise Forbidden(
                "this needs the header 'Authorization: Bearer TOKEN' with what is in the file "
                "admin-token of the state folder"
            )


def number(request: Request, most: int = 10**18 - 1) -> int:
    """The small number in the path. Errors: `NotFound`."""
    text = request.path_params["id"]
    if not (text.isascii() and text.isdecimal()) or len(text) > 18 or int(text) > most:
        raise NotFound(f"there is nothing named {text[:40]!r} here")
    return int(text)


def host_number(request: Request) -> int:
    """The number of a host in the path. Errors: `NotFound`."""
    return number(request, 2**31 - 1)


def host_name(header: str) -> str:
    """The name in a Host header, in lower case, without port and brackets."""
    text = header.lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def is_address(name: str) -> bool:
    """Whether it is an IP address: no DNS record can be turned to point at it."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def built(instance: Instance) -> bool:
    """Whether a build has ended, well or not."""
    return instance.state is not State.BUILDING or instance.goal is not Goal.RUNNING


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON."""
    return Response(_encode(body), status, headers, media_type="application/json")
