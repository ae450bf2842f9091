"""Checks a machine before it is trusted: each check is a line, each failure prints its mend."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import click
import msgspec

from treadle.config import Settings, load, make_private, state_folder
from treadle.errors import TreadleError
from treadle.hypervisor.base import HostFacts, HostSetup, Hypervisor, ImageSpec, Probes

CLOCK_DRIFT_S = 5.0
CLOCK_FLOOR = 1_700_000_000
NAME_S = 2.0
# Each host that has seen the pool has written its UUID there.
STORAGE = (
    r"ls {path} 2>/dev/null | sed -n 's/^treadle-host\.\([0-9a-f-]*\)\..*/\1/p' | sort -u | wc -l; "
    r"grep -Eqs '^[[:space:]]*lock_manager[[:space:]]*=' /etc/libvirt/qemu.conf; echo $?"
)
# As libvirt looks it up: any family, which /etc/hosts answers; "hosts" would ask DNS for IPv6.
LOOK = (
    'date +%s.%N; getent ahosts "$(hostname)" >/dev/null; echo $?; date +%s.%N; '
    "cat /proc/sys/net/ipv4/tcp_retries2"
)
RETRIES = 8
"""Of what is sent and not answered, before the kernel gives a connection up: about 100 s."""


@dataclass
class Report:
    """The checks so far. `quiet` keeps the lines for JSON."""

    quiet: bool
    rows: list[dict[str, str | bool]] = field(default_factory=list)

    def add(self, name: str, good: bool, detail: str, mend: str = "") -> bool:
        """One check: what was found, and what to do where that is not good."""
        self.rows.append({"check": name, "ok": good, "detail": detail, "mend": mend})
        if not self.quiet:
            mark = click.style("ok    ", fg="green") if good else click.style("FAILED", fg="red")
            click.echo(f"{mark} {name}: {detail}")
            if mend:
                click.echo(f"       -> {mend}")
        return good

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return all(row["ok"] for row in self.rows)


def check(uri: str | None, seconds: float, as_json: bool, config: Path | None) -> bool:
    """Check this machine, or the host that `uri` names; True where all is well."""
    report = Report(as_json)
    settings = _settings(report, config)
    if settings is not None and uri is None:
        _controller(report, settings)
    elif settings is not None and uri is not None:
        _host(report, uri, seconds, settings)
    if as_json:
        click.echo(json.dumps({"ok": report.good, "checks": report.rows}, indent=2))
    return report.good


# -- the controller's own machine


def _settings(report: Report, config: Path | None) -> Settings | None:
    try:
        return load(config, os.environ)
    except TreadleError as error:
        report.add("settings", False, str(error), "see docs/reference/settings.md")
        return None


def _controller(report: Report, settings: Settings) -> None:
    found = ".".join(map(str, sys.version_info[:3]))
    report.add("python", sys.version_info >= (3, 11), found)
    from pysqlite3 import dbapi2

    from treadle.db.engine import sqlite_is_safe

    safe = sqlite_is_safe(dbapi2.sqlite_version_info)
    report.add("sqlite", safe, dbapi2.sqlite_version,
               "" if safe else "it can lose data: pip install 'pysqlite3>=0.6'")
    for program, package, why in (
        ("qemu-img", "qemu-utils", "to look into images"),
        ("ssh", "openssh-client", "to reach hosts"),
        ("scp", "openssh-client", "to fetch images from other machines"),
    ):
        path = shutil.which(program)
        report.add(program, path is not None, path or f"not found, needed {why}",
                   "" if path else f"apt-get install {package}")
    _state(report, settings)
    _names(report, socket.gethostname())
    now = time.time()
    report.add("clock", now > CLOCK_FLOOR, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)),
               "" if now > CLOCK_FLOOR else "set the clock: apt-get install chrony")


def _state(report: Report, settings: Settings) -> None:
    try:
        folder = make_private(state_folder(settings, os.geteuid(), os.environ))
        free = shutil.disk_usage(folder).free // (1 << 30)
    except TreadleError as error:
        report.add("state folder", False, str(error), "see docs/reference/settings.md")
        return
    report.add("state folder", free >= 1, f"{folder}, {free} GiB free",
               "" if free >= 1 else "make room, or set state.folder")


def _names(report: Report, name: str) -> None:
    started = time.monotonic()
    try:
        socket.getaddrinfo(name, None)
        problem = ""
    except OSError as error:
        problem = f"does not resolve ({error.strerror})"
    took = time.monotonic() - started
    if not problem and took > NAME_S:
        problem = f"took {took:.1f} s to resolve"
    report.add("names", not problem, f"{name} {problem or 'resolves'}",
               f"add a line '127.0.1.1 {name}' to /etc/hosts" if problem else "")


# -- a host


def _host(report: Report, uri: str, seconds: float, settings: Settings) -> None:
    from treadle.cli.serve import driver_factory, ssh_config

    # The filter is the controller's to define: it is not taken away again here.
    hosts = msgspec.structs.replace(settings.host_defaults, anti_spoofing=False)
    with tempfile.TemporaryDirectory(prefix="treadle-doctor-") as folder:
        private = _ssh_state(Path(folder), settings)
        try:
            driver = driver_factory(private, hosts)(uri)
        except TreadleError as error:
            report.add("uri", False, str(error), "use a libvirt URI: qemu+ssh://root@HOST/system")
            return
        try:
            _reached(report, driver, seconds, private)
            config = ssh_config(private, hosts)
            _remote(report, uri, config)
            _storage(report, uri, config, settings)
        finally:
            driver.close()


def _ssh_state(folder: Path, settings: Settings) -> Path:
    """A scratch state folder; the keys of hosts known to the controller are known here too."""
    try:
        known = state_folder(settings, os.geteuid(), os.environ) / "known_hosts"
        if known.exists():
            shutil.copyfile(known, folder / "known_hosts")
    except (TreadleError, OSError):
        return folder
    return folder


def _reached(report: Report, driver: Hypervisor, seconds: float, folder: Path) -> None:
    with _checked(report, "libvirt", "is libvirtd running there, may this user log in there, and "
                  "is the key the one of host_defaults.identity_file?") as passed:
        driver.prepare(HostSetup(
            pool="treadle-doctor", network="treadle-doctor", subnet="10.254.253.0/24"
        ))
        facts = driver.facts()
        passed(f"{facts.hypervisor} {facts.hypervisor_version}, libvirt {facts.libvirt_version}")
    if not report.good:
        return
    try:
        _looked_at(report, driver, facts, seconds, folder)
    finally:
        if isinstance(driver, Probes):
            with _checked(report, "tidy", "virsh pool-list --all; virsh net-list --all") as passed:
                driver.unprepare()
                passed("what the check made there is gone")


def _looked_at(
    report: Report, driver: Hypervisor, facts: HostFacts, seconds: float, folder: Path
) -> None:
    report.add("host", facts.vcpus > 0, f"{facts.hostname}: {facts.vcpus} cores, "
               f"{facts.memory_mib} MiB, {facts.disk_mib // 1024} GiB in the pool, {facts.arch}")
    _image(report, driver, folder)
    _probe(report, driver, facts.virt_types, seconds)

def _image(report: Report, driver: Hypervisor, folder: Path) -> None:
    content = os.urandom(1 << 20)
    path = folder / "image.raw"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    mend = "make room, or mend the permissions of the pool's folder"
    with _checked(report, "images", mend) as passed:
        started = time.monotonic()
        driver.ensure_image(ImageSpec(digest, "raw", len(content), len(content)), path)
        driver.remove_image(digest)
        passed(f"1 MiB written, read back and removed in {time.monotonic() - started:.2f} s")


def _probe(
    report: Report, driver: Hypervisor, offered: tuple[str, ...], seconds: float
) -> None:
    if not isinstance(driver, Probes):
        return
    boots = {}
    for kind in offered:
        if kind not in ("kvm", "qemu"):
            continue
        try:
            boots[kind] = driver.probe(kind, seconds)
        except TreadleError as error:
            report.add(f"guest ({kind})", False, str(error))
            return
    for kind, good in boots.items():
        if kind == "kvm" and not good and boots.get("qemu"):
            # Emulation will do: slower, but nothing is broken.
            report.add("guest (kvm)", True, "does not boot here; emulation is used instead")
            continue
        report.add(
            f"guest ({kind})", good, "boots" if good else f"does not boot within {seconds:g} s",
            "" if good else "look into /var/log/libvirt/qemu/ on the host",
        )


def _remote(report: Report, uri: str, config: Path) -> None:
    """Clock and names of a host that is reached by SSH."""
    login = _login(uri, config)
    if login is None:
        _names(report, socket.gethostname())
        return
    try:
        said = _said([*login, LOOK])
        drift = float(said[2]) - time.time()
        slow = float(said[2]) - float(said[0]) > NAME_S
        named = said[1] == b"0" and not slow
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        report.add("clock and names", True, "not checked: no plain SSH command can be run there")
        return
    report.add("clock", abs(drift) < CLOCK_DRIFT_S, f"{drift:+.1f} s from ours",
               "" if abs(drift) < CLOCK_DRIFT_S else "run a time service there: chrony")
    report.add("names", named, "its own name " + (
        "resolves" if named else "takes long to resolve" if slow else "does not resolve"),
               "" if named else "add its name to /etc/hosts there: libvirt calls take 10 s else")
    if len(said) > 3:
        _retries(report, int(said[3]))


def _retries(report: Report, tries: int) -> None:
    """How long an emulator may hang that sends its guest to a host that is gone: nothing is broken
    by that. The kernel's waits (RFC 6298) begin at 0.2 s and double, up to 120 s."""
    seconds = sum(min(0.2 * 2**n, 120.0) for n in range(tries + 1))
    report.add(
        "lost peers", True, f"a connection to one is given up after about {seconds:.0f} s",
        "" if tries <= RETRIES else "a guest whose move is cut off may stand still so long: "
        f"sysctl net.ipv4.tcp_retries2={RETRIES}",
    )


