"""Hosts that see one pool: a guest goes from one to another, and its disk stays where it is."""

from __future__ import annotations

import fcntl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import Cloud, all_up, running_cloud
from tests.lab.test_cloud import ssh
from tests.lab.test_evacuation import create, row, running, the
from tests.lab.test_moves import migrate
from tests.labs import a_lab
from tests.waiting import wait_for
from treadle.compute import actions, store
from treadle.compute.model import State, vm_state
from treadle.compute.moves.plan import Stage
from treadle.lab.fabric import Lab, can_run
from treadle.placement import storages
from treadle.placement.ledger import Fence

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]
DATA = "written-before-the-power-went"
PLACE = "bs=1M seek=700 conv=fsync,notrunc"
THIEF = """
<domain type='qemu'><name>thief</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64'>hvm</type></os><devices><disk type='file' device='disk'>
<driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
</devices></domain>
"""
LOCKED_AT = 0
"""The byte that virtlockd locks of a disk's file."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with a_lab("shr", 2, tmp_path_factory.mktemp("lab"), shared=True) as one:
        yield one


@pytest.fixture(scope="module")
def cloud(
    lab: Lab, guest_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cloud]:
    settings = {"fencing.plugin": "lab", "fencing.options": {"folder": str(lab.folder)}}
    with running_cloud(lab, guest_image, tmp_path_factory.mktemp("ha"), settings) as one:
        wait_for(
            lambda: one.treadle.database.read(lambda conn: storages.heirs(conn, 1).ids
                                              and storages.heirs(conn, 2).ids),
            30, "the hosts to have seen each other",
        )
        one.treadle.watch.start()
        yield one


def files(cloud: Cloud, vmid: int) -> dict[str, int]:
    """The disk's volumes in the pool, each with its inode."""
    uuid = the(cloud, vmid).uuid
    return {
        path.name: path.stat().st_ino for path in cloud.lab.shared.glob(f"{uuid}*.qcow2")
    }


def grows(cloud: Cloud, vmid: int) -> None:
    """Have it given a larger disk while it runs, for good."""
    database = cloud.treadle.database
    database.write(lambda conn: store.put_flavor(conn, store.Flavor(51, 1, 128, 2)))
    database.write(lambda conn: actions.resize(
        conn, vmid, 51, request_id="r", deadline_s=30.0
    ))
    cloud.treadle.signals.work_is_due()
    wait_for(lambda: vm_state(the(cloud, vmid)) == "resized", 60, "it to be larger")
    log = cloud.admin(f"/instances/{vmid}")["actions"][-1]
    assert [step["name"] for step in log["steps"]] == ["grow"]
    database.write(lambda conn: actions.confirm_resize(conn, vmid, request_id="r"))


