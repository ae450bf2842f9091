"""Getting at a guest's serial port and screen, without opening a port of the host.

A serial port is a stream of libvirt's, on a connection of its own: a stream that is read beside
other calls has held them up. A screen is QEMU's VNC server on a UNIX socket of the host: locally
libvirt hands a connected descriptor in; over ssh our own ssh forwards to the socket.
Either way what comes out is one end of a socket, and its end of file is the console's end.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import libvirt
import structlog

from treadle.errors import TreadleError
from treadle.hypervisor.base import ConsoleLine, HostRefused, HostUnreachable, Unsupported
from treadle.hypervisor.libvirt.connection import Attempt, Connection, LibvirtOptions, Link
from treadle.hypervisor.libvirt.ssh import is_ssh, with_ssh

log = structlog.get_logger("treadle.consoles")

Find = Callable[[Link, Attempt], Any]
"""The running domain of ours, or `HostRefused`."""

CHUNK = 1 << 16
BACKLOG = 1 << 18
"""Bytes of a guest's output that wait for a slow reader; older ones go."""
CLOSE_SECONDS = 5.0
TUNNEL_POLL_S = 0.02

#: Runs ssh, and ends it when standard input ends: so it does not outlive the controller.
TUNNEL = """\
exec 3<&0
"$@" </dev/null 3<&- &
tunnel=$!
{ read -r _ <&3; kill "$tunnel"; } 2>/dev/null &
watcher=$!
exec 3<&- </dev/null
wait "$tunnel"
code=$?
kill "$watcher" 2>/dev/null
exit "$code"
"""


def has_screen(kind: str, uri: str) -> bool:
    """Whether the screens of a host's guests can be reached: not over TLS or TCP."""
    return kind == "QEMU" and (is_ssh(uri) or _is_local(uri))


def _is_local(uri: str) -> bool:
    parts = urlsplit(uri)
    transport = parts.scheme.partition("+")[2]
    return transport == "unix" or (not transport and not parts.hostname)


# -- the serial port


def open_serial(uri: str, options: LibvirtOptions, find: Find) -> ConsoleLine:
    """The first serial port (of a container, its console). A thread carries the bytes, and ends
    with either side."""
    bell = _Bell()
    # A stream says nothing of a connection that breaks under it: the connection does.
    lane = Connection(uri, options, lambda _uuid, _event, _reason: None, bell.broken)

    def act(link: Link, attempt: Attempt) -> Any:
        domain = find(link, attempt)
        stream = attempt(link.conn.newStream, libvirt.VIR_STREAM_NONBLOCK)
        # Containers' consoles know no flags; there, a second reader is refused by libvirt.
        flags = libvirt.VIR_DOMAIN_CONSOLE_FORCE if link.kind == "QEMU" else 0
        attempt(domain.openConsole, None, stream, flags)
        return stream

    try:
        stream = lane.run("open_console", options.deadlines.look, act)
    except BaseException:
        lane.close()
        bell.close()
        raise
    outer, inner = socket.socketpair()
    pump = _Pump(stream, inner, lane, bell)
    pump.start()

    def close() -> None:
        _shut(outer)
        pump.join(CLOSE_SECONDS)
        outer.close()

    return ConsoleLine(outer, close)


