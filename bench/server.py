"""A controller as a process of its own, and a client that costs little."""

from __future__ import annotations

import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3

START_S = 30.0


class Controller:
    """A running controller on a loopback port."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, start_s: float) -> None:
        self.process = process
        self.port = port
        self.start_s = start_s
        self.http = urllib3.PoolManager(
            retries=False, maxsize=64, timeout=urllib3.Timeout(connect=5, read=330)
        )

    def get(self, path: str) -> Any:
        """One call; the decoded answer."""
        return json.loads(self.http.request("GET", f"http://127.0.0.1:{self.port}{path}").data)

    def admin(self, path: str) -> Any:
        """One call of the native API; the decoded answer."""
        return json.loads(self.native("GET", path))

    def console(self, vmid: int) -> bytes:
        """What the guest printed."""
        return self.native("GET", f"/instances/{vmid}/console")

    def native(self, method: str, path: str, body: Any = None) -> bytes:
        """One call of the native API; the answer as it came."""
        environ = Path(f"/proc/{self.process.pid}/environ").read_bytes().split(b"\0")
        folder = next(e for e in environ if e.startswith(b"TREADLE_STATE__FOLDER="))
        token = Path(folder.partition(b"=")[2].decode(), "admin-token").read_text().strip()
        return bytes(self.http.request(
            method, f"http://127.0.0.1:{self.port}/treadle/v1{path}",
            headers={"Authorization": f"Bearer {token}"},
            body=None if body is None else json.dumps(body).encode(),
        ).data)

    def end(self) -> None:
        """Stop it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)

    def rss_mb(self) -> float:
        """Resident memory in MB (10^6 bytes)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu_s(self) -> float:
        """Processor time used so far, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def controller(
    folder: Path, machines: Sequence[str], image: Path, *,
    flavor: dict[str, int] | None = None, settings: dict[str, str] | None = None,
    program: str = "treadle.cli.main",
) -> Iterator[Controller]:
    """Start `bin/script`'s program over files that are written into `folder`; stop it after."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "PM_FILE").write_text("".join(f"{line}\n" for line in machines))
    (folder / "IMAGE_FILE").write_text(f"{image}\n")
    sizes = flavor or {"cpu": 1, "ram": 128, "disk": 1}
    (folder / "FLAVOR_FILE").write_text(json.dumps({"types": [sizes]}))
    port = free_port()
    environment = os.environ | {
        "TREADLE_STATE__FOLDER": str(folder / "state"), "TREADLE_SERVER__HOST": "127.0.0.1",
        "TREADLE_SERVER__PORT": str(port), "TREADLE_LOG__LEVEL": "warning", **(settings or {}),
    }
    started = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", program, "script", str(folder / "PM_FILE"),
             str(folder / "IMAGE_FILE"), str(folder / "FLAVOR_FILE")],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
    try:
        first_answer = _first_answer(process, port, folder / "log", started)
        made = Controller(process, port, first_answer)
        wait_until(lambda: _ready(made), START_S, "hosts and image to be ready")
        yield made
    finally:
        Controller(process, port, 0.0).end()


def _first_answer(
    process: subprocess.Popen[bytes], port: int, log: Path, started: float
) -> float:
    while time.monotonic() - started < START_S:
        if process.poll() is not None:
            raise SystemExit(f"the controller ended: {log.read_text()[-2000:]}")
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if connection.recv(100).startswith(b"HTTP/1.1 200"):
                    return time.monotonic() - started
        except OSError:
            pass
        time.sleep(0.01)
    raise SystemExit("the controller did not answer")


def _ready(one: Controller) -> bool:
    hosts = [one.get(f"/pm/query?pmid={pmid}") for pmid in one.get("/pm/list")["pmids"]]
    images = one.admin("/images")["images"]
    return all(host["state"] == "up" for host in hosts) and all(
        image["state"] == "active" for image in images
    )


def wait_until(
    done: Callable[[], bool], seconds: float, what: str, every: float = 0.02
) -> None:
    """Poll `done`, with so many seconds between. Errors: `SystemExit` after `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:.0f} s for {what}")
        time.sleep(every)


def requests_per_second(
    port: int, paths: Sequence[str], seconds: float, connections: int, headers: str = "",
) -> float:
    """How many GETs a second are answered with 200, kept up over `connections` connections.

    `headers`: further lines of each request, each ended by CR LF.
    """
    selector = selectors.DefaultSelector()
    turn = 0
    done = 0

    def ask(one: socket.socket) -> None:
        nonlocal turn
        path = paths[turn % len(paths)]
        turn += 1
        one.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())

    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    started = time.monotonic()
    for one in sockets:
        selector.register(one, selectors.EVENT_READ, bytearray())
        ask(one)
    while time.monotonic() - started < seconds:
        for key, _ in selector.select(1):
            one, buffer = key.fileobj, key.data
            assert isinstance(one, socket.socket)
            buffer += one.recv(1 << 20)
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                continue
            head = bytes(buffer[:end]).lower()
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            if len(buffer) < end + 4 + length:
                continue
            if not head.startswith(b"http/1.1 200"):
                raise SystemExit(f"not answered with 200: {bytes(buffer)[:300]!r}")
            buffer.clear()
            done += 1
            ask(one)
    took = time.monotonic() - started
    for one in sockets:
        one.close()
    selector.close()
    return done / took


def taken(call: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def median_ms(call: Callable[[], object], times: int) -> float:
    """The median time of a call, in milliseconds."""
    return statistics.median(taken(call) * 1000 for _ in range(times))