def test_a_running_guest_goes_and_its_disk_stays(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    [vmid] = create(cloud, 1, ["stays"], "")
    cloud.guest_is_up(vmid)
    before = files(cloud, vmid)
    assert len(before) == 1
    for target in (2, 1):
        began = time.monotonic()
        move = migrate(cloud, vmid, target)
        assert move.stage is Stage.DONE, move.error
        with capsys.disabled():
            sys.stdout.write(f"\nlive move, shared disk: {time.monotonic() - began:.1f} s\n")
        wait_for(lambda: cloud.query(vmid)["state"] == "running", 30, "it to be settled")
        assert the(cloud, vmid).host_id == target
        assert files(cloud, vmid) == before, "the disk is the same file"
        uuid = the(cloud, vmid).uuid
        assert [uuid in running(cloud, cloud.host(id)) for id in (1, 2)] == [
            target == 1, target == 2
        ]
        if target == 2:
            # A larger disk lies over the old one there, is locked, and goes along as it is.
            old = set(before)
            grows(cloud, vmid)
            before = files(cloud, vmid)
            assert old < set(before)
            [top] = set(before) - old
            path = cloud.lab.shared / top
            with path.open("r+b") as disk, pytest.raises(OSError, match="unavailable"):
                fcntl.lockf(disk, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, LOCKED_AT)
    # It was never booted anew, and what it has printed has stayed too.
    assert b"TREADLE-GUEST-UP" in cloud.console(vmid)
    assert cloud.get(f"/vm/pause?vmid={vmid}") == {"status": 1}
    assert cloud.get(f"/vm/resume?vmid={vmid}") == {"status": 1}
    # Another host's sweep has had its time: with the last host, the disk goes.
    assert cloud.get(f"/vm/destroy?vmid={vmid}") == {"status": 1}
    wait_for(lambda: not list(cloud.lab.shared.glob(f"{uuid}*")), 30, "nothing of it to be left")


def test_a_disk_that_is_open_is_opened_by_nobody_else(cloud: Cloud) -> None:
    [vmid] = create(cloud, 1, ["locked"], "")
    instance = the(cloud, vmid)
    one, two = cloud.host(1).name, cloud.host(2).name
    [name] = files(cloud, vmid)
    # Somebody starts another guest on the second host with its disk.
    thief = THIEF.format(disk=f"/var/lib/libvirt/treadle/{name}")
    started = cloud.lab.exec(two, "virsh", "-q", "create", "/dev/stdin", stdin=thief)
    assert started.returncode != 0
    assert '"write" lock' in started.stderr, started.stderr
    # Somebody defines the very guest there as well: the host's sweep removes that, and no more.
    shown = cloud.lab.exec(one, "virsh", "-q", "dumpxml", "--inactive", instance.uuid).stdout
    defined = cloud.lab.exec(two, "virsh", "-q", "define", "/dev/stdin", stdin=shown)
    assert defined.returncode == 0, defined.stderr
    wait_for(lambda: instance.uuid not in cloud.domains(cloud.host(2)), 30, "it to be swept")
    assert instance.uuid in running(cloud, cloud.host(1))
    assert len(files(cloud, vmid)) == 1
    # virtlockd by itself: it has the disk, and where it cannot have it, nothing is started.
    path = cloud.lab.shared / name
    with path.open("r+b") as disk, pytest.raises(OSError, match="unavailable"):
        fcntl.lockf(disk, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, LOCKED_AT)
    assert cloud.get(f"/vm/stop?vmid={vmid}") == {"status": 1}
    create_it = ("virsh", "-q", "create", "/dev/stdin")
    with path.open("r+b") as disk:
        fcntl.lockf(disk, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, LOCKED_AT)
        assert cloud.lab.exec(two, *create_it, stdin=thief).returncode != 0
    started = cloud.lab.exec(two, *create_it, stdin=thief)
    assert started.returncode == 0, started.stderr
    # And Treadle's own start is refused while somebody else has the disk open.
    assert cloud.get(f"/vm/start?vmid={vmid}")["status"] == 0
    assert instance.uuid not in running(cloud, cloud.host(1))
    cloud.lab.exec(two, "virsh", "-q", "destroy", "thief")
    assert cloud.get(f"/vm/start?vmid={vmid}") == {"status": 1}
    assert cloud.get(f"/vm/destroy?vmid={vmid}") == {"status": 1}


def test_doctor_says_where_open_disks_are_not_locked(cloud: Cloud, tmp_path: Path) -> None:
    from treadle.cli import doctor
    from treadle.cli.serve import ssh_config
    from treadle.config import load

    host = cloud.host(1)
    settings = load(None, {}).with_overrides({"host_defaults.identity_file": str(cloud.lab.key)})
    config = ssh_config(tmp_path, settings.host_defaults)

    def said() -> dict[str, str | bool]:
        report = doctor.Report(quiet=True)
        doctor._storage(report, host.uri, config, settings)
        return report.rows[0]

    assert said()["ok"], said()
    assert "2 hosts" in str(said()["detail"])
    conf = host.folder / "etc" / "qemu.conf"
    before = conf.read_text()
    conf.write_text(before.replace("lock_manager", "# lock_manager"))
    try:
        assert not said()["ok"]
        assert "virtlockd" in str(said()["mend"])
    finally:
        conf.write_text(before)


def test_what_a_guest_has_written_outlives_its_host(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    [vmid] = create(cloud, 1, ["survivor"], "evacuate")
    cloud.guest_is_up(vmid)
    wait_for(lambda: "ip" in cloud.query(vmid), 30, "its address")
    ssh(cloud, vmid, f"echo {DATA} | dd of=/dev/vda {PLACE}")
    grows(cloud, vmid)
    ssh(cloud, vmid, f"echo {DATA} | dd of=/dev/vda {PLACE.replace('700', '1700')}")
    before, uuid, host = files(cloud, vmid), the(cloud, vmid).uuid, cloud.host(1)
    began = time.monotonic()
    cloud.lab.kill_host(host.name)
    wait_for(
        lambda: the(cloud, vmid).host_id == 2 and the(cloud, vmid).state is State.RUNNING, 90,
        "it to run elsewhere",
    )
    with capsys.disabled():
        sys.stdout.write(
            f"\nhost lost to its guest running from its disk: {time.monotonic() - began:.1f} s\n"
        )
    assert row(cloud, 1).fence is Fence.OFF
    assert files(cloud, vmid) == before
    cloud.guest_is_up(vmid)
    wait_for(lambda: "ip" in cloud.query(vmid), 30, "its new address")
    read = "dd if=/dev/vda bs=1M skip=700 count=1 2>/dev/null | head -n 1"
    for place in ("700", "1700"):
        assert ssh(cloud, vmid, read.replace("700", place)).strip() == DATA
    # Its host is back: it forgets the guest, and leaves the disk alone.
    cloud.lab.boot_host(host.name)
    all_up(cloud)
    wait_for(lambda: uuid not in cloud.domains(cloud.host(1)), 60, "the old definition to go")
    assert uuid in running(cloud, cloud.host(2))
    assert files(cloud, vmid) == before
    assert ssh(cloud, vmid, read).strip() == DATA
    assert cloud.get(f"/vm/destroy?vmid={vmid}") == {"status": 1}
    wait_for(lambda: not list(cloud.lab.shared.glob(f"{uuid}*")), 30, "nothing of it to be left")
