"""Real hosts for the lab tests: one lab a test process, foreign domains on every host."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from tests.labs import a_lab
from tests.waiting import wait_for
from treadle.cli.files import FlavorEntry, HostEntry, ImageEntry
from treadle.cli.serve import Inventory, Treadle, assemble, server_config
from treadle.config import Settings, load
from treadle.image.sources import parse_source
from treadle.lab.fabric import Lab, LabHost
from treadle.lab.guest import build_guest

FOREIGN = "5d0c5f6e-0000-4000-8000-00000000000{number}"
FOREIGN_XML = """
<domain type='qemu'><name>not-ours</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory>
<vcpu>1</vcpu><os><type arch='x86_64'>hvm</type></os><devices/></domain>
"""


@dataclass
class Cloud:
    """A controller in this process over hosts of the lab."""

    lab: Lab
    treadle: Treadle
    client: TestClient

    def get(self, path: str) -> Any:
        """One call of the classic API."""
        return self.client.get(path).json()

    def admin(self, path: str) -> Any:
        """One call of the native API: the answer's bytes, or its JSON."""
        token = self.treadle.context.admin_token
        answer = self.client.get(
            f"/treadle/v1{path}", headers={"Authorization": f"Bearer {token}"}
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

    def volumes(self, host: LabHost) -> set[str]:
        """Files in the host's pool, images, their markers and the host's registers aside."""
        listed = self.lab.exec(host.name, "ls", "/var/lib/libvirt/treadle").stdout.split()
        return {name for name in listed if not name.startswith(("image-", "treadle-host."))}

    def domains(self, host: LabHost) -> set[str]:
        """UUIDs of the domains of the host, the foreign one aside."""
        listed = self.lab.exec(host.name, "virsh", "-q", "list", "--all", "--uuid").stdout.split()
        return {uuid for uuid in listed if not uuid.startswith(FOREIGN[:8])}

    def destroy_all(self) -> None:
        """End every VM."""
        for vmid in self.get("/vm/list")["vmids"]:
            self.get(f"/vm/destroy?vmid={vmid}")


@pytest.fixture(scope="session")
def guest_image() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "treadle"
    cache.mkdir(parents=True, exist_ok=True)
    return build_guest(cache, lambda _line: None)


@dataclass(frozen=True)
class Foreign:
    """What a host says of the domain on it that is not ours. `runs`: its number and its state,
    which both change with a stop."""

    definition: str
    runs: tuple[str, str]


def foreign(lab: Lab, host: LabHost) -> Foreign:
    """How the foreign domain of the host is now."""
    def virsh(word: str, *more: str) -> str:
        done = lab.exec(host.name, "virsh", "-q", word, *more, "not-ours")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return Foreign(
        virsh("dumpxml", "--inactive"), (virsh("domid"), virsh("domstate", "--reason"))
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with a_lab("cld", 3, tmp_path_factory.mktemp("lab")) as one:
        hosts = one.status()
        for number, host in enumerate(hosts):
            xml = FOREIGN_XML.format(uuid=FOREIGN.format(number=number))
            one.exec(host.name, "virsh", "-q", "define", "/dev/stdin", stdin=xml)
            one.exec(host.name, "virsh", "-q", "start", "not-ours")
        before = {host.name: (host.pid, foreign(one, host)) for host in hosts}
        yield one
        for host in one.status():
            pid, was = before[host.name]
            now_is = foreign(one, host)
            assert now_is.definition == was.definition, "a foreign domain was changed"
            if host.pid == pid:  # it never lost its power
                assert now_is.runs == was.runs, "a foreign domain was stopped or started"


@contextmanager
def served(treadle: Treadle) -> Iterator[int]:
    """Its faces over HTTP on a loopback port, which is told."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    server = uvicorn.Server(server_config(treadle.app, timeout_graceful_shutdown=1))
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
        [ImageEntry(1, parse_source(str(guest_image)), "guest")],
        [FlavorEntry(1, 1, 128, 1), FlavorEntry(2, 1, 256, 2)],
    ))
    client = TestClient(treadle.app, client=("127.0.0.1", 9), base_url="http://127.0.0.1")
    one = Cloud(lab, treadle, client)
    try:
        all_up(one)
        wait_for(
            lambda: one.admin("/images")["images"][0]["state"] == "active", 30, "the image"
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
