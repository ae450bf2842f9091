"""Whether a host's kernel answers, from here and from another host: no agent, no shell there."""

from __future__ import annotations

import selectors
import socket
import subprocess
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from treadle.hypervisor.base import Reach
from treadle.hypervisor.libvirt.ssh import is_ssh

PORTS = {"ssh": 22, "tls": 16514, "tcp": 16509}
LOOK_S = 5.0
DIRECT = ("none", "")


@lru_cache(maxsize=4096)
def endpoint(uri: str, config: Path) -> tuple[str, int] | None:
    """The address and port at which libvirt reaches the URI, as ssh's configuration has it; None
    where there is none, or ssh goes there by way of another machine."""
    parts = urlsplit(uri)
    transport = parts.scheme.partition("+")[2]
    if parts.hostname is None or transport not in PORTS:
        return None
    name, port = parts.hostname, parts.port or PORTS[transport]
    if is_ssh(uri):
        given = ["-p", str(parts.port)] if parts.port else []
        try:
            said = subprocess.run(
                ["ssh", "-F", str(config), "-G", *given, "--", name], stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=LOOK_S, check=True,
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return None
        options = dict(line.partition(" ")[::2] for line in said.splitlines())
        if any(options.get(way, "") not in DIRECT for way in ("proxyjump", "proxycommand")):
            return None
        name, port = options.get("hostname", name), int(options.get("port", port))
    try:
        return str(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][4][0]), port
    except OSError:
        return None


def reach(uri: str, config: Path, seconds: float) -> Reach:
    """What a TCP connection from here to the host comes to."""
    there = endpoint(uri, config)
    if there is None:
        return Reach.UNKNOWN
    try:
        socket.create_connection(there, timeout=seconds).close()
    except ConnectionRefusedError:
        return Reach.REFUSED
    except OSError:
        return Reach.SILENT
    return Reach.OPEN


def reach_from(peer: str, uri: str, config: Path, seconds: float) -> Reach:
    """What another host says: its sshd is asked to connect there (`ssh -W`), and `OPEN` is the
    greeting of the host's own sshd. `UNKNOWN` for everything else: why the peer could not is not
    told apart, so a peer can speak for a host, never against it."""
    there = endpoint(uri, config)
    parts = urlsplit(peer)
    if there is None or not (is_ssh(uri) and is_ssh(peer)) or parts.hostname is None:
        return Reach.UNKNOWN
    who = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
    given = ["-p", str(parts.port)] if parts.port else []
    address, port = there
    target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        process = subprocess.Popen(
            ["ssh", "-F", str(config), *given, "-W", target, "--", who],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
    except OSError:
        return Reach.UNKNOWN
    with process:
        try:
            assert process.stdout is not None
            with selectors.DefaultSelector() as ready:
                ready.register(process.stdout, selectors.EVENT_READ)
                told = bool(ready.select(seconds)) and process.stdout.read(4) == b"SSH-"
        finally:
            process.kill()
    return Reach.OPEN if told else Reach.UNKNOWN
