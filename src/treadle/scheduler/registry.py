"""Finds plug-ins by name, through the entry points of the packages that are installed.

The groups are `treadle.filters`, `.weighers`, `.policies` and `.predictors`; Treadle's own
are registered the same way. Looking the names up reads packages' metadata once (about 3 ms in an
environment of 60 packages); only the plug-ins that are chosen are imported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from treadle.errors import InvalidInput
from treadle.scheduler.plugin import (
    Filter,
    PluginError,
    Policy,
    Predictor,
    Weigher,
    call_plugin,
)

_GROUPS = {
    "filter": "treadle.filters",
    "weigher": "treadle.weighers",
    "policy": "treadle.policies",
    "predictor": "treadle.predictors",
}

_N = TypeVar("_N", bound=Filter | Weigher)


class Registry:
    """Gives a new plug-in object for a name. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, dict[str, list[EntryPoint]]] | None = None
        self._added: dict[tuple[str, str], Callable[[], object]] = {}

    def add(self, kind: str, name: str, make: Callable[[], object]) -> None:
        """Register a plug-in without a package, before all others: for tests and simulations.

        `kind` is "filter", "weigher", "policy" or "predictor"; `make` gives a new object.
        """
        if kind not in _GROUPS:
            raise InvalidInput("kind", kind, f"one of {', '.join(_GROUPS)} is needed")
        self._added[kind, name] = make

    def names(self, kind: str) -> list[str]:
        """Give the names that can be chosen, sorted. `kind` as in `add`."""
        added = {name for of, name in self._added if of == kind}
        return sorted(added | set(self._scan()[kind]))

    def filter(self, name: str) -> Filter:
        """Give a new filter. Raises `InvalidInput` (unknown) or `PluginError` (broken)."""
        made = self._make("filter", name)
        if not isinstance(made, Filter):
            raise _lacking("filter", name, made)
        return _named("filter", name, made)

    def weigher(self, name: str) -> Weigher:
        """Give a new weigher. Raises `InvalidInput` (unknown) or `PluginError` (broken)."""
        made = self._make("weigher", name)
        if not isinstance(made, Weigher):
            raise _lacking("weigher", name, made)
        return _named("weigher", name, made)

    def policy(self, name: str) -> Policy:
        """Give a new policy. Raises `InvalidInput` (unknown) or `PluginError` (broken)."""
        made = self._make("policy", name)
        if not isinstance(made, Policy):
            raise _lacking("policy", name, made)
        return made

    def predictor(self, name: str) -> Predictor:
        """Give a new predictor. Raises `InvalidInput` (unknown) or `PluginError` (broken)."""
        made = self._make("predictor", name)
        if not isinstance(made, Predictor):
            raise _lacking("predictor", name, made)
        return made

    def owner(self, kind: str, name: str) -> str:
        """The package that registers a name; empty for one that was added."""
        points = self._scan()[kind].get(name, [])
        return ", ".join(sorted(p.dist.name if p.dist else "?" for p in points))

    def _make(self, kind: str, name: str) -> object:
        make = self._added.get((kind, name))
        if make is not None:
            return call_plugin(kind, name, make)
        points = self._scan()[kind].get(name)
        if not points:
            raise InvalidInput(kind, name, f"known are {', '.join(self.names(kind)) or 'none'}")
        if len(points) > 1:
            owners = self.owner(kind, name)
            raise PluginError(kind, name, f"several packages register this name: {owners}")
        made: object = call_plugin(kind, name, points[0].load)
        if not callable(made):
            raise PluginError(kind, name, f"{points[0].value} is not a class")
        return call_plugin(kind, name, made)

    def _scan(self) -> dict[str, dict[str, list[EntryPoint]]]:
        with self._lock:
            if self._found is None:
                every = entry_points()
                self._found = {}
                for kind, group in _GROUPS.items():
                    points: dict[str, list[EntryPoint]] = {}
                    for point in every.select(group=group):
                        if point not in points.setdefault(point.name, []):
                            points[point.name].append(point)
                    self._found[kind] = points
            return self._found


_PARTS = {
    "filter": ("name", "row_local", "passes", "reason"),
    "weigher": ("name", "row_local", "score"),
    "policy": ("rank",),
    "predictor": ("lifetime_s", "ended"),
}


def _lacking(kind: str, name: str, made: object) -> PluginError:
    missing = [part for part in _PARTS[kind] if not hasattr(made, part)]
    return PluginError(kind, name, f"{type(made).__name__} has no {', '.join(missing)}")


def _named(kind: str, name: str, made: _N) -> _N:
    if made.name != name:
        raise PluginError(kind, name, f"it calls itself {made.name!r}; both have to be the same")
    return made
