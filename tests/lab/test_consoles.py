"""Consoles, agents and containers on real hosts: a QEMU host and an LXC host, one controller."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.lab.conftest import served, settings_for
from tests.labs import a_lab
from tests.waiting import wait_for
from treadle.cli.files import FlavorEntry, HostEntry, ImageEntry
from treadle.cli.serve import Inventory, Treadle, assemble
from treadle.hypervisor.base import Agent, AgentFailed, Power
from treadle.image.sources import parse_source
from treadle.lab.container import build_container
from treadle.lab.fabric import Lab, can_run

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]
VM, CONTAINER = 1, 2
UP = b"TREADLE-GUEST-UP"
#: An agent as a tenant might write it: it answers, hangs or lies as /run/agent says.
AGENT = r"""#!/bin/sh
for try in 1 2 3 4 5 6 7 8 9 10; do [ -e /dev/vport*p1 ] && break; sleep 1; done
port=$(echo /dev/vport*p1)
[ -e $port ] || exit 0
echo honest > /run/agent
exec 3<> $port
echo AGENT-UP > /dev/ttyS0
while read -r line <&3; do
    id=$(echo "$line" | sed -n 's/.*"id": *\([0-9]*\).*/\1/p')
    read -r mode < /run/agent
    case $mode:$line in
    hangs:*) ;;
    *guest-sync-delimited*) printf '\377{"return": %s}\n' "$id" >&3 ;;
    *guest-sync*) printf '{"return": %s}\n' "$id" >&3 ;;
    lies:*) printf '{"return": {"of": ["everything"]}}\n' >&3 ;;
    *fsfreeze-freeze*) printf '{"return": 3}\n' >&3 ;;
    *fsfreeze-thaw*) printf '{"return": 3}\n' >&3 ;;
    *set-user-password*) echo "asked: $line" > /dev/ttyS0; printf '{"return": {}}\n' >&3 ;;
    *) printf '{"error": {"class": "CommandNotFound", "desc": "\\u001b[31mno"}}\n' >&3 ;;
    esac
done
"""


@dataclass
class Both:
    """A controller over a QEMU host (1) and an LXC host (2), behind a real server."""

    lab: Lab
    treadle: Treadle
    port: int
    client: httpx2.Client

    def get(self, path: str) -> Any:
        return self.client.get(path).json()

    def native(self, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.treadle.context.admin_token}"}
        return self.client.request(method, f"/treadle/v1{path}", headers=headers, **more)

    def create(self, name: str, image: int) -> int:
        made = self.get(f"/vm/create?name={name}&instance_type=1&image_id={image}")
        assert made["vmid"], made
        return int(made["vmid"])

    def uuid(self, vmid: int) -> str:
        return str(self.native("GET", f"/instances/{vmid}").json()["uuid"])

    def enter(self, vmid: int, kind: str) -> ClientConnection:
        answer = self.native("POST", f"/instances/{vmid}/console", json={"kind": kind})
        assert answer.status_code == 201, answer.text
        return connect(
            f"ws://127.0.0.1:{self.port}{answer.json()['socket']}", compression=None, proxy=None,
            subprotocols=["binary"], open_timeout=60,  # type: ignore[list-item]
        )

    def tells(self, vmid: int, word: bytes) -> None:
        """Wait until the guest has printed it."""
        def seen() -> bool:
            return word in self.native("GET", f"/instances/{vmid}/console").content

        wait_for(seen, 120, f"the guest to print {word!r}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with a_lab("con", 2, tmp_path_factory.mktemp("lab")) as one:
        yield one


@pytest.fixture(scope="module")
def both(
    lab: Lab, guest_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    one, two = lab.status()
    settings = settings_for(lab).with_overrides({"guest.user_data": AGENT})
    treadle = assemble(settings, tmp_path_factory.mktemp("state"))
    treadle.controller.start()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "treadle"
    treadle.register(Inventory(
        [HostEntry(1, one.uri, one.address),
         HostEntry(2, two.uri.replace("qemu+ssh", "lxc+ssh"), two.address)],
        [ImageEntry(VM, parse_source(str(guest_image)), "vm"),
         ImageEntry(CONTAINER, parse_source(str(build_container(cache))), "container")],
        [FlavorEntry(1, 1, 128, 1)],
    ))
    try:
        # Who does not answer for so long is gone.
        with served(treadle, ws_ping_interval=3.0, ws_ping_timeout=9.0) as port, httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False
        ) as client:
            found = Both(lab, treadle, port, client)
            wait_for(lambda: states(found) == ["up", "up"], 60, "the hosts")
            wait_for(lambda: all(
                image["state"] == "active"
                for image in found.native("GET", "/images").json()["images"]
            ), 60, "the images")
            yield found
            for vmid in found.get("/vm/list")["vmids"]:
                found.get(f"/vm/destroy?vmid={vmid}")
    finally:
        treadle.close()


def states(both: Both) -> list[str]:
    return [host["state"] for host in both.native("GET", "/hosts").json()["hosts"]]


def read_until(client: ClientConnection, wanted: bytes, seconds: float = 120) -> bytes:
    got, end = b"", time.monotonic() + seconds
    while wanted not in got:
        got += bytes(client.recv(timeout=max(0.1, end - time.monotonic())))
    return got


def ends(client: ClientConnection, seconds: float = 60) -> str:
    """Why the server ended it."""
    end = time.monotonic() + seconds
    try:
        while True:
            client.recv(timeout=max(0.1, end - time.monotonic()))
    except ConnectionClosed as error:
        closed = error.rcvd
    assert closed is not None
    return closed.reason


def tunnels() -> list[str]:
    """Command lines of the ssh processes that forward to a screen."""
    return [line for line in sessions() if "/vnc.sock" in line]


def sessions() -> list[str]:
    """Command lines of the ssh processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if line.startswith("ssh "):
                found.append(line)
    return found


