"""The further life of a VM on real hosts: rescue, rebuild, resize, images, the shelf, drift."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.lab.conftest import Cloud, all_up
from tests.waiting import wait_for
from treadle.cli.files import ImageEntry
from treadle.cli.serve import Inventory
from treadle.compute import actions, creating, store
from treadle.compute.actions import Rebuild
from treadle.compute.creating import Wish
from treadle.compute.model import Instance, task_state, vm_state
from treadle.image import store as images
from treadle.image.fetch import parse_source
from treadle.image.store import Image, ImageStatus
from treadle.lab.fabric import can_run

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]
SECTOR = 2_000_000
TELLS = f"""#!/bin/sh
exec >/dev/ttyS0
for disk in vda vdc; do
  [ -b /dev/$disk ] || continue
  echo "ON-$disk=$(dd if=/dev/$disk bs=512 skip={SECTOR} count=1 2>/dev/null | tr -d '\\000')."
done
echo mine | dd of=/dev/vda bs=512 seek={SECTOR} conv=notrunc,sync 2>/dev/null
sync
echo TOLD
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
    assert "ON-vdc=mine" in said
    ask(cloud, lambda conn: actions.unrescue(conn, vmid, **PATIENT))
    reaches(cloud, vmid, "active")
    assert "ON-vda=mine" in says(cloud, vmid)

    ask(cloud, lambda conn: actions.resize(conn, vmid, 2, **PATIENT))
    reaches(cloud, vmid, "resized")
    assert "ON-vda=mine" in says(cloud, vmid)
    assert memory_mib(cloud, vmid) == 256
    ask(cloud, lambda conn: actions.revert_resize(conn, vmid, **PATIENT))
    reaches(cloud, vmid, "active")
    assert "ON-vda=mine" in says(cloud, vmid)
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
    assert "ON-vda=mine" in says(cloud, twin)

    ask(cloud, lambda conn: actions.shelve(conn, vmid, **PATIENT))
    one = reaches(cloud, vmid, "shelved_offloaded", 120)
    assert one.host_id is None
    for host in cloud.lab.status():
        assert not {name for name in cloud.volumes(host) if one.uuid in name}
    ask(cloud, lambda conn: actions.unshelve(conn, vmid, host_id=3, **PATIENT))
    one = reaches(cloud, vmid, "active", 120)
    assert one.host_id == 3
    assert "ON-vda=mine" in says(cloud, vmid)

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
