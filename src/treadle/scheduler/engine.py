"""Puts filters and a policy together: hosts and a request in, an order and its record out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.random import default_rng

from treadle.errors import InvalidInput
from treadle.scheduler.model import (
    BoolArray,
    Cause,
    ExplainsCauses,
    Filter,
    HostColumns,
    PlacementRequest,
    PluginError,
    Policy,
    Ranking,
    Remembers,
    UsesWeighers,
    call_plugin,
)
from treadle.scheduler.record import (
    SHOWN_HOSTS,
    SHOWN_TOP,
    Decision,
    Detail,
    Ranked,
    Refusal,
    sentence,
)
from treadle.scheduler.registry import Registry
from treadle.scheduler.table import HostTable


class Scheduler:
    """Ranks hosts. It keeps no snapshot and claims nothing; safe to use from several threads."""

    def __init__(
        self,
        policy: str,
        filters: Sequence[str],
        weighers: Mapping[str, float],
        registry: Registry | None = None,
    ) -> None:
        """Load the plug-ins named. Filters are asked, and blamed, in the order given.

        `weighers` maps names to multipliers; a policy that uses none leaves them unloaded, and
        `unused_weighers` names them. Raises `InvalidInput` for a name that is unknown or given
        twice or a multiplier that is not finite, `PluginError` for a plug-in that does not load.
        """
        registry = registry or Registry()
        twice = [name for name, count in Counter(filters).items() if count > 1]
        if twice:
            raise InvalidInput("filters", list(filters), f"{twice[0]} is there twice")
        self.policy = policy
        self.unused_weighers: tuple[str, ...] = ()
        self._filters = tuple((name, registry.filter(name)) for name in filters)
        chosen = registry.policy(policy)
        if isinstance(chosen, UsesWeighers):
            loaded = [(name, registry.weigher(name), weighers[name]) for name in weighers]
            chosen = chosen.with_weighers(loaded)
        else:
            self.unused_weighers = tuple(weighers)
        self._policy: Policy = chosen
        self._remembers = chosen if isinstance(chosen, Remembers) else None
        self._turn = threading.Lock()
        self._faults: Counter[tuple[str, str]] = Counter()
        self._faults_lock = threading.Lock()

    @property
    def faults(self) -> dict[tuple[str, str], int]:
        """How often each broken plug-in was met, by kind and name, since the start."""
        with self._faults_lock:
            return dict(self._faults)

    def rank(
        self, hosts: HostColumns, request: PlacementRequest, *, dry_run: bool = False
    ) -> tuple[Ranking, Decision]:
        """Order the hosts that pass every filter, best first, and give the record of it.

        No host passes: the order is empty and `explain` says why. A dry run leaves no trace in a
        policy that remembers. A broken weigher counts 0 and is noted in the record.

        Raises `PluginError` when a filter or the policy is broken: to pass or to refuse every host
        in its place would both be wrong.
        """
        try:
            return self._rank(hosts, request, dry_run=dry_run)
        except PluginError as error:
            self._count(error.kind, error.plugin)
            raise

    def pick(self, table: HostTable, request: PlacementRequest) -> int | None:
        """Give the first host of what `rank` gives over the table's snapshot, None for none.

        Raises `PluginError` as `rank` does.
        """
        ranking, _ = self.rank(table.columns(), request)
        return int(ranking.ids[0]) if len(ranking) else None

    def _rank(
        self, hosts: HostColumns, request: PlacementRequest, *, dry_run: bool
    ) -> tuple[Ranking, Decision]:
        masks: list[BoolArray] = []
        refused: dict[str, int] = {}
        passing = np.ones(len(hosts), dtype=np.bool_)
        left = len(hosts)
        for name, one in self._filters:
            mask = _passes(name, one, hosts, request)
            masks.append(mask)
            passing &= mask
            now = int(np.count_nonzero(passing))
            refused[name] = left - now
            left = now

        candidates = hosts if left == len(hosts) else hosts.take(np.flatnonzero(passing))
        ranking = self._order(candidates, request, dry_run=dry_run) if left else Ranking.empty()
        for fault in ranking.faults:
            self._count("weigher", fault)

        def detail() -> Detail:
            return _detail(self._filters, masks, hosts, request, ranking)

        def name_of(host: int) -> str:
            return _name(hosts, host)

        notes = ranking.notes
        if len(ranking) < left:
            notes = (*notes, f"the policy left out {left - len(ranking)} that pass the filters")
        decision = Decision(
            request,
            hosts.version,
            self.policy,
            len(hosts),
            len(ranking),
            refused,
            notes,
            _build=detail,
            _names=name_of,
        )
        return ranking, decision

    def _order(self, hosts: HostColumns, request: PlacementRequest, *, dry_run: bool) -> Ranking:
        if self._remembers is None:
            return self._ask(hosts, request)
        with self._turn:
            ranking = self._ask(hosts, request)
            if len(ranking) and not dry_run:
                first = int(ranking.ids[0])
                call_plugin("policy", self.policy, self._remembers.chosen, first)
            return ranking

    def _ask(self, hosts: HostColumns, request: PlacementRequest) -> Ranking:
        rng = default_rng(request.seed)
        ranking = call_plugin("policy", self.policy, self._policy.rank, request, hosts, rng)
        problem = _wrong_ranking(ranking, hosts)
        if problem:
            raise PluginError("policy", self.policy, f"rank() gave {problem}")
        return ranking

    def _count(self, kind: str, plugin: str) -> None:
        with self._faults_lock:
            self._faults[kind, plugin] += 1


def explain(decision: Decision) -> str:
    """Say in one sentence, for operators, how a decision came out.

    For instance "no host can take it: 2 hosts lack memory (need 4096 MiB, at most 2048 free), 1 is
    down". `Decision.public` has the sentence for tenants.
    """
    return sentence(decision)


def _passes(name: str, one: Filter, hosts: HostColumns, request: PlacementRequest) -> BoolArray:
    mask = call_plugin("filter", name, one.passes, hosts, request)
    if not isinstance(mask, np.ndarray):
        problem = f"{type(mask).__name__}, not an array"
    elif mask.dtype != np.bool_:
        problem = f"{mask.dtype}, not bool"
    elif mask.shape != (len(hosts),):
        problem = f"shape {mask.shape} for {len(hosts)} hosts"
    else:
        return mask
    raise PluginError("filter", name, f"passes() gave {problem}")


def _wrong_ranking(ranking: object, hosts: HostColumns) -> str:
    """Say what is wrong with what a policy gave; empty when nothing is."""
    if not isinstance(ranking, Ranking):
        return f"{type(ranking).__name__}, not a Ranking"
    for what, array, dtype in (
        ("ids", ranking.ids, np.int64),
        ("scores", ranking.scores, np.float64),
        *((f"shares of {name}", share, np.float64) for name, share in ranking.shares.items()),
    ):
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            return f"{what} that are not an array of {np.dtype(dtype)}"
        if array.shape != ranking.ids.shape or array.ndim != 1:
            return f"{what} of shape {array.shape} for {len(hosts)} hosts"
        if dtype is np.float64 and not np.isfinite(array).all():
            return f"{what} that are not finite numbers"
    ordered = np.sort(ranking.ids)
    if len(ordered) == len(hosts):
        return "" if np.array_equal(ordered, hosts.ids) else "hosts twice, or refused ones"
    if len(ordered) > len(hosts) or (ordered[1:] == ordered[:-1]).any():
        return "a host twice"
    rows = np.minimum(np.searchsorted(hosts.ids, ordered), len(hosts) - 1)
    return "" if np.array_equal(hosts.ids[rows], ordered) else "hosts that do not pass the filters"


def _name(hosts: HostColumns, host: int) -> str:
    row = hosts.row_of(host)
    return "" if row is None else hosts.view(row).name


def _detail(
    filters: Sequence[tuple[str, Filter]],
    masks: Sequence[BoolArray],
    hosts: HostColumns,
    request: PlacementRequest,
    ranking: Ranking,
) -> Detail:
    blamed = np.full(len(hosts), -1, dtype=np.int64)
    for number, mask in enumerate(masks):
        blamed[(blamed < 0) & ~mask] = number

    refusals = []
    for row in np.flatnonzero(blamed >= 0)[:SHOWN_HOSTS]:
        name, one = filters[int(blamed[row])]
        view = hosts.view(int(row))
        try:
            reason = str(call_plugin("filter", name, one.reason, view, request))
        except PluginError as error:
            reason = f"refused by {name}, which cannot say why: {error.problem}"
        refusals.append(Refusal(view.id, view.name, name, reason))

    causes: list[Cause] = []
    for number, (name, one) in enumerate(filters):
        rows = np.flatnonzero(blamed == number)
        if rows.size:
            causes.extend(_causes(name, one, hosts.take(rows), request))
    causes.sort(key=lambda cause: -cause.hosts)

    top = tuple(
        Ranked(
            int(ranking.ids[place]),
            _name(hosts, int(ranking.ids[place])),
            float(ranking.scores[place]),
            {name: float(share[place]) for name, share in ranking.shares.items()},
        )
        for place in range(min(len(ranking), SHOWN_TOP))
    )
    return Detail(tuple(refusals), top, tuple(causes))


def _causes(
    name: str, one: Filter, refused: HostColumns, request: PlacementRequest
) -> Sequence[Cause]:
    plain = Cause(name, len(refused), f"is refused by {name}", f"are refused by {name}")
    if not isinstance(one, ExplainsCauses):
        return [plain]
    try:
        found = list(call_plugin("filter", name, one.causes, refused, request))
    except PluginError:
        return [plain]
    return found if sum(cause.hosts for cause in found) == len(refused) else [plain]
