"""The further life of a VM on real hosts: rescue, rebuild, resize, images, the shelf, drift."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import sqlalchemy as sa

from tests.lab.conftest import IDLE, Cloud, Face, all_up, running_cloud
from tests.waiting import wait_for
from treadle.cli.files import ImageEntry
from treadle.cli.serve import Inventory
from treadle.compute import actions, creating, interfaces, store
from treadle.compute.creating import Wish
from treadle.compute.kinds import KIND
from treadle.compute.model import MOST_KEYS, NUMA_KEY, Instance, task_state, vm_state
from treadle.compute.moves import actions as moving
from treadle.controller import queue
from treadle.image import store as images
from treadle.image.sources import parse_source
from treadle.image.store import ImageStatus
from treadle.lab.fabric import Lab, LabHost, can_run

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]
POOL = "/var/lib/libvirt/treadle"
SECTOR = 2_000_000
SECTORS = 1 << 21
"""Of a GiB."""
TELLS = f"""#!/bin/sh
exec >/dev/ttyS0
for disk in vda vdc; do
  [ -b /dev/$disk ] || continue
  found=$(dd if=/dev/$disk bs=512 skip={SECTOR} count=1 2>/dev/null | tr -d '\\000')
  [ $disk = vdc ] || before=$found
  echo "ON-$disk=$found."
done
echo $((${{before:-0}} + 1)) | dd of=/dev/vda bs=512 seek={SECTOR} conv=notrunc,sync 2>/dev/null
sync
echo TOLD
"""
"""A guest that counts on its first disk how often it was booted from it."""
TELLS_SIZE = """#!/bin/sh
exec > /dev/ttyS0
read -r boot < /proc/sys/kernel/random/boot_id
while :; do
  read -r cpus < /sys/devices/system/cpu/online
  read -r _ kb _ < /proc/meminfo
  read -r size < /sys/block/vda/size
  last=$(dd if=/dev/vda bs=512 skip=SECTOR count=1 2>/dev/null | tr -d '\\000')
  echo "BOOT=$boot CPUS=$cpus KB=$kb DISK=$size LAST=$last."
  echo $size | dd of=/dev/vda bs=512 seek=SECTOR conv=notrunc,sync 2>/dev/null
  sync
  sleep 1
done
""".replace("SECTOR", str(SECTOR))
"""A guest that writes on its disk how large it has last seen that."""
TELLS_CARDS = """#!/bin/sh
exec > /dev/ttyS0
read -r boot < /proc/sys/kernel/random/boot_id
while :; do
  card=none
  for one in /sys/class/net/eth*/address; do
    [ -e "$one" ] && read -r card < "$one"
  done
  if [ $card != none ] && ! ip addr show eth0 | grep -q "inet "; then
    ip link set eth0 up
    udhcpc -i eth0 -s /etc/dhcp -n -q -t 5 -T 1 >/dev/null 2>&1
  fi
  echo "BOOT=$boot CARD=$card END"
  sleep 0.5
done
"""
PATIENT: Any = {"request_id": "req-lab", "deadline_s": 30.0}


@pytest.fixture(scope="module")
def cloud(
    lab: Lab, guest_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cloud]:
    """As others are, but what is deleted or shelved is kept for a while."""
    settings = {"instances.reclaim_s": 3600, "instances.shelve_offload_s": 3600}
    with running_cloud(lab, guest_image, tmp_path_factory.mktemp("state"), settings) as one:
        yield one


@pytest.fixture(scope="module")
def other_image(cloud: Cloud, guest_image: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The same guest in another file; its number."""
    path = tmp_path_factory.mktemp("image") / "other.qcow2"
    subprocess.run(
        ["qemu-img", "convert", "-O", "qcow2", "-o", "cluster_size=32k", guest_image, path],
        check=True, timeout=60,
    )
    cloud.treadle.register(Inventory(images=[ImageEntry(2, parse_source(str(path)), "other")]))

    def found() -> int | None:
        known = {one["name"]: one for one in cloud.admin("/images")["images"]}
        return known["other"]["id"] if known["other"]["state"] == "active" else None

    return int(wait_for(found, 30, "the other image"))