def _storage(report: Report, uri: str, config: Path, settings: Settings) -> None:
    """Whether a disk that other hosts see is locked by the host that has it open."""
    defaults = settings.host_defaults
    path = defaults.pool_path or f"/var/lib/libvirt/{defaults.pool}"
    login = _login(uri, config)
    try:
        command = STORAGE.format(path=shlex.quote(path))
        said = _said([*login, command] if login else ["sh", "-c", command])
        hosts, locked = int(said[0]), said[1] == b"0"
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        report.add("storage", True, "not checked: no plain command can be run there")
        return
    if hosts < 2:
        report.add("storage", True, f"{path} is this host's alone, or not in use yet")
        return
    report.add(
        "storage", locked, f"{path} is seen by {hosts} hosts, and disks that are open are "
        f"{'locked' if locked else 'not locked'}",
        "" if locked else 'start virtlockd there, set lock_manager = "lockd" in '
        "/etc/libvirt/qemu.conf, restart libvirtd: see docs/howto/share-storage.md",
    )


def _login(uri: str, config: Path) -> list[str] | None:
    """The command that runs another on the host; None where it is not reached by SSH."""
    parts = urlsplit(uri)
    if not parts.scheme.endswith("+ssh") or parts.hostname is None:
        return None
    target = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
    port = ["-p", str(parts.port)] if parts.port else []
    return ["ssh", "-F", str(config), *port, "--", target]


def _said(command: list[str]) -> list[bytes]:
    """The words that it prints. Errors: those of `subprocess.run`."""
    return subprocess.run(
        command, capture_output=True, timeout=20, check=True, stdin=subprocess.DEVNULL
    ).stdout.split()


@contextmanager
def _checked(report: Report, name: str, mend: str) -> Iterator[Callable[[str], None]]:
    found: list[str] = []
    try:
        yield found.append
    except TreadleError as error:
        report.add(name, False, str(error), mend)
    else:
        report.add(name, True, found[0])
