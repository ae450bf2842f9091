"""The steps of a spawn done by hand on a raw libvirt connection, without Treadle in between.

The guest is the same to the letter: its XML is that of an instance of Treadle's, with another UUID
and other volumes.
"""

from __future__ import annotations

import time
import uuid
from urllib.parse import quote

import libvirt

from treadle.hypervisor.base import Seed
from treadle.hypervisor.libvirt.seed import iso

GIB = 1 << 30


class Raw:
    """One open connection, and the instance whose likeness is started."""

    def __init__(self, uri: str, ssh_command: str, likeness: str) -> None:
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self._conn = libvirt.open(f"{uri}?command={quote(ssh_command, safe='/')}")
        self._pool = self._conn.storagePoolLookupByName("treadle")
        self._likeness = likeness
        domain = self._conn.lookupByUUIDString(likeness)
        self._xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        self._name = domain.name()
        self._disk = self._pool.storageVolLookupByName(f"{likeness}.qcow2").XMLDesc()

    def spawn(self) -> float:
        """Overlay, seed, console, definition, start; the seconds that took. Removed afterwards."""
        own = str(uuid.uuid4())
        started = time.perf_counter()
        seed = iso(own, Seed("by-hand"))
        self._volume(self._disk.replace(self._likeness, own))
        volume = self._volume(self._raw_volume(f"{own}.seed.iso", len(seed)))
        stream = self._conn.newStream()
        volume.upload(stream, 0, len(seed))
        stream.send(seed)
        stream.finish()
        self._volume(self._raw_volume(f"{own}.console.log", 0))
        domain = self._conn.defineXML(
            self._xml.replace(self._likeness, own).replace(self._name, f"hand-{own[:8]}")
        )
        domain.create()
        took = time.perf_counter() - started
        domain.destroy()
        domain.undefine()
        for name in (f"{own}.qcow2", f"{own}.seed.iso", f"{own}.console.log"):
            self._pool.storageVolLookupByName(name).delete()
        return took

    def close(self) -> None:
        """Let the connection go."""
        self._conn.close()

    def _volume(self, xml: str) -> libvirt.virStorageVol:
        return self._pool.createXML(xml)

    @staticmethod
    def _raw_volume(name: str, size: int) -> str:
        return (
            f"<volume><name>{name}</name><capacity>{size}</capacity>"
            "<target><format type='raw'/></target></volume>"
        )