@pytest.fixture(autouse=True)
def clean(cloud: Cloud) -> Iterator[None]:
    all_up(cloud)
    yield
    all_up(cloud)
    cloud.destroy_all()
    for host in cloud.lab.status():
        wait_for(lambda h=host: not cloud.volumes(h), 20, f"no volume to be left on {host.name}")


def ask(cloud: Cloud, wish: Callable[[sa.Connection], Any]) -> Any:
    """One request, as a face makes it."""
    answer = cloud.treadle.database.write(wish)
    cloud.treadle.signals.work_is_due()
    return answer


def the(cloud: Cloud, vmid: int) -> Instance:
    found = cloud.treadle.database.read(lambda conn: store.get(conn, vmid))
    assert found is not None
    return found


def reaches(cloud: Cloud, vmid: int, state: str, seconds: float = 90) -> Instance:
    """Wait until it is that, and nothing is being done with it."""
    def is_so() -> bool:
        one = the(cloud, vmid)
        return vm_state(one) == state and task_state(one) is None

    try:
        wait_for(is_so, seconds, f"it to be {state}")
    except AssertionError as error:
        one = the(cloud, vmid)
        log = cloud.admin(f"/instances/{vmid}")["actions"][-1]
        raise AssertionError(f"{vm_state(one)}, {task_state(one)}, {one.fault}: {log}") from error
    return the(cloud, vmid)


def makes(cloud: Cloud, name: str, image: int | None = None) -> int:
    """A VM that tells what is on its disks."""
    [made] = ask(cloud, lambda conn: creating.create(
        conn, Wish(name, 1, image, user_data=TELLS), request_id="req-lab", build_deadline_s=120.0,
    ))
    reaches(cloud, made.id, "active")
    return int(made.id)


def says(cloud: Cloud, vmid: int) -> str:
    """What the guest told since it was last booted."""
    wait_for(lambda: b"TOLD" in cloud.console(vmid), 90, f"guest {vmid} to tell")
    return cloud.console(vmid).decode(errors="replace")


def memory_mib(cloud: Cloud, vmid: int) -> int:
    one = the(cloud, vmid)
    assert one.host_id is not None
    told = cloud.lab.exec(cloud.host(one.host_id).name, "virsh", "dominfo", one.uuid).stdout
    return int(next(line for line in told.splitlines() if "Max memory" in line).split()[2]) // 1024


def host_of(cloud: Cloud, vmid: int) -> LabHost:
    return cloud.host(the(cloud, vmid).host_id or 0)


def virsh(cloud: Cloud, vmid: int, word: str, *more: str) -> str:
    """What its host's virsh says of it."""
    uuid = the(cloud, vmid).uuid
    return cloud.lab.exec(
        host_of(cloud, vmid).name, "virsh", "-q", word, uuid, *more
    ).stdout.strip()


def cut_off(cloud: Cloud, face: Face, vmid: int) -> None:
    """Stop it, without a word to its guest, which may be booting."""
    assert cloud.get(f"/vm/stop?vmid={vmid}&hard=1") == {"status": 1}
    face.becomes(the(cloud, vmid).uuid, "SHUTOFF")


