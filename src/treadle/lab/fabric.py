"""The lab: N real libvirt hosts in namespaces of one machine, joined by a bridge.

A host is a libvirtd, a virtlogd, an sshd and what they start, in mount, network, UTS, IPC and PID
namespaces of their own (``host_init``). The lab belongs to no process: what there is stands in its
folder, so any later process can report on it or end it.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from treadle.errors import Permanent
from treadle.lab import host_init

__all__ = ["Lab", "LabError", "LabHost", "can_run"]

ROOT = Path("/var/lib/treadle-lab")
#: What the hosts' emulators can do, kept between labs: finding out costs each host a second.
CAPABILITIES = Path("/var/cache/treadle/qemu-capabilities")
NAME = re.compile(r"[a-z0-9]{1,8}")
MAX_HOSTS = 200
READY_SECONDS = 60.0
DEAD_SECONDS = 10.0
TOOL_SECONDS = 30.0
PROGRAMS = (
    "ip ssh ssh-keygen nsenter libvirtd virtlogd sshd dnsmasq iptables qemu-system-x86_64 qemu-img"
)
SEARCH_PATH = host_init.ENVIRONMENT["PATH"]

SSHD_CONFIG = f"""\
HostKey {host_init.HERE}/host_key
AuthorizedKeysFile {host_init.HERE}/authorized_keys
PidFile none
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
UseDNS no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
X11Forwarding no
PrintMotd no
LoginGraceTime 20
MaxStartups 100:30:200
MaxSessions 100
"""

QEMU_CONF = """\
security_driver = "none"
user = "root"
group = "root"
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "logd"
"""

#: Where the pool is shared: a disk that is open for writing is locked, whichever host has it open.
LOCKS_CONF = 'lock_manager = "lockd"\n'

#: The users that the daemons name; the machine's own need not have them. A locked password ("!")
#: would make sshd refuse root's key too; "*" does not.
USERS = {
    "passwd": """\
root:x:0:0:root:/root:/bin/bash
sshd:x:101:65534::/run/sshd:/usr/sbin/nologin
libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin
libvirt-dnsmasq:x:64056:64056::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin
""",
    "group": """\
