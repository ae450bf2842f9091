"""Instances of NUMA nodes on a whole controller, and those that ask for devices."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from cloudkit import Cloud, Start, until

from treadle.compute import actions, creating, store
from treadle.compute.model import Instance, State
from treadle.compute.store import Flavor
from treadle.db.schema import instance
from treadle.errors import CannotPlace
from treadle.hypervisor.base import GuestNode

TWO = "?vcpus=8&memory_mib=8704&disk_mib=1048576&numa=2"
HOSTS = (f"fake://h1{TWO}", f"fake://h2{TWO}", "fake://plain?vcpus=64")


def offer(cloud: Cloud, id: int, vcpus: int, memory_mib: int, **specs: str) -> None:
    said = {key.replace("__", ":"): value for key, value in specs.items()}
    cloud.treadle.database.write(lambda conn: store.put_flavor(
        conn, Flavor(id, vcpus, memory_mib, 1, extra_specs=said)
    ))


def ask(cloud: Cloud, flavor: int) -> Instance:
    [made] = cloud.treadle.database.write(lambda conn: creating.create(
        conn, creating.Wish("vm", flavor, None), request_id="r", build_deadline_s=30.0,
    ))
    return settled(cloud, made.id)


def settled(cloud: Cloud, id: int) -> Instance:
    def look() -> Instance | None:
        one = cloud.treadle.database.read(lambda conn: store.get(conn, id))
        assert one is not None
        done = one.state in (State.RUNNING, State.ERROR) and (
            one.generation == one.settled_generation or one.state is State.ERROR
        )
        return one if done else None

    found: Instance = until(look)
    return found


def cells(cloud: Cloud) -> dict[str, list[tuple[int, int]]]:
    """What is taken of each host's cells."""
    return {
        host["name"]: [(one["vcpus"]["used"], one["memory_mib"]["used"]) for one in host["numa"]]
        for host in cloud.native("GET", "/hosts").json()["hosts"]
    }


def test_instances_of_nodes_fill_cells(start: Start) -> None:
    cloud = start(*HOSTS)
    offer(cloud, 11, 5, 3000, hw__numa_nodes="2")
    offer(cloud, 12, 1, 4096, hw__numa_nodes="1")
    offer(cloud, 13, 2, 4000, hw__numa_nodes="3")
    offer(cloud, 14, 4, 3000, hw__numa_nodes="2")
    offer(cloud, 16, 2, 1024, hw__numa_nodes="2", **{"hw__numa_mem.0": "1000"})
    offer(cloud, 15, 1, 1024, pci_passthrough__alias="gpu:2,nic:1")
    first = ask(cloud, 11)
    assert first.state is State.RUNNING
    [name] = [name for name, taken in cells(cloud).items() if any(sum(one) for one in taken)]
    assert name in ("h1", "h2")
    assert cells(cloud)[name] == [(3, 1500), (2, 1500)]
    guest = cloud.host(name).guests[first.uuid]
    assert guest.spec.nodes == (GuestNode(0, 3, 1500), GuestNode(1, 2, 1500))
    headers = cloud.log_in() | {"OpenStack-API-Version": "compute 2.78"}
    shown = cloud.client.get(f"/compute/v2.1/servers/{first.uuid}/topology", headers=headers)
    assert shown.json() == {"pagesize_kb": None, "nodes": [
        {"memory_mb": 1500, "siblings": [], "vcpu_set": [0, 1, 2], "host_node": 0,
         "cpu_pinning": {}},
        {"memory_mb": 1500, "siblings": [], "vcpu_set": [3, 4], "host_node": 1,
         "cpu_pinning": {}},
    ]}
    other = {"h1": "h2", "h2": "h1"}[name]
    whole = [ask(cloud, 12), ask(cloud, 12)]
    assert {cloud.host(other).guests[one.uuid].spec.nodes for one in whole} == {
        (GuestNode(0, 1, 4096),), (GuestNode(1, 1, 4096),)
    }
    refused = ask(cloud, 12)
    assert refused.state is State.ERROR
    assert "needs 1 NUMA node with 1 vcpus and 4096 MiB free, has 0 of 2" in (refused.fault or "")
    assert "plain: needs 1 NUMA node" in (refused.fault or "")
    assert "leave a node without one" in (ask(cloud, 13).fault or "")
    assert "hw:numa_mem.0 is set, and all NUMA nodes" in (ask(cloud, 16).fault or "")
    devices = ask(cloud, 15)
    assert devices.state is State.ERROR
    assert "needs 2 PCI devices gpu, has 0; needs 1 PCI devices nic, has 0" in (devices.fault or "")
    told = cloud.treadle.database.read(lambda conn: conn.execute(
        sa.select(instance.c.public_fault).where(instance.c.id == devices.id)
    ).scalar_one())
    assert "lack PCI devices: 2 gpu, 1 nic" in told

    def resize(flavor: int) -> None:
        cloud.treadle.database.write(lambda conn: actions.resize(
            conn, first.id, flavor, request_id="r", deadline_s=30.0
        ))

    with pytest.raises(CannotPlace) as caught:
        resize(12)
    assert "1 NUMA nodes in place of 2" in str(caught.value.reasons)
    resize(14)
    cloud.treadle.signals.work_is_due()
    smaller = settled(cloud, first.id)
    assert (smaller.vcpus, smaller.fault) == (4, None)
    assert cloud.host(name).guests[first.uuid].spec.nodes == (
        GuestNode(0, 2, 1500), GuestNode(1, 2, 1500)
    )
    assert cells(cloud)[name] == [(3, 1500), (2, 1500)], "until it is decided, the larger of both"
    until(lambda: cloud.treadle.database.read(
        lambda conn: store.get(conn, first.id)).settled_mode == "resized")  # type: ignore[union-attr]
    cloud.treadle.database.write(
        lambda conn: actions.confirm_resize(conn, first.id, request_id="r")
    )
    assert cells(cloud)[name] == [(2, 1500), (2, 1500)]
    for one in (first, *whole):
        cloud.treadle.database.write(lambda conn, id=one.id: actions.delete(
            conn, id, request_id="r"
        ))
    cloud.treadle.signals.work_is_due()
    until(lambda: cells(cloud) == {"h1": [(0, 0)] * 2, "h2": [(0, 0)] * 2, "plain": []})