def test_a_guest_is_told_every_action_by_the_compute_api(cloud: Cloud, other_image: int) -> None:
    face = Face(cloud)
    vmid = makes(cloud, "changing")
    uuid = the(cloud, vmid).uuid
    assert "ON-vda=." in says(cloud, vmid)
    address = wait_for(lambda: the(cloud, vmid).address, 30, "its address")
    image = face.image("other")

    for action, status, state, wrong in (
        ("pause", "PAUSED", "paused", "unpause"), ("unpause", "ACTIVE", "running", "pause"),
        ("suspend", "SUSPENDED", "shut off", "resume"), ("resume", "ACTIVE", "running", "suspend"),
    ):
        was = vm_state(the(cloud, vmid))
        assert f"while it is in vm_state {was}" in face.refused(uuid, wrong)
        face.act(uuid, action)
        face.becomes(uuid, status)
        assert virsh(cloud, vmid, "domstate") == state
    assert face.get(f"/servers/{uuid}/diagnostics")["state"] == "running"
    assert "TOLD" in face.act(uuid, "os-getConsoleOutput", {"length": 20})["output"]
    face.act(uuid, "lock", {"locked_reason": "mine"})
    assert face.get(f"/servers/{uuid}")["server"]["locked_reason"] == "mine"
    face.act(uuid, "unlock")
    assert face.ask("PUT", f"/servers/{uuid}", {"server": {"name": "named"}}).status_code == 200

    face.act(uuid, "resize", {"flavorRef": "2"})
    face.becomes(uuid, "VERIFY_RESIZE")
    assert "ON-vda=1." in says(cloud, vmid)
    assert memory_mib(cloud, vmid) == 256
    assert "while it is in vm_state resized" in face.refused(uuid, "rescue")
    face.act(uuid, "revertResize")
    face.becomes(uuid, "ACTIVE")
    assert "ON-vda=1." in says(cloud, vmid), "as it was before it grew"
    assert memory_mib(cloud, vmid) == 128

    face.act(uuid, "rescue", {"rescue_image_ref": image})
    assert vm_state(the(cloud, vmid)) == "active", "until it is rescued"
    assert task_state(the(cloud, vmid)) == "rescuing"
    face.becomes(uuid, "RESCUE")
    said = says(cloud, vmid)
    assert "ON-vda=." in said
    assert "ON-vdc=2." in said
    face.act(uuid, "unrescue")
    face.becomes(uuid, "ACTIVE")
    cut_off(cloud, face, vmid)
    [own] = [f"{POOL}/{name}" for name in cloud.volumes(host_of(cloud, vmid))
             if name.startswith(uuid) and name.endswith(".qcow2")]
    read = f"qemu-img dd if={own} bs=512 skip={SECTOR} count={SECTOR + 1} of=/run/sector -O raw"
    told = cloud.lab.exec(host_of(cloud, vmid).name, "sh", "-c", f"{read} && cat /run/sector")
    assert told.stdout[:1] in ("2", "3"), "the rescue wrote on a disk of its own"

    # What is off is changed without a boot.
    face.act(uuid, "resize", {"flavorRef": "2"})
    face.becomes(uuid, "VERIFY_RESIZE")

    def time_is_up(conn: sa.Connection) -> None:
        store.update(conn, vmid, ends_at=1.0)
        queue.wake(conn, KIND, [uuid])

    ask(cloud, time_is_up)
    face.becomes(uuid, "SHUTOFF")
    assert (memory_mib(cloud, vmid), len(the(cloud, vmid).disks)) == (256, 2)
    face.act(uuid, "rebuild", {"imageRef": image, "name": "renewed"})
    face.becomes(uuid, "SHUTOFF")
    face.act(uuid, "os-start")
    face.becomes(uuid, "ACTIVE")
    assert "ON-vda=." in says(cloud, vmid)
    one = the(cloud, vmid)
    assert (one.name, one.image_id) == ("renewed", other_image)
    assert wait_for(lambda: the(cloud, vmid).address, 30, "its address") == address
    disks = {name for name in cloud.volumes(host_of(cloud, vmid)) if name.endswith(".qcow2")}
    assert disks == {f"{one.uuid}.{one.disks[0]}.qcow2"}, "the old disks are gone"

    running = virsh(cloud, vmid, "domid")
    face.act(uuid, "os-resetState", {"state": "error"})
    face.becomes(uuid, "ERROR")
    face.act(uuid, "os-resetState", {"state": "active"})
    face.becomes(uuid, "ACTIVE")
    assert virsh(cloud, vmid, "domid") == running
    face.act(uuid, "reboot", {"type": "HARD"})
    face.becomes(uuid, "ACTIVE")
    assert virsh(cloud, vmid, "domid") != running
    face.act(uuid, "pause")
    face.becomes(uuid, "PAUSED")
    assert face.ask("DELETE", f"/servers/{uuid}").status_code == 204
    face.becomes(uuid, "SOFT_DELETED")
    assert virsh(cloud, vmid, "domstate") == "shut off"
    assert "while it is in vm_state soft-delete" in face.refused(uuid, "os-start")
    face.act(uuid, "restore")
    face.becomes(uuid, "ACTIVE")
    assert virsh(cloud, vmid, "domstate") == "running"
    face.act(uuid, "forceDelete")
    wait_for(lambda: the(cloud, vmid).deleted_at, 60, "it to be deleted")
    log = face.log(uuid)
    assert [name for name, _ in log] == [
        "create", "pause", "unpause", "suspend", "resume", "lock", "unlock", "rename", "resize",
        "revertResize", "rescue", "unrescue", "stop", "resize", "rebuild", "start", "resetState",
        "resetState", "reboot", "pause", "delete", "restore", "delete",
    ]
    for name, events in log:
        assert events, name
        assert {result for _, result in events} == {"Success"}, (name, events)
    by_time = [one["action"] for one in cloud.admin(f"/instances/{vmid}")["actions"]
               if not one["request_id"]]
    assert by_time == ["confirmResize"]


