"""Process 1 of one lab host: builds the host out of namespaces, runs its daemons, reaps.

Run as a program (by path, with ``-I -S``) with the host's configuration file as its one argument.
The program makes the namespaces, forks process 1 in them, and ends once that is recorded, so that
process 1 belongs to nobody and outlives whoever asked for it. In the host's folder it keeps

``init.json``
    ``{"pid", "started", "boot"}`` of process 1 as the machine sees it: with all three, a recycled
    process id is never taken for a host.
``daemons.json``
    ``{name: {"pid", "starts"}}``, with process ids as the host sees them.

Signals: HUP restarts libvirtd; TERM and KILL are a power failure, for the kernel ends all that runs
in the host with its process 1. A daemon that dies is started again.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_MOVE = 2, 4, 8, 4096, 8192
MS_REC, MS_PRIVATE = 16384, 1 << 18
MNT_DETACH = 2

LINK_SECONDS = 20.0
RESPAWN_SECONDS = 1.0
#: Where the host finds its own folder.
HERE = Path("/run/treadle")
#: Folder in the host's own folder → the path over which it is mounted.
PRIVATE = {
    "tmp": "/tmp",
    "home": "/root",
    "lib": "/var/lib/libvirt",
    "etc": "/etc/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
PRIVATE_FILES = {
    name: f"/etc/{name}" for name in ("hosts", "passwd", "group", "shadow", "hostname")
}
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
#: Where hosts that share their storage see it, and through which path they get at it.
SHARED, POOL = Path("/run/shared"), Path("/var/lib/libvirt/treadle")
LOCK_DAEMON = {"virtlockd": ["/usr/sbin/virtlockd"]}
DAEMONS = {
    "virtlogd": ["/usr/sbin/virtlogd"],
    "libvirtd": ["/usr/sbin/libvirtd"],
    "sshd": ["/usr/sbin/sshd", "-D", "-e", "-f", f"{HERE}/sshd_config"],
}

libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare() -> None:
    """Leave the machine's mount, UTS, IPC and network namespaces; children leave its PIDs."""
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID
    _check(libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2). Raises OSError that names the target."""

    def raw(text: str | None) -> bytes | None:
        return None if text is None else text.encode()

    result = libc.mount(raw(source), raw(target), raw(kind), ctypes.c_ulong(flags), raw(data))
    _check(result, f"mount {target}")


def write_json(path: Path, content: object) -> None:
    """Replace the file in one step."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content))
    os.replace(partial, path)


def log_line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def process_start(pid: int | str) -> int | None:
    """When the process began, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def running_pid(folder: Path) -> int:
    """The host's process 1 as recorded, if that very process still runs; else 0."""
    try:
        known = json.loads((folder / "init.json").read_text())
    except FileNotFoundError:
        return 0
    if known["boot"] != boot_id():
        return 0
    pid = int(known["pid"])
    return pid if process_start(pid) == known["started"] else 0


def build_root(config: dict[str, Any]) -> None:
    """Mount the host's private folders and kernel file systems over the machine's."""
    folder = str(config["folder"])
    socket.sethostname(config["name"])
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=256m")
    HERE.mkdir()
    # The lab's folder may lie under a path that is covered below: bind it first, use it from there.
    mount(folder, str(HERE), None, MS_BIND)
    if config.get("shared"):
        SHARED.mkdir()
        mount(str(config["shared"]), str(SHARED), None, MS_BIND)
    for name, target in PRIVATE.items():
        Path(target).mkdir(parents=True, exist_ok=True)
        mount(str(HERE / name), target, None, MS_BIND)
    if config.get("shared"):
        POOL.mkdir(exist_ok=True)
        mount(str(SHARED), str(POOL), None, MS_BIND)
    for name, target in PRIVATE_FILES.items():
        Path(target).touch()
        mount(str(HERE / name), target, None, MS_BIND)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # Where one of these is forbidden, the host works with the machine's.
    for make in (mount_shm, mount_sys, mount_cgroups):
        try:
            make()
        except OSError as error:
            log_line(f"{error}: left as it is")
    for path in ("/run/sshd", "/run/lock", "/run/libvirt"):
        Path(path).mkdir(mode=0o755)


def mount_shm() -> None:
    """Shared memory of the host's own."""
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777")


