"""The consoles of a simulated guest: a serial port that echoes, and a screen that shows nothing.

The screen speaks RFB 3.8 (RFC 6143, sections 7.1 to 7.3) as far as a client needs to be let in:
version, security type None, and a server's initialisation. What comes after is read and ignored.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable

from treadle.hypervisor.base import ConsoleKind, ConsoleLine

RFB_VERSION = b"RFB 003.008\n"
SECURITY_NONE = 1
WIDTH, HEIGHT = 640, 480
#: 32 bits a pixel, depth 24, little-endian, true colour, 8 bits a channel.
PIXEL_FORMAT = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
PROMPT = b"simulated guest, echoing\r\n"
CLOSE_SECONDS = 5.0


class FakeConsoles:
    """The consoles that are open on one machine, by guest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[socket.socket, tuple[str, ConsoleKind]] = {}

    def open(self, uuid: str, kind: ConsoleKind, name: str) -> ConsoleLine:
        """Let somebody in; the serial port takes one at a time, the last who came."""
        if kind is ConsoleKind.SERIAL:
            self.end(uuid, kind)
        outer, inner = socket.socketpair()
        with self._lock:
            self._open[inner] = (uuid, kind)
        talk = _echo if kind is ConsoleKind.SERIAL else _screen(name)
        thread = threading.Thread(
            target=self._serve, args=(inner, talk), name="fake-console", daemon=True
        )
        thread.start()

        def close() -> None:
            _shut(outer)
            thread.join(CLOSE_SECONDS)
            outer.close()

        return ConsoleLine(outer, close)

    def end(self, uuid: str | None = None, kind: ConsoleKind | None = None) -> None:
        """End those of a guest, of a kind, or all."""
        with self._lock:
            for inner, (of, what) in self._open.items():
                if uuid in (None, of) and kind in (None, what):
                    _shut(inner)

    def count(self) -> int:
        """How many are open."""
        with self._lock:
            return len(self._open)

    def _serve(self, inner: socket.socket, talk: Callable[[socket.socket], None]) -> None:
        try:
            talk(inner)
        except OSError:
            return
        finally:
            with self._lock:
                self._open.pop(inner, None)
                inner.close()


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _echo(inner: socket.socket) -> None:
    inner.sendall(PROMPT)
    while data := inner.recv(4096):
        inner.sendall(data.replace(b"\r", b"\r\n"))


def _screen(name: str) -> Callable[[socket.socket], None]:
    def talk(inner: socket.socket) -> None:
        inner.sendall(RFB_VERSION)
        if _exactly(inner, 12)[:8] != RFB_VERSION[:8]:
            return
        inner.sendall(bytes([1, SECURITY_NONE]))
        if _exactly(inner, 1) != bytes([SECURITY_NONE]):
            inner.sendall(struct.pack(">I", 1))
            return
        inner.sendall(struct.pack(">I", 0))
        _exactly(inner, 1)
        text = name.encode()
        inner.sendall(
            struct.pack(">HH", WIDTH, HEIGHT) + PIXEL_FORMAT + struct.pack(">I", len(text)) + text
        )
        while inner.recv(4096):
            pass

    return talk


def _exactly(inner: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = inner.recv(count - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return data
