"""A guest of 512 bytes that does nothing but power its machine off: what boots it, runs guests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import libvirt

from treadle.hypervisor.base import HostUnreachable
from treadle.hypervisor.libvirt import domain_xml, errors, storage
from treadle.hypervisor.libvirt.connection import Attempt, Link

CODE = bytes(
    [
        0xBA, 0x04, 0x06,  # mov dx, 0x604     PM1a control: SeaBIOS puts the ACPI block at 0x600
        0xB8, 0x00, 0x20,  # mov ax, 0x2000    SLP_EN, and sleep type 0: soft off
        0xEF,              # out dx, ax
        0xF4,              # hlt               where that was not enough: wait for the time limit
        0xEB, 0xFD,        # jmp to the hlt
    ]
)  # fmt: skip
BOOT_SIGNATURE = b"\x55\xaa"
SECTOR = 512
#: The BIOS does not boot from a disk of a single sector.
DISK_BYTES = 1 << 20
NAME = "treadle-probe"


def boot_sector() -> bytes:
    """The first sector of its disk."""
    return CODE.ljust(SECTOR - len(BOOT_SIGNATURE), b"\0") + BOOT_SIGNATURE


class Stops:
    """Hands the reason why a domain stopped from the event thread to whoever waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[threading.Event, list[int]]] = {}

    def expect(self, uuid: str) -> None:
        """From now on, keep what is told of this domain."""
        with self._lock:
            self._waiting[uuid] = (threading.Event(), [])

    def tell(self, uuid: str, event: int, reason: int) -> None:
        """From the event thread."""
        if event != libvirt.VIR_DOMAIN_EVENT_STOPPED:
            return
        with self._lock:
            entry = self._waiting.get(uuid)
            if entry is not None:
                entry[1].append(reason)
                entry[0].set()

    def wait(self, uuid: str, seconds: float) -> int | None:
        """The reason, or None when none came in time."""
        with self._lock:
            done, reasons = self._waiting[uuid]
        return reasons[0] if done.wait(seconds) else None

    def forget(self, uuid: str) -> None:
        """Keep no more of it."""
        with self._lock:
            self._waiting.pop(uuid, None)


def run(
    link: Link,
    attempt: Attempt,
    pool: Any,
    place: domain_xml.Place,
    stops: Stops,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Whether the probe guest powers itself off within `seconds`. Leaves nothing behind."""
    uuid = str(uuid4())
    name = f"{NAME}-{uuid[:8]}"
    volume = storage.scratch(link, attempt, pool, NAME, boot_sector(), DISK_BYTES)
    stops.expect(uuid)
    domain: Any = None
    try:
        began = clock()
        path = f"{place.pool_path}/{attempt(volume.name)}"
        xml = domain_xml.probe_xml(name, uuid, place, path)
        try:
            domain = attempt(link.conn.createXML, xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)
        except libvirt.libvirtError as error:
            if errors.is_broken(error):
                raise
            return False
        reason = stops.wait(uuid, seconds - (clock() - began))
        if reason is None and not link.alive():
            raise HostUnreachable("the host was lost while its probe guest ran")
        return bool(reason == libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN)
    finally:
        stops.forget(uuid)
        if domain is not None:
            _quietly(domain.destroy)
        _quietly(volume.delete)


def _quietly(function: Callable[[], Any]) -> None:
    try:
        function()
    except libvirt.libvirtError:
        return
