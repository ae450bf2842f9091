"""The controller is killed in the middle of what it does on real hosts, and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.lab.conftest import Face, OnLab
from tests.labs import idle_disk, watching_disk
from tests.waiting import wait_for
from treadle.compute.moves.plan import ENDED
from treadle.lab.fabric import Lab, LabHost, can_run

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]
CREATES = 10
POOL = "/var/lib/libvirt/treadle"
SIZES = '{"types": [{"cpu": 1, "ram": 128, "disk": 1}, {"cpu": 1, "ram": 160, "disk": 1}]}'


class Script(OnLab):
    """`bin/script`'s program on one state folder, started and killed at will."""

    def __init__(self, lab: Lab, images: Sequence[Path], folder: Path, **settings: str) -> None:
        super().__init__(lab)
        self.folder = folder
        self.state = folder / "state"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "PM_FILE").write_text("".join(f"{one.uri}\n" for one in lab.status()))
        (folder / "IMAGE_FILE").write_text("".join(f"{image}\n" for image in images))
        (folder / "FLAVOR_FILE").write_text(SIZES)
        self.environment = os.environ | {
            "TREADLE_STATE__FOLDER": str(self.state), "TREADLE_SERVER__HOST": "127.0.0.1",
            "TREADLE_HOST_DEFAULTS__IDENTITY_FILE": str(lab.key),
            "TREADLE_HOST_DEFAULTS__VIRT_TYPE": "qemu", "TREADLE_CONTROLLER__LEASE_S": "6",
            "TREADLE_CONTROLLER__RESYNC_S": "2",
        } | {f"TREADLE_{name}": value for name, value in settings.items()}
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False
        )

    def start(self) -> None:
        files = [str(self.folder / name) for name in ("PM_FILE", "IMAGE_FILE", "FLAVOR_FILE")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "treadle.cli.main", "script", *files, "--port",
                 str(self.port)],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        wait_for(self._answers, 20, "the controller to answer")

    def _answers(self) -> bool:
        try:
            return bool(self.get("/healthz"))
        except httpx2.HTTPError:
            return False

    def ready(self) -> None:
        """Start it, and wait until it has its hosts and images."""
        self.start()
        wait_for(
            lambda: all(one["state"] == "up" for one in self.admin("/hosts")["hosts"])
            and all(one["state"] == "active" for one in self.admin("/images")["images"]),
            60, "hosts and image",
        )

    def end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)

    def again(self) -> None:
        """Kill it, and start it again."""
        self.end(signal.SIGKILL)
        self.start()

    def close(self) -> None:
        self.end(signal.SIGTERM)
        self.client.close()
        # Shown where a test failed: what ended the controller is said nowhere else.
        sys.stdout.write(self.said()[-4000:])

    def said(self) -> str:
        """Its log."""
        return (self.folder / "log").read_text()

    def get(self, path: str) -> Any:
        return self.client.get(path).json()

    def admin(self, path: str, method: str = "GET", body: Any = None) -> Any:
        token = (self.state / "admin-token").read_text().strip()
        return self.client.request(
            method, f"/treadle/v1{path}", json=body, headers={"Authorization": f"Bearer {token}"},
        ).json()

    def host(self, number: int) -> LabHost:
        """The lab's host behind a number."""
        uri = self.admin(f"/hosts/{number}")["uri"]
        return next(one for one in self.lab.status() if one.uri == uri)


def test_nothing_is_lost_leaked_or_doubled(lab: Lab, tmp_path: Path) -> None:
    script = Script(lab, [idle_disk(tmp_path)], tmp_path)
    try:
        script.ready()
        # The tenth part of what ten creates take: some are placed, some defined, some start.
        vmids = [
            script.get(f"/vm/create?name=k{n}&instance_type=1&wait=0")["vmid"]
            for n in range(CREATES)
        ]
        assert all(vmids)
        wait_for(
            lambda: any(script.get(f"/vm/query?vmid={v}")["pmid"] for v in vmids), 20,
            "the work to be under way",
        )
        begun = time.monotonic()
        script.again()

        def settled() -> bool:
            return all(
                script.get(f"/vm/query?vmid={v}").get("state") in ("running", "error")
                for v in vmids
            )

        wait_for(settled, 120, "every VM to be running or failed")
        assert time.monotonic() - begun < 120
        rows = {v: script.admin(f"/instances/{v}") for v in vmids}
        wanted: dict[str, set[str]] = {one.name: set() for one in lab.status()}
        for row in rows.values():
            if row["state"] == "running":
                wanted[script.host(row["host"]).name].add(row["uuid"])
            else:
                assert row["fault"]
        for host in lab.status():
            assert script.domains(host) == wanted[host.name]
        assert script.admin("/orphans")["orphans"] == []
        used = sum(host["instances"] for host in script.admin("/hosts")["hosts"])
        assert used == sum(map(len, wanted.values()))
        for v in vmids:
            assert script.get(f"/vm/destroy?vmid={v}") == {"status": 1}
        assert script.get("/vm/list") == {"vmids": []}
    finally:
        script.close()


