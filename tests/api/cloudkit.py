"""A whole controller over simulated machines, behind a real HTTP server on the loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa
import uvicorn

from treadle.cli.files import FlavorEntry, HostEntry, ImageEntry
from treadle.cli.serve import Inventory, Treadle, assemble, server_config
from treadle.config import Settings
from treadle.controller import queue
from treadle.db.schema import allocation, work
from treadle.errors import Unauthorized
from treadle.hypervisor.fake import FakeFleet
from treadle.hypervisor.fake_host import FakeHost
from treadle.identity.model import Caller
from treadle.image import store as images
from treadle.image.sources import LocalPath
from treadle.image.store import ImageStatus
from treadle.placement import ledger

PATIENCE_S = 20.0
ROOMY = "?vcpus=16&memory_mib=65536&disk_mib=1048576"
FLAVORS = (
    FlavorEntry(1, 1, 512, 1), FlavorEntry(2, 2, 1024, 4), FlavorEntry(3, 4, 2048, 8),
)
QUICK: dict[str, object] = {
    "controller.poll_s": 0.05, "controller.resync_s": 1.0, "database.synchronous": "NORMAL",
}


def until(condition: Callable[[], Any], what: str = "it") -> Any:
    """The condition's value as soon as it is true."""
    end = time.monotonic() + PATIENCE_S
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} has not come about in {PATIENCE_S:g} s")
        time.sleep(0.005)


