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
MOVE = (
    libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE | libvirt.VIR_MIGRATE_NON_SHARED_INC
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR | libvirt.VIR_MIGRATE_AUTO_CONVERGE
)


class RawDomain:
    """A domain made by hand, and what can be done with it in one or two calls."""

    def __init__(
        self, domain: libvirt.virDomain, pool: libvirt.virStoragePool, own: str
    ) -> None:
        self._domain = domain
        self._pool = pool
        self._own = own
        self.start = domain.create
        self.stop = domain.destroy
        self.pause = domain.suspend
        self.resume = domain.resume

    def reboot(self) -> None:
        """Stop it and start it."""
        self._domain.destroy()
        self._domain.create()

    def remove(self) -> None:
        """Stop it, and leave nothing of it."""
        if self._domain.isActive():
            self._domain.destroy()
        self._domain.undefine()
        for end in ("qcow2", "seed.iso", "console.log"):
            self._pool.storageVolLookupByName(f"{self._own}.{end}").delete()


class Raw:
    """One open connection, and the instance whose likeness is started or moved here. It need not
    be here: `disk` is then what its disk's volume is."""

    def __init__(
        self, uri: str, ssh_command: str, likeness: str, disk: str = ""
    ) -> None:
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self.connection = libvirt.open(f"{uri}?command={quote(ssh_command, safe='/')}")
        self._pool = self.connection.storagePoolLookupByName("treadle")
        self._likeness = likeness
        self.disk = disk
        if disk:
            return
        domain = self.connection.lookupByUUIDString(likeness)
        self._xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        self._name = domain.name()
        self.disk = self._pool.storageVolLookupByName(f"{likeness}.qcow2").XMLDesc()

    def spawn(self) -> float:
        """Overlay, seed, console, definition, start; the seconds that took. Removed afterwards."""
        started = time.perf_counter()
        made = self.likeness()
        made.start()
        took = time.perf_counter() - started
        made.remove()
        return took

    def likeness(self) -> RawDomain:
        """Overlay, seed, console and definition of another one like it."""
        own = str(uuid.uuid4())
        self.expect(own)
        domain = self.connection.defineXML(
            self._xml.replace(self._likeness, own).replace(self._name, f"hand-{own[:8]}")
        )
        return RawDomain(domain, self._pool, own)

    def close(self) -> None:
        """Let the connection go."""
        self.connection.close()

    def expect(self, own: str) -> None:
        """The volumes that one like it needs before it is moved here."""
        data = iso(own, Seed("by-hand"))
        self._volume(self.disk.replace(self._likeness, own))
        self._upload(self._volume(self._raw_volume(f"{own}.seed.iso", len(data))), data)
        self._volume(self._raw_volume(f"{own}.console.log", 0))

    def _upload(self, volume: libvirt.virStorageVol, data: bytes) -> None:
        stream = self.connection.newStream()
        volume.upload(stream, 0, len(data))
        stream.send(data)
        stream.finish()

    def _volume(self, xml: str) -> libvirt.virStorageVol:
        return self._pool.createXML(xml)

    @staticmethod
    def _raw_volume(name: str, size: int) -> str:
        return (
            f"<volume><name>{name}</name><capacity>{size}</capacity>"
            "<target><format type='raw'/></target></volume>"
        )


def move(uuid: str, source: Raw, target: Raw, address: str) -> None:
    """Move a running domain from where one connection leads to where the other does: volumes
    there, then libvirt's migration."""
    target.expect(uuid)
    source.connection.lookupByUUIDString(uuid).migrate3(target.connection, {
        libvirt.VIR_MIGRATE_PARAM_URI: f"tcp:{address}",
        libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS: ["vda"],
    }, MOVE)
