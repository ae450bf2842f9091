"""Plug-ins are found by entry point, and only those that are chosen are imported."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from treadle.errors import InvalidInput
from treadle.scheduler.columns import HostColumns
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import HostView
from treadle.scheduler.plugin import Filter, PluginError, Policy, Weigher
from treadle.scheduler.registry import Registry

PACKAGE = Path(__file__).parent / "plugin_package"
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
PROTOCOLS = {
    "treadle.filters": Filter,
    "treadle.weighers": Weigher,
    "treadle.policies": Policy,
}


def entry_points_of(project: Path) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = tomllib.loads(project.read_text())["project"][
        "entry-points"
    ]
    return groups


def install(folder: Path, name: str = "treadle_example_plugins") -> Path:
    """Lay the package out as an installer would: its code, and its metadata beside it."""
    shutil.copytree(PACKAGE / "treadle_example_plugins", folder / "treadle_example_plugins")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, points in entry_points_of(PACKAGE / "pyproject.toml").items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


USES_THEM = """
import sys
from treadle.scheduler import HostColumns, HostView, PlacementRequest, Registry, Scheduler, explain

registry = Registry()
Scheduler("first-fit", ["state"], {}, registry)
assert "treadle_example_plugins" not in sys.modules, "imported though it was not chosen"

hosts = HostColumns.from_views(
    [
        HostView(n, f"node-{n}", "up", None, frozenset(), 8, 0, 8, 0, 8, 0, instances=n)
        for n in (1, 2, 3)
    ],
    1,
)
request = PlacementRequest("i-1", 1, 1, 1)
engine = Scheduler("last-fit", ["max_instances"], {}, registry)
ranking, decision = engine.rank(hosts, request)
assert list(ranking) == [2, 1]
assert decision.refusals[0].reason == "takes 3 instances, has 3"
assert registry.weigher("few_instances").score(hosts, request).tolist() == [-1.0, -2.0, -3.0]
print("found")
"""


def test_an_installed_package_is_found_in_a_new_process(tmp_path: Path) -> None:
    install(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", USES_THEM],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "found\n", done.stderr


def test_a_name_that_two_packages_register_is_refused_when_it_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one_package", "other_package"):
        folder = tmp_path / name
        folder.mkdir()
        install(folder, name)
        points = folder / f"{name}-1.0.dist-info" / "entry_points.txt"
        points.write_text(points.read_text().replace("treadle_example_plugins", name))
        monkeypatch.syspath_prepend(folder)
    registry = Registry()
    with pytest.raises(PluginError, match="one_package, other_package"):
        registry.filter("max_instances")
    assert registry.filter("state").name == "state"


@pytest.mark.parametrize("group", PROTOCOLS)
def test_what_the_project_registers_is_there(group: str) -> None:
    for name, path in entry_points_of(PROJECT)[group].items():
        module, _, attribute = path.partition(":")
        made = getattr(importlib.import_module(module), attribute)()
        assert isinstance(made, PROTOCOLS[group])
        assert getattr(made, "name", name) == name


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"known are .*capabilities, capacity, excluded.* state"):
        Scheduler("first-fit", ["stat"], {})
    with pytest.raises(InvalidInput, match=r"known are .*best-fit"):
        Scheduler("bestfit", [], {})
    with pytest.raises(InvalidInput, match="filter, weigher, policy, predictor"):
        Registry().add("filters", "x", object)


def test_a_plug_in_that_does_not_load_is_named() -> None:
    registry = Registry()

    def broken() -> object:
        raise OSError("no such device")

    class NoReason:
        name = "half"
        row_local = True

        def passes(self, hosts: HostColumns, _request: object, /) -> object:
            return hosts.up

    class Misnamed(NoReason):
        def reason(self, _host: HostView, _request: object, /) -> str:
            return ""

    registry.add("filter", "broken", broken)
    registry.add("filter", "half", NoReason)
    registry.add("filter", "other", Misnamed)
    registry.add("weigher", "half", NoReason)
    registry.add("policy", "half", NoReason)
    with pytest.raises(PluginError, match=r"filter 'broken' .* OSError: no such device"):
        registry.filter("broken")
    with pytest.raises(PluginError, match="NoReason has no reason"):
        registry.filter("half")
    with pytest.raises(PluginError, match="calls itself 'half'"):
        registry.filter("other")
    with pytest.raises(PluginError, match="no score"):
        registry.weigher("half")
    with pytest.raises(PluginError, match="no rank"):
        registry.policy("half")
    assert "broken" in registry.names("filter")
    assert "state" in registry.names("filter")


@pytest.mark.parametrize(("heading", "group", "cells"), [
    ("Filters", "filters", 3), ("Weighers", "weighers", 4), ("Policies", "policies", 4),
])
def test_every_plug_in_has_its_line_in_the_documentation(
    heading: str, group: str, cells: int
) -> None:
    """With formula, source, when it wins and when it loses; filters have no source."""
    text = (PROJECT.parent / "docs/scheduler.md").read_text()
    told: dict[str, int] = {}
    for line in text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines():
        if line.startswith("| `"):
            first, *rest = re.split(r"(?<!\\)\|", line.strip("| "))
            filled = sum(1 for cell in rest if cell.strip())
            told.update(dict.fromkeys(re.findall(r"`([^`]+)`", first), filled))
    names = entry_points_of(PROJECT)[f"treadle.{group}"]
    assert {name: told.get(name) for name in names} == dict.fromkeys(names, cells)