@pytest.fixture(scope="module")
def script(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    """Whose moves take their time, and may end at the target before all memory is there."""
    folder = tmp_path_factory.mktemp("moves")
    one = Script(
        lab, [watching_disk(folder)], folder, MOVES__BANDWIDTH_MIB_S="4", MOVES__POST_COPY="true",
        MOVES__RESIZE_TO_SAME_HOST="false", CONTROLLER__STOP_DEADLINE_S="4",
    )
    try:
        one.ready()
        yield one
    finally:
        one.close()


class Watcher:
    """A guest that looks after 32 MiB of its memory, and tells about once a second."""

    def __init__(self, script: Script, name: str) -> None:
        self.script = script
        made = script.get(f"/vm/create?name={name}&instance_type=1")
        self.id = int(made["vmid"])
        self.uuid = str(script.admin(f"/instances/{self.id}")["uuid"])
        self.goes_on(1)

    @property
    def host(self) -> LabHost:
        """Where it is."""
        return self.script.host(self.script.admin(f"/instances/{self.id}")["host"])

    def goes_on(self, boots: int) -> None:
        """It tells more, and has all its memory. `boots`: how often it was booted where it is."""
        found = self.told()
        wait_for(lambda: len(self.told()) > max(len(found), boots) + 1, 30, "the guest to go on")
        assert self.told().count("B") == boots
        assert set(self.told()) <= {"B", "."}

    def told(self) -> str:
        """What it has printed where it is."""
        name = f"{POOL}/{self.uuid}.console.log"
        return self.script.lab.exec(self.host.name, "cat", name).stdout

    def is_alone_on(self, host: LabHost) -> None:
        """It runs there and nowhere else, and its disk is there alone."""
        assert self.host.name == host.name
        wait_for(lambda: self.script.kept_on(self.uuid) == {host.name}, 30, "one disk")
        assert self.script.copies(self.uuid) == {host.name: "running"}


def move_of(script: Script, guest: Watcher) -> tuple[int, LabHost]:
    """A live move of it, of which some memory was sent, and where to."""
    number = script.admin(f"/instances/{guest.id}/migrate", "POST", {})["id"]

    def under_way() -> Any:
        move = script.admin(f"/moves/{number}")
        assert move["stage"] not in ENDED, move
        return move if (move["progress"] or {}).get("memory_processed") else None

    return number, script.host(wait_for(under_way, 30, "memory to be sent")["target"])


def ended(script: Script, number: int) -> Any:
    def over() -> Any:
        move = script.admin(f"/moves/{number}")
        return move if move["stage"] in ENDED else None

    return wait_for(over, 90, "the move to end")


def state_on(script: Script, host: LabHost, guest: Watcher) -> str:
    """libvirt's, and the reason of it."""
    done = script.lab.exec(host.name, "virsh", "-q", "domstate", "--reason", guest.uuid)
    return (done.stdout + done.stderr).strip()


def halved(script: Script, guest: Watcher) -> tuple[int, LabHost]:
    """A live move of it, after which it goes on at the target without all its memory."""
    source = guest.host
    number, target = move_of(script, guest)
    # What is left of it comes slowly: there is time to do something, and to look.
    script.lab.exec(
        source.name, "virsh", "-q", "migrate-setspeed", guest.uuid, "2", "--postcopy"
    )
    answer = Face(script).ask(
        "POST", f"/servers/{guest.uuid}/migrations/{number}/action", {"force_complete": None}
    )
    assert answer.status_code == 202, answer.text
    wait_for(lambda: state_on(script, target, guest) == "running (post-copy)", 20,
             "it to go on at the target")
    return number, target


def is_mended(script: Script, number: int) -> bool:
    """Whether the rest of the memory has come within a minute; it is little."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if script.admin(f"/moves/{number}")["stage"] == "done":
            return True
        time.sleep(0.5)
    return False


def test_a_guest_in_two_halves_is_made_whole_or_started_anew(script: Script) -> None:
    """While the rest of its memory is sent, first the way between its hosts is cut, then its
    source loses its power, and is not to start the guest that it has on its disk."""
    guest = Watcher(script, "halved")
    source = guest.host
    for host in script.lab.status():
        # An emulator that waits for its peer stands still until the kernel gives up.
        script.lab.exec(host.name, "sh", "-c", "echo 5 > /proc/sys/net/ipv4/tcp_retries2")
    number, target = halved(script, guest)
    way = f"blackhole {source.address}/32"
    script.lab.exec(target.name, "sh", "-c", f"ip route add {way}")
    try:
        wait_for(lambda: "move_not_resumed" in script.said(), 60, "it to be gone on with in vain")
        assert state_on(script, target, guest) == "running (post-copy failed)"
    finally:
        script.lab.exec(target.name, "sh", "-c", f"ip route del {way}")
    if is_mended(script, number):
        assert guest.host.name == target.name
        guest.is_alone_on(target)
        guest.goes_on(0)
    else:
        # An emulator before 8.2 may stand still for good: nothing runs twice, and it can be ended.
        assert script.copies(guest.uuid) == {source.name: "paused", target.name: "running"}
        assert script.get(f"/vm/destroy?vmid={guest.id}") == {"status": 1}
        wait_for(lambda: not script.copies(guest.uuid) and not script.kept_on(guest.uuid), 60,
                 "both halves to be gone")
        guest = Watcher(script, "another")

    source = guest.host
    number, target = halved(script, guest)
    script.lab.kill_host(source.name)
    script.lab.boot_host(source.name)
    assert ended(script, number)["stage"] == "done"
    wait_for(lambda: guest.told().count("B") == 1, 60, "it to be started anew")
    guest.is_alone_on(target)
    guest.goes_on(1)
    assert script.get(f"/vm/destroy?vmid={guest.id}") == {"status": 1}


def test_a_live_move_is_settled_by_who_comes_after(script: Script) -> None:
    """Killed while memory is sent, the guest stays; killed once it goes on at the target without
    all its memory, it comes to have the rest."""
    guest = Watcher(script, "mover")
    source = guest.host
    number, target = move_of(script, guest)
    script.again()
    move = ended(script, number)
    assert (move["stage"], move["error"]) == ("failed", "it did not arrive")
    guest.is_alone_on(source)
    guest.goes_on(1)

    face = Face(script)
    face.becomes(guest.uuid, "ACTIVE")
    number, target = halved(script, guest)
    script.again()
    move = ended(script, number)
    assert (move["stage"], move["error"]) == ("done", None)
    guest.is_alone_on(target)
    assert state_on(script, target, guest) == "running (migrated)"
    guest.goes_on(0)
    face.becomes(guest.uuid, "ACTIVE")
    assert script.get(f"/vm/destroy?vmid={guest.id}") == {"status": 1}


def test_a_cold_move_and_a_rebuild_are_taken_up(script: Script) -> None:
    """Killed while the guest, which does not listen, is asked to shut down; while its disk is
    copied; while that is taken back; and after a rebuild was asked for."""
    face, guest = Face(script), Watcher(script, "goer")
    source = guest.host
    assert script.get(f"/vm/stop?vmid={guest.id}&hard=1") == {"status": 1}
    [volume] = [one for one in script.volumes(source)
                if one.startswith(guest.uuid) and one.endswith(".qcow2")]
    said = script.lab.exec(
        source.name, "qemu-io", "-c", "write -P 7 16M 128M", f"{POOL}/{volume}"
    )
    assert said.returncode == 0, said.stderr
    assert script.get(f"/vm/start?vmid={guest.id}") == {"status": 1}
    guest.goes_on(1)

    def stage() -> str:
        [move] = face.get(f"/os-migrations?instance_uuid={guest.uuid}")["migrations"]
        return str(move["status"])

    face.act(guest.uuid, "resize", {"flavorRef": "2"})
    wait_for(lambda: stage() == "migrating", 30, "it to be asked to shut down")
    script.again()
    wait_for(lambda: len(script.kept_on(guest.uuid)) == 2, 60, "its disk to be copied")
    script.again()
    face.becomes(guest.uuid, "VERIFY_RESIZE")
    target = guest.host
    assert target.name != source.name
    assert script.copies(guest.uuid) == {source.name: "shut off", target.name: "running"}
    same = script.lab.exec(
        target.name, "qemu-io", "-r", "-U", "-c", "read -P 7 16M 128M", f"{POOL}/{volume}"
    )
    assert "Pattern verification failed" not in same.stdout
    assert same.returncode == 0, same.stderr
    guest.goes_on(1)

    face.act(guest.uuid, "revertResize")
    script.again()
    face.becomes(guest.uuid, "ACTIVE")
    assert stage() == "reverted"
    guest.is_alone_on(source)
    guest.goes_on(1)

    image = next(one["id"] for one in face.ask("GET", "/images", minor=1).json()["images"])
    face.act(guest.uuid, "rebuild", {"imageRef": image})
    script.again()
    face.becomes(guest.uuid, "ACTIVE")
    guest.is_alone_on(source)
    guest.goes_on(1)
    assert volume not in script.volumes(source), "the disk of before is gone"
    assert script.get(f"/vm/destroy?vmid={guest.id}") == {"status": 1}
