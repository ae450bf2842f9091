"""Consoles, counters and the agent's channel, of each driver alike."""

from __future__ import annotations

import socket
import struct
import threading
from uuid import uuid4

import pytest

from tests.contract.conftest import UP, World
from tests.waiting import wait_for
from treadle.hypervisor.base import (
    Agent,
    AgentFailed,
    Console,
    ConsoleKind,
    Consoles,
    Diagnostics,
    HostRefused,
    Power,
    Unsupported,
)

NAMES = {ConsoleKind.SERIAL: "serial_console", ConsoleKind.VNC: "vnc_console"}
PATIENCE_S = 60


def consoles(world: World, kind: ConsoleKind) -> Consoles:
    """The driver, where it has consoles of that kind; elsewhere, that it refuses is all."""
    driver = world.driver
    assert isinstance(driver, Consoles)
    if NAMES[kind] not in driver.facts().capabilities:
        uuid = world.new()
        driver.start(uuid)
        with pytest.raises(Unsupported):
            driver.open_console(uuid, kind)
        pytest.skip("it has no such console, and says so")
    return driver


def running(world: World) -> str:
    """A guest that is up as far as it goes."""
    uuid = world.new(system=True)
    world.driver.start(uuid)
    if world.runs_guests:
        driver = world.driver
        assert isinstance(driver, Console)
        wait_for(lambda: UP in driver.console_log(uuid, 1 << 16), 90, "the guest to be up")
    return uuid


def read_until(line: socket.socket, wanted: bytes) -> bytes:
    """What comes until `wanted` is in it."""
    line.settimeout(PATIENCE_S)
    got = b""
    while wanted not in got:
        more = line.recv(4096)
        assert more, f"the console ended after {got!r}"
        got += more
    return got


def exactly(line: socket.socket, count: int) -> bytes:
    line.settimeout(PATIENCE_S)
    got = b""
    while len(got) < count:
        more = line.recv(count - len(got))
        assert more, f"the console ended after {got!r}"
        got += more
    return got


def assert_ends(line: socket.socket) -> None:
    """Everything that is still on its way, and then the end."""
    line.settimeout(PATIENCE_S)
    try:
        while line.recv(65536):
            pass
    except ConnectionResetError:
        return


def threads() -> set[threading.Thread]:
    """Those that carry a console."""
    return {t for t in threading.enumerate() if t.name in ("serial-console", "fake-console")}


@pytest.mark.parametrize("kind", ConsoleKind)
def test_what_does_not_run_has_no_console(world: World, kind: ConsoleKind) -> None:
    driver = consoles(world, kind)
    off = world.new()
    for uuid in (off, str(uuid4())):
        with pytest.raises(HostRefused):
            driver.open_console(uuid, kind)


def test_a_console_of_another_is_not_given(world: World) -> None:
    driver = consoles(world, ConsoleKind.SERIAL)
    uuid = str(uuid4())
    world.add_foreign(uuid)
    for kind in ConsoleKind:
        with pytest.raises(HostRefused):
            driver.open_console(uuid, kind)


def test_the_serial_port_is_typed_at_and_read(world: World) -> None:
    driver = consoles(world, ConsoleKind.SERIAL)
    uuid = running(world)
    before = threads()
    line = driver.open_console(uuid, ConsoleKind.SERIAL)
    line.socket.sendall(b"\recho knock-$((6*7))\r")
    read_until(line.socket, b"knock-42" if world.runs_guests else b"knock-$")
    line.close()
    line.close()
    wait_for(lambda: threads() <= before, 10, "its threads to end")


def test_who_comes_last_has_the_serial_port(world: World) -> None:
    driver = consoles(world, ConsoleKind.SERIAL)
    uuid = running(world)
    before = threads()
    first = driver.open_console(uuid, ConsoleKind.SERIAL)
    second = driver.open_console(uuid, ConsoleKind.SERIAL)
    assert_ends(first.socket)
    second.socket.sendall(b"\recho second\r")
    read_until(second.socket, b"second")
    first.close()
    second.close()
    wait_for(lambda: threads() <= before, 10, "their threads to end")


def test_the_serial_port_ends_with_its_guest(world: World) -> None:
    driver = consoles(world, ConsoleKind.SERIAL)
    uuid = running(world)
    before = threads()
    line = driver.open_console(uuid, ConsoleKind.SERIAL)
    world.driver.power_off(uuid)
    assert_ends(line.socket)
    wait_for(lambda: threads() <= before, 10, "its threads to end")
    line.close()


def test_the_screen_lets_a_client_in(world: World) -> None:
    driver = consoles(world, ConsoleKind.VNC)
    uuid = world.new()
    world.driver.start(uuid)
    before = threads()
    line = driver.open_console(uuid, ConsoleKind.VNC)
    assert exactly(line.socket, 12) == b"RFB 003.008\n"
    line.socket.sendall(b"RFB 003.008\n")
    offered = exactly(line.socket, exactly(line.socket, 1)[0])
    assert 1 in offered
    line.socket.sendall(b"\x01")
    assert exactly(line.socket, 4) == bytes(4)
    line.socket.sendall(b"\x01")
    start = exactly(line.socket, 24)
    width, height = struct.unpack(">HH", start[:4])
    assert width > 0
    assert height > 0
    assert exactly(line.socket, struct.unpack(">I", start[20:])[0])
    second = driver.open_console(uuid, ConsoleKind.VNC)
    assert exactly(second.socket, 12) == b"RFB 003.008\n", "a screen is shared"
    second.close()
    world.driver.power_off(uuid)
    assert_ends(line.socket)
    line.close()
    wait_for(lambda: threads() <= before, 10, "its threads to end")


def test_what_a_guest_uses_is_counted(world: World) -> None:
    driver = world.driver
    assert isinstance(driver, Diagnostics)
    uuid = world.new(vcpus=2)
    if "diagnostics" not in driver.facts().capabilities:
        with pytest.raises(Unsupported):
            driver.diagnostics(uuid)
        return
    off = driver.diagnostics(uuid)
    assert (off.power, off.cpu_ns, off.disks) == (Power.OFF, (), ())
    assert off.memory_mib == 128
    world.driver.start(uuid)
    seen = driver.diagnostics(uuid)
    assert seen.power is Power.RUNNING
    assert len(seen.cpu_ns) == 2
    assert seen.memory_mib == 128
    assert seen.memory_used_mib
    assert [nic.mac for nic in seen.nics] == [world.spec(uuid).mac]
    assert "vda" in [disk.device for disk in seen.disks]
    with pytest.raises(HostRefused):
        driver.diagnostics(str(uuid4()))


def test_an_agent_that_is_not_there_fails_in_time(world: World) -> None:
    driver = world.driver
    assert isinstance(driver, Agent)
    uuid = world.new()
    if "agent" not in driver.facts().capabilities:
        for verb in (driver.freeze, driver.thaw):
            with pytest.raises(Unsupported):
                verb(uuid)
        return
    with pytest.raises(AgentFailed):
        driver.freeze(uuid)
    world.driver.start(uuid)
    world.without_agent(uuid)
    for verb in (driver.freeze, driver.thaw):
        with pytest.raises(AgentFailed):
            verb(uuid)
    with pytest.raises(AgentFailed):
        driver.set_password(uuid, "root", "secret")
    assert world.power(uuid) is Power.RUNNING
