"""Moving a running guest from one host to another, through libvirt's migration.

The controller holds a connection to each side and leads the move (libvirt's "managed direct"
migration), so that hosts need no access to each other's libvirt: the emulators alone talk to one
another. Both connections are those of moves alone, a few of which share one: one that hangs would
hold up everything else on it. When a connection breaks, its daemon undoes what it had begun; the
other one is told.
"""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import libvirt

from treadle.errors import TreadleError
from treadle.hypervisor.base import (
    HostRefused,
    HostUnreachable,
    MoveOptions,
    MoveProgress,
    Unsupported,
    VerbTimeout,
)
from treadle.hypervisor.libvirt.connection import (
    Attempt,
    Link,
    Spares,
    as_value,
)
from treadle.hypervisor.libvirt.copies import own_disk
from treadle.hypervisor.libvirt.domain_xml import NAMESPACE, PREFIX

Find = Callable[[Link, Attempt], Any]

WHOLLY = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
)
FLAGS = WHOLLY | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
RESUME = WHOLLY | libvirt.VIR_MIGRATE_POSTCOPY | libvirt.VIR_MIGRATE_POSTCOPY_RESUME
WATCH_S = 0.5
NO_JOB = libvirt.VIR_ERR_OPERATION_INVALID


def move(
    source: tuple[Spares, Find], target: tuple[Spares, str], options: MoveOptions, *,
    whole: bool = False, again: bool = False,
) -> None:
    """Lead the move; `whole`: the target's disk is empty, so all of it is sent. `again`: it was
    broken off when the guest had gone on at the target; only memory is left to be sent.

    Errors: `HostUnreachable` where the target is lost on the way.
    """
    (near, find), (distant, target_uri) = source, target
    under_way: list[tuple[Any, Link]] = []
    over = threading.Event()

    def at_source(home: Link, attempt: Attempt) -> None:
        domain = find(home, attempt)
        far = there.run("move", attempt.left(), lambda link, _attempt: link)
        # Until libvirt has come back, though nobody waits any more: it works with both.
        with there.in_use(far):
            if home.kind != "QEMU" or far.kind != "QEMU":
                raise Unsupported("only QEMU guests can be moved while they run")
            under_way.append((domain, far))
            try:
                told = parameters(target_uri, options, disk=not (options.shared or again))
                if whole:
                    told |= definitions_of_one(attempt, domain)
                how = RESUME if again else flags(options, whole=whole)
                attempt(domain.migrate3, far.conn, told, how)
            except libvirt.libvirtError as error:
                if far.alive():
                    raise
                raise HostUnreachable("move: the target was lost on the way") from error

    def watch() -> None:
        """A guest that is sent to a host that is gone would be sent for ever."""
        while not over.wait(WATCH_S):
            if under_way and not under_way[0][1].alive():
                _abort(under_way[0][0])
                return

    def reach() -> None:
        """Open the way to the target while that to the source is being opened."""
        with suppress(TreadleError):
            there.run("move", options.seconds, lambda _link, _attempt: None)

    with near.borrowed() as here, distant.borrowed() as there:
        for work in (watch, reach):
            threading.Thread(target=work, name="move-help", daemon=True).start()
        try:
            here.run("move", options.seconds, at_source)
        except VerbTimeout:
            if under_way:
                _abort(under_way[0][0])
            raise
        finally:
            over.set()


def _abort(domain: Any) -> None:
    with suppress(libvirt.libvirtError):  # there is none any more, or its host is gone as well
        domain.abortJob()


def flags(options: MoveOptions, *, whole: bool) -> int:
    """What libvirt is told of how to move."""
    found = FLAGS
    if options.shared:
        # libvirt goes by the kind of file system; here both hosts were seen to have the same file.
        # At the target, QEMU (4.0 and later) drops what it has cached of a disk.
        found |= libvirt.VIR_MIGRATE_UNSAFE
    elif whole:
        found |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
    else:
        found |= libvirt.VIR_MIGRATE_NON_SHARED_INC
    if options.auto_converge:
        found |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if options.post_copy:
        found |= libvirt.VIR_MIGRATE_POSTCOPY
    return int(found)


def parameters(target_uri: str, options: MoveOptions, *, disk: bool) -> dict[str, Any]:
    """The rest of what libvirt is told: where the emulators meet, how fast, and whether the disk
    is sent.

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
    if disk:
        # The seed and the serial port's log are not the guest's to write: its own alone is sent.
        found[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = ["vda"]
    return found


def definitions_of_one(attempt: Attempt, domain: Any) -> dict[str, Any]:
    """What runs and what is stored at the target, where the layers of the disk have become one."""
    live = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE
    stored = live | libvirt.VIR_DOMAIN_XML_INACTIVE
    return {
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: of_one(attempt(domain.XMLDesc, live)),
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: of_one(attempt(domain.XMLDesc, stored)),
    }


def of_one(text: str) -> str:
    """A definition whose own disk is its uppermost volume, with nothing under it."""
    ET.register_namespace(PREFIX, NAMESPACE)
    root = ET.fromstring(text)
    own, _ = own_disk(text)
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("dev") == own:
            for under in disk.findall("backingStore"):
                disk.remove(under)
            ET.SubElement(disk, "backingStore")
    return ET.tostring(root, encoding="unicode")


def machine(text: str) -> str:
    """The machine type of a definition."""
    found = ET.fromstring(text).find("os/type")
    return "" if found is None else found.get("machine", "")


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


def hurry(attempt: Attempt, domain: Any) -> None:
    """Have what runs go on at the target now, where its move allows that (post-copy); else pause
    it: libvirt lets it go on there by itself. Errors: libvirt's, while only its disk is sent."""
    if as_value(attempt, domain.migrateStartPostCopy, 0, missing=NO_JOB) is None:
        attempt(domain.suspend)