class _Bell:
    """Wakes a thread that polls, from any other; `over` once there is no more to come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = True
        self.over = False
        self.fd, self._ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ring(self) -> None:
        """Wake it."""
        with self._lock:
            if self._open:
                with suppress(BlockingIOError):
                    os.write(self._ring, b"x")

    def broken(self) -> None:
        """Wake it for the last time."""
        self.over = True
        self.ring()

    def hush(self) -> None:
        """It is awake."""
        os.read(self.fd, 4096)

    def close(self) -> None:
        """Let the pipe go; who rings from now on is not heard."""
        with self._lock:
            self._open = False
            os.close(self.fd)
            os.close(self._ring)


class _Pump(threading.Thread):
    """Carries bytes between a stream and a socket until either ends.

    It never blocks in libvirt: the event loop says when the stream has something. What the reader
    is too slow for is dropped, oldest first: were the stream left unread, libvirt would keep all
    of it in this process's memory.
    """

    def __init__(self, stream: Any, inner: socket.socket, lane: Connection, bell: _Bell) -> None:
        super().__init__(name="serial-console", daemon=True)
        self._stream = stream
        self._inner = inner
        self._lane = lane
        self._bell = bell
        self._backlog = bytearray()
        self._typed = b""

    def run(self) -> None:
        try:
            self._inner.setblocking(False)
            self._stream.eventAddCallback(_EVENTS, self._woken, None)
            while self._turn():
                pass
        except (libvirt.libvirtError, OSError) as error:
            log.debug("console_ended", reason=str(error))
        finally:
            self._end()

    def _woken(self, _stream: Any, events: int, _opaque: object) -> None:
        """On the event loop's thread: only hand over, and be asked no more until it was read."""
        if events & (libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP):
            self._bell.over = True
        try:
            self._stream.eventUpdateCallback(0)
        except libvirt.libvirtError:
            self._bell.over = True
        self._bell.ring()

    def _turn(self) -> bool:
        """Wait for something and carry it; whether to go on."""
        poll = select.poll()
        poll.register(self._bell.fd, select.POLLIN)
        wanted = 0 if self._typed else select.POLLIN
        poll.register(self._inner, wanted | (select.POLLOUT if self._backlog else 0))
        ready = dict(poll.poll())
        if self._bell.fd in ready:
            self._bell.hush()
            if not self._drain() or self._bell.over:
                self._flush()
                return False
            self._stream.eventUpdateCallback(_EVENTS | (_WRITABLE if self._typed else 0))
        found = ready.get(self._inner.fileno(), 0)
        if found & select.POLLIN:
            self._typed = self._inner.recv(CHUNK)
            if not self._typed:
                return False
        elif found & (select.POLLHUP | select.POLLERR):
            return False
        self._flush()
        self._type()
        return True

    def _drain(self) -> bool:
        """Read all that the stream has; False at its end."""
        while True:
            data = self._stream.recv(CHUNK)
            if data == -2:
                return True
            if not data:
                return False
            self._backlog += data
            if len(self._backlog) > BACKLOG:
                del self._backlog[: len(self._backlog) - BACKLOG]
                self._flush()

    def _flush(self) -> None:
        if self._backlog:
            try:
                del self._backlog[: self._inner.send(self._backlog)]
            except BlockingIOError:
                return

    def _type(self) -> None:
        if self._typed:
            sent = self._stream.send(self._typed)
            if sent == -2:
                self._stream.eventUpdateCallback(_EVENTS | _WRITABLE)
            else:
                self._typed = self._typed[sent:]

    def _end(self) -> None:
        def act(_link: Link, attempt: Attempt) -> None:
            self._stream.eventRemoveCallback()
            attempt(self._stream.abort)

        _shut(self._inner)
        self._inner.close()
        try:
            self._lane.run("close_console", CLOSE_SECONDS, act)
        except TreadleError as error:
            log.debug("console_not_closed", reason=str(error))
        # libvirt (9.0) never lets go of what it was to call: that has the stream, and the stream
        # has the connection.
        self._stream.__del__()
        vars(self._stream).pop("cb", None)
        self._backlog.clear()
        self._lane.close()
        self._bell.close()


_WRITABLE = libvirt.VIR_STREAM_EVENT_WRITABLE
_EVENTS = (
    libvirt.VIR_STREAM_EVENT_READABLE
    | libvirt.VIR_STREAM_EVENT_ERROR
    | libvirt.VIR_STREAM_EVENT_HANGUP
)


# -- the screen


def open_screen(
    uri: str, options: LibvirtOptions, lane: Connection, find: Find
) -> ConsoleLine:
    """The guest's VNC server. `lane` is only asked where it is, and for a local one."""
    if not is_ssh(uri):
        return _local_screen(uri, options, lane, find)

    def where(link: Link, attempt: Attempt) -> str:
        if not has_screen(link.kind, uri):
            raise Unsupported(f"{link.kind} guests have no screen")
        return _socket_path(attempt(find(link, attempt).XMLDesc, 0))

    path = lane.run("open_console", options.deadlines.look, where)
    return _Tunnel(uri, options, path).line()


