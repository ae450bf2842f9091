"""The worlds that the contract suite runs in: a simulated host, libvirt's test driver behind a
daemon of our own, and a real QEMU host of the lab."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import libvirt
import pytest

from tests.labs import a_lab, idle_disk
from tests.waiting import wait_for
from treadle.hypervisor.base import (
    DomainSpec,
    HostSetup,
    Hypervisor,
    ImageSpec,
    Power,
    Seed,
)
from treadle.hypervisor.fake import FakeHypervisor
from treadle.hypervisor.fake_host import FakeHost
from treadle.hypervisor.libvirt import Deadlines, LibvirtDriver, LibvirtOptions

UP = b"TREADLE-GUEST-UP"
QUICK = Deadlines(connect=3.0, look=3.0, change=6.0)


@dataclass
class World:
    """A host to test a driver on, and what can be done to the host behind the driver's back."""

    name: str
    make: Callable[[], Hypervisor]
    setup: HostSetup
    image: ImageSpec
    content: Path
    add_foreign: Callable[[str], None]
    foreign_is_as_it_was: Callable[[str], bool]
    leftovers: Callable[[str], list[str]]
    remove_domain: Callable[[str], None]
    forget_domain: Callable[[str], None]
    guest: tuple[ImageSpec, Path] | None = None
    """A small Linux, where the world can boot one. `image` boots to a processor that rests."""
    without_agent: Callable[[str], None] = lambda _uuid: None
    """Take the agent out of a guest; the small image has none."""
    change_domain: Callable[[str], None] = lambda _uuid: None
    """Give the definition more memory and another disk, as `virsh edit` does."""
    behind: Behind | None = None
    second: Callable[[], Hypervisor] | None = None
    """The driver of another host, not yet prepared; None where one of its kind takes no disks."""
    driver: Hypervisor = field(init=False)

    def spec(self, uuid: str, generation: int = 1, **changes: Any) -> DomainSpec:
        """An instance of the world's image."""
        tail = uuid.replace("-", "")[-6:]
        values: dict[str, Any] = {
            "uuid": uuid, "name": "web", "generation": generation, "vcpus": 1, "memory_mib": 128,
            "disk_gib": 1, "image": self.image, "metadata": {"project": "p1"},
            "mac": f"52:54:00:{tail[:2]}:{tail[2:4]}:{tail[4:]}",
            "seed": Seed("web-1", "", ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA someone@here",)),
        }
        return DomainSpec(**{**values, **changes})

    @property
    def runs_guests(self) -> bool:
        """Whether what is started there is a machine."""
        return self.guest is not None

    def new(self, generation: int = 1, *, system: bool = False, **changes: Any) -> str:
        """Define an instance; its UUID. `system`: of the small Linux, where there is one."""
        uuid = str(uuid4())
        image, content = self.image, self.content
        if system and self.guest is not None:
            image, content = self.guest
        self.driver.ensure_image(image, content)
        self.driver.define(self.spec(uuid, generation, **{"image": image, **changes}))
        return uuid

    def power(self, uuid: str) -> Power | None:
        """What `observe` says."""
        found = self.driver.observe(uuid)
        return None if found is None else found.power


def small_image(folder: Path) -> tuple[ImageSpec, Path]:
    """A disk that boots to a processor that rests."""
    content = idle_disk(folder)
    data = content.read_bytes()
    return ImageSpec(hashlib.sha256(data).hexdigest(), "raw", len(data), len(data)), content


# -- the simulated host


def fake_world(folder: Path) -> World:
    host = FakeHost("fake-1", numa=2)
    image, content = small_image(folder)

    def add_foreign(uuid: str) -> None:
        host.foreign[uuid] = Power.RUNNING

    def remove_domain(uuid: str) -> None:
        host.guests[uuid].power = Power.OFF
        forget_domain(uuid)

    def forget_domain(uuid: str) -> None:
        host.guests[uuid].defined = host.guests[uuid].autostart = False

    def without_agent(uuid: str) -> None:
        host.guests[uuid].agent = False

    def change_domain(uuid: str) -> None:
        host.guests[uuid].changed = ("memory", "disks")

    return World(
        "fake", lambda: FakeHypervisor(host), HostSetup(subnet="10.77.1.0/24"), image, content,
        add_foreign, lambda uuid: host.foreign.get(uuid) is Power.RUNNING,
        lambda uuid: [uuid] if uuid in host.guests else [], remove_domain, forget_domain,
        without_agent=without_agent, change_domain=change_domain,
        second=lambda: FakeHypervisor(FakeHost("fake-2")),
    )


# -- libvirt, through a connection of the test's own


class Behind:
    """The same host, as another program of libvirt's sees it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._conn = libvirt.open(uri)
        self.kind = self._conn.getType().lower()

    @property
    def conn(self) -> Any:
        """Its connection: another one where a test has ended the daemon since."""
        try:
            self._conn.getLibVersion()
        except libvirt.libvirtError:
            self._conn = libvirt.open(self._uri)
        return self._conn

    def close(self) -> None:
        self._conn.close()

    def pool(self) -> Any:
        """Treadle's pool, as it is on the disk."""
        pool = self.conn.storagePoolLookupByName("treadle")
        pool.refresh(0)
        return pool

    def volumes(self) -> list[str]:
        """Names of what is in it."""
        return [volume.name() for volume in self.pool().listAllVolumes(0)]

    def add_foreign(self, uuid: str) -> None:
        kind = "qemu" if self.kind == "qemu" else "test"
        xml = (
            f"<domain type='{kind}'><name>foreign-{uuid[:8]}</name><uuid>{uuid}</uuid>"
            "<memory unit='MiB'>16</memory><vcpu>1</vcpu><os><type>hvm</type></os>"
            "<devices/></domain>"
        )
        self.conn.defineXML(xml).create()

    def foreign_is_as_it_was(self, uuid: str) -> bool:
        domain = self.conn.lookupByUUIDString(uuid)
        return bool(domain.isActive() and "<metadata>" not in domain.XMLDesc(0))

    def leftovers(self, uuid: str) -> list[str]:
        found = [name for name in self.volumes() if uuid in name]
        domains = [d.name() for d in self.conn.listAllDomains(0) if d.UUIDString() == uuid]
        return found + domains

    def remove_domain(self, uuid: str) -> None:
        domain = self.conn.lookupByUUIDString(uuid)
        if domain.isActive():
            domain.destroy()
        domain.undefine()

    def change_domain(self, uuid: str) -> None:
        """As `virsh edit` does."""
        domain = self.conn.lookupByUUIDString(uuid)
        root = ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        for name in ("memory", "currentMemory"):
            found = root.find(name)
            assert found is not None
            found.text = str(2 * int(found.text or "0"))
        devices = root.find("devices")
        assert devices is not None
        disk = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
        ET.SubElement(disk, "source", {"file": "/dev/null"})
        ET.SubElement(disk, "target", {"dev": "vdz", "bus": "virtio"})
        self.conn.defineXML(ET.tostring(root, encoding="unicode"))

    def forget_domain(self, uuid: str) -> None:
        """Undefine it, whether it runs or not."""
        self.conn.lookupByUUIDString(uuid).undefine()


@dataclass
class Daemon:
    """A libvirtd of this test's own, with sockets and files in a folder of its own. Only its test
    driver is of use. The host's state stays while a connection is open."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"test+unix:///default?socket={self.folder}/libvirt-sock"

    def start(self) -> None:
        config = self.folder / "libvirtd.conf"
        config.write_text(
            f'unix_sock_dir = "{self.folder}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'host_uuid = "{uuid4()}"\n'
        )
        home = {
            "HOME": str(self.folder), "PATH": os.environ.get("PATH", ""), "LC_ALL": "C",
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
        }
        (self.folder / "run").mkdir(mode=0o700, exist_ok=True)
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            # As root it would be the machine's own daemon, with that one's folders.
            for path in (self.folder, self.folder / "run"):
                os.chown(path, 65534, 65534)
            user = {"user": 65534, "group": 65534, "extra_groups": []}
        self.process = subprocess.Popen(
            ["/usr/sbin/libvirtd", "-f", config, "-p", self.folder / "pid"],
            env=home, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, **user,
        )
        wait_for(self._listens, 20, "libvirtd to listen")

    def _listens(self) -> bool:
        """The socket is there a moment before anybody listens at it."""
        with socket.socket(socket.AF_UNIX) as one:
            return one.connect_ex(f"{self.folder}/libvirt-sock") == 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def freeze(self) -> None:
        """It keeps its sockets and answers nobody."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def _daemon() -> Iterator[Daemon]:
    # The path of a Unix socket may have 107 characters; pytest's own folders are too deep.
    with tempfile.TemporaryDirectory(prefix="tlv-", dir="/tmp") as name:
        one = Daemon(Path(name))
        one.start()
        yield one
        one.stop()


@pytest.fixture
def own_daemon() -> Iterator[Daemon]:
    """A libvirtd that the test may freeze and kill."""
    with tempfile.TemporaryDirectory(prefix="tlv-", dir="/tmp") as name:
        one = Daemon(Path(name))
        one.start()
        yield one
        one.stop()


@pytest.fixture(scope="module")
def _test_world(
    _daemon: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    behind = Behind(_daemon.uri)
    folder = tmp_path_factory.mktemp("test-driver")
    image, content = small_image(folder)
    options = LibvirtOptions(state_dir=folder / "state", deadlines=QUICK)
    yield World(
        "libvirt-test", lambda: LibvirtDriver(_daemon.uri, options),
        HostSetup(subnet="10.77.2.0/24", virt_type="test"), image, content,
        behind.add_foreign, behind.foreign_is_as_it_was, behind.leftovers, behind.remove_domain,
        behind.forget_domain,
        change_domain=behind.change_domain, behind=behind,
    )
    behind.close()


@pytest.fixture(scope="session")
def lab_host() -> Iterator[Any]:
    """The first of two hosts of a lab of its own; the lab and the host."""
    with a_lab("drv", 2) as lab:
        yield lab, lab.status()[0]


@pytest.fixture(scope="session")
def guest_image() -> tuple[ImageSpec, Path]:
    """The small Linux that the lab boots."""
    from treadle.lab import build_guest

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "treadle"
    cache.mkdir(parents=True, exist_ok=True)
    content = build_guest(cache)
    data = content.read_bytes()
    virtual = int.from_bytes(data[24:32], "big")
    return ImageSpec(hashlib.sha256(data).hexdigest(), "qcow2", len(data), virtual), content


@pytest.fixture(scope="session")
def idle_image(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageSpec, Path]:
    """What runs and does nothing."""
    return small_image(tmp_path_factory.mktemp("idle"))


@pytest.fixture(scope="session")
def _lab_world(
    lab_host: Any,
    idle_image: tuple[ImageSpec, Path],
    guest_image: tuple[ImageSpec, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    lab, host = lab_host
    options = LibvirtOptions(
        state_dir=tmp_path_factory.mktemp("lab-driver") / "state", identity_file=lab.key,
        anti_spoofing=False,  # a test of its own; it would make this suite slower by half
    )
    from treadle.hypervisor.libvirt.ssh import with_ssh

    behind = Behind(with_ssh(host.uri, options.state_dir, options.identity_file))
    yield World(
        "lab-qemu", lambda: LibvirtDriver(host.uri, options),
        HostSetup(subnet="10.77.3.0/24", virt_type="qemu"), *idle_image,
        behind.add_foreign, behind.foreign_is_as_it_was, behind.leftovers, behind.remove_domain,
        behind.forget_domain,
        guest=guest_image, change_domain=behind.change_domain, behind=behind,
        second=lambda: LibvirtDriver(lab.status()[1].uri, options),
    )
    behind.close()


@pytest.fixture(
    params=["fake", "libvirt-test", pytest.param("lab-qemu", marks=pytest.mark.lab)]
)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A prepared host with a driver on it; what a test leaves is removed."""
    found: World
    if request.param == "fake":
        found = fake_world(tmp_path)
    else:
        name = "_test_world" if request.param == "libvirt-test" else "_lab_world"
        found = request.getfixturevalue(name)
    found.driver = found.make()
    found.driver.prepare(found.setup)
    yield found
    for domain in found.driver.observe_all():
        found.driver.undefine(domain.uuid)
    found.driver.close()
