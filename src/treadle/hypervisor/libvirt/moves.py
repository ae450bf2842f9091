"""Moving a running guest from one host to another, through libvirt's migration.

The controller holds a connection to each side and leads the move (libvirt's "managed direct"
migration), so that hosts need no access to each other's libvirt: the emulators alone talk to one
another. Both connections are the move's own: a move that hangs on a shared one held up everything
else on it. When a connection breaks, both daemons undo what they had begun.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import libvirt

from treadle.hypervisor.base import HostRefused, MoveOptions, MoveProgress, Unsupported
from treadle.hypervisor.libvirt.connection import (
    Attempt,
    Connection,
    LibvirtOptions,
    Link,
    as_value,
)

Find = Callable[[Link, Attempt], Any]

FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
)
NO_JOB = libvirt.VIR_ERR_OPERATION_INVALID


def move(
    source: tuple[str, LibvirtOptions, Find], target: tuple[str, LibvirtOptions],
    options: MoveOptions, *, whole: bool,
) -> None:
    """Lead the move; `whole`: the target's disk is empty, so all of it is sent."""
    source_uri, source_options, find = source
    target_uri, target_options = target
    here, there = Connection(source_uri, source_options), Connection(target_uri, target_options)

    def at_target(link: Link, attempt: Attempt) -> None:
        def at_source(home: Link, inner: Attempt) -> None:
            if home.kind != "QEMU" or link.kind != "QEMU":
                raise Unsupported("only QEMU guests can be moved while they run")
            domain = find(home, inner)
            inner(domain.migrate3, link.conn, parameters(target_uri, options),
                  flags(options, whole=whole))

        here.run("move", attempt.left(), at_source)

    try:
        there.run("move", options.seconds, at_target)
    finally:
        here.close()
        there.close()


def flags(options: MoveOptions, *, whole: bool) -> int:
    """What libvirt is told of how to move."""
    found = FLAGS
    found |= libvirt.VIR_MIGRATE_NON_SHARED_DISK if whole else libvirt.VIR_MIGRATE_NON_SHARED_INC
    if options.auto_converge:
        found |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if options.post_copy:
        found |= libvirt.VIR_MIGRATE_POSTCOPY
    return int(found)


def parameters(target_uri: str, options: MoveOptions) -> dict[str, Any]:
    """The rest of what libvirt is told: where the emulators meet, and how fast.

    The target is named as the controller knows it: its own name for itself need not be known to
    the source.
    """
    host = urlsplit(target_uri).hostname
    if not host:
        raise HostRefused("the target has no address that other hosts can reach")
    named = f"[{host}]" if ":" in host else host
    found: dict[str, Any] = {libvirt.VIR_MIGRATE_PARAM_URI: f"tcp:{named}"}
    if options.bandwidth_mib_s:
        found[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = options.bandwidth_mib_s
    # The seed and the serial port's log are not the guest's to write: its disk alone is sent.
    found[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = ["vda"]
    return found


def progress(attempt: Attempt, domain: Any) -> MoveProgress | None:
    """How far it is."""
    stats = as_value(attempt, domain.jobStats, 0, missing=NO_JOB)
    if not stats or stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return None
    return MoveProgress(
        *(int(stats.get(f"{kind}_{what}", 0)) for kind in ("memory", "disk")
          for what in ("total", "processed", "remaining"))
    )


def abort(attempt: Attempt, domain: Any) -> None:
    """End it; none is success."""
    as_value(attempt, domain.abortJob, missing=NO_JOB)