def test_what_was_deleted_softly_is_gone_when_its_time_is_over(cloud: Cloud) -> None:
    vmid = cloud.create("reclaimed", IDLE)
    host, uuid = host_of(cloud, vmid), the(cloud, vmid).uuid
    ask(cloud, lambda conn: actions.soft_delete(conn, vmid, **PATIENT))
    kept = reaches(cloud, vmid, "soft-delete")
    assert virsh(cloud, vmid, "domstate") == "shut off"
    assert kept.ends_at is not None

    def ends_now(conn: sa.Connection) -> None:
        store.update(conn, vmid, ends_at=kept.ends_at - 3600)
        queue.wake(conn, KIND, [uuid])

    ask(cloud, ends_now)
    wait_for(lambda: the(cloud, vmid).deleted_at, 30, "it to be reclaimed")
    assert uuid not in cloud.domains(host)
    assert not {name for name in cloud.volumes(host) if uuid in name}


class Told(NamedTuple):
    """What a guest says of itself: the number that it drew when it booted, how many processors it
    uses, its memory in MiB, and its disk in GiB."""

    boot: str
    cpus: int
    memory_mib: int
    disk_gib: int


def told(cloud: Cloud, vmid: int, cpus: int, disk_gib: int) -> Told:
    """What it says, once it has that many processors and such a disk."""
    def found() -> Told | None:
        lines = re.findall(
            rb"BOOT=([0-9a-f-]{36}) CPUS=0?-?(\d*) KB=(\d+) DISK=(\d+) ", cloud.console(vmid)
        )
        if not lines:
            return None
        boot, last, kib, size = lines[-1]
        one = Told(boot.decode(), int(last or 0) + 1, int(kib) // 1024, int(size) // SECTORS)
        return one if (one.cpus, one.disk_gib) == (cpus, disk_gib) else None

    return cast(Told, wait_for(found, 90, f"guest {vmid} to have {cpus} and {disk_gib} GiB"))


def found_on_it(cloud: Cloud, vmid: int, disk_gib: int) -> set[int]:
    """What the guest has read on its disk since it was booted, while that was so large."""
    lines = re.findall(rf"DISK={disk_gib * SECTORS} LAST=(\d+)\.".encode(), cloud.console(vmid))
    return {int(line) // SECTORS for line in lines}


def test_one_of_a_numa_node_is_bound_to_it_wherever_it_goes(cloud: Cloud) -> None:
    for id, nodes in ((41, "1"), (42, "2")):
        size = store.Flavor(id, 2, 128, 1, extra_specs={NUMA_KEY: nodes})
        ask(cloud, lambda conn: store.put_flavor(conn, size))  # noqa: B023

    def make(flavor: int) -> int:
        [made] = ask(cloud, lambda conn: creating.create(
            conn, Wish("bound", flavor, 2), request_id="req-lab", build_deadline_s=120.0,
        ))
        return int(made.id)

    def bound() -> dict[int, tuple[int, int]]:
        """What is taken of the one node of each host."""
        return {
            host["id"]: (one["vcpus"]["used"], one["memory_mib"]["used"])
            for host in cloud.admin("/hosts")["hosts"] for one in host["numa"]
        }

    assert set(bound().values()) == {(0, 0)}
    vmid = make(41)
    one = reaches(cloud, vmid, "active")
    first = one.host_id or 0
    assert {id for id, taken in bound().items() if taken == (2, 128)} == {first}
    ask(cloud, lambda conn: moving.live_migrate(
        conn, vmid, None, request_id="req-lab", deadline_s=120.0
    ))
    one = reaches(cloud, vmid, "active", 120)
    assert (one.fault, one.host_id != first) == (None, True)
    assert {id for id, taken in bound().items() if taken == (2, 128)} == {one.host_id}
    for options in ((), ("--inactive",)):
        host = cloud.host(one.host_id or 0).name
        text = cloud.lab.exec(host, "virsh", "dumpxml", *options, one.uuid).stdout
        assert "<memory mode='strict' nodeset='0'/>" in text
        assert "<memnode cellid='0' mode='strict' nodeset='0'/>" in text
    failed = reaches(cloud, make(42), "error")
    assert "needs 2 NUMA nodes with 1 vcpus and 64 MiB free, has 1 of 1" in (failed.fault or "")


def test_it_is_given_more_while_it_runs_and_takes_it_along(cloud: Cloud) -> None:
    most = dict(zip(MOST_KEYS, ("3", "512"), strict=True))
    for id, vcpus, memory, disk in (
        (31, 1, 128, 1), (32, 2, 256, 2), (33, 3, 512, 3), (34, 2, 256, 3),
    ):
        flavor = store.Flavor(id, vcpus, memory, disk, extra_specs=most if id < 34 else {})
        ask(cloud, lambda conn: store.put_flavor(conn, flavor))  # noqa: B023
    [made] = ask(cloud, lambda conn: creating.create(
        conn, Wish("growing", 31, None, user_data=TELLS_SIZE), request_id="req-lab",
        build_deadline_s=120.0,
    ))
    vmid = made.id
    reaches(cloud, vmid, "active")
    small = told(cloud, vmid, 1, 1)
    wait_for(lambda: found_on_it(cloud, vmid, 1) == {1}, 30, "it to have written")

    ask(cloud, lambda conn: actions.resize(conn, vmid, 32, **PATIENT))
    reaches(cloud, vmid, "resized")
    large = told(cloud, vmid, 2, 2)
    assert large.boot == small.boot
    assert large.memory_mib == small.memory_mib + 128
    wait_for(lambda: found_on_it(cloud, vmid, 2) == {1, 2}, 30, "what was there to be there")
    steps = [one["name"] for one in cloud.admin(f"/instances/{vmid}")["actions"][-1]["steps"]]
    assert steps == ["grow"]
    ask(cloud, lambda conn: actions.confirm_resize(conn, vmid, request_id="req-lab"))

    # It goes to another host as it is, and can be given more there.
    first = the(cloud, vmid).host_id
    ask(cloud, lambda conn: moving.live_migrate(
        conn, vmid, None, request_id="req-lab", deadline_s=120.0
    ))
    one = reaches(cloud, vmid, "active", 120)
    assert one.host_id != first
    assert one.fault is None
    assert told(cloud, vmid, 2, 2) == large
    assert len(one.disks) == 1, "its layers have become one"
    host = cloud.host(one.host_id or 0)
    stored = cloud.lab.exec(host.name, "virsh", "dumpxml", "--inactive", one.uuid).stdout
    assert stored.count(".qcow2") == 1, "its next start finds it so, too"
    assert {name for name in cloud.volumes(host) if name.endswith(".qcow2")} == {
        f"{one.uuid}.{one.disks[0]}.qcow2"
    }
    seen = cloud.treadle.fleet.driver(
        one.host_id or 0, cloud.admin(f"/hosts/{one.host_id}")["uri"]
    ).observe(one.uuid)
    assert seen is not None
    assert (seen.room, seen.changed, seen.generation) == ((3, 512), (), one.generation)
    ask(cloud, lambda conn: actions.resize(conn, vmid, 33, **PATIENT))
    reaches(cloud, vmid, "resized")
    largest = told(cloud, vmid, 3, 3)
    assert largest == Told(small.boot, 3, small.memory_mib + 384, 3)
    wait_for(lambda: 3 in found_on_it(cloud, vmid, 3), 30, "it to have written")
    assert len(the(cloud, vmid).disks) == 2

    # What it was given is taken back only when it starts anew, and from the disk as it was.
    ask(cloud, lambda conn: actions.revert_resize(conn, vmid, **PATIENT))
    reaches(cloud, vmid, "active")
    wait_for(lambda: told(cloud, vmid, 2, 2).boot != small.boot, 90, "it to have started anew")
    assert memory_mib(cloud, vmid) == 256
    assert found_on_it(cloud, vmid, 2) == {2}
    assert the(cloud, vmid).disks == one.disks

    # A disk alone needs no room that was kept for it.
    booted = told(cloud, vmid, 2, 2).boot
    ask(cloud, lambda conn: actions.resize(conn, vmid, 34, **PATIENT))
    reaches(cloud, vmid, "resized")
    assert told(cloud, vmid, 2, 3).boot == booted
    steps = [one["name"] for one in cloud.admin(f"/instances/{vmid}")["actions"][-1]["steps"]]
    assert steps == ["grow"]


def test_its_card_is_taken_and_given_while_it_runs(cloud: Cloud) -> None:
    [made] = ask(cloud, lambda conn: creating.create(
        conn, Wish("plugged", 1, None, user_data=TELLS_CARDS), request_id="req-lab",
        build_deadline_s=120.0,
    ))
    vmid = made.id
    mac = reaches(cloud, vmid, "active").mac

    def cards() -> tuple[bytes, bytes] | None:
        """The boot and the card that it told last."""
        lines = re.findall(rb"BOOT=([0-9a-f-]{36}) CARD=(\S+) END", cloud.console(vmid))
        return lines[-1] if lines else None

    def tells(card: str) -> bytes:
        """Wait until it has that card; its boot."""
        wait_for(lambda: (cards() or (b"", b""))[1] == card.encode(), 90, f"the card {card}")
        return (cards() or (b"", b""))[0]

    def steps() -> list[tuple[str, str]]:
        log = cloud.admin(f"/instances/{vmid}")["actions"][-1]
        return [(one["name"], one["outcome"]) for one in log["steps"]]

    boot = tells(mac)
    address = wait_for(lambda: the(cloud, vmid).address, 30, "its address")
    ask(cloud, lambda conn: interfaces.detach(conn, vmid, request_id="req-lab"))
    one = reaches(cloud, vmid, "active")
    assert steps() == [("plug", "ok")]
    assert one.address is None
    assert tells("none") == boot
    ask(cloud, lambda conn: interfaces.attach(conn, vmid, request_id="req-lab"))
    reaches(cloud, vmid, "active")
    assert steps() == [("plug", "ok")]
    assert tells(mac) == boot
    assert wait_for(lambda: the(cloud, vmid).address, 30, "its address") == address

    # It goes to another host with it, and can be without it there.
    first = the(cloud, vmid).host_id
    ask(cloud, lambda conn: moving.live_migrate(
        conn, vmid, None, request_id="req-lab", deadline_s=120.0
    ))
    one = reaches(cloud, vmid, "active", 120)
    assert one.host_id != first
    assert tells(mac) == boot
    ask(cloud, lambda conn: interfaces.detach(conn, vmid, request_id="req-lab"))
    one = reaches(cloud, vmid, "active")
    assert tells("none") == boot
    seen = cloud.treadle.fleet.driver(
        one.host_id or 0, cloud.admin(f"/hosts/{one.host_id}")["uri"]
    ).observe(one.uuid)
    assert seen is not None
    assert (seen.changed, seen.generation, seen.addresses) == ((), one.generation, ())


def test_an_image_of_it_boots_and_the_shelf_keeps_it(cloud: Cloud) -> None:
    face = Face(cloud)
    vmid = makes(cloud, "kept")
    uuid = the(cloud, vmid).uuid
    says(cloud, vmid)
    made = face.act(uuid, "createImage", {"name": "of-kept"})["image_id"]
    assert task_state(the(cloud, vmid)) == "image_snapshot"
    face.becomes(uuid, "ACTIVE")
    image = cloud.treadle.database.read(lambda conn: images.by_uuid(conn, made))
    assert image is not None
    assert image.state is ImageStatus.ACTIVE, image.error
    steps = cloud.admin(f"/instances/{vmid}")["actions"][-1]["steps"]
    assert "power cut" in steps[-1]["message"], "the guest has no agent, and that is said"
    twin = makes(cloud, "twin", image.id)
    assert "ON-vda=1." in says(cloud, twin)
    cloud.get(f"/vm/destroy?vmid={twin}")

    def shelve(*, running: bool) -> None:
        if not running:
            cut_off(cloud, face, vmid)
        face.act(uuid, "shelve")
        face.becomes(uuid, "SHELVED")
        assert "while it is in vm_state shelved" in face.refused(uuid, "os-start")

    def offload() -> None:
        face.act(uuid, "shelveOffload")
        face.becomes(uuid, "SHELVED_OFFLOADED")
        assert the(cloud, vmid).host_id is None
        for host in cloud.lab.status():
            assert not {name for name in cloud.volumes(host) if uuid in name}

    def unshelve(**where: str) -> int:
        face.act(uuid, "unshelve", where or None)
        face.becomes(uuid, "ACTIVE")
        return the(cloud, vmid).host_id or 0

    first = the(cloud, vmid).host_id
    shelve(running=True)
    assert unshelve() == first
    shelve(running=False)
    offload()
    names = {pmid: cloud.host(pmid).address for pmid in (1, 2, 3)}
    body = {"aggregate": {"name": "east", "availability_zone": "east"}}
    zone = face.ask("POST", "/os-aggregates", body).json()["aggregate"]["id"]
    other = 3 if first != 3 else 2
    said = face.ask("POST", f"/os-aggregates/{zone}/action", {"add_host": {"host": names[other]}})
    assert said.status_code == 200, said.text
    assert unshelve(availability_zone="east") == other
    shelve(running=False)
    offload()
    last = next(pmid for pmid in names if pmid not in (first, other))
    face.ask("POST", f"/os-aggregates/{zone}/action", {"remove_host": {"host": names[other]}})
    assert face.ask("DELETE", f"/os-aggregates/{zone}").status_code == 200
    assert unshelve(host=names[last], availability_zone=None) == last  # type: ignore[arg-type]
    assert re.search(r"ON-vda=[1-9]\.", says(cloud, vmid))
    assert {result for _, events in face.log(uuid) for _, result in events} == {"Success"}


def test_what_is_done_behind_our_back_is_undone_and_a_deaf_guest_is_stopped(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    [made] = ask(cloud, lambda conn: creating.create(
        conn, Wish("watched", 1, None, user_data="""#!/bin/sh
kill $(cat /run/acpid.pid)
echo DEAF > /dev/ttyS0
"""), request_id="req-lab", build_deadline_s=120.0,
    ))
    vmid = made.id
    wait_for(lambda: b"DEAF" in cloud.console(vmid), 120, "it to listen no more")

    def told(*words: str) -> str:
        return virsh(cloud, vmid, *words)

    def state() -> str:
        return told("domstate")

    told("suspend")
    wait_for(lambda: state() == "running", 10, "it to go on")
    told("autostart", "--disable")
    wait_for(lambda: "enable" in told("dominfo").split("Autostart:")[1][:20], 15,
             "it to start with its host again")
    told("undefine")
    wait_for(lambda: "yes" in told("dominfo").split("Persistent:")[1][:20], 15,
             "it to be defined again")
    assert state() == "running"
    right = told("dumpxml", "--inactive")
    told("setmaxmem", "262144", "--config")
    told("attach-disk", "/dev/null", "vdz", "--config")
    assert "vdz" in told("dumpxml", "--inactive")
    wait_for(lambda: told("dumpxml", "--inactive") == right, 15, "its definition to be put back")
    assert state() == "running"

    ask(cloud, lambda conn: actions.act(
        conn, vmid, "stop", request_id="req-lab", deadline_s=3.0
    ))
    reaches(cloud, vmid, "stopped")
    steps = [one["name"] for one in cloud.admin(f"/instances/{vmid}")["actions"][-1]["steps"]]
    assert steps[0] == "shut_down"
    assert steps[-1] == "power_off"
    told("start")
    wait_for(lambda: state() == "shut off", 40, "it to be stopped again")

    assert cloud.get(f"/vm/start?vmid={vmid}") == {"status": 1}
    told("destroy")
    told("undefine")
    wait_for(lambda: state() == "running", 30, "it to be made anew")
    wait_for(lambda: cloud.query(vmid)["state"] == "running", 30, "that to be known")
    # By the other policy it is wanted so from then on.
    handler: Any = cloud.treadle.controller._handlers[KIND]
    monkeypatch.setattr(handler, "_timing", replace(handler._timing, adopt_drift=True))
    told("suspend")
    one = reaches(cloud, vmid, "paused")
    assert state() == "paused"
    assert one.fault == "it was paused on its host, not by Treadle"
