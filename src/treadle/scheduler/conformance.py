"""The conformance suite: what every filter, weigher and policy has to keep, tried on many hosts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from treadle.errors import InvalidInput, TreadleError
from treadle.scheduler.checks import Asker
from treadle.scheduler.columns import HostColumns
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import HostView, PlacementRequest
from treadle.scheduler.plugin import PluginError
from treadle.scheduler.registry import Registry
from treadle.scheduler.table import HostTable
from treadle.scheduler.weighers import normalised

CASES = 60
MANY = 10_000
WITHIN_S = 0.25
"""How long one question about MANY hosts may take."""
KINDS = ("filter", "weigher", "policy")


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule, and what is wrong; an empty `problem` is a rule that is kept."""

    kind: str
    plugin: str
    rule: str
    problem: str = ""


def owned(registry: Registry, package: str) -> list[tuple[str, str]]:
    """Kind and name of the plug-ins that a package registers, or of those with that name."""
    wanted = package.replace("_", "-").lower()
    found = []
    for kind in KINDS:
        for name in registry.names(kind):
            owners = registry.owner(kind, name).replace("_", "-").lower().split(", ")
            if wanted in owners or package == name:
                found.append((kind, name))
    return found


def check(kind: str, name: str, registry: Registry | None = None) -> list[Finding]:
    """Try every rule on one plug-in. Errors: `InvalidInput` for an unknown kind or name."""
    registry = registry or Registry()
    if kind not in KINDS:
        raise InvalidInput("kind", kind, f"one of {', '.join(KINDS)} is needed")
    try:
        plugin = getattr(registry, kind)(name)
    except PluginError as error:
        return [Finding(kind, name, "it loads", error.problem)]
    suite = _Suite(kind, name, plugin, registry)
    findings = [Finding(kind, name, "it loads")]
    for rule, trial in suite.rules():
        problem = ""
        for number in range(1 if trial in (suite.quick, suite.none) else CASES):
            try:
                problem = trial(Random(number))
            except (TreadleError, ArithmeticError, LookupError, TypeError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            except AttributeError as error:
                problem = f"AttributeError: {error}"
            if problem:
                break
        findings.append(Finding(kind, name, rule, problem))
    return findings


class _Suite:
    def __init__(self, kind: str, name: str, plugin: Any, registry: Registry) -> None:
        self.kind, self.name, self.plugin, self.registry = kind, name, plugin, registry
        self.asker = Asker(limit_s=float("inf"))

    def rules(self) -> Iterator[tuple[str, Callable[[Random], str]]]:
        yield "it answers with the right shape and type", self.shape
        yield "it is asked about no host", self.none
        yield "the order that hosts come in does not matter", self.order
        yield "the same question has the same answer", self.again
        yield "it does not change what it is given", self.untouched
        if getattr(self.plugin, "row_local", False):
            yield "row_local: a host's answer is the same among others and alone", self.alone
        if getattr(self.plugin, "blind", False):
            yield "blind: it does not look at named hosts or groups", self.named
        if self.kind == "filter":
            yield "it says why it refuses", self.reasons
        yield "picks with kept scores are those of the whole order", self.picks
        yield f"{MANY:,} hosts are answered within {WITHIN_S} s", self.quick

    def answer(self, hosts: Sequence[HostView], request: PlacementRequest) -> dict[int, Any]:
        """What it says of each host by id: a bool, a score, or a place in the order."""
        columns = HostColumns.from_views(hosts, 1)
        return dict(zip(columns.ids.tolist(), self.column(columns, request), strict=True))

    def column(self, columns: HostColumns, request: PlacementRequest) -> list[Any]:
        found: list[Any]
        if self.kind == "filter":
            found = self.asker.passes(self.name, self.plugin, columns, request).tolist()
        elif self.kind == "weigher":
            if len(columns):
                normalised(self.name, self.plugin, columns, request)
            found = self.plugin.score(columns, request).tolist()
        else:
            made = self.registry.policy(self.name)  # one that remembers begins anew
            order = list(self.asker.rank(self.name, made, request, columns))
            places = {host: place for place, host in enumerate(order)}
            found = [places.get(host) for host in columns.ids.tolist()]
        return found

    def shape(self, chance: Random) -> str:
        self.answer(*a_case(chance))
        return ""

    def none(self, chance: Random) -> str:
        if self.kind == "policy":
            return ""  # a policy is asked only where a host passes
        request = a_case(chance)[1]
        return "" if self.answer([], request) == {} else "it answers for hosts that are not there"

    def order(self, chance: Random) -> str:
        hosts, request = a_case(chance)
        mixed = chance.sample(hosts, len(hosts))
        return _differ(self.answer(hosts, request), self.answer(mixed, request))

    def again(self, chance: Random) -> str:
        hosts, request = a_case(chance)
        return _differ(self.answer(hosts, request), self.answer(hosts, request))

    def untouched(self, chance: Random) -> str:
        hosts, request = a_case(chance)
        columns = HostColumns.from_views(hosts, 1)
        before = columns.numbers.copy()
        self.column(columns, request)
        return "" if np.array_equal(before, columns.numbers) else "it has changed the columns"

    def alone(self, chance: Random) -> str:
        hosts, request = a_case(chance)
        together = self.answer(hosts, request)
        if self.kind == "policy":
            return ""  # the picks tell
        one = chance.choice(hosts)
        return _differ({one.id: together[one.id]}, self.answer([one], request))

    def named(self, chance: Random) -> str:
        hosts, request = a_case(chance)
        return _differ(self.answer(hosts, request), self.answer(hosts, request.unnamed()))

    def reasons(self, chance: Random) -> str:
        hosts, request = a_case(chance)
        for host in hosts:
            passes = self.answer([host], request)[host.id]
            reason = "" if passes else self.plugin.reason(host, request)
            if not passes and not (isinstance(reason, str) and reason):
                return f"reason() gave {reason!r} for a host that it refuses"
        return ""

    def picks(self, chance: Random) -> str:
        hosts, request = a_case(chance)
        chosen = {
            "filter": ("best-fit", list(dict.fromkeys(["state", self.name])), {}),
            "weigher": ("weighted", ["state"], {self.name: 1.0}),
            "policy": (self.name, ["state"], {}),
        }[self.kind]
        picking, ranking = (Scheduler(*chosen, self.registry) for _ in range(2))
        table = HostTable(hosts)
        for _ in range(4):
            order = list(ranking.rank(table.columns(), request)[0])
            first = order[0] if order else None
            picked = picking.pick(table, request)
            if picked != first:
                return f"the pick is host {picked}, the order begins with {first}"
            table.use(chance.choice(hosts).id, chance.randint(-1, 1), chance.randint(-64, 64), 0)
            table.put(a_host(chance, chance.choice(hosts).id))
        return ""

    def quick(self, chance: Random) -> str:
        hosts = HostColumns.from_views((a_host(chance, n) for n in range(1, MANY + 1)), 1)
        request = a_case(chance)[1]
        took = []
        for _ in range(3):
            began = time.thread_time()
            self.column(hosts, request)
            took.append(time.thread_time() - began)
        return "" if min(took) <= WITHIN_S else f"it took {min(took):.2f} s"


def _differ(one: dict[int, Any], other: dict[int, Any]) -> str:
    for host in one.keys() | other.keys():
        if one.get(host) != other.get(host):
            return f"host {host}: {one.get(host)} and {other.get(host)}"
    return ""


def a_host(chance: Random, number: int) -> HostView:
    """A host by chance; some are full, down, or have had their limits lowered."""
    one = chance.choice
    limit = one((0, 8, 64, 64, 256))
    return HostView(
        number, f"node-{number}", one(("up", "up", "up", "down", "disabled")),
        one(("x86_64", "aarch64", None)), frozenset(one(((), ("uefi",), ("uefi", "console")))),
        limit, chance.randint(0, 70), limit * 4096, chance.randint(0, 300_000),
        limit * 20_000, chance.randint(0, 2_000_000), chance.randint(0, 120),
        frozenset(one(((), ("a" * 64,)))), zone=one((None, "a", "b")), rack=one((None, "r1")),
        properties=one(((), (("disk", "ssd"),))), numa=one(((), ((8, 8192), (8, 8192)))),
        pci=one(((), (("gpu", 2),))), load=one((None, 0.1, 0.9)),
    )


def a_case(chance: Random) -> tuple[list[HostView], PlacementRequest]:
    """Some hosts, at least one, and a request."""
    hosts = [a_host(chance, number) for number in sorted(chance.sample(range(1, 99), 8))]
    hosts = hosts[:chance.randint(1, 8)]
    some = [host.id for host in hosts]
    request = PlacementRequest(
        "i-1", chance.randint(0, 8), chance.randint(0, 16_384), chance.randint(0, 80_000),
        image=chance.choice((None, "a" * 64)), image_mib=chance.randint(0, 900),
        seed=chance.getrandbits(40), zone=chance.choice((None, None, "a")),
        excluded_hosts=frozenset(chance.sample(some, chance.randint(0, 1))),
        group=chance.choice((None, "affinity", "anti-affinity", "soft-anti-affinity")),
        group_hosts=((chance.choice(some), 1),), flavors=((1, 1024, 1000), (8, 16_384, 80_000)),
    )
    return hosts, dataclasses.replace(request, tenant=chance.choice((None, "p")))
