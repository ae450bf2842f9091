"""Real hosts for the lab tests: one lab a test process, foreign domains on every host."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import uvicorn
from starlette.testclient import TestClient

from tests.labs import FOREIGN, a_lab, idle_disk
from tests.waiting import wait_for
from treadle.cli.files import FlavorEntry, HostEntry, ImageEntry
from treadle.cli.serve import Inventory, Treadle, assemble, server_config
from treadle.config import Settings, load
from treadle.image.sources import parse_source
from treadle.lab.fabric import Lab, LabHost
from treadle.lab.guest import build_guest

LINUX, RESTING = 1, 2
IDLE = f"&image_id={RESTING}"
"""For one of which nothing but its domain matters."""


@dataclass
class OnLab:
    """What a controller's hosts have, as they show it themselves."""

    lab: Lab

    def volumes(self, host: LabHost) -> set[str]:
        """Files in the host's pool, images, their markers and the host's registers aside."""
        listed = self.lab.exec(host.name, "ls", "/var/lib/libvirt/treadle").stdout.split()
        return {name for name in listed if not name.startswith(("image-", "treadle-host."))}

    def domains(self, host: LabHost) -> set[str]:
        """UUIDs of the domains of the host, the foreign one aside."""
        listed = self.lab.exec(host.name, "virsh", "-q", "list", "--all", "--uuid").stdout.split()
        return {uuid for uuid in listed if not uuid.startswith(FOREIGN[:8])}

    def copies(self, uuid: str) -> dict[str, str]:
        """On which hosts an instance is, and in what state."""
        found = {}
        for host in self.lab.status():
            if uuid in self.domains(host):
                said = self.lab.exec(host.name, "virsh", "-q", "domstate", uuid).stdout
                found[host.name] = said.strip()
        return found

    def kept_on(self, uuid: str) -> set[str]:
        """The hosts that have a disk of it."""
        return {
            host.name for host in self.lab.status()
            if any(name.startswith(uuid) for name in self.volumes(host))
        }


@dataclass
class Cloud(OnLab):
    """A controller in this process over hosts of the lab."""

    treadle: Treadle
    client: TestClient

    @property
    def state(self) -> Path:
        """Its state folder."""
        return self.treadle.folder

    def get(self, path: str) -> Any:
        """One call of the classic API."""
        return self.client.get(path).json()

    def admin(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """One call of the native API: the answer's bytes, or its JSON."""
        token = self.treadle.context.admin_token
        answer = self.client.request(
            method, f"/treadle/v1{path}", json=body, headers={"Authorization": f"Bearer {token}"},
        )
        return answer.json() if "json" in answer.headers["content-type"] else answer.content

    def create(self, name: str, more: str = "") -> int:
        """A VM that runs."""
        made = self.get(f"/vm/create?name={name}&instance_type=1{more}")
        assert made["vmid"], made
        return int(made["vmid"])

    def query(self, vmid: int) -> Any:
        """What the classic API says of it."""
        return self.get(f"/vm/query?vmid={vmid}")

    def console(self, vmid: int) -> bytes:
        """What the guest printed."""
        found = self.admin(f"/instances/{vmid}/console")
        return found if isinstance(found, bytes) else b""

    def guest_is_up(self, vmid: int) -> None:
        """Wait for the guest's own word."""
        wait_for(lambda: b"TREADLE-GUEST-UP" in self.console(vmid), 90, f"guest {vmid} to be up")

    def host(self, pmid: int) -> LabHost:
        """The lab's host behind a number."""
        address = self.get(f"/pm/query?pmid={pmid}")["address"]
        return next(one for one in self.lab.status() if one.address in address)

    def destroy_all(self) -> None:
        """End every VM."""
        for vmid in self.get("/vm/list")["vmids"]:
            self.get(f"/vm/destroy?vmid={vmid}")


class Served(Protocol):
    """A controller that can be asked; a client of whatever make, and its state folder."""

    client: Any

    @property
    def state(self) -> Path: ...


class Face:
    """The compute API as an administrator uses it."""

    def __init__(self, cloud: Served) -> None:
        self.cloud = cloud
        password = (cloud.state / "admin-password").read_text().strip()
        domain = {"id": "default"}
        answer = cloud.client.post("/identity/v3/auth/tokens", json={"auth": {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": "admin", "domain": domain, "password": password},
            }},
            "scope": {"project": {"name": "admin", "domain": domain}},
        }})
        self.headers = {"X-Auth-Token": answer.headers["x-subject-token"]}

    def get(self, path: str) -> Any:
        return self.ask("GET", path).json()

    def ask(self, method: str, path: str, body: Any = None, minor: int = 93) -> Any:
        """Any call, as it was answered."""
        return self.cloud.client.request(
            method, f"/compute/v2.1{path}", json=body,
            headers={**self.headers, "OpenStack-API-Version": f"compute 2.{minor}"},
        )

    def image(self, name: str) -> str:
        """The id of the image of that name."""
        listed = self.ask("GET", "/images", minor=1).json()["images"]
        return str(next(one["id"] for one in listed if one["name"] == name))

    def act(self, id: str, action: str, value: Any = None) -> Any:
        """What is answered to one that must be taken."""
        answer = self.ask("POST", f"/servers/{id}/action", {action: value})
        assert answer.status_code in (200, 202, 204), answer.text
        return answer.json() if answer.content else None

    def refused(self, id: str, action: str, value: Any = None) -> str:
        """What is said to one that its state does not allow."""
        answer = self.ask("POST", f"/servers/{id}/action", {action: value})
        assert answer.status_code == 409, answer.text
        return str(answer.json()["conflictingRequest"]["message"])

    def log(self, id: str) -> list[tuple[str, list[tuple[str, str]]]]:
        """Its actions, the oldest first, each with its events and their results."""
        path = f"/servers/{id}/os-instance-actions"
        listed = [self.get(f"{path}/{one['request_id']}")["instanceAction"]
                  for one in reversed(self.get(path)["instanceActions"]) if one["request_id"]]
        return [
            (one["action"], [(step["event"], step["result"]) for step in reversed(one["events"])])
            for one in listed
        ]

    def becomes(self, id: str, status: str) -> Any:
        def look() -> Any:
            found = self.get(f"/servers/{id}")["server"]
            over = found["status"] == status and found["OS-EXT-STS:task_state"] is None
            return found if over else None

        try:
            return wait_for(look, 120, f"{id} to be {status}")
        except AssertionError as error:
            raise AssertionError(self.get("/os-migrations"), self.get(f"/servers/{id}")) from error