def mount_sys() -> None:
    """The machine's sysfs would show the machine's network cards. It is taken away with all that
    is mounted in it: libvirt would believe in control groups that are covered."""
    fresh = Path("/run/sys")
    fresh.mkdir()
    mount("sysfs", str(fresh), "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _check(libc.umount2(b"/sys", MNT_DETACH), "umount /sys")
    mount(str(fresh), "/sys", None, MS_MOVE)
    fresh.rmdir()


def mount_cgroups() -> None:
    """Control groups, which containers need: version 1 where the machine has controllers there,
    else version 2. libvirt 9.0 starts no container where it sees both."""
    hierarchies = [
        line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()
    ]
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if not any(name and not name.startswith("name=") for name in hierarchies):
        mount("cgroup2", "/sys/fs/cgroup", "cgroup2", flags)
        return
    mount("tmpfs", "/sys/fs/cgroup", "tmpfs", flags, "mode=755")
    for controllers in filter(None, hierarchies):
        folder = Path("/sys/fs/cgroup", controllers.removeprefix("name="))
        folder.mkdir()
        options = f"none,{controllers}" if controllers.startswith("name=") else controllers
        mount("cgroup", str(folder), "cgroup", flags, options)


def build_network(config: dict[str, Any]) -> None:
    """Wait for the link that the lab hands in, and give it its address.

    Raises TimeoutError when none comes: whoever was building this host is gone, so it ends too.
    """
    deadline = time.monotonic() + LINK_SECONDS
    known = "/proc/net/dev"
    while "eth0:" not in Path(known).read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no link after {LINK_SECONDS:g} s")
        time.sleep(0.005)
    commands = [
        "link set lo up",
        f"address add {config['address']}/{config['prefix']} dev eth0",
        "link set eth0 up",
        f"route add default via {config['gateway']}",
    ]
    subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, env=ENVIRONMENT
    )


class Supervisor:
    """Starts the daemons, starts them again when they die, and ends them."""

    def __init__(self, daemons: dict[str, list[str]]) -> None:
        self._daemons = daemons
        self._pids: dict[int, str] = {}
        self._starts = dict.fromkeys(daemons, 0)
        self._last = dict.fromkeys(daemons, 0.0)
        self._due = dict.fromkeys(daemons, 0.0)

    def start_due(self) -> float | None:
        """Start what is due; seconds until the next is, or None when all run."""
        now = time.monotonic()
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            log = str(HERE / "log" / f"{name}.out")
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            pid = os.posix_spawn(
                self._daemons[name][0],
                self._daemons[name],
                ENVIRONMENT,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE],
            )
            self._pids[pid] = name
            self._starts[name] += 1
            self._last[name] = now
            self._record()
        return max(0.0, min(self._due.values()) - now) if self._due else None

    def restart(self, name: str) -> None:
        """End the daemon; its death brings it back at once."""
        self._last[name] = 0.0
        for pid, known in self._pids.items():
            if known == name:
                os.kill(pid, signal.SIGTERM)

    def reap(self) -> None:
        """Collect every dead child; a dead daemon becomes due, not more than once a second."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self._pids.pop(pid, None)
            if name is not None:
                self._due[name] = self._last[name] + RESPAWN_SECONDS

    def _record(self) -> None:
        pids = {name: pid for pid, name in self._pids.items()}
        write_json(
            HERE / "daemons.json",
            {name: {"pid": pids.get(name, 0), "starts": n} for name, n in self._starts.items()},
        )


def run(config: dict[str, Any]) -> None:
    """Be process 1 until told to end."""
    watched = [signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    build_root(config)
    build_network(config)
    supervisor = Supervisor({**LOCK_DAEMON, **DAEMONS} if config.get("shared") else DAEMONS)
    while True:
        pause = supervisor.start_due()
        got = signal.sigtimedwait(watched, 3600.0 if pause is None else pause)
        if got is not None and got.si_signo in (signal.SIGTERM, signal.SIGINT):
            return
        if got is not None and got.si_signo == signal.SIGHUP:
            supervisor.restart("libvirtd")
        supervisor.reap()


def launch(config_path: Path) -> None:
    """Fork process 1 into namespaces of its own, and record it."""
    config = json.loads(config_path.read_text())
    folder = Path(config["folder"])
    log = os.open(folder / "log" / "init.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    recorded, tell = os.pipe()
    unshare()
    pid = os.fork()
    if pid == 0:
        os.close(tell)
        os.setsid()
        os.chdir("/")
        if not os.read(recorded, 1):
            os._exit(1)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.closerange(3, 64)
        run(config)
        return
    write_json(folder / "init.json", {"pid": pid, "started": process_start(pid), "boot": boot_id()})
    os.write(tell, b"1")


def probe() -> str | None:
    """Why namespaces with a bridge in them cannot be made here; None when they can."""
    try:
        unshare()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                mount("none", "/", None, MS_REC | MS_PRIVATE)
                mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV)
                mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
                commands = "link add probe type bridge\nlink add one type veth peer name two\n"
                subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)
                status = 0
            except OSError as error:
                log_line(str(error))
            except subprocess.CalledProcessError:
                log_line("no bridge or veth can be made")
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        return None if status == 0 else "failed"
    except OSError as error:
        log_line(str(error))
        return str(error)


if __name__ == "__main__":
    if sys.argv[1] == "--probe":
        sys.exit(0 if probe() is None else 1)
    launch(Path(sys.argv[1]))
