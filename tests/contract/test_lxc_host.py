"""A real libvirt host of containers, in the lab: what it can do is done, the rest is refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import libvirt
import pytest

from tests.contract.conftest import UP, small_image
from tests.contract.test_console_contract import assert_ends, read_until, threads
from tests.waiting import wait_for
from treadle.hypervisor.base import (
    ConsoleKind,
    Domain,
    DomainSpec,
    EventKind,
    HostRefused,
    HostSetup,
    ImageSpec,
    Power,
    Seed,
    StopCause,
    Unsupported,
)
from treadle.hypervisor.libvirt import LibvirtDriver, LibvirtOptions
from treadle.hypervisor.libvirt.ssh import with_ssh
from treadle.hypervisor.libvirt.storage import raw_xml

pytestmark = pytest.mark.lab
FOREIGN = """
<domain type='lxc'><name>foreign</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory>
<vcpu>1</vcpu><os><type>exe</type><init>/bin/true</init></os>
<devices><filesystem type='mount'><source dir='/var/empty'/><target dir='/'/></filesystem>
<console type='pty'/></devices></domain>
"""


class Containers:
    """The host, a driver on it, and a connection behind the driver's back."""

    def __init__(self, lab: Any, host: Any, folder: Path, image: Path) -> None:
        self.lab, self.host = lab, host
        self.uri = host.uri.replace("qemu+ssh", "lxc+ssh")
        self.options = LibvirtOptions(
            state_dir=folder, identity_file=lab.key, anti_spoofing=False
        )
        data = image.read_bytes()
        self.content = image
        self.image = ImageSpec(hashlib.sha256(data).hexdigest(), "raw", len(data), len(data))
        self.behind = libvirt.open(with_ssh(self.uri, folder, lab.key))
        self.driver = LibvirtDriver(self.uri, self.options)
        self.driver.prepare(HostSetup(subnet="10.77.5.0/24", virt_type="qemu"))

    def spec(self, uuid: str, generation: int = 1, **changes: Any) -> DomainSpec:
        tail = uuid.replace("-", "")[-6:]
        values: dict[str, Any] = {
            "uuid": uuid, "name": "ct", "generation": generation, "vcpus": 1, "memory_mib": 64,
            "disk_gib": 1, "image": self.image, "seed": Seed("ct-1"),
            "mac": f"52:54:00:{tail[:2]}:{tail[2:4]}:{tail[4:]}",
        }
        return DomainSpec(**{**values, **changes})

    def new(self, generation: int = 1, **changes: Any) -> str:
        uuid = str(uuid4())
        self.driver.ensure_image(self.image, self.content)
        self.driver.define(self.spec(uuid, generation, **changes))
        return uuid

    def seen(self, uuid: str) -> Domain:
        found = self.driver.observe(uuid)
        assert found is not None
        return found

    def left(self, uuid: str) -> list[str]:
        pool = self.behind.storagePoolLookupByName("treadle")
        pool.refresh(0)
        names = [volume.name() for volume in pool.listAllVolumes(0) if uuid in volume.name()]
        return names + [d.name() for d in self.behind.listAllDomains(0) if d.UUIDString() == uuid]