@pytest.fixture(scope="session")
def guest_image() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "treadle"
    cache.mkdir(parents=True, exist_ok=True)
    return build_guest(cache, lambda _line: None)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with a_lab("cld", 3, tmp_path_factory.mktemp("lab")) as one:
        yield one


@contextmanager
def served(treadle: Treadle, **changes: Any) -> Iterator[int]:
    """Its faces over HTTP on a loopback port, which is told. `changes`: of how they are served."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    server = uvicorn.Server(server_config(
        treadle.app, timeout_graceful_shutdown=1, **changes
    ))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_for(lambda: server.started, 20, "the server")
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)


def settings_for(lab: Lab) -> Settings:
    """Short waits, emulation, the lab's key."""
    return load(None, {}).with_overrides({
        "host_defaults.identity_file": str(lab.key),
        "host_defaults.virt_type": "qemu",
        "controller.resync_s": 2.0,
        "controller.stop_deadline_s": 20.0,
        "guest.ssh_keys": [lab.key.with_suffix(".pub").read_text().strip()],
        "log.level": "warning",
    })


@pytest.fixture(scope="module")
def cloud(
    lab: Lab, guest_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cloud]:
    with running_cloud(lab, guest_image, tmp_path_factory.mktemp("state")) as one:
        yield one


@contextmanager
def running_cloud(
    lab: Lab, guest_image: Path, folder: Path, settings: Mapping[str, object] | None = None
) -> Iterator[Cloud]:
    """A controller over all hosts of the lab, ready; `settings` differ from those of others."""
    treadle = assemble(settings_for(lab).with_overrides(settings or {}), folder)
    treadle.controller.start()
    treadle.register(Inventory(
        [HostEntry(n, one.uri, one.address) for n, one in enumerate(lab.status(), 1)],
        [ImageEntry(LINUX, parse_source(str(guest_image)), "guest"),
         ImageEntry(RESTING, parse_source(str(idle_disk(folder))), "idle")],
        [FlavorEntry(1, 1, 128, 1), FlavorEntry(2, 1, 256, 2)],
    ))
    client = TestClient(treadle.app, client=("127.0.0.1", 9), base_url="http://127.0.0.1")
    one = Cloud(lab, treadle, client)
    try:
        all_up(one)
        wait_for(
            lambda: all(it["state"] == "active" for it in one.admin("/images")["images"]), 30,
            "the images",
        )
        yield one
        one.destroy_all()
    finally:
        treadle.close()


def all_up(cloud: Cloud) -> None:
    """Wait until every host answers."""
    pmids = cloud.get("/pm/list")["pmids"]
    wait_for(
        lambda: all(cloud.get(f"/pm/query?pmid={p}")["state"] == "up" for p in pmids), 60,
        "the hosts to be up",
    )