@dataclass
class Cloud:
    """A running controller and the machines it drives."""

    treadle: Treadle
    fleet: FakeFleet
    port: int
    client: httpx2.Client
    _server: uvicorn.Server
    _thread: threading.Thread

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> dict[str, str]:
        """The headers of an operator."""
        return {"Authorization": f"Bearer {self.treadle.context.admin_token}"}

    def get(self, path: str, **options: Any) -> httpx2.Response:
        """GET."""
        return self.client.get(path, **options)

    def ok(self, path: str) -> dict[str, Any]:
        """The body of a call that must succeed."""
        answer = self.client.get(path)
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        assert answer.headers["content-type"] == "application/json"
        body: dict[str, Any] = answer.json()
        return body

    def fails(self, path: str, status: int, failure: dict[str, Any], says: str = "") -> str:
        """The sentence of a call that must fail: the documented value, and a sentence."""
        answer = self.client.get(path)
        return assert_failure(answer, status, failure, says)

    def create(self, name: str = "web", tid: int = 1, extra: str = "") -> int:
        """A VM that runs."""
        id: int = self.ok(f"/vm/create?name={name}&instance_type={tid}{extra}")["vmid"]
        return id

    def query(self, vmid: int) -> dict[str, Any]:
        """What is told of a VM."""
        return self.ok(f"/vm/query?vmid={vmid}")

    def native(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """A call of an operator."""
        return self.client.request(method, f"/treadle/v1{path}", headers=self.admin, **options)

    def log_in(
        self, user: str = "admin", password: str | None = None, *,
        user_domain: str = "default", **scope: Any,
    ) -> dict[str, str]:
        """The headers of a user with a token: of the project admin, unless a scope is given."""
        answer = self.authenticate(user, password, user_domain=user_domain, **scope)
        assert answer.status_code == 201, answer.text
        return {"X-Auth-Token": answer.headers["x-subject-token"]}

    def authenticate(
        self, user: str = "admin", password: str | None = None, *,
        user_domain: str = "default", **scope: Any,
    ) -> httpx2.Response:
        """What the answer to a log-in is. `unscoped=None`: without naming a scope."""
        if password is None:
            password = (self.treadle.folder / "admin-password").read_text().strip()
        who = {"name": user, "domain": {"id": user_domain}, "password": password}
        auth: dict[str, Any] = {
            "identity": {"methods": ["password"], "password": {"user": who}},
            "scope": scope or {"project": {"name": "admin", "domain": {"id": "default"}}},
        }
        if "unscoped" in scope and scope["unscoped"] is None:
            del auth["scope"]
        return self.client.post("/identity/v3/auth/tokens", json={"auth": auth})

    def host(self, name: str) -> FakeHost:
        """The machine itself."""
        return self.fleet.hosts[name]

    def guests(self) -> list[str]:
        """UUIDs of all domains on all machines, running or not."""
        return sorted(uuid for host in self.fleet.hosts.values() for uuid in host.guests)

    def used(self) -> list[tuple[int, int, int]]:
        """Per host: cores, memory and instances that the ledger says are taken."""
        return [
            (host.vcpus_used, host.memory_used_mib, host.instances)
            for host in self.treadle.database.read(ledger.list_hosts)
        ]

    def allocations(self) -> int:
        """How many instances hold room."""
        count = sa.select(sa.func.count()).select_from(allocation)
        return self.treadle.database.read(lambda conn: conn.execute(count).scalar_one())

    def open_work(self) -> int:
        """How many instances have something left to do."""
        count = sa.select(sa.func.count()).select_from(work).where(work.c.kind == "instance")
        return self.treadle.database.read(lambda conn: conn.execute(count).scalar_one())

    def look_again(self) -> None:
        """A hint that every row is due, as an event would give."""
        def wake(conn: sa.Connection) -> None:
            for kind, id in conn.execute(sa.select(work.c.kind, work.c.id)).all():
                queue.wake(conn, kind, [id])

        self.treadle.database.write(wake)
        self.treadle.signals.work_is_due()

    def image_states(self) -> list[ImageStatus]:
        """How the images stand."""
        return [one.state for one in self.treadle.database.read(images.list_images)]

    def hosts_up(self) -> int:
        """How many hosts answer."""
        return sum(h.state == "up" for h in self.treadle.database.read(ledger.list_hosts))

    def raw(self, request: bytes) -> bytes:
        """What the server says to bytes that no HTTP client would send."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as conn:
            conn.sendall(request)
            conn.shutdown(socket.SHUT_WR)
            said = bytearray()
            while chunk := conn.recv(65536):
                said += chunk
        return bytes(said)

    def stop(self) -> None:
        """End it all."""
        self.client.close()
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        self.treadle.close()
        assert not self._thread.is_alive()


def assert_failure(
    answer: httpx2.Response, status: int, failure: dict[str, Any], says: str = ""
) -> str:
    """The answer is the failure that the documentation promises; returns its sentence."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    error = body.pop("error")
    assert body == failure
    assert isinstance(error, str)
    assert 0 < len(error) < 2000
    assert says in error, error
    assert_no_insides(answer.text)
    return error


INSIDES = ("Traceback", 'File "', "sqlalchemy", "psycopg", "sqlite3", ".py", "SELECT ")


def assert_no_insides(text: str) -> None:
    """Nothing of the program's inside is told to callers."""
    for trace in INSIDES:
        assert trace not in text


Start = Callable[..., Cloud]


def start_cloud(
    folder: Path, *, hosts: tuple[str, ...], image: Path | None, settings: dict[str, object],
    down: tuple[str, ...] = (), controller: bool = True, wait: bool = True,
    image_sources: tuple[Path, ...] = (), serving: dict[str, Any] | None = None,
) -> Cloud:
    """Put a controller together and serve it; by default wait until it is ready."""
    fleet = FakeFleet()
    for uri in hosts:
        fleet.driver(uri)
    for name in down:
        fleet.hosts[name].up = False
    treadle = assemble(Settings().with_overrides({**QUICK, **settings}), folder, fleet.driver)
    sources = [path for path in (image, *image_sources) if path is not None]
    treadle.register(Inventory(
        [HostEntry(n, uri, uri.partition("//")[2].partition("?")[0])
         for n, uri in enumerate(hosts)],
        [ImageEntry(n, LocalPath(path), path.stem) for n, path in enumerate(sources)],
        FLAVORS,
    ))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    port = listener.getsockname()[1]
    server = uvicorn.Server(server_config(
        treadle.app, timeout_graceful_shutdown=1, **(serving or {})
    ))
    thread = threading.Thread(target=server.run, args=([listener],), name="http")
    thread.start()
    client = httpx2.Client(
        base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False,
    )
    cloud = Cloud(treadle, fleet, port, client, server, thread)
    if controller:
        treadle.controller.start()
    until(lambda: server.started, "the server")
    if controller and wait:
        until(lambda: cloud.hosts_up() == len(hosts) - len(down), "the hosts")
        until(lambda: ImageStatus.NEW not in cloud.image_states(), "the images")
    return cloud


CALLERS = {
    "admin": Caller(user_id="u0", project_id="p0", roles=frozenset({"admin", "member"})),
    "one": Caller(user_id="u1", project_id="p1", roles=frozenset({"member", "reader"})),
    "two": Caller(user_id="u2", project_id="p2", roles=frozenset({"reader"})),
    "nobody": Caller(user_id="u3"),
}


class KnownTokens:
    """The token is the name of whoever holds it."""

    async def check(self, token: str) -> Caller:
        if token not in CALLERS:
            raise Unauthorized("The request you have made requires authentication.")
        return CALLERS[token]


def log_in(cloud: Cloud, *, scoped: bool = True) -> str:
    """A token of the administrator, for his project or for nothing."""
    password = (cloud.treadle.folder / "admin-password").read_text().strip()
    domain = {"id": "default"}
    answer = cloud.client.post("/identity/v3/auth/tokens", json={"auth": {
        "identity": {"methods": ["password"], "password": {
            "user": {"name": "admin", "domain": domain, "password": password},
        }},
        "scope": {"project": {"name": "admin", "domain": domain}} if scoped else "unscoped",
    }})
    assert answer.status_code == 201, answer.text
    token: str = answer.headers["x-subject-token"]
    return token
