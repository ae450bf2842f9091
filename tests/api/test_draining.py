"""Hosts out of use and back: disabled, enabled, emptied; on simulated hosts."""

from __future__ import annotations

import json
from typing import Any

from cloudkit import ROOMY, Cloud, Start, until
from test_placement import SMALL, command

from treadle.compute.moves import store as moves
from treadle.db.schema import migration
from treadle.hypervisor.fake_host import Fault, FaultKind

LARGE = 3
"""A flavor that only a roomy host takes."""


def on(cloud: Cloud, vmid: int) -> int:
    host: int = cloud.native("GET", f"/instances/{vmid}").json()["host"]
    return host


def stop(cloud: Cloud, vmid: int) -> None:
    answer = cloud.get(f"/vm/stop?vmid={vmid}")
    assert answer.status_code == 200, answer.text
    until(lambda: cloud.native("GET", f"/instances/{vmid}").json()["state"] == "stopped", "off")


def drain_plan(cloud: Cloud, host: int) -> dict[str, Any]:
    answer = cloud.native("GET", f"/hosts/{host}/drain")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def filled(start: Start, count: int, second: str = ROOMY) -> tuple[Cloud, list[int]]:
    """Two hosts, all instances on the first."""
    cloud = start(f"fake://h1{ROOMY}", f"fake://h2{second}")
    assert cloud.native("POST", "/hosts/2/disable", json={}).status_code == 200
    made = [cloud.create() for _ in range(count)]
    assert cloud.native("POST", "/hosts/2/enable").json()["state"] == "up"
    return cloud, made


def test_a_disabled_host_is_given_nothing_until_it_is_enabled(cloud: Cloud) -> None:
    said = cloud.native("POST", "/hosts/1/disable", json={"reason": "new fans"})
    assert said.status_code == 200
    assert (said.json()["state"], said.json()["note"]) == ("disabled", "new fans")
    assert [on(cloud, cloud.create()) for _ in range(2)] == [2, 2]
    said = cloud.native("POST", "/hosts/1/enable")
    assert (said.json()["state"], said.json()["note"]) == ("up", None)
    assert on(cloud, cloud.create()) == 1


def test_what_cannot_be_switched_is_told(cloud: Cloud) -> None:
    assert cloud.native("POST", "/hosts/9/disable", json={}).status_code == 404
    assert cloud.native("POST", "/hosts/9/enable").status_code == 404
    assert cloud.native("GET", "/hosts/9/drain").status_code == 404
    for reason in ("", "a\nb", 7, "x" * 256):
        answer = cloud.native("POST", "/hosts/1/disable", json={"reason": reason})
        assert answer.status_code == 400
    assert cloud.client.get("/treadle/v1/hosts/1/drain").status_code == 403
    assert cloud.client.post("/treadle/v1/hosts/1/disable", json={}).status_code == 403
    assert cloud.native("GET", "/hosts/1").json()["state"] == "up"


def test_the_plan_says_who_goes_who_stays_and_changes_nothing(start: Start) -> None:
    cloud, made = filled(start, 3, SMALL)
    stop(cloud, made.pop())
    held = made.pop()
    assert cloud.get(f"/vm/suspend?vmid={held}").status_code == 200
    until(lambda: cloud.native("GET", f"/instances/{held}").json()["state"] == "suspended", "held")
    assert on(cloud, cloud.create(tid=LARGE)) == 1
    before = cloud.used()
    plan = drain_plan(cloud, 1)
    assert [one["target"] for one in plan["moves"]] == [2, 2]
    assert {one["target_name"] for one in plan["moves"]} == {"h2"}
    stays = {one["state"]: one["why"] for one in plan["stays"]}
    assert stays["suspended"] == "its vm_state is suspended"
    assert "memory" in stays["active"]
    assert plan["at_once"] == 2
    assert cloud.used() == before
    assert cloud.native("GET", "/hosts/1").json()["state"] == "up"
    said = command(cloud, "host", "drain", "1", "--plan")
    assert said.exit_code == 0, said.output
    assert "2 of h1 can go, 3072 MiB; 2 stay" in said.stdout
    assert cloud.native("GET", "/hosts/1").json()["state"] == "up"


def test_draining_moves_what_runs_or_is_off_and_leaves_the_host_disabled(start: Start) -> None:
    cloud, made = filled(start, 4)
    stop(cloud, made[3])
    said = command(cloud, "host", "drain", "1", "--reason", "new fans")
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert sum(line.endswith("to host 2 done") for line in lines) == 4
    assert lines[-1].startswith("4/4 ")
    assert [on(cloud, vmid) for vmid in made] == [2, 2, 2, 2]
    assert cloud.native("GET", f"/instances/{made[3]}").json()["state"] == "stopped"
    assert cloud.host("h1").guests == {}
    host = cloud.native("GET", "/hosts/1").json()
    assert (host["state"], host["note"], host["instances"]) == ("disabled", "new fans", 0)
    assert cloud.treadle.database.read(moves.held) == []
    said = command(cloud, "host", "drain", "1", "--json")
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["ended"] == []
    assert cloud.native("GET", "/hosts/1").json()["note"] == "new fans"
    assert command(cloud, "host", "enable", "1").stdout == "host 1 is up\n"
    assert command(cloud, "host", "disable", "1").stdout == "host 1 is disabled\n"


def test_one_that_fails_keeps_none_of_the_others_back(start: Start) -> None:
    cloud, made = filled(start, 3)
    machine = cloud.host("h1")
    machine.faults.append(Fault("move", machine.calls["move"] + 1, FaultKind.REFUSE))
    said = command(cloud, "host", "drain", "1")
    assert said.exit_code == 1
    assert sorted(on(cloud, vmid) for vmid in made) == [1, 2, 2]
    assert said.stdout.count(" failed: ") == 1
    said = command(cloud, "host", "drain", "1")
    assert said.exit_code == 0, said.output
    assert [on(cloud, vmid) for vmid in made] == [2, 2, 2]


def test_no_more_are_under_way_than_the_settings_say(start: Start) -> None:
    cloud, _ = filled(start, 5)
    most = 0

    def watch(when: str, verb: str, _uuid: str) -> None:
        nonlocal most
        if (when, verb) == ("before", "move"):
            under_way = migration.select().where(migration.c.stage == "moving")
            most = max(most, len(cloud.treadle.database.read(
                lambda conn: conn.execute(under_way).all()
            )))

    cloud.host("h1").trap = watch
    said = command(cloud, "host", "drain", "1")
    assert said.exit_code == 0, said.output
    assert 1 <= most <= 2
