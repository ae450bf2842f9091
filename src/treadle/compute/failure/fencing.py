"""Switching a host off for sure, by a plug-in: its two copies would else be a matter of luck.

A plug-in is a class that an entry point of the group `treadle.fences` names; it is made with the
settings' section `fencing`. `off` returns once the host *is* off, and raises in every other case.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import sqlalchemy as sa
import structlog

from treadle.compute.failure import actions as failure
from treadle.compute.store import Step
from treadle.controller import queue
from treadle.controller.queue import Ticket
from treadle.controller.worker import backoff
from treadle.db.engine import Database
from treadle.errors import InvalidInput, RetryLater
from treadle.placement import fences, ledger
from treadle.placement.ledger import Fence, HostStatus
from treadle.sections import Fencing

log = structlog.get_logger("treadle.failure")

GROUP = "treadle.fences"
KIND = "fence"
NONE = "none"
LOOK_S = 0.5
AGAIN_S = 60.0
VALID_S = 15.0
"""How long a wish to switch a host off holds. Later, where another has taken over from a controller
that died, the host may be back: who watches it asks anew."""


class FenceFailed(RetryLater):
    """The host is not known to be off."""


@dataclass(frozen=True, slots=True)
class Target:
    """The host to switch off. `address`: the host part of its URI."""

    id: int
    name: str
    address: str
    uri: str

    def fill(self, template: str) -> str:
        """The template with {id}, {name}, {address} and {uri} filled in. Errors: `FenceFailed`
        where a program would take it for an option."""
        filled = template
        for key in ("id", "name", "address", "uri"):
            filled = filled.replace(f"{{{key}}}", str(getattr(self, key)))
        if filled.startswith("-") and not template.startswith("-"):
            raise FenceFailed(f"{filled!r} looks like an option: give the host another name")
        return filled


class Plugin(Protocol):
    """What a fence is."""

    def off(self, target: Target, seconds: float) -> None:
        """Switch the host off, within `seconds`; that it is off already is success. Called again
        after a crash. Errors: `FenceFailed`, or any other, where it is not known to be off."""


class Command:
    """`fencing.command`: a program that ends with 0 once the host is off. No shell."""

    def __init__(self, settings: Fencing) -> None:
        if not settings.command:
            raise InvalidInput("fencing.command", settings.command, "name the program")
        self._command = settings.command

    def off(self, target: Target, seconds: float) -> None:
        run([target.fill(part) for part in self._command], seconds)


class Ipmi:
    """The host's management controller, through ipmitool. Of `fencing.options`: `address` (may have
    {name} and the like in it) or `address.HOST` for one host, `user`, `password_file`, and, where
    they are not ipmitool's own, `port` and `cipher` (the number of a suite: without one ipmitool
    asks which there are, for 10 s where nothing is answered)."""

    def __init__(self, settings: Fencing) -> None:
        self._options: Mapping[str, str] = settings.options
        for needed in ("user", "password_file"):
            if needed not in self._options:
                raise InvalidInput("fencing.options", sorted(self._options), f"{needed} is missing")

    def off(self, target: Target, seconds: float) -> None:
        end = time.monotonic() + seconds
        refused: FenceFailed | None = None
        try:
            self._ask(target, seconds, "off")
        except FenceFailed as error:
            refused = error  # as some do of a machine that is off
        while "is off" not in self._ask(target, end - time.monotonic(), "status"):
            if refused is not None:
                raise refused
            if time.monotonic() + LOOK_S > end:
                raise FenceFailed(f"{target.name} was told to be off and is not")
            time.sleep(LOOK_S)

    def _ask(self, target: Target, seconds: float, what: str) -> str:
        address = self._options.get(f"address.{target.name}", self._options.get("address", ""))
        if not address:
            raise FenceFailed(f"fencing.options say no address of {target.name}'s controller")
        given = {"-p": self._options.get("port"), "-C": self._options.get("cipher")}
        return run([
            self._options.get("program", "ipmitool"), "-I", "lanplus", "-H", target.fill(address),
            "-U", self._options["user"], "-f", self._options["password_file"],
            *(part for flag, value in given.items() if value for part in (flag, value)),
            "chassis", "power", what,
        ], seconds)


def run(argv: Sequence[str], seconds: float) -> str:
    """What a program prints that ends well within `seconds`. Errors: `FenceFailed`."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=max(0.1, seconds), check=False,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise FenceFailed(f"{argv[0]} did not end within {seconds:g} s") from error
    except OSError as error:
        raise FenceFailed(f"{argv[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise FenceFailed(f"{argv[0]} failed ({done.returncode}): {said[:200]}")
    return done.stdout


def load(settings: Fencing) -> Plugin | None:
    """The plug-in that the settings name; None for "none". Errors: `InvalidInput`."""
    if settings.plugin == NONE:
        return None
    known = {point.name: point for point in entry_points(group=GROUP)}
    if settings.plugin not in known:
        names = ", ".join(sorted({NONE, *known}))
        raise InvalidInput("fencing.plugin", settings.plugin, f"known are {names}")
    made: Plugin = known[settings.plugin].load()(settings)
    return made


class FenceHandler:
    """Makes passes over hosts that are to be switched off.

    That one is off is durable before anything is built elsewhere; both are one commit.
    """

    def __init__(
        self, database: Database, plugin: Plugin | None, name: str, seconds: float,
        evacuates: bool,
    ) -> None:
        """`name` is the plug-in's, `seconds` what one attempt may take; `evacuates` as in
        `reconciler.Timing`."""
        self._db = database
        self._plugin = plugin
        self._name = name
        self._seconds = seconds
        self._evacuates = evacuates

    def run(self, ticket: Ticket) -> Ticket | None:
        """One attempt."""
        host = self._db.read(lambda conn: ledger.get_host(conn, int(ticket.id)))
        wanted = host is not None and host.fence is Fence.ASKED
        if host is None or self._plugin is None or not wanted or host.status is HostStatus.UP:
            self._db.write(lambda conn: queue.complete(conn, ticket))
            return None
        if ticket.now - (host.fenced_at or 0.0) > VALID_S:
            self._db.write(lambda conn: self._withdraw(conn, ticket, host.id))
            return None
        started = time.time()
        target = Target(host.id, host.name, address_of(host.uri), host.uri)
        try:
            self._plugin.off(target, self._seconds)
        except Exception as error:  # noqa: BLE001 - a plug-in may raise what it likes
            self._failed(ticket, target, error)
            return None
        self._db.write(lambda conn: self._is_off(conn, ticket, target, Step(
            "fence", target.id, started, time.time(), "ok", f"by {self._name}",
        )))
        log.warning("host_fenced", host=target.name, by=self._name)
        return None

    @staticmethod
    def _withdraw(conn: sa.Connection, ticket: Ticket, host_id: int) -> None:
        queue.complete(conn, ticket)
        fences.withdraw(conn, host_id)

    def _is_off(self, conn: sa.Connection, ticket: Ticket, target: Target, step: Step) -> None:
        queue.remove(conn, ticket)
        if fences.off(conn, target.id, f"{self._name} has switched it off"):
            failure.evacuate_host(
                conn, target.id, evacuates=self._evacuates, request_id=f"req-{uuid4()}",
                fence=step,
            )

    def _failed(self, ticket: Ticket, target: Target, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        log.warning("fence_failed", host=target.name, by=self._name, reason=reason)

        def again(conn: sa.Connection) -> None:
            queue.finish(
                conn, ticket, delay=backoff(ticket.tries, first=1.0, most=AGAIN_S), error=reason
            )
            fences.remark(conn, target.id, f"{self._name} cannot switch it off: {reason}")

        self._db.write(again)


def address_of(uri: str) -> str:
    """The host part of a URI, "" where it has none."""
    return urlsplit(uri).hostname or ""