@pytest.fixture(scope="module")
def containers(lab_host: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    from treadle.lab.container import build_container

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "treadle"
    one = Containers(*lab_host, tmp_path_factory.mktemp("lxc"), build_container(cache))
    yield one
    one.driver.close()
    one.behind.close()


@pytest.fixture(autouse=True)
def _nothing_is_left(containers: Containers) -> Iterator[None]:
    yield
    for domain in containers.driver.observe_all():
        containers.driver.undefine(domain.uuid)
        assert containers.left(domain.uuid) == []


def test_it_says_what_it_is(containers: Containers) -> None:
    facts = containers.driver.facts()
    assert (facts.hypervisor, facts.virt_types) == ("lxc", ("lxc",))
    assert facts.capabilities == {
        "pause", "graceful_stop", "root_filesystems", "serial_console", "diagnostics", "network",
    }
    assert facts.memory_mib > 256
    assert facts.disk_mib > 0


def test_the_life_of_a_container(containers: Containers) -> None:
    driver, uuid = containers.driver, containers.new(3)
    assert (containers.seen(uuid).power, containers.seen(uuid).generation) == (Power.OFF, 3)
    told: list[str] = []
    driver.watch(lambda kind, of: told.append(of) if kind is EventKind.DOMAIN else None)
    for verb, power in (
        (driver.start, Power.RUNNING), (driver.pause, Power.PAUSED),
        (driver.resume, Power.RUNNING), (driver.power_off, Power.OFF),
        (driver.start, Power.RUNNING),
    ):
        verb(uuid)
        verb(uuid)
        assert containers.seen(uuid).power is power
    wait_for(lambda: uuid in told, 10, "an event")
    line = driver.open_console(uuid, ConsoleKind.SERIAL)
    said = read_until(line.socket, b"/ # ")
    assert UP in said
    assert b"hostname=ct-1" in said
    addresses = wait_for(lambda: containers.seen(uuid).addresses, 20, "its address")
    assert addresses[0].encode() in said
    assert [one.addresses for one in driver.observe_all()] == [addresses]
    driver.define(containers.spec(uuid, 4))
    assert containers.seen(uuid).generation == 3, "the generation is of what runs"
    driver.shut_down(uuid)
    wait_for(lambda: containers.seen(uuid).power is Power.OFF, 30, "it to stop")
    assert_ends(line.socket)
    line.close()
    assert (containers.seen(uuid).cause, containers.seen(uuid).generation) == (StopCause.GUEST, 4)
    driver.undefine(uuid)
    driver.undefine(uuid)
    assert driver.observe(uuid) is None
    assert containers.left(uuid) == []


def test_what_is_written_stays(containers: Containers) -> None:
    driver, uuid = containers.driver, containers.new()
    before = threads()
    for number in (1, 2):
        driver.start(uuid)
        line = driver.open_console(uuid, ConsoleKind.SERIAL)
        line.socket.sendall(b"\recho again >> /root/log; echo lines=$(grep -c again /root/log).\r")
        read_until(line.socket, f"lines={number}.".encode())
        line.socket.sendall(b"sync; echo synced-$((40+2))\r")
        read_until(line.socket, b"synced-42")
        line.close()
        driver.power_off(uuid)
        driver.define(containers.spec(uuid, number + 1))
    wait_for(lambda: threads() <= before, 10, "the consoles' threads to end")


def test_user_data_is_run(containers: Containers) -> None:
    script = "#!/bin/sh\necho told-$((40+2)) > /dev/console\n"
    uuid = containers.new(seed=Seed("told", script))
    containers.driver.start(uuid)
    line = containers.driver.open_console(uuid, ConsoleKind.SERIAL)
    said = read_until(line.socket, b"told-42")
    assert b"hostname=told" in said
    line.close()


def test_what_it_uses_is_counted(containers: Containers) -> None:
    uuid = containers.new()
    assert containers.driver.diagnostics(uuid).power is Power.OFF
    containers.driver.start(uuid)
    wait_for(lambda: containers.seen(uuid).addresses, 20, "its address")
    stats = containers.driver.diagnostics(uuid)
    assert stats.power is Power.RUNNING
    assert stats.memory_mib == 64
    assert stats.memory_used_mib
    assert stats.cpu_ns[0] > 0
    assert [nic.mac for nic in stats.nics] == [containers.spec(uuid).mac]
    assert stats.nics[0].tx_packets > 0


def test_what_it_cannot_do_is_refused(containers: Containers, tmp_path: Path) -> None:
    driver, uuid = containers.driver, containers.new()
    driver.start(uuid)
    for refused in (
        lambda: driver.suspend(uuid), lambda: driver.freeze(uuid), lambda: driver.thaw(uuid),
        lambda: driver.set_password(uuid, "root", "x"), lambda: driver.console_log(uuid, 10),
        lambda: driver.open_console(uuid, ConsoleKind.VNC), lambda: driver.probe("kvm", 1.0),
        lambda: driver.define(containers.spec(str(uuid4()), disks=(2, 1))),
        lambda: driver.define(containers.spec(str(uuid4()), rescue=containers.image)),
        lambda: driver.define(containers.spec(str(uuid4()), image=None)),
        lambda: driver.plug(containers.spec(uuid, 2, mac="")),
    ):
        with pytest.raises(Unsupported):
            refused()
    disk = ImageSpec("d" * 64, "qcow2", 1 << 20, 1 << 20)
    with pytest.raises(HostRefused, match="raw root file system"):
        driver.define(containers.spec(str(uuid4()), image=disk))
    image, content = small_image(tmp_path)
    driver.ensure_image(image, content)
    broken = str(uuid4())
    driver.define(containers.spec(broken, image=image))
    with pytest.raises(HostRefused):
        driver.start(broken)
    driver.undefine(broken)
    driver.remove_image(image.sha256)
    assert containers.seen(uuid).power is Power.RUNNING
    # What it is not given while it runs, its definition has from its next start on.
    assert len(driver.diagnostics(uuid).nics) == 1
    driver.power_off(uuid)
    driver.define(containers.spec(uuid, 2, mac=""))
    driver.start(uuid)
    assert (containers.seen(uuid).generation, driver.diagnostics(uuid).nics) == (2, ())


def test_a_copy_that_was_cut_off_is_made_again(containers: Containers) -> None:
    uuid = containers.new()
    pool = containers.behind.storagePoolLookupByName("treadle")
    pool.storageVolLookupByName(f"{uuid}.ok").delete(0)
    pool.storageVolLookupByName(f"{uuid}.r").delete(0)
    pool.createXML(raw_xml(f"{uuid}.r", 4096), 0)
    containers.behind.lookupByUUIDString(uuid).undefine()
    assert containers.driver.observe(uuid) == Domain(uuid, Power.REMNANT)
    containers.driver.define(containers.spec(uuid))
    containers.driver.start(uuid)
    assert containers.seen(uuid).power is Power.RUNNING


def test_a_container_of_another_is_neither_named_nor_touched(containers: Containers) -> None:
    uuid = str(uuid4())
    domain = containers.behind.defineXML(FOREIGN.format(uuid=uuid))
    driver = containers.driver
    assert driver.observe(uuid) is None
    assert uuid not in {one.uuid for one in driver.observe_all()}
    for act in (driver.start, driver.pause, driver.shut_down, driver.power_off, driver.undefine):
        with pytest.raises(HostRefused):
            act(uuid)
    with pytest.raises(HostRefused):
        driver.define(containers.spec(uuid))
    with pytest.raises(HostRefused):
        driver.open_console(uuid, ConsoleKind.SERIAL)
    domain.undefine()


def test_containers_outlive_their_daemon(containers: Containers) -> None:
    uuid = containers.new()
    containers.driver.start(uuid)
    containers.behind.close()
    containers.lab.restart_libvirtd(containers.host.name)
    containers.driver.prepare(HostSetup(subnet="10.77.5.0/24", virt_type="qemu"))
    containers.behind = libvirt.open(
        with_ssh(containers.uri, containers.options.state_dir, containers.lab.key)
    )
    assert containers.seen(uuid).power is Power.RUNNING
    containers.driver.pause(uuid)
    assert containers.seen(uuid).power is Power.PAUSED


