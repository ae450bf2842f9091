"""A stranger's package, from `scheduler new` to a live cloud, without a change to Treadle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cloudkit import Start, until

from treadle.cli.main import main
from treadle.scheduler import HostColumns, HostView, PlacementRequest
from treadle.scheduler.conformance import check
from treadle.scheduler.registry import Registry


def install(package: Path, target: Path) -> None:
    """Lay a package out as pip would, without a network: its code, and its metadata beside it."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    for source in (package / "src").iterdir():
        (target / source.name).mkdir(parents=True)
        for file in source.iterdir():
            (target / source.name / file.name).write_text(file.read_text())
    info = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def run(command: Sequence[str], target: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, "PYTHONPATH": str(target)}, cwd=folder,
        capture_output=True, text=True, timeout=120, check=False,
    )


def test_a_new_package_is_checked_tested_and_run_live(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = CliRunner().invoke(main, ["scheduler", "new", "rack-power", "--folder", str(tmp_path)])
    assert made.exit_code == 0, made.output
    package, target = tmp_path / "rack-power", tmp_path / "site"
    install(package, target)

    checked = run(["-m", "treadle.cli.main", "scheduler", "check", "rack-power"], target, tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "2 plug-ins keep all rules" in checked.stderr
    tested = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"], target, package)
    assert tested.returncode == 0, tested.stdout
    assert "4 passed" in tested.stdout
    settings = tmp_path / "treadle.toml"
    settings.write_text('[scheduler]\nfilters = ["state", "rack_power_filter", "capacity"]\n')
    replayed = run([
        "-m", "treadle.cli.main", "simulate", "--generate", "50", "--hosts", "2x16c32g", "--json",
        "--policy", "weighted:rack_power_weigher=1", "--config", str(settings),
    ], target, tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["policies"][0]["runs"][0]["placed"] > 0

    monkeypatch.syspath_prepend(target)
    cloud = start(settings={
        "scheduler.policy": "weighted", "scheduler.weighers": {"rack_power_weigher": 2.0},
        "scheduler.filters": ["state", "rack_power_filter", "capacity"],
    })
    vmid = cloud.create()
    until(lambda: cloud.query(vmid)["state"] == "running", "the VM")
    record = cloud.native("GET", f"/instances/{vmid}/decision").json()
    assert "rack_power_filter" in record["refused"]
    assert set(record["top"][0]["shares"]) == {"rack_power_weigher"}
    dry = cloud.native("POST", "/placements:dry-run", json={"flavor": 1}).json()
    assert set(dry["ranking"][0]["shares"]) == {"rack_power_weigher"}


def test_a_name_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for name in ("../evil", "Rack", "a b", "class", "", "9lives"):
        made = CliRunner().invoke(main, ["scheduler", "new", "--folder", str(tmp_path), "--", name])
        assert made.exit_code == 1, (name, made.output)
        assert "small letters" in made.output
    (tmp_path / "there").mkdir()
    again = CliRunner().invoke(main, ["scheduler", "new", "there", "--folder", str(tmp_path)])
    assert "there already" in again.output
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]


def test_the_list_and_an_unknown_name() -> None:
    listed = CliRunner().invoke(main, ["scheduler", "list", "--kind", "policy"])
    assert "best-fit\ttreadle\tPacks" in listed.output
    unknown = CliRunner().invoke(main, ["scheduler", "check", "nothing"])
    assert unknown.exit_code == 1
    assert "treadle" in unknown.output


class Base:
    name = "bad"
    row_local = True
    blind = True

    def passes(self, _hosts: HostColumns, _request: PlacementRequest, /) -> Any:
        raise NotImplementedError

    def reason(self, _host: HostView, _request: PlacementRequest, /) -> str:
        return "no"


class LooksAround(Base):
    def passes(self, hosts: HostColumns, _request: PlacementRequest, /) -> Any:
        return hosts.instances <= hosts.instances.mean()


class LooksAtNames(Base):
    def passes(self, hosts: HostColumns, _request: PlacementRequest, /) -> Any:
        return ~hosts.among(_request.excluded_hosts)


class Silent(LooksAtNames):
    blind = False

    def reason(self, _host: HostView, _request: PlacementRequest, /) -> str:
        return ""


class Moody(Base):
    turn = 0

    def passes(self, hosts: HostColumns, _request: PlacementRequest, /) -> Any:
        self.turn += 1
        return hosts.ids % 2 == self.turn % 2


class Spoils(Base):
    def passes(self, hosts: HostColumns, _request: PlacementRequest, /) -> Any:
        hosts.vcpus_used[:] = 0
        return hosts.up


@pytest.mark.parametrize(("made", "rule"), [
    (LooksAround, "row_local"), (LooksAtNames, "blind"), (Silent, "it says why"),
    (Moody, "the same question"), (Spoils, "right shape"),
])
def test_a_rule_that_is_broken_is_found(made: type[Base], rule: str) -> None:
    registry = Registry()
    registry.add("filter", "bad", made)
    broken = [finding.rule for finding in check("filter", "bad", registry) if finding.problem]
    assert any(rule in one for one in broken), broken


@pytest.mark.parametrize(("kind", "name"), [
    (kind, name) for kind in ("filter", "weigher", "policy") for name in Registry().names(kind)
])
def test_what_treadle_ships_conforms(kind: str, name: str) -> None:
    assert [finding for finding in check(kind, name) if finding.problem] == []