def carriers() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name == "serial-console"}


def test_each_image_runs_where_it_can(both: Both) -> None:
    vm, container = both.create("machine", VM), both.create("container", CONTAINER)
    assert both.get(f"/vm/query?vmid={vm}")["pmid"] == 1
    assert both.get(f"/vm/query?vmid={container}")["pmid"] == 2
    with both.enter(container, "serial") as line:
        line.send(b"\recho in-$((40+2)) $(hostname)\r")
        assert b"container" in read_until(line, b"in-42 container")
    answer = both.native("POST", f"/instances/{container}/console", json={"kind": "vnc"})
    assert answer.status_code == 400
    assert "vnc_console" in answer.json()["error"]["message"]
    answer = both.native("GET", f"/instances/{container}/console")
    assert answer.status_code == 409
    assert "no log of the console" in answer.json()["error"]["message"]
    refused = both.get(f"/vm/suspend?vmid={container}")
    assert refused["status"] == 0
    assert "(lxc) has no suspend" in refused["error"]
    for action, state in (
        ("pause?", "paused"), ("resume?", "running"), ("reboot?", "running"),
        ("reboot?hard=1&", "running"), ("stop?", "stopped"), ("start?", "running"),
    ):
        assert both.get(f"/vm/{action}vmid={container}") == {"status": 1}, action
        assert both.get(f"/vm/query?vmid={container}")["state"] == state
    counted = both.native("GET", f"/instances/{container}/diagnostics").json()
    assert counted["power"] == "running"
    both.tells(vm, UP)
    with both.enter(vm, "serial") as line:
        line.send(b"\recho in-$((40+2)) $(hostname)\r")
        read_until(line, b"in-42 machine")
    record = both.native("GET", f"/instances/{container}/decision").json()
    assert record["winner"] == 2
    for vmid in (vm, container):
        assert both.get(f"/vm/destroy?vmid={vmid}")["status"] == 1
    for host in both.lab.status():
        files = both.lab.exec(host.name, "ls", "/var/lib/libvirt/treadle").stdout.split()
        known = ("image-", "treadle-host.")
        assert [name for name in files if not name.startswith(known)] == []
    assert both.lab.exec("host2", "losetup", "-a").stdout.count("treadle") == 0


def test_a_screen_opens_no_port_and_leaves_no_tunnel(both: Both) -> None:
    vm = both.create("screen", VM)

    def ports() -> set[str]:
        lines = both.lab.exec("host1", "cat", "/proc/net/tcp", "/proc/net/tcp6").stdout
        rows = [line.split() for line in lines.splitlines()]
        return {row[1] for row in rows if len(row) > 3 and row[3] == "0A"}

    before = ports()
    with both.enter(vm, "vnc") as client:
        assert read_until(client, b"RFB 003.008\n") == b"RFB 003.008\n"
        assert ports() == before
        assert len(tunnels()) == 1
        client.send(b"RFB 003.008\n")
        assert read_until(client, b"\x01\x01") == b"\x01\x01"
        client.send(b"\x01")
        assert read_until(client, bytes(4)) == bytes(4)
        client.send(b"\x01")
        assert b"QEMU" in read_until(client, b"QEMU")
        assert both.get(f"/vm/destroy?vmid={vm}")["status"] == 1
        assert ends(client) == "the guest's console has ended"
    wait_for(lambda: tunnels() == [], 15, "the tunnel to end")


class Vanishing:
    """A client of a console that is gone without a word: its connection is reset, or nothing more
    comes over it."""

    def __init__(self, both: Both, vmid: int, kind: str) -> None:
        path = both.native("POST", f"/instances/{vmid}/console", json={"kind": kind}).json()
        self.socket = socket.create_connection(("127.0.0.1", both.port), timeout=60)
        self.socket.sendall(
            f"GET {path['socket']} HTTP/1.1\r\nHost: 127.0.0.1:{both.port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n\r\n".encode()
        )
        said = b""
        while b"\r\n\r\n" not in said:
            said += self.socket.recv(1)
        assert said.startswith(b"HTTP/1.1 101"), said

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


