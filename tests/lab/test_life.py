"""The further life of a VM on real hosts: rescue, rebuild, resize, images, the shelf, drift."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import sqlalchemy as sa

from tests.lab.conftest import Cloud, all_up
from tests.waiting import wait_for
from treadle.cli.files import ImageEntry
from treadle.cli.serve import Inventory
from treadle.compute import actions, creating, interfaces, store
from treadle.compute.actions import Rebuild
from treadle.compute.creating import Wish
from treadle.compute.model import MOST_KEYS, Instance, task_state, vm_state
from treadle.compute.moves import actions as moving
from treadle.image import store as images
from treadle.image.sources import parse_source
from treadle.image.store import Image, ImageStatus
from treadle.lab.fabric import can_run

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]
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


def test_rescued_rebuilt_and_of_another_size(cloud: Cloud, other_image: int) -> None:
    vmid = makes(cloud, "changing")
    assert "ON-vda=." in says(cloud, vmid)
    address = wait_for(lambda: the(cloud, vmid).address, 30, "its address")

    ask(cloud, lambda conn: actions.rescue(conn, vmid, other_image, **PATIENT))
    assert vm_state(the(cloud, vmid)) == "active", "until it is rescued"
    assert task_state(the(cloud, vmid)) == "rescuing"
    reaches(cloud, vmid, "rescued")
    said = says(cloud, vmid)
    assert "ON-vda=." in said
    assert "ON-vdc=1." in said
    ask(cloud, lambda conn: actions.unrescue(conn, vmid, **PATIENT))
    reaches(cloud, vmid, "active")
    assert "ON-vda=1." in says(cloud, vmid), "the rescue wrote on a disk of its own"

    ask(cloud, lambda conn: actions.resize(conn, vmid, 2, **PATIENT))
    reaches(cloud, vmid, "resized")
    assert "ON-vda=2." in says(cloud, vmid)
    assert memory_mib(cloud, vmid) == 256
    ask(cloud, lambda conn: actions.revert_resize(conn, vmid, **PATIENT))
    reaches(cloud, vmid, "active")
    assert "ON-vda=2." in says(cloud, vmid), "as it was before it grew"
    assert memory_mib(cloud, vmid) == 128
    ask(cloud, lambda conn: actions.resize(conn, vmid, 2, **PATIENT))
    reaches(cloud, vmid, "resized")
    ask(cloud, lambda conn: actions.confirm_resize(conn, vmid, request_id="req-lab"))
    assert vm_state(the(cloud, vmid)) == "active"

    ask(cloud, lambda conn: actions.rebuild(
        conn, vmid, Rebuild(other_image, name="renewed"), **PATIENT
    ))
    one = reaches(cloud, vmid, "active")
    assert "ON-vda=." in says(cloud, vmid)
    assert (one.name, one.image_id) == ("renewed", other_image)
    assert wait_for(lambda: the(cloud, vmid).address, 30, "its address") == address
    host = cloud.host(one.host_id or 0)
    disks = {name for name in cloud.volumes(host) if name.endswith(".qcow2")}
    assert disks == {f"{one.uuid}.{one.disks[0]}.qcow2"}, "the old disks are gone"


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
    vmid = makes(cloud, "kept")
    says(cloud, vmid)
    made: Image = ask(cloud, lambda conn: actions.create_image(
        conn, vmid, "of-kept", request_id="req-lab"
    ))
    assert task_state(the(cloud, vmid)) == "image_snapshot"
    reaches(cloud, vmid, "active")
    image = cloud.treadle.database.read(lambda conn: images.get(conn, made.id))
    assert image is not None
    assert image.state is ImageStatus.ACTIVE, image.error
    steps = cloud.admin(f"/instances/{vmid}")["actions"][-1]["steps"]
    assert "power cut" in steps[-1]["message"], "the guest has no agent, and that is said"
    twin = makes(cloud, "twin", image.id)
    assert "ON-vda=1." in says(cloud, twin)

    ask(cloud, lambda conn: actions.shelve(conn, vmid, **PATIENT))
    one = reaches(cloud, vmid, "shelved_offloaded", 120)
    assert one.host_id is None
    for host in cloud.lab.status():
        assert not {name for name in cloud.volumes(host) if one.uuid in name}
    ask(cloud, lambda conn: actions.unshelve(conn, vmid, host_id=3, **PATIENT))
    one = reaches(cloud, vmid, "active", 120)
    assert one.host_id == 3
    assert "ON-vda=1." in says(cloud, vmid)

    ask(cloud, lambda conn: actions.soft_delete(conn, vmid, **PATIENT))
    wait_for(lambda: the(cloud, vmid).deleted_at, 60, "it to be reclaimed, since nothing is kept")


def test_what_is_done_behind_our_back_is_undone(cloud: Cloud) -> None:
    vmid = makes(cloud, "watched")
    uuid = the(cloud, vmid).uuid
    host = cloud.host(the(cloud, vmid).host_id or 0)

    def virsh(*words: str) -> str:
        return cloud.lab.exec(host.name, "virsh", "-q", *words).stdout.strip()

    def state() -> str:
        return virsh("domstate", uuid)

    virsh("suspend", uuid)
    wait_for(lambda: state() == "running", 10, "it to go on")
    virsh("autostart", "--disable", uuid)
    wait_for(lambda: "enable" in virsh("dominfo", uuid).split("Autostart:")[1][:20], 15,
             "it to start with its host again")
    virsh("undefine", uuid)
    wait_for(lambda: "yes" in virsh("dominfo", uuid).split("Persistent:")[1][:20], 15,
             "it to be defined again")
    assert state() == "running"
    right = virsh("dumpxml", "--inactive", uuid)
    virsh("setmaxmem", uuid, "262144", "--config")
    virsh("attach-disk", uuid, "/dev/null", "vdz", "--config")
    assert "vdz" in virsh("dumpxml", "--inactive", uuid)
    wait_for(lambda: virsh("dumpxml", "--inactive", uuid) == right, 15,
             "its definition to be put back")
    assert state() == "running"
    virsh("destroy", uuid)
    virsh("undefine", uuid)
    wait_for(lambda: uuid in virsh("list", "--uuid"), 30, "it to be made anew")
    assert cloud.get(f"/vm/stop?vmid={vmid}") == {"status": 1}
    virsh("start", uuid)
    wait_for(lambda: state() == "shut off", 40, "it to be stopped again")


def test_a_guest_that_does_not_listen_is_stopped_all_the_same(cloud: Cloud) -> None:
    [made] = ask(cloud, lambda conn: creating.create(
        conn, Wish("deaf", 1, None, user_data="""#!/bin/sh
kill $(cat /run/acpid.pid)
echo DEAF > /dev/ttyS0
"""), request_id="req-lab", build_deadline_s=120.0,
    ))
    wait_for(lambda: b"DEAF" in cloud.console(made.id), 120, "it to listen no more")
    ask(cloud, lambda conn: actions.act(
        conn, made.id, "stop", request_id="req-lab", deadline_s=3.0
    ))
    reaches(cloud, made.id, "stopped")
    steps = [one["name"] for one in cloud.admin(f"/instances/{made.id}")["actions"][-1]["steps"]]
    assert steps[0] == "shut_down"
    assert steps[-1] == "power_off"
