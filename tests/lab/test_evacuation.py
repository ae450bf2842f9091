"""A host of the lab fails: who notices, who does not, and where its guests run then."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import LINUX, RESTING, Cloud, all_up, running_cloud
from tests.waiting import wait_for
from treadle.compute import creating, store
from treadle.compute.creating import Wish
from treadle.compute.failure import actions as failure
from treadle.compute.failure.actions import Wanted
from treadle.compute.failure.verdict import Verdict
from treadle.compute.model import HA_KEY, Instance, State
from treadle.lab.fabric import Lab, LabHost, can_run
from treadle.placement import ledger
from treadle.placement.ledger import Fence

pytestmark = [
    pytest.mark.lab, pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]
DEFAULT_RESYNC_S = 30.0


@pytest.fixture(scope="module")
def cloud(
    lab: Lab, guest_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cloud]:
    """As others are, with a watch and a fence, and the settings of hosts that are shipped."""
    settings = {
        "fencing.plugin": "lab", "fencing.options": {"folder": str(lab.folder)},
        "controller.resync_s": DEFAULT_RESYNC_S,
    }
    with running_cloud(lab, guest_image, tmp_path_factory.mktemp("ha"), settings) as one:
        one.treadle.watch.start()
        yield one


def create(
    cloud: Cloud, host: int, names: list[str], ha: str, image: int = LINUX
) -> list[int]:
    """VMs that run on that very host."""
    others = [row.id for row in cloud.treadle.database.read(ledger.list_hosts) if row.id != host]
    for other in others:
        cloud.treadle.database.write(lambda conn, id=other: ledger.disable_host(conn, id, None))
    ids = [
        cloud.treadle.database.write(lambda conn, name=name: creating.create(
            conn, Wish(name, 1, image, metadata={HA_KEY: ha} if ha else {},
                 ssh_keys=tuple(cloud.treadle.settings.guest.ssh_keys)), request_id="req",
            build_deadline_s=120,
        ))[0].id for name in names
    ]
    cloud.treadle.signals.work_is_due()
    wait_for(lambda: all(the(cloud, id).state is State.RUNNING for id in ids), 90, "they run")
    for other in others:
        cloud.treadle.database.write(lambda conn, id=other: ledger.enable_host(conn, id))
    assert {the(cloud, id).host_id for id in ids} == {host}
    return ids


def the(cloud: Cloud, id: int) -> Instance:
    found = cloud.treadle.database.read(lambda conn: store.get(conn, id))
    assert found is not None
    return found


def row(cloud: Cloud, host: int) -> ledger.Host:
    found = cloud.treadle.database.read(lambda conn: ledger.get_host(conn, host))
    assert found is not None
    return found


def verdict(cloud: Cloud, host: int, wanted: Verdict) -> None:
    """Wait until the watch says so of the host."""
    wait_for(lambda: cloud.treadle.watch.verdicts.get(host) is wanted, 40, f"{wanted}")


def running(cloud: Cloud, host: LabHost) -> set[str]:
    listed = cloud.lab.exec(host.name, "virsh", "-q", "list", "--uuid").stdout.split()
    return set(listed) & cloud.domains(host)


def test_guests_of_a_host_that_dies_run_elsewhere(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    asks = create(cloud, 1, ["ha1"], "evacuate")
    asks += create(cloud, 1, ["ha2", "ha3"], "evacuate", RESTING)
    [waits] = create(cloud, 1, ["waits"], "", RESTING)
    [moved] = create(cloud, 1, ["by-hand"], "wait", RESTING)
    host = cloud.host(1)
    verdict(cloud, 1, Verdict.ANSWERS)

    # What is done to a guest by hand is told by an event: the next look is far away.
    uuid = the(cloud, waits).uuid

    def state() -> str:
        return cloud.lab.exec(host.name, "virsh", "-q", "domstate", uuid).stdout.strip()

    began = time.monotonic()
    cloud.lab.exec(host.name, "virsh", "-q", "suspend", uuid)
    wait_for(lambda: state() == "running", DEFAULT_RESYNC_S / 3, "it to go on")
    with capsys.disabled():
        sys.stdout.write(f"\npaused by hand to running again: {time.monotonic() - began:.2f} s\n")

    # libvirtd is restarted: the host is there, and nothing happens to it.
    cloud.lab.restart_libvirtd(host.name)
    wait_for(lambda: cloud.query(asks[0])["state"] == "running", 30, "it to be looked at")
    verdict(cloud, 1, Verdict.ANSWERS)
    assert row(cloud, 1).fence is Fence.NONE

    # The controller alone does not reach it.
    way = ["blackhole", f"{host.address}/32"]
    subprocess.run(["ip", "route", "add", *way], check=True, timeout=10)
    try:
        verdict(cloud, 1, Verdict.ASIDE)
        assert row(cloud, 1).fence is Fence.NONE
    finally:
        subprocess.run(["ip", "route", "del", *way], check=True, timeout=10)
    verdict(cloud, 1, Verdict.ANSWERS)
    all_up(cloud)
    assert {the(cloud, id).host_id for id in (*asks, waits, moved)} == {1}
    before = {id: the(cloud, id) for id in (*asks, waits, moved)}

    # It loses its power.
    began = time.monotonic()
    cloud.lab.kill_host(host.name)

    def there() -> bool:
        rows = [the(cloud, id) for id in asks]
        return all(one.host_id in (2, 3) and one.state is State.RUNNING for one in rows)

    wait_for(there, 90, "them to run elsewhere")
    seconds = time.monotonic() - began
    with capsys.disabled():
        sys.stdout.write(f"\nhost lost to {len(asks)} guests running again: {seconds:.1f} s\n")
    assert row(cloud, 1).fence is Fence.OFF
    for id in asks:
        now = the(cloud, id)
        assert (now.uuid, now.name, now.mac) == (before[id].uuid, before[id].name, before[id].mac)
        assert now.uuid in running(cloud, cloud.host(now.host_id or 0))
    assert the(cloud, waits).host_id == 1
    assert "waits" in (the(cloud, waits).fault or "")
    cloud.guest_is_up(asks[0])

    # An operator takes another away, which has not asked for it.
    cloud.treadle.database.write(lambda conn: failure.evacuate(
        conn, moved, Wanted(), request_id="req"
    ))
    cloud.treadle.signals.work_is_due()
    wait_for(lambda: the(cloud, moved).state is State.RUNNING and the(cloud, moved).host_id != 1,
             60, "the other to run elsewhere")

    # It is back: nothing of theirs runs there, and soon nothing of theirs is there.
    cloud.lab.boot_host(host.name)
    back = time.monotonic()
    host = cloud.host(1)
    assert not running(cloud, host) & {before[id].uuid for id in asks}
    here = before[waits].uuid
    wait_for(lambda: cloud.domains(host) == {here}, 60, "the old copies to be swept")
    with capsys.disabled():
        sys.stdout.write(f"host back to old copies gone: {time.monotonic() - back:.1f} s\n")
    wait_for(lambda: running(cloud, host) == {here}, 60, "what has waited to run")
    all_up(cloud)
    assert row(cloud, 1).fence is Fence.NONE
    places = [name for one in cloud.lab.status() for name in cloud.domains(one)]
    assert sorted(places) == sorted(one.uuid for one in before.values())