root:x:0:
tty:x:5:
kvm:x:64054:
libvirt-qemu:x:64055:
libvirt-dnsmasq:x:64056:
libvirt:x:64057:
nogroup:x:65534:
""",
    "shadow": "root:*:19000:0:99999:7:::\n",
}

#: A guest's console log is cut at 1 MiB, and one older piece is kept.
VIRTLOGD_CONF = """\
max_size = 1048576
max_backups = 1
"""

Progress = Callable[[str], None]


def _silent(line: str) -> None:
    """Report nothing."""


class LabError(Permanent):
    """The lab cannot do what was asked; the message says why and, where known, what to do."""


@dataclass(frozen=True)
class LabHost:
    """One host: ``pid`` is its process 1 as this machine sees it, 0 while it is down."""

    name: str
    address: str
    pid: int
    uri: str
    folder: Path
    state: Literal["up", "down"]


def can_run() -> str | None:
    """Why no lab can be had here, with what to do about it, in one sentence; None when it can."""
    if not sys.platform.startswith("linux"):
        return "the lab needs Linux: run it in a virtual machine or a privileged container"
    if os.geteuid() != 0:
        return "the lab needs root: run it with sudo"
    missing = [name for name in PROGRAMS.split() if shutil.which(name, path=SEARCH_PATH) is None]
    if missing:
        return f"the lab needs {', '.join(missing)}: run bin/setup"
    done = subprocess.run(
        [sys.executable, "-I", "-S", host_init.__file__, "--probe"],
        capture_output=True, text=True, timeout=TOOL_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"namespaces cannot be made here ({last}): in a container, run it with --privileged"
    return None


class Lab:
    """A lab by name. Two of different names live beside each other.

    ``folder`` holds all that belongs to it, ``/var/lib/treadle-lab/NAME`` unless given. Methods
    that change something may be called from several processes: they take turns. Errors: LabError.
    ``ssh -F SSH_CONFIG host1`` logs in; ``ssh_command`` is an ssh that uses that configuration, for
    a libvirt URI's ``command`` parameter.
    """

    def __init__(self, name: str = "lab", folder: Path | None = None) -> None:
        if not NAME.fullmatch(name):
            raise LabError(f"a lab's name is 1 to 8 of a-z and 0-9, not {name!r}")
        self.name = name
        self.folder = (folder or ROOT / name).absolute()
        self.bridge = f"tl-{name}"
        self.shared = self.folder / "shared"
        self.ssh_config = self.folder / "ssh" / "config"
        self.ssh_command = self.folder / "ssh" / "ssh"
        self.key = self.folder / "ssh" / "id_ed25519"
        self.known_hosts = self.folder / "ssh" / "known_hosts"

    # -- the whole lab --------------------------------------------------------------------------

    def up(
        self, hosts: int = 3, progress: Progress = _silent, *, shared: bool = False
    ) -> list[LabHost]:
        """Bring up as many hosts as asked, or add what is missing, and wait until they answer.

        A lab that is up as asked is returned as it is; hosts are never taken away. `shared`: they
        see one folder as their pool, and lock the disks of what runs (virtlockd).
        """
        if not 1 <= hosts <= MAX_HOSTS:
            raise LabError(f"a lab has 1 to {MAX_HOSTS} hosts, not {hosts}")
        reason = can_run()
        if reason is not None:
            raise LabError(reason)
        owner = self._bridge_owner()
        if owner is not None and owner != self.folder:
            if _inits_of(owner):
                raise LabError(f"lab {self.name} is up from {owner}: end it, or take another name")
            _remove_link(self.bridge)  # left by one that was killed
        with self._turn():
            state = self._load() or {
                "name": self.name, "subnet": self._pick_subnet(), "shared": shared, "hosts": [],
            }
            if bool(state.get("shared")) is not shared:
                kind = "with" if state.get("shared") else "without"
                raise LabError(f"lab {self.name} is {kind} shared storage: end it first")
            net = ipaddress.IPv4Network(state["subnet"])
            for number in range(len(state["hosts"]) + 1, hosts + 1):
                state["hosts"].append({"name": f"host{number}", "address": str(net[10 + number])})
            host_init.write_json(self.folder / "lab.json", state)
            asleep = [host for host in self.status() if host.state == "down"]
            if asleep:
                progress(f"lab {self.name}: starting {len(asleep)} hosts on {net}")
                self._make_bridge(net)
                self._make_keys()
                self._parallel(lambda host: self._prepare(host.name, net, shared), asleep)
                self._share_keys()
                self._parallel(self._boot, asleep)
            return self.status()

    def down(self, progress: Progress = _silent) -> None:
        """End and remove the lab of this name, whoever began it and in whichever folder.

        What stays is the cache of emulator capabilities. A lab that is not there is no error.
        """
        owner = self._bridge_owner()
        for folder in {self.folder, owner or self.folder}:
            Lab(self.name, folder)._end(progress)
        _remove_link(self.bridge)

    def _end(self, progress: Progress) -> None:
        inits = _inits_of(self.folder)
        if not self.folder.exists() and not inits:
            return
        with self._turn():
            progress(f"lab {self.name}: ending {len(inits)} hosts")
            for folder in (self.folder / "hosts").glob("*"):
                _keep_capabilities(folder)
            # What a killed owner had just started may still be writing: until nothing is left.
            deadline = time.monotonic() + DEAD_SECONDS
            while True:
                self._parallel(_kill, _inits_of(self.folder))
                shutil.rmtree(self.folder, ignore_errors=True)
                if not self.folder.exists() and not _inits_of(self.folder):
                    break
                _wait_until(deadline, f"{self.folder} cannot be removed")
            for link in self._links():
                _remove_link(link)

    def status(self) -> list[LabHost]:
        """The hosts, as their processes are now."""
        state = self._load()
        return [] if state is None else [self._host(known) for known in state["hosts"]]

    # -- one host -------------------------------------------------------------------------------

    def host(self, name: str) -> LabHost:
        for host in self.status():
            if host.name == name:
                return host
        raise LabError(f"lab {self.name} has no host {name}")

    def exec(
        self, name: str, *argv: str, stdin: str | None = None, timeout: float = TOOL_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside a host that is up, with a time limit in seconds."""
        pid = self._pid(name)
        return subprocess.run(
            ["nsenter", "-t", str(pid), "-m", "-u", "-i", "-n", "-p", "--", *argv],
            input=stdin, capture_output=True, text=True, timeout=timeout, cwd="/",
            env=host_init.ENVIRONMENT,
        )  # fmt: skip

    def kill_host(self, name: str) -> None:
        """Power failure: everything that runs in the host is gone at once. Its disks stay."""
        with self._turn():
            host = self.host(name)
            _kill(host.pid)
            _remove_link(self._link(name))

    def boot_host(self, name: str) -> LabHost:
        """Start a host that is down, with the disks, address and keys it had, until it answers."""
        with self._turn():
            host = self.host(name)
            if host.state == "down":
                self._boot(host)
            return self.host(name)

    def cut(self, name: str) -> None:
        """Pull the host's network cable: it runs on, and nobody reaches it."""
        self._pid(name)
        _ip(f"link set {self._link(name)} down")

    def join(self, name: str) -> None:
        """Plug the host's network cable in again."""
        self._pid(name)
        _ip(f"link set {self._link(name)} up")

    def restart_libvirtd(self, name: str) -> None:
        """End the host's libvirtd and wait until its successor answers; guests run on."""
        host = self.host(name)
        before = _daemon_starts(host.folder, "libvirtd")
        os.kill(self._pid(name), signal.SIGHUP)
        deadline = time.monotonic() + READY_SECONDS
        while _daemon_starts(host.folder, "libvirtd") <= before:
            _wait_until(deadline, f"{name}: libvirtd did not restart")
        self._wait_ready(host.name, deadline)

    # -- building -------------------------------------------------------------------------------

    def _prepare(self, name: str, net: ipaddress.IPv4Network, shared: bool) -> None:
        """Write what the host finds when it starts; what an earlier start left stays."""
        host = self.host(name)
        for folder in (*host_init.PRIVATE, "home/.ssh", "lib/images", "log/qemu", "cache/qemu"):
            (host.folder / folder).mkdir(parents=True, exist_ok=True)
        (host.folder / "home" / ".ssh").chmod(0o700)
        (host.folder / "tmp").chmod(0o1777)
        config_file = host.folder / "config.json"
        if config_file.exists():
            return
        config = {
            "name": name,
            "address": host.address,
            "prefix": net.prefixlen,
            "gateway": str(net[1]),
            "folder": str(host.folder),
        }
        if shared:
            self.shared.mkdir(mode=0o711, exist_ok=True)
            config["shared"] = str(self.shared)
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f",
              str(host.folder / "host_key")])  # fmt: skip
        (host.folder / "sshd_config").write_text(SSHD_CONFIG)
        for file, text in USERS.items():
            (host.folder / file).write_text(text)
        (host.folder / "hostname").write_text(f"{name}\n")
        etc = host.folder / "etc"
        (etc / "libvirtd.conf").write_text(
            f'host_uuid = "{uuid.uuid4()}"\nauth_unix_rw = "none"\nmin_workers = 2\n'
        )
        (etc / "qemu.conf").write_text(QEMU_CONF + (LOCKS_CONF if shared else ""))
        (etc / "virtlogd.conf").write_text(VIRTLOGD_CONF)
        filters = Path("/etc/libvirt/nwfilter")
        if filters.is_dir():
            shutil.copytree(filters, etc / "nwfilter", dirs_exist_ok=True)
        if CAPABILITIES.is_dir():
            shutil.copytree(CAPABILITIES, host.folder / "cache/qemu/capabilities")
        host_init.write_json(config_file, config)

    def _make_keys(self) -> None:
        self.key.parent.mkdir(mode=0o700, exist_ok=True)
        if not self.key.exists():
            _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab-{self.name}", "-f",
                  str(self.key)])  # fmt: skip

    def _share_keys(self) -> None:
        """Let the user and every host log in to every host, each host's key checked."""
        hosts = self.status()
        known, blocks, names = [], [], ["127.0.0.1 localhost\n"]
        for host in hosts:
            public = (host.folder / "host_key.pub").read_text().split()[:2]
            known.append(f"{host.name},{host.address} {' '.join(public)}\n")
            names.append(f"{host.address} {host.name}\n")
            blocks.append(f"Host {host.name}\n    HostName {host.address}\n")
        everyone = " ".join(f"{host.name} {host.address}" for host in hosts)
        blocks.append(
            f"Host {everyone}\n    StrictHostKeyChecking yes\n"
            f'    UserKnownHostsFile "{self.known_hosts}"\n    ConnectTimeout 5\n'
        )
        # A guest's address and host key come and go with the guest.
        blocks.append(
            f'Host *\n    User root\n    IdentityFile "{self.key}"\n    IdentitiesOnly yes\n'
            "    GlobalKnownHostsFile /dev/null\n    UserKnownHostsFile /dev/null\n"
            "    StrictHostKeyChecking no\n    LogLevel ERROR\n"
        )
        self.known_hosts.write_text("".join(known))
        self.ssh_config.write_text("".join(blocks))
        self.ssh_command.write_text(f'#!/bin/sh\nexec ssh -F "{self.ssh_config}" "$@"\n')
        self.ssh_command.chmod(0o700)
        public_key = self.key.with_suffix(".pub").read_text()
        for host in hosts:
            # Written in place: a running host has the file itself mounted.
            (host.folder / "hosts").write_text("".join(names))
            (host.folder / "authorized_keys").write_text(public_key)
            home = host.folder / "home" / ".ssh"
            (home / "known_hosts").write_text("".join(known))
            shutil.copyfile(self.key, home / "id_ed25519")
            (home / "id_ed25519").chmod(0o600)

    def _boot(self, host: LabHost) -> None:
        link = self._link(host.name)
        _remove_link(link)
        _run([sys.executable, "-I", "-S", host_init.__file__, str(host.folder / "config.json")])
        pid = host_init.running_pid(host.folder)
        if pid == 0:
            raise LabError(f"{host.name} ended at once: {_last_line(host.folder)}")
        _ip(
            f"link add {link} type veth peer name eth0 address {_mac(host.address)} netns {pid}",
            f"link set {link} master {self.bridge} up",
        )
        self._wait_ready(host.name, time.monotonic() + READY_SECONDS)

    def _wait_ready(self, name: str, deadline: float) -> None:
        """Until libvirtd answers a call and sshd greets. Raises LabError at the deadline."""
        while True:
            host = self.host(name)
            if host.state == "down":
                raise LabError(f"{name} ended while starting: {_last_line(host.folder)}")
            if _libvirtd_answers(host.pid) and _sshd_greets(host.address):
                return
            _wait_until(deadline, f"{name} does not answer; its logs are in {host.folder}/log")

    # -- network --------------------------------------------------------------------------------

    def _pick_subnet(self) -> str:
        """A /24 out of 10.213.0.0/16 that follows from the lab's name and is not routed yet."""
        shown = json.loads(_run(["ip", "-json", "-4", "route", "show"]) or "[]")
        taken = [
            network
            for route in shown
            if route["dst"] != "default"
            and (network := ipaddress.IPv4Network(route["dst"])).prefixlen > 16
            and route.get("dev") != self.bridge
        ]
        first = zlib.crc32(self.name.encode()) % 256
        for step in range(256):
            net = ipaddress.IPv4Network(f"10.213.{(first + step) % 256}.0/24")
            if not any(net.overlaps(network) for network in taken):
                return str(net)
        raise LabError("all of 10.213.0.0/16 is routed already: end a lab")

    def _make_bridge(self, net: ipaddress.IPv4Network) -> None:
        if not _link_exists(self.bridge):
            _ip(f"link add {self.bridge} address {_mac(str(net[1]))} type bridge stp_state 0",
                f"link set {self.bridge} alias {self.folder}")  # fmt: skip
        _ip(f"address replace {net[1]}/{net.prefixlen} dev {self.bridge}",
            f"link set {self.bridge} up")  # fmt: skip

    def _bridge_owner(self) -> Path | None:
        """The folder of the lab whose bridge is up under this name."""
        try:
            alias = Path(f"/sys/class/net/{self.bridge}/ifalias").read_text().strip()
        except FileNotFoundError:
            return None
        return Path(alias) if alias else None

    def _link(self, name: str) -> str:
        """The lab's end of the host's cable."""
        return f"{self.bridge}-{name.removeprefix('host')}"

    def _links(self) -> list[str]:
        """The lab's ends of all cables that there are."""
        mine = re.compile(rf"{re.escape(self.bridge)}-[0-9]+")
        return [link for _, link in socket.if_nameindex() if mine.fullmatch(link)]

    # -- records --------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One change at a time, over all processes."""
        path = self.folder / ".lock"
        while True:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # Ending a lab removes its lock too: who waited for that one begins again.
                if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    yield
                    return

    def _load(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads((self.folder / "lab.json").read_text())
        except FileNotFoundError:
            return None
        return state

    def _host(self, known: dict[str, str]) -> LabHost:
        name, address = known["name"], known["address"]
        folder = self.folder / "hosts" / name
        pid = host_init.running_pid(folder)
        uri = f"qemu+ssh://root@{address}/system"
        return LabHost(name, address, pid, uri, folder, "up" if pid else "down")

    def _pid(self, name: str) -> int:
        pid = self.host(name).pid
        if pid == 0:
            raise LabError(f"{name} is down")
        return pid

    def _parallel(self, act: Callable[[Any], object], items: Sequence[Any]) -> None:
        with ThreadPoolExecutor(max_workers=16) as pool:
            for done in [pool.submit(act, item) for item in items]:
                done.result()


# -- processes ----------------------------------------------------------------------------------


def _inits_of(folder: Path) -> list[int]:
    """The process 1 of each host of the lab in this folder, found even if the folder is gone."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        mine = len(argv) > 4 and argv[1:3] == ["-I", "-S"] and argv[3].endswith("/host_init.py")
        if mine and Path(argv[4]).parent.parent == folder / "hosts":
            found.append(int(entry.name))
    return found


def _kill(pid: int) -> None:
    """End a host's process 1, and with it all that runs in the host; wait until it is gone."""
    started = host_init.process_start(pid)
    if started is None:
        return
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The handle cannot be recycled, and the check says that it is the process that was meant.
        if host_init.process_start(pid) != started:
            return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], DEAD_SECONDS)[0]:
            raise LabError(f"process {pid} still runs {DEAD_SECONDS:g} s after it was killed")
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def _daemon_starts(folder: Path, daemon: str) -> int:
    return int(json.loads((folder / "daemons.json").read_text())[daemon]["starts"])