def test_clients_that_vanish_leave_nothing_open(both: Both) -> None:
    vm, container = both.create("lonely", VM), both.create("lonely-too", CONTAINER)
    assert both.get(f"/vm/pause?vmid={vm}") == {"status": 1}  # its port and its screen are there

    def led() -> int:
        """How many are logged in at the hosts, of which each console is one."""
        return sum(
            int(both.lab.exec(one.name, "pgrep", "-c", "-x", "sshd").stdout)
            for one in both.lab.status()
        )

    def open_here() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with both.enter(container, "serial") as line:  # what is made once is made
        line.send(b"\r")
        read_until(line, b"# ")
    names = {one.address for one in both.lab.status()}

    def over() -> bool:
        """The hosts know of nobody who has left: one of their own listens at each."""
        here = sum(any(name in line for name in names) for line in sessions())
        return not carriers() and led() == here + len(names)

    wait_for(over, 30, "that to be over")
    before, files = led(), open_here()
    clients = [
        Vanishing(both, id, kind)
        for id, kind in ((vm, "serial"), (vm, "vnc"), (container, "serial"))
    ]
    assert carriers()
    assert len(tunnels()) == 1
    assert led() >= before + 3
    clients.pop(0).reset()
    gone: Callable[[], bool] = lambda: not tunnels() and not carriers()  # noqa: E731
    wait_for(gone, 60, "those who say nothing to be given up")
    for client in clients:
        client.socket.close()
    wait_for(lambda: led() <= before and open_here() <= files, 30, "all to be closed")
    with both.enter(container, "serial") as line, both.enter(vm, "vnc") as screen:
        line.send(b"\recho in-$((40+2))\r")
        read_until(line, b"in-42")
        read_until(screen, b"RFB")
    for vmid in (vm, container):
        assert both.get(f"/vm/destroy?vmid={vmid}")["status"] == 1


def test_a_tunnel_does_not_outlive_its_controller(both: Both, tmp_path: Path) -> None:
    vm = both.create("killed", VM)
    program = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from treadle.hypervisor.base import ConsoleKind
        from treadle.hypervisor.libvirt import LibvirtDriver, LibvirtOptions
        options = LibvirtOptions(Path({str(tmp_path)!r}), Path({str(both.lab.key)!r}))
        driver = LibvirtDriver({both.lab.status()[0].uri!r}, options)
        line = driver.open_console({both.uuid(vm)!r}, ConsoleKind.VNC)
        print(line.socket.recv(12), flush=True)
        sys.stdin.read()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert b"RFB" in process.stdout.readline()
        assert len(tunnels()) == 1
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        wait_for(lambda: tunnels() == [], 15, "the tunnel to end")
    finally:
        process.kill()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()
        both.get(f"/vm/destroy?vmid={vm}")


def test_the_agent_answers_hangs_and_lies(both: Both) -> None:
    vm = both.create("agent", VM)
    both.tells(vm, UP)
    # What libvirt writes while the guest opens its port may reach the agent in part.
    both.tells(vm, b"AGENT-UP")
    uuid = both.uuid(vm)
    driver = both.treadle.fleet.driver(1, both.lab.status()[0].uri)
    assert isinstance(driver, Agent)

    def turn(mode: str) -> None:
        with both.enter(vm, "serial") as line:
            line.send(f"\recho {mode} > /run/agent; echo set-$((40+2))\r".encode())
            read_until(line, b"set-42")

    def answered() -> bool:
        try:
            return driver.freeze(uuid) == 3
        except AgentFailed:
            return False

    wait_for(answered, 60, "the agent to answer")
    assert driver.thaw(uuid) == 3
    driver.set_password(uuid, "root", "it is secret")
    turn("lies")
    for verb in (driver.freeze, driver.thaw):
        with pytest.raises(AgentFailed):
            verb(uuid)
    turn("hangs")
    began = time.monotonic()
    for act in (
        lambda: driver.freeze(uuid), lambda: driver.set_password(uuid, "root", "x"),
    ):
        with pytest.raises(AgentFailed):
            act()
    assert time.monotonic() - began < 60, "each within its deadline of 15 s"
    seen = driver.observe(uuid)
    assert seen is not None
    assert seen.power is Power.RUNNING, "a hanging agent holds nothing else up"
    turn("honest")
    wait_for(answered, 60, "the agent to answer again")
    both.get(f"/vm/destroy?vmid={vm}")


def test_a_host_dies_under_consoles(both: Both) -> None:
    vm, container = both.create("doomed", VM), both.create("doomed-too", CONTAINER)
    with both.enter(vm, "vnc") as screen, both.enter(vm, "serial") as serial, \
            both.enter(container, "serial") as inside:
        read_until(screen, b"RFB")
        inside.send(b"\r")
        read_until(inside, b"# ")
        both.lab.kill_host("host1")
        both.lab.kill_host("host2")
        for client in (screen, serial, inside):
            assert ends(client) == "the guest's console has ended"
    ended: Callable[[], bool] = lambda: not tunnels() and not carriers()  # noqa: E731
    wait_for(ended, 30, "threads and tunnels to end")
    both.lab.boot_host("host1")
    both.lab.boot_host("host2")
    wait_for(lambda: states(both) == ["up", "up"], 90, "the hosts to be back")
