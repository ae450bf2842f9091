"""What a libvirt host may do to its driver: hang, die, come back, turn out to be another."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.contract.conftest import QUICK, UP, Behind, Daemon
from tests.waiting import wait_for
from treadle.errors import InvalidInput
from treadle.hypervisor.base import (
    DomainSpec,
    EventKind,
    HostFull,
    HostRefused,
    HostSetup,
    HostUnreachable,
    ImageBroken,
    ImageSpec,
    Power,
    Seed,
    Unsupported,
    VerbTimeout,
)
from treadle.hypervisor.libvirt import Deadlines, LibvirtDriver, LibvirtOptions
from treadle.hypervisor.libvirt.connection import MAX_STUCK
from treadle.hypervisor.libvirt.ssh import with_ssh

TEST_SETUP = HostSetup(subnet="10.77.4.0/24", virt_type="test")
SHORT = Deadlines(connect=1.0, look=1.0, change=1.0)


@pytest.fixture
def options(tmp_path: Path) -> LibvirtOptions:
    return LibvirtOptions(state_dir=tmp_path / "state", deadlines=SHORT)


@pytest.fixture
def driver(own_daemon: Daemon, options: LibvirtOptions) -> Iterator[LibvirtDriver]:
    one = LibvirtDriver(own_daemon.uri, options)
    one.prepare(TEST_SETUP)
    yield one
    one.close()


def spec(uuid: str, image: ImageSpec | None = None, **more: Any) -> DomainSpec:
    return DomainSpec(
        uuid, "web", more.pop("generation", 1), 1, 128, 1, "52:54:00:00:0f:01", image,
        Seed("web-1"), **more,
    )


def test_no_verb_outlives_its_deadline(driver: LibvirtDriver, own_daemon: Daemon) -> None:
    uuid = str(uuid4())
    driver.define(spec(uuid))
    own_daemon.freeze()
    began = time.monotonic()
    with pytest.raises(VerbTimeout):
        driver.observe(uuid)
    assert time.monotonic() - began < 1.5
    # The next one has to connect again, to a daemon that takes the connection and says nothing.
    began = time.monotonic()
    with pytest.raises(HostUnreachable):
        driver.start(uuid)
    assert time.monotonic() - began < 1.5
    own_daemon.thaw()

    def observed() -> Any:
        try:
            return driver.observe(uuid)
        except HostUnreachable:
            return None

    found = wait_for(observed, 10, "the host to answer again")
    assert found.power is Power.OFF, "what was given up must not be done later"
    wait_for(lambda: driver._main.stuck() == 0, 10, "the threads to come back")


def test_threads_that_hang_are_bounded(driver: LibvirtDriver, own_daemon: Daemon) -> None:
    own_daemon.freeze()
    outcomes: list[str] = []

    def ask() -> None:
        try:
            driver.facts()
        except HostUnreachable as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(MAX_STUCK + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(outcomes) == MAX_STUCK + 1
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(HostUnreachable, match="still hang"):
            driver.facts()
    assert time.monotonic() - began < 0.5
    own_daemon.thaw()
    wait_for(lambda: driver._main.stuck() == 0, 10, "the threads to come back")
    assert driver.facts().vcpus


def test_a_restarted_daemon_is_told_and_found_again(
    driver: LibvirtDriver, own_daemon: Daemon
) -> None:
    lost = threading.Event()
    driver.watch(lambda kind, _uuid: lost.set() if kind is EventKind.HOST_LOST else None)
    driver.facts()
    own_daemon.stop()
    assert lost.wait(5)
    with pytest.raises(HostUnreachable):
        driver.facts()
    (own_daemon.folder / "libvirt-sock").unlink(missing_ok=True)
    own_daemon.start()
    driver.prepare(TEST_SETUP)
    assert driver.facts().vcpus
    told = threading.Event()
    driver.watch(lambda kind, _uuid: told.set() if kind is EventKind.DOMAIN else None)
    driver.define(spec(str(uuid4())))
    assert told.wait(5), "events must be listened for again on a new connection"


def test_a_host_that_is_not_there_is_unreachable_at_once(options: LibvirtOptions) -> None:
    driver = LibvirtDriver("test+unix:///default?socket=/nonexistent/socket", options)
    with pytest.raises(HostUnreachable):
        driver.facts()


def test_a_host_that_says_nothing_is_unreachable_in_time(options: LibvirtOptions) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(8)
        port = mute.getsockname()[1]
        driver = LibvirtDriver(f"qemu+ssh://root@127.0.0.1:{port}/system", options)
        began = time.monotonic()
        with pytest.raises(HostUnreachable):
            driver.facts()
        assert time.monotonic() - began < 2


def test_a_uri_that_libvirt_does_not_know_is_refused(options: LibvirtOptions) -> None:
    driver = LibvirtDriver("nonsense+unix:///default?mode=nonsense", options)
    with pytest.raises((HostRefused, HostUnreachable)):
        driver.facts()


def test_closing_twice_and_using_again(driver: LibvirtDriver) -> None:
    driver.close()
    driver.close()
    assert driver.facts().vcpus


def test_a_network_in_use_on_another_subnet_says_what_to_do(driver: LibvirtDriver) -> None:
    with pytest.raises(HostRefused, match="set the host's subnet"):
        driver.prepare(HostSetup(subnet="10.99.0.0/24", virt_type="test"))
    with pytest.raises(InvalidInput):
        driver.prepare(HostSetup(subnet="10.99.0.0/31", virt_type="test"))
    with pytest.raises(HostRefused, match="give it a subnet"):
        driver.prepare(HostSetup(network="other", virt_type="test"))


def test_a_test_host_cannot_be_probed(driver: LibvirtDriver) -> None:
    with pytest.raises(Unsupported):
        driver.probe("qemu", 1)


def test_a_disk_smaller_than_its_image_is_refused(driver: LibvirtDriver, tmp_path: Path) -> None:
    content = tmp_path / "image"
    content.write_bytes(b"x" * 1000)
    sha256 = hashlib.sha256(content.read_bytes()).hexdigest()
    image = ImageSpec(sha256, "raw", 1000, 5 << 30)
    driver.ensure_image(image, content)
    with pytest.raises(HostRefused, match="needs 5"):
        driver.define(spec(str(uuid4()), image))


@pytest.mark.parametrize(
    "header",
    [
        b"not a qcow2 at all" * 8,
        b"QFI\xfb" + (3).to_bytes(4, "big") + (512).to_bytes(8, "big") + bytes(100),
        b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(64) + (4).to_bytes(8, "big") + bytes(40),
    ],
    ids=["no qcow2", "backing file", "external data"],
)
def test_an_image_that_refers_to_another_file_is_broken(
    driver: LibvirtDriver, tmp_path: Path, header: bytes
) -> None:
    content = tmp_path / "image"
    content.write_bytes(header)
    image = ImageSpec(hashlib.sha256(header).hexdigest(), "qcow2", len(header), 1 << 20)
    with pytest.raises(ImageBroken):
        driver.ensure_image(image, content)


# -- on a real host


@pytest.mark.lab
def test_a_changed_host_key_is_refused(lab_host: Any, tmp_path: Path) -> None:
    lab, host = lab_host
    state = tmp_path / "state"
    options = LibvirtOptions(state_dir=state, identity_file=lab.key, deadlines=QUICK)
    first = LibvirtDriver(host.uri, options)
    assert first.facts().vcpus
    first.close()
    known = state / "known_hosts"
    assert host.address in known.read_text(), "the first use is recorded"
    wrong = (
        f"{host.address} ssh-ed25519 "
        "AAAAC3NzaC1lZDI1NTE5AAAAIHJ0Y1cBYW5vdGhlciBob3N0J3Mga2V5IGFsdG9nZXRo\n"
    )
    known.write_text(wrong)
    second = LibvirtDriver(host.uri, options)
    with pytest.raises(HostUnreachable):
        second.facts()
    assert known.read_text() == wrong, "a changed key is not recorded"


@pytest.mark.lab
def test_a_wrong_key_of_ours_is_unreachable(lab_host: Any, tmp_path: Path) -> None:
    _lab, host = lab_host
    options = LibvirtOptions(state_dir=tmp_path / "state", deadlines=QUICK)
    with pytest.raises(HostUnreachable):
        LibvirtDriver(host.uri, options).facts()


@pytest.mark.lab
def test_a_full_disk_is_host_full_and_leaves_nothing(lab_host: Any, tmp_path: Path) -> None:
    lab, host = lab_host
    options = LibvirtOptions(state_dir=tmp_path / "state", identity_file=lab.key)
    lab.exec(host.name, "mkdir", "-p", "/run/small")
    lab.exec(host.name, "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", "/run/small")
    driver = LibvirtDriver(host.uri, options)
    driver.prepare(
        HostSetup(pool="small", pool_path="/run/small", subnet="10.77.3.0/24", virt_type="qemu")
    )
    content = tmp_path / "image"
    content.write_bytes(os.urandom(8 << 20))
    image = ImageSpec(
        hashlib.sha256(content.read_bytes()).hexdigest(), "raw", 8 << 20, 8 << 20
    )
    with pytest.raises(HostFull):
        driver.ensure_image(image, content)
    left = lab.exec(host.name, "ls", "/run/small").stdout.split()
    assert [name for name in left if not name.startswith("treadle-host.")] == []
    uuid = str(uuid4())
    driver.define(spec(uuid))
    driver.start(uuid)
    lab.exec(host.name, "sh", "-c", "cat /dev/zero > /run/small/filler || true")
    with pytest.raises(HostFull):
        driver.define(spec(str(uuid4())))
    with pytest.raises(HostFull):
        driver.grow(replace(spec(uuid, generation=2), disks=(2, 1), disk_gib=2))
    found = driver.observe(uuid)
    assert found is not None
    assert (found.power, found.generation, found.stored, found.disk) == (Power.RUNNING, 1, 1, 0)
    driver.undefine(uuid)
    behind = Behind(with_ssh(host.uri, options.state_dir, options.identity_file))
    behind.conn.storagePoolLookupByName("small").destroy()
    behind.conn.storagePoolLookupByName("small").undefine()
    behind.conn.close()
    driver.close()


@pytest.mark.lab
def test_a_filtered_guest_gets_an_address_and_cannot_be_another(
    lab_host: Any, guest_image: tuple[ImageSpec, Path], tmp_path: Path
) -> None:
    lab, host = lab_host
    options = LibvirtOptions(state_dir=tmp_path / "state", identity_file=lab.key)
    driver = LibvirtDriver(host.uri, options)
    driver.prepare(HostSetup(subnet="10.77.3.0/24", virt_type="qemu"))
    assert "nwfilter" in driver.facts().capabilities
    image, content = guest_image
    driver.ensure_image(image, content)
    uuid = str(uuid4())
    script = (
        "#!/bin/sh\nexec >/dev/ttyS0\nping -c 1 -W 5 10.77.3.1 >/dev/null && echo HONEST-PASSES\n"
        "ip link set eth0 address 52:54:00:99:99:99\n"
        "ping -c 1 -W 2 10.77.3.1 >/dev/null || echo SPOOFED-FAILS\n"
    )
    one = spec(uuid, image)
    driver.define(DomainSpec(
        one.uuid, one.name, 1, 1, 128, 1, one.mac, image, Seed("web-1", script)
    ))
    driver.start(uuid)
    try:
        wait_for(lambda: UP in driver.console_log(uuid, 1 << 16), 90, "the guest to be up")
        wait_for(
            lambda: b"SPOOFED-FAILS" in driver.console_log(uuid, 1 << 16), 30, "the spoofed ping"
        )
        assert b"HONEST-PASSES" in driver.console_log(uuid, 1 << 16)
    finally:
        driver.undefine(uuid)
        driver.close()


@pytest.mark.lab
def test_a_restarted_libvirtd_keeps_guests_and_is_found_again(
    lab_host: Any, idle_image: tuple[ImageSpec, Path], tmp_path: Path
) -> None:
    lab, host = lab_host
    options = LibvirtOptions(
        state_dir=tmp_path / "state", identity_file=lab.key, anti_spoofing=False
    )
    driver = LibvirtDriver(host.uri, options)
    lost = threading.Event()
    driver.watch(lambda kind, _uuid: lost.set() if kind is EventKind.HOST_LOST else None)
    driver.prepare(HostSetup(subnet="10.77.3.0/24", virt_type="qemu"))
    driver.ensure_image(*idle_image)
    uuid = str(uuid4())
    driver.define(spec(uuid, idle_image[0]))
    driver.start(uuid)
    lab.restart_libvirtd(host.name)
    assert lost.wait(10)

    def observed() -> Any:
        try:
            return driver.observe(uuid)
        except HostUnreachable:
            return None

    assert wait_for(observed, 20, "the host to answer again").power is Power.RUNNING
    driver.undefine(uuid)
    driver.close()


@pytest.mark.lab
def test_a_host_that_reboots_starts_what_shall_run_by_itself(
    lab_host: Any, idle_image: tuple[ImageSpec, Path], tmp_path: Path
) -> None:
    """Nobody but libvirt is there to do it: the driver is gone by then."""
    lab, host = lab_host
    options = LibvirtOptions(
        state_dir=tmp_path / "state", identity_file=lab.key, anti_spoofing=False
    )
    driver = LibvirtDriver(host.uri, options)
    driver.prepare(HostSetup(subnet="10.77.3.0/24", virt_type="qemu"))
    driver.ensure_image(*idle_image)
    runs, stopped, paused = (str(uuid4()) for _ in range(3))
    for uuid, mac in ((runs, "01"), (stopped, "02"), (paused, "03")):
        one = spec(uuid, idle_image[0])
        driver.define(replace(one, mac=f"52:54:00:00:0f:{mac}"))
        driver.start(uuid)
    driver.power_off(stopped)
    driver.pause(paused)
    driver.close()
    lab.kill_host(host.name)
    lab.boot_host(host.name)

    def running() -> set[str]:
        return set(lab.exec(host.name, "virsh", "-q", "list", "--uuid").stdout.split())

    wait_for(lambda: runs in running(), 60, "the guest to run")
    assert not running() & {stopped, paused}
    again = LibvirtDriver(host.uri, options)
    for uuid in (runs, stopped, paused):
        again.undefine(uuid)
    again.close()
