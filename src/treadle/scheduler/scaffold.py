"""Makes a plug-in package to begin with: a filter, a weigher, their tests, their entry points."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from treadle.errors import Conflict, InvalidInput

_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")

PROJECT = '''\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$package"
version = "0.1.0"
description = "A filter and a weigher for Treadle."
requires-python = ">=3.11"
dependencies = ["treadle"]

[project.entry-points."treadle.filters"]
${module}_filter = "$module:Filter"

[project.entry-points."treadle.weighers"]
${module}_weigher = "$module:Weigher"

[tool.hatch.build.targets.wheel]
packages = ["src/$module"]
'''

MODULE = '''\
"""A filter and a weigher for Treadle. Both are formulas over columns, one element a host."""

import numpy as np
from treadle.scheduler import HostColumns, HostView, PlacementRequest

MOST = 100


class Filter:
    """Passes hosts with fewer than MOST instances: put your rule in its place.

    passes = (instances < MOST)
    """

    name = "${module}_filter"
    row_local = True  # a host's answer depends on its own row and the request alone
    blind = True  # it does not look at the hosts or the group that a request names

    def passes(self, hosts: HostColumns, request: PlacementRequest, /):
        """Give a bool array: True where the host can take it."""
        return hosts.instances < MOST

    def reason(self, host: HostView, request: PlacementRequest, /) -> str:
        """Say what a refused host lacks."""
        return f"takes {MOST} instances, has {host.instances}"


class Weigher:
    """Prefers hosts with much memory left for each virtual CPU: put your wish in its place.

    score = (free memory - memory asked for) / (1 + free vcpus - vcpus asked for)
    """

    name = "${module}_weigher"
    row_local = True
    blind = True

    def score(self, hosts: HostColumns, request: PlacementRequest, /):
        """Give a float64 array, higher is better; it is scaled to 0 to 1 afterwards."""
        memory = (hosts.free_memory_mib - request.memory_mib).astype(np.float64)
        vcpus = (hosts.free_vcpus - request.vcpus).astype(np.float64)
        return memory / np.maximum(1.0 + vcpus, 1.0)
'''

TESTS = '''\
"""The formulas once more for one host, in plain Python, and Treadle's own conformance suite."""

import pytest
from treadle.scheduler import HostColumns, HostView, PlacementRequest
from treadle.scheduler.conformance import check

from $module import MOST, Filter, Weigher

REQUEST = PlacementRequest("i-1", vcpus=1, memory_mib=512, disk_mib=1000)


def host(number: int, instances: int, memory_used: int = 0) -> HostView:
    return HostView(
        number, f"node-{number}", "up", "x86_64", frozenset(), vcpus_limit=8, vcpus_used=0,
        memory_limit_mib=8192, memory_used_mib=memory_used, disk_limit_mib=90_000, disk_used_mib=0,
        instances=instances,
    )


def test_the_filter_passes_what_it_should():
    hosts = [host(1, 0), host(2, MOST - 1), host(3, MOST)]
    passes = Filter().passes(HostColumns.from_views(hosts, 1), REQUEST)
    assert passes.tolist() == [one.instances < MOST for one in hosts]
    assert Filter().reason(hosts[2], REQUEST) == f"takes {MOST} instances, has {MOST}"


def test_the_weigher_scores_as_it_should():
    hosts = [host(1, 0), host(2, 0, memory_used=4096)]
    scores = Weigher().score(HostColumns.from_views(hosts, 1), REQUEST)
    for one, score in zip(hosts, scores.tolist(), strict=True):
        memory = one.free_memory_mib - REQUEST.memory_mib
        assert score == memory / max(1.0 + one.free_vcpus - REQUEST.vcpus, 1.0)


@pytest.mark.parametrize(
    ("kind", "name"), [("filter", Filter.name), ("weigher", Weigher.name)]
)
def test_it_conforms(kind, name):
    assert [finding for finding in check(kind, name) if finding.problem] == []
'''

README = '''\
# $package

A filter and a weigher for Treadle, registered as `${module}_filter` and `${module}_weigher`.

    pip install -e .                       into Treadle's environment
    treadle scheduler check $package       the conformance suite
    python -m pytest                       the tests of this package

Then choose them in the settings:

    [scheduler]
    policy = "weighted"
    filters = ["state", "${module}_filter", "capacity"]
    weighers = { ${module}_weigher = 1.0 }
'''


def make(name: str, parent: Path) -> list[Path]:
    """Make the folder `parent/name` with a package in it, and give the files.

    Errors: `InvalidInput` for a name that is none, `Conflict` where something is there already.
    """
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(module) or len(name) > 40:
        raise InvalidInput(
            "name", name, "small letters and digits are needed, with - or _ between them"
        )
    folder = parent / name
    if folder.exists():
        raise Conflict(f"{folder} is there already: choose another name, or remove it")
    written = []
    for path, text in (
        ("pyproject.toml", PROJECT), ("README.md", README),
        (f"src/{module}/__init__.py", MODULE), (f"tests/test_{module}.py", TESTS),
    ):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template(text).safe_substitute(package=name, module=module))
        written.append(file)
    return written
