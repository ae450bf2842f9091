"""Live migration of a real guest between real hosts, with its disk."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.conftest import Cloud
from tests.waiting import wait_for
from treadle.compute.moves import actions as moving
from treadle.compute.moves import store as moves
from treadle.compute.moves.plan import ENDED, Stage

pytestmark = pytest.mark.lab


def migrate(cloud: Cloud, vmid: int, target: int | None = None) -> Any:
    """Move it; the row when it has ended."""
    database = cloud.treadle.database
    number = database.write(lambda conn: moving.live_migrate(
        conn, vmid, target, request_id="r", deadline_s=120
    ))
    cloud.treadle.signals.work_is_due()

    def over() -> Any:
        move = database.read(lambda conn: moves.get(conn, number))
        return move if move is not None and move.stage in ENDED else None

    wait_for(lambda: over() is not None, 150, "the move to end")
    return over()


def test_a_running_guest_goes_to_another_host_and_back(cloud: Cloud) -> None:
    vmid = cloud.create("mover")
    cloud.guest_is_up(vmid)
    uuid = cloud.admin(f"/instances/{vmid}")["uuid"]
    first = cloud.query(vmid)["pmid"]
    move = migrate(cloud, vmid)
    assert move.stage is Stage.DONE, move.error
    second = cloud.query(vmid)["pmid"]
    assert second == move.target_id != first
    wait_for(lambda: cloud.query(vmid)["state"] == "running", 30, "it to be settled")
    assert uuid in cloud.domains(cloud.host(second))
    assert uuid not in cloud.domains(cloud.host(first))
    assert not [name for name in cloud.volumes(cloud.host(first)) if name.startswith(uuid)]
    back = migrate(cloud, vmid, first)
    assert back.stage is Stage.DONE, back.error
    assert cloud.query(vmid)["pmid"] == first
    assert not [name for name in cloud.volumes(cloud.host(second)) if name.startswith(uuid)]
    # The guest that was started first is the one that still runs: it was never booted anew.
    assert cloud.get(f"/vm/pause?vmid={vmid}") == {"status": 1}
    assert cloud.get(f"/vm/resume?vmid={vmid}") == {"status": 1}
    assert b"TREADLE-GUEST-UP" not in cloud.console(vmid)
    assert cloud.get(f"/vm/destroy?vmid={vmid}") == {"status": 1}