def _local_screen(
    uri: str, options: LibvirtOptions, lane: Connection, find: Find
) -> ConsoleLine:
    outer, inner = socket.socketpair()

    def act(link: Link, attempt: Attempt) -> None:
        if not has_screen(link.kind, uri):
            raise Unsupported(f"the screens of {link.kind} guests cannot be reached over {uri}")
        domain = find(link, attempt)
        _socket_path(attempt(domain.XMLDesc, 0))
        attempt(domain.openGraphics, 0, inner.fileno(), libvirt.VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH)

    try:
        lane.run("open_console", options.deadlines.look, act)
    except BaseException:
        outer.close()
        raise
    finally:
        inner.close()

    def close() -> None:
        _shut(outer)
        outer.close()

    return ConsoleLine(outer, close)


def _socket_path(text: str) -> str:
    """Where a running domain's VNC server listens. Errors: `Unsupported` where it has none."""
    listen = ET.fromstring(text).find("devices/graphics[@type='vnc']/listen[@type='socket']")
    path = None if listen is None else listen.get("socket")
    if not path or not path.startswith("/") or ":" in path:
        raise Unsupported("this guest was started without a screen: stop it and start it again")
    return path


@dataclass
class _Tunnel:
    """An ssh that carries one connection to a UNIX socket of the host."""

    uri: str
    options: LibvirtOptions
    path: str

    def line(self) -> ConsoleLine:
        """Connected, and the server's first byte is there. Errors: `HostUnreachable`,
        `HostRefused` where the host's SSH server does not forward to UNIX sockets."""
        deadline = time.monotonic() + self.options.deadlines.connect
        # The path of a UNIX socket may have 107 characters, so not in the state folder.
        folder = Path(tempfile.mkdtemp(prefix="treadle-"))
        process = None
        end = socket.socket(socket.AF_UNIX)
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", TUNNEL, "sh", *self._command(folder / "vnc")],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._connect(end, folder / "vnc", process, deadline)
        except BaseException:
            _stop(end, process)
            raise
        finally:
            # Nobody can connect a second time.
            shutil.rmtree(folder, ignore_errors=True)
        running = process
        return ConsoleLine(end, lambda: _stop(end, running))

    def _command(self, local: Path) -> list[str]:
        parts = urlsplit(with_ssh(self.uri, self.options.state_dir, self.options.identity_file))
        given = dict(parse_qsl(parts.query, keep_blank_values=True))
        settings = [
            "ClearAllForwardings=no", "ExitOnForwardFailure=yes", "StreamLocalBindUnlink=yes",
            "StreamLocalBindMask=0177", "ControlPath=none",
        ]
        command = [given.get("command", "ssh"), "-N", "-T"]
        for setting in settings:
            command += ["-o", setting]
        if parts.port:
            command += ["-p", str(parts.port)]
        if parts.username:
            command += ["-l", parts.username]
        if given.get("keyfile"):
            command += ["-i", given["keyfile"]]
        return [*command, "-L", f"{local}:{self.path}", "--", parts.hostname or "localhost"]

    @staticmethod
    def _connect(
        end: socket.socket, local: Path, process: subprocess.Popen[bytes], deadline: float
    ) -> None:
        while True:
            try:
                end.connect(str(local))
                break
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise HostUnreachable("cannot connect: ssh did not come up") from error
            time.sleep(TUNNEL_POLL_S)
        # The server speaks first; ssh takes the connection before it knows whether there is one.
        end.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            first = end.recv(1, socket.MSG_PEEK)
        except TimeoutError as error:
            raise HostUnreachable("the guest's VNC server does not answer") from error
        if not first:
            raise HostRefused(
                "the guest's VNC server cannot be reached: the host's SSH server must have "
                "AllowStreamLocalForwarding on, and the user must be let at QEMU's sockets"
            )
        end.settimeout(None)


def _stop(end: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
    _shut(end)
    end.close()
    if process is None:
        return
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
