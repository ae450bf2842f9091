"""Real libvirt, real QEMU guests: the life of a VM, and what goes wrong around it."""

from __future__ import annotations

import base64
import email
import io
import json
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tests.lab.conftest import IDLE, Cloud, Face, all_up, served
from tests.labs import idle_disk
from tests.waiting import wait_for
from treadle.cli.main import main as command_line
from treadle.compute import actions, store
from treadle.compute.model import MOST_KEYS
from treadle.controller import queue
from treadle.hypervisor.base import Agent, AgentFailed
from treadle.hypervisor.libvirt import LibvirtDriver
from treadle.image import store as images
from treadle.image.actions import KIND as IMAGES
from treadle.lab.fabric import can_run

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]
POOL = "/var/lib/libvirt/treadle"


@pytest.fixture(autouse=True)
def clean(cloud: Cloud) -> Iterator[None]:
    all_up(cloud)
    yield
    all_up(cloud)
    cloud.destroy_all()
    for host in cloud.lab.status():
        wait_for(lambda h=host: not cloud.volumes(h), 20, f"no volume to be left on {host.name}")
        assert not cloud.domains(host)


def ssh(cloud: Cloud, vmid: int, command: str, sent: bytes = b"") -> str:
    seen = cloud.query(vmid)
    done = subprocess.run(
        ["ssh", "-F", str(cloud.lab.ssh_config), "-J", cloud.host(seen["pmid"]).name,
         "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
         f"root@{seen['ip']}", command],
        capture_output=True, timeout=60, check=False, input=sent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_two_vms_run_on_two_machines_and_live_their_lives(cloud: Cloud) -> None:
    with ThreadPoolExecutor(2) as pool:
        vmids = list(pool.map(cloud.create, ("first_vm", "second-vm")))
    assert len({cloud.query(vmid)["pmid"] for vmid in vmids}) == 2
    for vmid in vmids:
        cloud.guest_is_up(vmid)
        wait_for(lambda v=vmid: "ip" in cloud.query(v), 20, "its address")
    assert ssh(cloud, vmids[0], "hostname").strip() == "first-vm"
    assert ssh(cloud, vmids[1], "hostname").strip() == "second-vm"
    uuid = cloud.admin(f"/instances/{vmids[0]}")["uuid"]
    decision = cloud.admin(f"/instances/{vmids[0]}/decision")
    assert decision["winner"] == cloud.query(vmids[0])["pmid"]
    assert uuid in cloud.domains(cloud.host(decision["winner"]))
    shuts_itself_down(cloud, vmids[0])
    lives(cloud, vmids[1])


def lives(cloud: Cloud, vmid: int) -> None:
    """Every action of the classic API, of one that is up."""
    for action, state in (
        ("pause", "paused"), ("resume", "running"), ("suspend", "suspended"),
        ("resume", "running"), ("reboot", "running"),
    ):
        assert cloud.get(f"/vm/{action}?vmid={vmid}") == {"status": 1}
        assert cloud.query(vmid)["state"] == state
    cloud.guest_is_up(vmid)
    assert cloud.get(f"/vm/stop?vmid={vmid}") == {"status": 1}
    assert cloud.query(vmid)["state"] == "stopped"
    assert cloud.get(f"/vm/pause?vmid={vmid}")["status"] == 0
    assert cloud.get(f"/vm/start?vmid={vmid}") == {"status": 1}
    log = cloud.admin(f"/instances/{vmid}")["actions"]
    assert [one["action"] for one in log] == [
        "create", "pause", "resume", "suspend", "resume", "reboot", "stop", "start",
    ]
    assert all(one["outcome"] == "ok" and one["finished_at"] for one in log)


def shuts_itself_down(cloud: Cloud, vmid: int) -> None:
    """It is stopped then, and may be started again."""
    ssh(cloud, vmid, "(sleep 0.2; poweroff) >/dev/null 2>&1 &")
    wait_for(lambda: cloud.query(vmid)["state"] == "stopped", 20, "it to be seen as stopped")
    assert "shut itself down" in cloud.query(vmid)["reason"]
    assert cloud.get(f"/vm/start?vmid={vmid}") == {"status": 1}


def test_a_guest_that_is_killed_is_started_again(cloud: Cloud) -> None:
    vmid = cloud.create("unlucky", IDLE)
    host = cloud.host(cloud.query(vmid)["pmid"])
    uuid = cloud.admin(f"/instances/{vmid}")["uuid"]
    cloud.lab.exec(host.name, "virsh", "-q", "destroy", uuid)

    def starts() -> int:
        log = cloud.admin(f"/instances/{vmid}")["actions"]
        return sum(step["name"] == "start" for one in log for step in one["steps"])

    wait_for(lambda: starts() == 2, 20, "the second start")
    wait_for(lambda: cloud.query(vmid)["state"] == "running", 10, "it to run")


def test_libvirtd_restarted_under_running_vms(cloud: Cloud) -> None:
    vmid = cloud.create("steady", IDLE)
    host = cloud.host(cloud.query(vmid)["pmid"])
    pids = cloud.lab.exec(host.name, "pgrep", "qemu-system").stdout
    cloud.lab.restart_libvirtd(host.name)
    assert cloud.get(f"/vm/pause?vmid={vmid}") == {"status": 1}
    assert cloud.get(f"/vm/resume?vmid={vmid}") == {"status": 1}
    assert cloud.lab.exec(host.name, "pgrep", "qemu-system").stdout == pids
    assert cloud.query(vmid)["state"] == "running"


def test_a_host_that_loses_power_gets_its_vms_back(cloud: Cloud) -> None:
    vmid = cloud.create("phoenix", IDLE)
    pmid = cloud.query(vmid)["pmid"]
    host = cloud.host(pmid)
    cloud.lab.kill_host(host.name)
    wait_for(lambda: cloud.get(f"/pm/query?pmid={pmid}")["state"] == "down", 60, "it to be down")
    cloud.lab.boot_host(host.name)
    all_up(cloud)
    uuid = cloud.admin(f"/instances/{vmid}")["uuid"]
    wait_for(lambda: cloud.query(vmid)["state"] == "running", 30, "it to run again")
    assert cloud.lab.exec(host.name, "virsh", "-q", "domstate", uuid).stdout.strip() == "running"
    assert cloud.query(vmid)["pmid"] == pmid


def _kill_at(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, verb: str, after: bool) -> list[str]:
    """Take the power from the host on which `verb` is first called; its name comes back."""
    killed: list[str] = []
    once = threading.Lock()
    fleet = cloud.treadle.fleet
    drivers = [fleet.driver(p, cloud.admin(f"/hosts/{p}")["uri"])
               for p in cloud.get("/pm/list")["pmids"]]
    for driver in drivers:
        real = getattr(driver, verb)

        def call(argument: Any, real: Any = real, uri: str = driver.uri) -> None:
            host = next(one for one in cloud.lab.status() if one.address in uri)
            first = once.acquire(blocking=False)
            if after:
                real(argument)
            if first:
                killed.append(host.name)
                cloud.lab.kill_host(host.name)
            if not after:
                real(argument)

        monkeypatch.setattr(driver, verb, call)
    return killed


def test_a_host_that_dies_before_the_start_is_left_for_another(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = _kill_at(cloud, monkeypatch, "define", after=False)
    try:
        vmid = cloud.create("mover", IDLE)
        assert killed
        assert cloud.host(cloud.query(vmid)["pmid"]).name != killed[0]
        assert cloud.query(vmid)["state"] == "running"
    finally:
        monkeypatch.undo()
        for name in killed:
            cloud.lab.boot_host(name)


def test_a_host_that_dies_in_the_start_fails_the_call_and_keeps_nothing(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = _kill_at(cloud, monkeypatch, "start", after=True)
    monkeypatch.setattr("treadle.api.classic.DELETE_WAIT_S", 1.0)
    try:
        answer = cloud.get(f"/vm/create?name=doomed&instance_type=1{IDLE}")
        assert answer["vmid"] == 0
        assert "stopped answering" in answer["error"]
    finally:
        monkeypatch.undo()
        for name in killed:
            cloud.lab.boot_host(name)
    all_up(cloud)
    wait_for(lambda: cloud.get("/vm/list")["vmids"] == [], 30, "it to be removed")


def test_a_full_disk_sends_the_vm_to_another_host(cloud: Cloud) -> None:
    hosts = cloud.lab.status()
    crowded = hosts[:2]
    for host in crowded:
        # A small disk of its own under the pool, full to the brim.
        cloud.lab.exec(host.name, "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", POOL)
        cloud.lab.exec(host.name, "sh", "-c", f"dd if=/dev/zero of={POOL}/filler bs=64k || true")
        cloud.lab.exec(host.name, "virsh", "-q", "pool-refresh", "treadle")
    try:
        vmid = cloud.create("squeezed", IDLE)
        assert cloud.host(cloud.query(vmid)["pmid"]).name == hosts[2].name
        cloud.get(f"/vm/destroy?vmid={vmid}")
    finally:
        for host in crowded:
            cloud.lab.exec(host.name, "umount", POOL)
            cloud.lab.exec(host.name, "virsh", "-q", "pool-refresh", "treadle")


def test_an_image_comes_from_another_machine_over_ssh(cloud: Cloud, guest_image: Path) -> None:
    host = cloud.lab.status()[0]
    subprocess.run(
        ["scp", "-q", "-s", "-F", str(cloud.lab.ssh_config), str(guest_image),
         f"{host.name}:/root/odd name.qcow2"], check=True, timeout=60,
    )
    cloud.lab.exec(host.name, "mv", "/root/odd name.qcow2", "/root/odd name [1].qcow2")
    token = cloud.treadle.context.admin_token
    made = cloud.client.post(
        "/treadle/v1/images", headers={"Authorization": f"Bearer {token}"},
        content=json.dumps({
            "source": f"root@{host.address}:/root/odd name [1].qcow2", "name": "from-afar",
        }),
    ).json()

    def state() -> Any:
        found = {one["id"]: one for one in cloud.admin("/images")["images"]}[made["id"]]
        assert found["state"] != "error", found["error"]
        return found["state"]

    wait_for(lambda: state() == "active", 30, "the image")
    vmid = cloud.create("afar", f"&image_id={made['id']}")
    assert cloud.query(vmid)["state"] == "running"


def test_ten_creates_at_once_upload_the_image_once_a_host(cloud: Cloud) -> None:
    with ThreadPoolExecutor(6) as pool:
        vmids = list(pool.map(lambda n: cloud.create(f"many-{n}", IDLE), range(6)))
    assert len(set(vmids)) == 6
    for host in cloud.admin("/hosts")["hosts"]:
        listed = cloud.lab.exec(cloud.host(host["id"]).name, "ls", POOL).stdout.split()
        images = [name for name in listed if name.startswith("image-")]
        assert len([name for name in images if name.endswith(".ok")]) * 2 == len(images)


@pytest.fixture(scope="session")
def guest_agent(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Debian's QEMU guest agent with its libraries, as a tar file."""
    folder = tmp_path_factory.mktemp("agent")
    subprocess.run(
        ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=", "qemu-guest-agent"],
        cwd=folder, check=True, capture_output=True, timeout=120,
    )
    [package] = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True, timeout=30)
    program = folder / "usr/sbin/qemu-ga"
    needs = subprocess.run(
        ["ldd", program], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in (program, *map(Path, re.findall(r"=> (/\S+)", needs))):
            archive.add(path.resolve(), path.name)
    return packed.getvalue()


def test_a_real_guest_agent_freezes_sets_a_password_and_uses_a_processor(
    cloud: Cloud, guest_agent: bytes
) -> None:
    """Of a server that was given a file when it was made, by OpenStack's API."""
    face = Face(cloud)
    for id, vcpus in ((41, 1), (42, 2)):
        flavor = store.Flavor(id, vcpus, 128, 1, extra_specs={MOST_KEYS[0]: "2"})
        cloud.treadle.database.write(lambda conn: store.put_flavor(conn, flavor))  # noqa: B023
    key = cloud.treadle.settings.guest.ssh_keys[0]
    said = face.ask("POST", "/os-keypairs", {"keypair": {"name": "lab", "public_key": key}}, 1)
    assert said.status_code == 200, said.text
    content = base64.b64encode(b"of old\n").decode()
    said = face.ask("POST", "/servers", {"server": {
        "name": "agent", "flavorRef": "41", "imageRef": face.image("guest"), "key_name": "lab",
        "personality": [{"path": "/etc/told", "contents": content}],
    }}, 1)
    assert said.status_code == 202, said.text
    uuid = said.json()["server"]["id"]
    face.becomes(uuid, "ACTIVE")
    vmid = max(cloud.get("/vm/list")["vmids"])
    cloud.guest_is_up(vmid)
    wait_for(lambda: "ip" in cloud.query(vmid), 20, "its address")
    seed = email.message_from_string(ssh(cloud, vmid, "cat /seed/user-data"))
    told = [yaml.safe_load(part.get_payload(decode=True)) for part in seed.get_payload()]
    [file] = told[1]["write_files"]
    assert (file["path"], file["encoding"], file["content"]) == ("/etc/told", "b64", content)
    password = {"adminPass": "it is secret"}
    assert "cannot be set" in face.refused(uuid, "changePassword", password)
    pmid = cloud.query(vmid)["pmid"]
    driver = cloud.treadle.fleet.driver(pmid, cloud.admin(f"/hosts/{pmid}")["uri"])
    assert isinstance(driver, Agent)
    with pytest.raises(AgentFailed):
        driver.freeze(uuid)
    ssh(cloud, vmid, "mkdir -p /run/ga && tar x -C /run/ga", guest_agent)
    # The agent has the guest's own program set passwords; busybox has none.
    ssh(cloud, vmid, "cat > /run/ga/chpasswd && chmod 755 /run/ga/chpasswd", b"""#!/bin/sh
read -r told
grep -q "^${told%%:*}:" /etc/passwd && echo "$told" > /run/told
""")
    ssh(cloud, vmid, "cd /run/ga && PATH=/run/ga:$PATH LD_LIBRARY_PATH=. ./qemu-ga -d -t /run "
        "-f /run/ga.pid -m virtio-serial -p $(echo /dev/vport*p1) </dev/null >/dev/null 2>&1")

    def answers() -> bool:
        try:
            driver.freeze(uuid)
        except AgentFailed:
            return False
        return True

    wait_for(answers, 60, "the agent to answer")
    driver.thaw(uuid)
    face.act(uuid, "changePassword", password)
    assert ssh(cloud, vmid, "cat /run/told") == "root:it is secret\n"
    face.act(uuid, "createImage", {"name": "held"})
    face.becomes(uuid, "ACTIVE")
    *_, refused, set_so, imaged = cloud.admin(f"/instances/{vmid}")["actions"]
    assert [(one["action"], one["outcome"]) for one in (refused, set_so, imaged)] == [
        ("changePassword", "error"), ("changePassword", "ok"), ("createImage", "ok"),
    ]
    assert re.fullmatch(
        r"with \d+ file systems of the guest held", imaged["steps"][-1]["message"]
    )
    with pytest.raises(AgentFailed):
        driver.set_password(uuid, "nobody-there", "it is secret")
    # A guest that does not put a new processor to use by itself is told to by its agent.
    ssh(cloud, vmid, "killall uevent")
    cloud.treadle.database.write(lambda conn: actions.resize(
        conn, vmid, 42, request_id="req-lab", deadline_s=30.0
    ))
    cloud.treadle.signals.work_is_due()

    def steps() -> list[str]:
        [log] = [one for one in cloud.admin(f"/instances/{vmid}")["actions"]
                 if one["action"] == "resize"]
        return [one["name"] for one in log["steps"]]

    assert wait_for(steps, 60, "the resize to be carried out") == ["grow"]
    assert ssh(cloud, vmid, "cat /sys/devices/system/cpu/online") == "0-1\n"


def test_an_image_that_is_deleted_is_there_for_those_who_have_it(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a build waits for it, and for all that is done with that instance later."""
    face, database = Face(cloud), cloud.treadle.database
    made = cloud.admin("/images", "POST", {"source": str(idle_disk(tmp_path)), "name": "gone"})

    def path() -> str | None:
        found = database.read(lambda conn: images.get(conn, made["id"]))
        assert found is not None
        return found.path

    wait_for(path, 30, "the image")
    held, waits = threading.Event(), threading.Event()
    real = LibvirtDriver.ensure_image

    def slowly(*arguments: Any) -> None:
        waits.set()
        assert held.wait(60)
        real(*arguments)

    monkeypatch.setattr(LibvirtDriver, "ensure_image", slowly)
    image = face.image("gone")
    answer = face.ask("POST", "/servers", {"server": {
        "name": "heir", "imageRef": image, "flavorRef": "1", "networks": "auto",
    }})
    assert answer.status_code == 202, answer.text
    uuid = answer.json()["server"]["id"]
    assert waits.wait(30), "it is not brought to its host yet"
    assert face.ask("DELETE", f"/images/{image}", minor=1).status_code == 204
    held.set()
    server = face.becomes(uuid, "ACTIVE")
    assert face.ask("GET", f"/images/{image}", minor=1).status_code == 404
    again = face.ask("POST", f"/servers/{uuid}/action", {"rebuild": {"imageRef": image}})
    assert again.status_code == 400, again.text
    assert "has been deleted" in face.refused(uuid, "rescue")

    face.act(uuid, "reboot", {"type": "HARD"})
    face.becomes(uuid, "ACTIVE")
    vmid = next(v for v in cloud.get("/vm/list")["vmids"]
                if cloud.admin(f"/instances/{v}")["uuid"] == uuid)
    assert cloud.get(f"/vm/stop?vmid={vmid}&hard=1") == {"status": 1}
    face.act(uuid, "migrate")
    moved = face.becomes(uuid, "VERIFY_RESIZE")
    assert moved["OS-EXT-SRV-ATTR:host"] != server["OS-EXT-SRV-ATTR:host"]
    face.act(uuid, "confirmResize")
    face.becomes(uuid, "SHUTOFF")
    face.act(uuid, "os-start")
    face.becomes(uuid, "ACTIVE")
    assert list(cloud.copies(uuid).values()) == ["running"]
    assert cloud.get(f"/vm/stop?vmid={vmid}&hard=1") == {"status": 1}
    face.act(uuid, "shelve")
    face.becomes(uuid, "SHELVED_OFFLOADED")
    assert cloud.copies(uuid) == {}
    face.act(uuid, "unshelve")
    face.becomes(uuid, "ACTIVE")
    assert list(cloud.copies(uuid).values()) == ["running"]
    other = face.image("idle")
    face.act(uuid, "rebuild", {"imageRef": other})
    face.becomes(uuid, "ACTIVE")
    assert cloud.get(f"/vm/destroy?vmid={vmid}") == {"status": 1}
    database.write(lambda conn: queue.wake(conn, IMAGES, [str(made["id"])]))
    wait_for(lambda: path() is None, 30, "nobody to need it any more")


def test_a_host_is_emptied_taken_out_and_brought_back(cloud: Cloud) -> None:
    """By the commands of whoever runs it."""
    lab, face = cloud.lab, Face(cloud)
    number, *others = cloud.get("/pm/list")["pmids"]
    host = cloud.host(number)
    for pmid in others:
        cloud.admin(f"/hosts/{pmid}/disable", "POST", {})
    runs, stays_off = cloud.create("runs", IDLE), cloud.create("stays-off", IDLE)
    assert cloud.get(f"/vm/stop?vmid={stays_off}&hard=1") == {"status": 1}
    for pmid in others:
        cloud.admin(f"/hosts/{pmid}/enable", "POST")
    with served(cloud.treadle) as port:

        def host_command(word: str, *more: str) -> str:
            said = CliRunner().invoke(command_line, [
                "host", word, str(number), *more, "--url", f"http://127.0.0.1:{port}",
                "--token", cloud.treadle.context.admin_token,
            ])
            assert said.exit_code == 0, said.output
            return said.output

        assert "is disabled" in host_command("disable", "--reason", "new fans")
        [service] = [one for one in face.get("/os-services")["services"]
                     if one["host"] == host.address]
        assert (service["status"], service["disabled_reason"]) == ("disabled", "new fans")
        elsewhere = cloud.create("elsewhere", IDLE)
        assert cloud.query(elsewhere)["pmid"] in others

        plan = host_command("drain", "--plan")
        assert "runs" in plan
        assert "2 of" in plan
        assert len(cloud.domains(host)) == 2, "nothing is done yet"
        refused = cloud.admin(f"/hosts/{number}", "DELETE")
        assert "has instances" in refused["error"]["message"]
        host_command("drain")
        assert cloud.domains(host) == set()
        assert cloud.volumes(host) == set()
        for vmid, state in ((runs, "running"), (stays_off, "stopped")):
            wait_for(lambda v=vmid, s=state: cloud.query(v)["state"] == s, 30, "it to be settled")
            assert cloud.query(vmid)["pmid"] in others
        assert cloud.admin(f"/hosts/{number}")["note"] == "new fans"

        # What is done with it meanwhile does not put it into use again.
        lab.kill_host(host.name)
        lab.boot_host(host.name)
        wait_for(lambda: cloud.admin(f"/hosts/{number}")["error"] is None
                 and not lab.exec(host.name, "virsh", "-q", "list", "--all").stderr, 60, "it")
        assert cloud.admin(f"/hosts/{number}")["state"] == "disabled"
        host_command("remove")
    assert number not in cloud.get("/pm/list")["pmids"]
    assert cloud.domains(host) == set()
    assert cloud.volumes(host) == set(), "what is left are images, and that it has been here"

    added = cloud.admin("/hosts", "POST", {"uri": host.uri, "name": host.address})
    assert added["id"] != number
    all_up(cloud)
    moved = cloud.admin(f"/instances/{runs}/migrate", "POST", {"host": added["id"]})
    wait_for(lambda: cloud.admin(f"/moves/{moved['id']}")["stage"] == "done", 60, "it to come back")
    assert cloud.copies(cloud.admin(f"/instances/{runs}")["uuid"]) == {host.name: "running"}