def _keep_capabilities(folder: Path) -> None:
    """Keep what a host found out about its emulators; libvirtd checks whether that is stale."""
    for found in (folder / "cache/qemu/capabilities").glob("*.xml"):
        kept = CAPABILITIES / found.name
        if kept.exists() and kept.stat().st_mtime >= found.stat().st_mtime:
            continue
        CAPABILITIES.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        shutil.copy2(found, partial)
        os.replace(partial, kept)


def _last_line(folder: Path) -> str:
    lines = (folder / "log" / "init.out").read_text().splitlines()
    return lines[-1] if lines else "it left no message"


def _libvirtd_answers(pid: int) -> bool:
    """Ask libvirtd which ways to log in it has: it accepts calls once its drivers are ready."""
    request = struct.pack(">IIIIIII", 28, 0x20008086, 1, 66, 0, 0, 0)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(f"/proc/{pid}/root/run/libvirt/libvirt-sock")
            client.sendall(request)
            return len(client.recv(4096)) > 0
        except OSError:
            return False


def _sshd_greets(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1.0) as client:
            return client.recv(256).startswith(b"SSH-")
    except OSError:
        return False


def _wait_until(deadline: float, otherwise: str) -> None:
    """Let a little time pass; LabError once the deadline is over."""
    if time.monotonic() > deadline:
        raise LabError(otherwise)
    time.sleep(0.02)


# -- tools --------------------------------------------------------------------------------------


def _run(command: Sequence[str], text: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=TOOL_SECONDS,
            env={**os.environ, "PATH": SEARCH_PATH},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{command[0]} took longer than {TOOL_SECONDS:g} s") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise LabError(f"{command[0]} failed: {said[0]}")
    return done.stdout


def _ip(*commands: str) -> None:
    _run(["ip", "-batch", "-"], "\n".join(commands) + "\n")


def _mac(address: str) -> str:
    """A card's address that follows from its IPv4 one, so a host that boots again is known."""
    return "02:54:" + ipaddress.IPv4Address(address).packed.hex(":")


def _link_exists(link: str) -> bool:
    return Path(f"/sys/class/net/{link}").exists()


def _remove_link(link: str) -> None:
    """Remove a network link if it is there; the kernel may be removing it at the same moment."""
    deadline = time.monotonic() + DEAD_SECONDS
    while _link_exists(link):
        try:
            _ip(f"link delete {link}")
        except LabError:
            _wait_until(deadline, f"the network link {link} cannot be removed")
