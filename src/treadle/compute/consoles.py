"""Who may get at a guest: tokens that let one client in, once, to one kind of console.

And what is asked of a running guest without changing what is wanted of it: its log, its counters,
its agent. Those call the host, so never from within a transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import sqlalchemy as sa

from treadle.compute import console_store, store
from treadle.compute.fleet import Fleet, call
from treadle.compute.model import Goal, Instance, State, word
from treadle.errors import Conflict, InvalidInput
from treadle.hypervisor.base import (
    AgentFailed,
    ConsoleKind,
    ConsoleLine,
    GuestStats,
    HostRefused,
    Unsupported,
)
from treadle.placement import ledger

TOKEN_BYTES = 32
LOG_BYTES = 100 * 1024
CAPABILITY: Mapping[ConsoleKind, str] = {
    ConsoleKind.SERIAL: "serial_console", ConsoleKind.VNC: "vnc_console",
}
LIVE = frozenset({State.RUNNING, State.PAUSED})


class NoSuchConsole(InvalidInput):
    """The instance's host has no console of that kind."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A console that may now be connected to: once, with this token."""

    kind: ConsoleKind
    token: str

    @property
    def socket(self) -> str:
        """Path and query of its WebSocket."""
        return f"/console/{self.kind}?token={self.token}"

    @property
    def page(self) -> str:
        """Path and query of its page, which noVNC's `path` tells where its WebSocket is."""
        return f"/console/{self.kind}.html?path={quote(self.socket.lstrip('/'), safe='')}"

    def url(self, base: str) -> str:
        """What OpenStack's clients are given: a page for noVNC, a WebSocket for a serial console.

        `base` is the address of this process as the caller sees it, without a path.
        """
        if self.kind is ConsoleKind.VNC:
            return base + self.page
        return "ws" + base.removeprefix("http") + self.socket


@dataclass(frozen=True, slots=True)
class Place:
    """Where a guest is."""

    uuid: str
    host_id: int
    host_uri: str


def open_console(
    conn: sa.Connection, instance: Instance, kind: ConsoleKind, seconds: float
) -> Opened:
    """Make a token that is good for `seconds`. Errors: `Conflict` where the instance does not run;
    `NoSuchConsole` where its host has none."""
    if instance.state not in LIVE or instance.host_id is None or instance.goal is Goal.DELETED:
        raise Conflict(f"instance {instance.uuid} is {word(instance)}: it has a console once it "
                       "runs")
    host = ledger.get_host(conn, instance.host_id)
    facts = None if host is None else host.facts
    if facts is None or CAPABILITY[kind] not in facts.capabilities:
        name = "unknown" if facts is None else facts.hypervisor
        raise NoSuchConsole(
            "type", str(kind), f"the host's hypervisor ({name}) has no {CAPABILITY[kind]}"
        )
    token = secrets.token_urlsafe(TOKEN_BYTES)
    console_store.put(conn, token, instance.uuid, instance.host_id, kind, seconds)
    return Opened(kind, token)


def redeem(conn: sa.Connection, token: str, kind: ConsoleKind) -> Place | None:
    """Where the token leads, once; None where it is none, used, too old or of another kind, or its
    instance is no longer there."""
    taken = console_store.take(conn, token, kind)
    if taken is None:
        return None
    uuid, host_id = taken
    found = place_of(conn, uuid)
    return found if found is not None and found.host_id == host_id else None


def place_of(conn: sa.Connection, uuid: str) -> Place | None:
    """Where an instance is; None where it is on no host, or is to be deleted."""
    instance = store.by_uuid(conn, uuid)
    if instance is None or instance.host_id is None or instance.goal is Goal.DELETED:
        return None
    host = ledger.get_host(conn, instance.host_id)
    return None if host is None else Place(uuid, host.id, host.uri)


def connect(fleet: Fleet, place: Place, kind: ConsoleKind) -> ConsoleLine:
    """Open it on the host. Errors: the driver's."""
    driver = fleet.driver(place.host_id, place.host_uri)
    line: ConsoleLine = call(driver, "open_console", place.uuid, kind)
    return line


def console_bytes(fleet: Fleet, place: Place, limit: int) -> bytes:
    """At most the last `limit` bytes that the guest printed. Errors: as of `console_log`."""
    driver = fleet.driver(place.host_id, place.host_uri)
    try:
        data: bytes = call(driver, "console_log", place.uuid, limit)
    except Unsupported as error:
        raise Conflict(f"there is no log of the console: {error}") from error
    return data


def console_log(fleet: Fleet, place: Place, lines: int | None = None) -> str:
    """The end of what the guest printed: at most so many lines, at most 100 KiB.

    Errors: `Conflict` where its host keeps no log.
    """
    text = console_bytes(fleet, place, LOG_BYTES).decode("utf-8", "replace")
    if lines is None:
        return text
    return "\n".join(text.split("\n")[-lines:]) if lines > 0 else ""


def diagnostics(fleet: Fleet, place: Place) -> GuestStats:
    """What the guest uses now. Errors: `Conflict` where its host does not count."""
    try:
        stats: GuestStats = call(
            fleet.driver(place.host_id, place.host_uri), "diagnostics", place.uuid
        )
    except Unsupported as error:
        raise Conflict(f"the host has no diagnostics: {error}") from error
    return stats


def set_password(fleet: Fleet, place: Place, user: str, password: str) -> None:
    """Have the guest's agent set it. Errors: `Conflict` where it has none that answers."""
    try:
        call(
            fleet.driver(place.host_id, place.host_uri), "set_password", place.uuid, user, password
        )
    except (AgentFailed, Unsupported) as error:
        raise Conflict(f"the password cannot be set: {error}") from error
    except HostRefused as error:
        raise Conflict(f"instance {place.uuid} is not there to be told: {error}") from error
