"""Dry runs, decisions and records: what operators see, what projects see, and that nothing is
changed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cloudkit import ROOMY, Cloud, Start, until

from treadle.cli.main import main as command_line
from treadle.errors import Unauthorized
from treadle.identity.model import Caller
from treadle.scheduler.simulate_trace import read_trace

LOGGED = re.compile(rb"\S*\d{4}-\d\d-\d\d \d\d:")
SMALL = "?vcpus=1&memory_mib=2048&disk_mib=10240"


@dataclass
class KnownTokens:
    callers: dict[str, Caller] = field(default_factory=dict)

    async def check(self, token: str) -> Caller:
        if token not in self.callers:
            raise Unauthorized("who are you?")
        return self.callers[token]


def member(project: str, *roles: str) -> Caller:
    return Caller(user_id="u", project_id=project, roles=frozenset(roles or ("reader",)))


@pytest.fixture
def projects(cloud: Cloud) -> Cloud:
    """The cloud, where two projects and an administrator have tokens."""
    cloud.treadle.context.tokens = KnownTokens({  # type: ignore[assignment]
        "one": member("p1"), "two": member("p2"), "root": member("p9", "admin"),
        "none": Caller(user_id="u"),
    })
    return cloud


def ask(cloud: Cloud, body: dict[str, Any]) -> dict[str, Any]:
    answer = cloud.native("POST", "/placements:dry-run", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def tenant(cloud: Cloud, token: str, method: str, path: str, **options: Any) -> Any:
    return cloud.client.request(
        method, f"/treadle/v1{path}", headers={"X-Auth-Token": token}, **options
    )


def command(cloud: Cloud, *arguments: str) -> Result:
    token = cloud.admin["Authorization"].removeprefix("Bearer ")
    said = CliRunner().invoke(command_line, [
        *arguments, "--url", f"http://127.0.0.1:{cloud.port}", "--token", token,
    ])
    # The controller's threads log in this process too.
    lines = said.stdout_bytes.splitlines(keepends=True)
    said.stdout_bytes = b"".join(line for line in lines if not LOGGED.match(line))
    return said


def test_a_dry_run_says_where_and_why_and_changes_nothing(start: Start) -> None:
    cloud = start(
        f"fake://h1{ROOMY}", f"fake://h2{SMALL}", settings={"scheduler.policy": "weighted"}
    )
    before = cloud.used()
    found = ask(cloud, {"vcpus": 6, "memory_mib": 4096, "disk_gib": 2})
    assert found["placements"] == [{"host": 1, "name": "h1"}]
    assert [one["host"] for one in found["ranking"]] == [1]
    assert set(found["ranking"][0]["shares"]) == {
        "cpu_free", "memory_free", "image_local", "group",
    }
    assert found["decision"]["refusals"] == [{
        "host": 2, "name": "h2", "filter": "capacity",
        "reason": "needs 6 vcpus, has 4; needs 4096 MiB memory, has 1536",
    }]
    assert "1 would be placed on h1" in found["message"]
    assert cloud.used() == before
    assert cloud.ok("/vm/list")["vmids"] == []


def test_several_are_placed_one_after_the_other(start: Start) -> None:
    cloud = start(f"fake://h1{SMALL}")
    found = ask(cloud, {"vcpus": 1, "memory_mib": 512, "disk_gib": 1, "count": 9})
    assert len(found["placements"]) == 3
    assert found["message"].startswith("3 would be placed, then no host can take it")


def test_what_it_says_is_what_then_happens(cloud: Cloud) -> None:
    said = ask(cloud, {"flavor": 2, "image": 1})["placements"][0]["host"]
    vmid = cloud.create(tid=2)
    assert cloud.ok(f"/vm/query?vmid={vmid}")["pmid"] == said


@pytest.mark.parametrize(("body", "word"), [
    ({}, "vcpus"), ({"flavor": 1, "vcpus": 2}, "not both"), ({"flavor": 0}, "flavor"),
    ({"vcpus": 1, "memory_mib": 1}, "disk_gib"), ({"flavor": 1, "count": 101}, "count"),
    ({"flavor": 1, "colour": 1}, "colour"), ({"flavor": "1"}, "flavor"),
])
def test_a_bad_question_is_told(shared: Cloud, body: dict[str, Any], word: str) -> None:
    answer = shared.native("POST", "/placements:dry-run", json=body)
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]


def test_what_is_not_there_is_not_found(shared: Cloud) -> None:
    for body in ({"flavor": 99}, {"flavor": 1, "image": 99}):
        assert shared.native("POST", "/placements:dry-run", json=body).status_code == 404


def test_projects_see_counts_and_no_host(projects: Cloud) -> None:
    body = {"vcpus": 10_000, "memory_mib": 1, "disk_gib": 1}
    answer = tenant(projects, "one", "POST", "/placements:dry-run", json=body)
    assert answer.status_code == 200
    assert answer.json() == {
        "placed": 0, "hosts": 2, "fits": 0, "refused": {"vcpus": 2},
        "message": "no host can take it: 2 hosts lack vcpus",
    }
    body = {"flavor": 1, "count": 2}
    answer = tenant(projects, "one", "POST", "/placements:dry-run", json=body)
    assert answer.json()["placed"] == 2
    assert "h1" not in answer.text
    body = {"flavor": 1, "excluded_hosts": [1]}
    refused = tenant(projects, "one", "POST", "/placements:dry-run", json=body)
    assert refused.status_code == 400
    assert "ranking" in tenant(projects, "root", "POST", "/placements:dry-run", json=body).json()
    for token, status in (("none", 403), ("bad", 401), ("", 401)):
        answer = tenant(projects, token, "POST", "/placements:dry-run", json={"flavor": 1})
        assert answer.status_code == status


def test_a_decision_is_read_by_whose_it_is(projects: Cloud) -> None:
    vmid = projects.create()
    full = projects.native("GET", f"/instances/{vmid}/decision").json()
    assert full["winner"] in (1, 2)
    uuid = full["request"]["instance_id"]
    assert projects.native("GET", f"/instances/{uuid}/decision").json() == full
    from treadle.compute import store

    projects.treadle.database.write(lambda conn: store.update(conn, vmid, project_id="p1"))
    own = tenant(projects, "one", "GET", f"/instances/{uuid}/decision")
    assert own.status_code == 200
    assert own.json()["placed"] is True
    assert full["winner_name"] not in own.text
    assert tenant(projects, "two", "GET", f"/instances/{uuid}/decision").status_code == 404
    other = tenant(projects, "two", "GET", f"/instances/{vmid}/decision")
    none = tenant(projects, "two", "GET", f"/instances/{vmid + 1000}/decision")
    assert other.status_code == none.status_code == 404
    assert tenant(projects, "root", "GET", f"/instances/{uuid}/decision").json() == full


def test_the_cloud_is_recorded_and_replayed(cloud: Cloud, tmp_path: Path) -> None:
    kept = cloud.create()
    gone = cloud.create()
    cloud.ok(f"/vm/destroy?vmid={gone}")
    path = tmp_path / "today.jsonl"
    said = command(cloud, "simulate", "--record", str(path))
    assert said.exit_code == 0, said.output
    trace = read_trace(path)
    assert [one.host is not None for one in trace.arrivals] == [True, True]
    assert sum(one.until < trace.end for one in trace.arrivals) == 1
    assert [host.id for host in trace.hosts] == [1, 2]
    uuid = cloud.native("GET", f"/instances/{kept}").json()["uuid"]
    assert uuid in {one.name for one in trace.arrivals}
    said = CliRunner().invoke(command_line, [
        "simulate", "--trace", str(path), "--policy", "first-fit", "--json",
    ])
    assert json.loads(said.stdout)["policies"][0]["runs"][0]["placed"] == 2
    assert cloud.native("GET", "/record?since=x").status_code == 400
    answer = cloud.client.get("/treadle/v1/record")
    assert answer.status_code == 403


def test_the_commands_say_it_in_words(start: Start) -> None:
    cloud = start(
        f"fake://h1{ROOMY}", f"fake://h2{SMALL}", settings={"scheduler.policy": "weighted"}
    )
    said = command(cloud, "place", "--vcpus", "6", "--memory", "100", "--disk", "1", "--explain")
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert lines[0] == "1 would be placed on h1"
    assert lines[1].split("\t")[:4] == ["place", "host", "name", "score"]
    assert lines[-1].split("\t")[-1] == "needs 6 vcpus, has 4"
    assert json.loads(command(cloud, "place", "--flavor", "1", "--json").stdout)["ranking"]
    vmid = cloud.create()
    said = command(cloud, "explain", str(vmid))
    assert said.stdout.startswith("placed on h")
    missing = command(cloud, "explain", "999")
    assert missing.exit_code == 1
    assert "no instance '999'" in missing.stderr


def what_if(cloud: Cloud, *arguments: str) -> dict[str, Any]:
    said = command(cloud, "simulate", "--from-cloud", *arguments, "--json")
    assert said.exit_code == 0, said.output
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def test_what_if_begins_with_the_cloud_as_it_is(start: Start) -> None:
    cloud = start(f"fake://h1{ROOMY}", f"fake://h2{ROOMY}")
    for _ in range(4):
        cloud.create()
    before = cloud.used()
    found = what_if(cloud, "--drain", "h1", "--policy", "best-fit", "--policy", "worst-fit")
    assert "the 2 hosts of" in found["hosts"]
    moved = found["policies"][0]["runs"][0]
    assert (moved["vms"], moved["placed"]) == (2, 2)
    both = what_if(cloud, "--drain", "h1", "--drain", "2", "--policy", "best-fit")
    assert both["policies"][0]["runs"][0]["refused"] == 4
    more = what_if(
        cloud, "--drain", "h1", "--drain", "2", "--add-hosts", "1x2c64g100d,1x4c64g100d",
        "--policy", "best-fit",
    )
    assert more["policies"][0]["runs"][0]["placed"] == 4
    loaded = what_if(
        cloud, "--generate", "200", "--hours", "5", "--mix", "9:1c1g1d,1:4c8g10d",
        "--policy", "best-fit",
    )["policies"][0]["runs"][0]
    assert loaded["vms"] == 200
    assert 0 < loaded["placed"] < 200
    alike = what_if(cloud, "--generate", "50", "--policy", "best-fit")["policies"][0]["runs"][0]
    assert alike["placed"] == 50
    assert cloud.used() == before


def test_what_if_is_refused_in_words(cloud: Cloud) -> None:
    for arguments, word in (
        (("--from-cloud",), "--drain"), (("--drain", "h1"), "--from-cloud"),
        (("--from-cloud", "--drain", "nobody"), "nobody"),
        (("--from-cloud", "--generate", "5", "--mix", "1c1g"), "60:1c2g20d"),
        (("--from-cloud", "--generate", "5", "--hosts", "1x1c1g"), "--add-hosts"),
        (("--from-cloud", "--generate", "5", "--add-hosts", "many"), "700x48c128g"),
    ):
        said = command(cloud, "simulate", *arguments)
        assert said.exit_code != 0
        assert word in said.stderr
        assert "Traceback" not in said.stderr


def test_a_plan_of_moves_is_made_and_carried_out(start: Start, tmp_path: Path) -> None:
    cloud = start(f"fake://h1{ROOMY}", f"fake://h2{ROOMY}")
    for _ in range(2):
        cloud.create()
    path = tmp_path / "moves.json"
    said = command(cloud, "rebalance", "--plan", "--save", str(path))
    assert said.exit_code == 0, said.output
    assert "1 moves, 1536 MiB; empty hosts 0 -> 1" in said.stdout
    [move] = json.loads(path.read_text())["moves"]
    said = command(cloud, "rebalance", "--apply", str(path))
    assert said.exit_code == 0, said.output
    assert said.stdout == f"1/1 {move['instance']} to host {move['target']} done\n"
    assert cloud.native("GET", f"/instances/{move['instance']}").json()["host"] == move["target"]
    assert sorted(used[2] for used in cloud.used()) == [0, 2]
    # Why it is where it is now, and what it may ask for anew: not what the move asked for.
    decision = cloud.native("GET", f"/instances/{move['instance']}/decision").json()
    assert decision["winner"] == move["target"]
    assert decision["request"]["only_hosts"] == [move["target"]]
    recorded = cloud.native("GET", "/record").json()["instances"]
    assert all("only_hosts" not in one["request"] for one in recorded)
    again = command(cloud, "rebalance", "--apply", str(path))
    assert again.exit_code == 1
    assert "make a new plan" in again.stdout
    spread = command(cloud, "rebalance", "--plan", "--goal", "spread", "--json")
    assert json.loads(spread.stdout)["moves"] == []
    assert command(cloud, "rebalance").exit_code == 2
    path.write_text("{}")
    assert "--save" in command(cloud, "rebalance", "--apply", str(path)).stderr


def test_a_move_names_an_instance_and_a_host(cloud: Cloud) -> None:
    vmid = cloud.create()
    here = cloud.native("GET", f"/instances/{vmid}").json()["host"]
    for path, body, status in (
        (f"/instances/{vmid}/migrate", {"host": 9}, 400),
        ("/instances/999/migrate", {"host": 1}, 404),
        (f"/instances/{vmid}/migrate", {"host": "1"}, 400),
        (f"/instances/{vmid}/migrate", {"host": here}, 400),
    ):
        assert cloud.native("POST", path, json=body).status_code == status
    assert cloud.native("GET", "/moves/1").status_code == 404
    answer = cloud.native("POST", f"/instances/{vmid}/migrate", json={})
    assert answer.status_code == 202
    begun = answer.json()
    assert (begun["stage"], begun["source"], begun["wanted"]) == ("queued", here, None)

    def over() -> Any:
        now = cloud.native("GET", f"/moves/{begun['id']}").json()
        return now if now["stage"] == "done" else None

    assert until(over, "the move's end")["target"] == 3 - here
    assert cloud.client.get(f"/treadle/v1/moves/{begun['id']}").status_code == 403
    cloud.ok(f"/vm/stop?vmid={vmid}")
    until(lambda: cloud.query(vmid)["state"] == "stopped", "it is off")
    begun = cloud.native("POST", f"/instances/{vmid}/migrate", json={}).json()
    assert begun["kind"] == "migration"
    assert until(over, "the move's end")["target"] == here
    assert cloud.query(vmid)["state"] == "stopped"
    cloud.ok(f"/vm/start?vmid={vmid}")
    cloud.ok(f"/vm/suspend?vmid={vmid}")
    until(lambda: cloud.query(vmid)["state"] == "suspended", "it is suspended")
    assert cloud.native("POST", f"/instances/{vmid}/migrate", json={}).status_code == 409
