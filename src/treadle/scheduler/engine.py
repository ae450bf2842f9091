"""Puts filters and a policy together: hosts and a request in, an order and its record out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from numbers import Real
from typing import Literal

import numpy as np
import structlog

from treadle.errors import InvalidInput
from treadle.scheduler.cache import RowFault, ScoreCache
from treadle.scheduler.checks import Asker, TimedWeigher
from treadle.scheduler.columns import BoolArray, HostColumns
from treadle.scheduler.model import PlacementRequest
from treadle.scheduler.plugin import (
    Cause,
    Chooses,
    Concerns,
    ExplainsCauses,
    Filter,
    PlacesTogether,
    PluginError,
    Policy,
    Predictor,
    Ranking,
    Remembers,
    ScoresHosts,
    UsesPredictor,
    UsesWeighers,
    Weigher,
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
from treadle.scheduler.weighers import SOFT

log = structlog.get_logger("treadle.scheduler")


@dataclass(frozen=True, slots=True)
class OnFault:
    """What a decision falls back to where a plug-in raises, gives nonsense, or answers too late.

    `filter`: "fail" the placement, or "skip" the filter: then every host passes it. `policy`: the
    name of another policy that orders the hosts, empty to fail. A weigher always counts 0.
    `limit_s`: how long one plug-in may take over one question, in seconds.
    """

    filter: Literal["fail", "skip"] = "fail"
    policy: str = ""
    limit_s: float = inf


class Scheduler:
    """Ranks hosts. It keeps no snapshot and claims nothing; `rank` may be called by any thread."""

    def __init__(
        self,
        policy: str,
        filters: Sequence[str],
        weighers: Mapping[str, float],
        registry: Registry | None = None,
        on_fault: OnFault | None = None,
        predictor: str = "size-means",
    ) -> None:
        """Load the plug-ins named. Filters are asked, and blamed, in the order given.

        `weighers` maps names to multipliers; a policy that uses none leaves them unloaded, and
        `unused_weighers` names them. Raises `InvalidInput` for a name that is unknown or given
        twice or a multiplier that is not finite, `PluginError` for a plug-in that does not load.

        The wish of a soft group counts by the weigher `group`; with a policy that uses no weighers
        it comes before the policy's own order.
        """
        registry = registry or Registry()
        on_fault = on_fault or OnFault()
        twice = [name for name, count in Counter(filters).items() if count > 1]
        if twice:
            raise InvalidInput("filters", list(filters), f"{twice[0]} is there twice")
        self.policy = policy
        self.filters = tuple(filters)
        self.weighers = dict(weighers)
        self.unused_weighers: tuple[str, ...] = ()
        self._filters = tuple((name, registry.filter(name)) for name in filters)
        # Whether an object is of a Protocol takes Python longer to find out than a filter to run.
        self._concerns = {
            name: one.concerns for name, one in self._filters if isinstance(one, Concerns)
        }
        chosen = registry.policy(policy)
        loaded: list[tuple[str, Weigher, float]] = []
        if isinstance(chosen, UsesWeighers):
            loaded = [
                (name, TimedWeigher(registry.weigher(name), on_fault.limit_s), weighers[name])
                for name in weighers
            ]
            chosen = chosen.with_weighers(loaded)
        else:
            self.unused_weighers = tuple(weighers)
        self._predictor: Predictor | None = None
        self._predictor_name = predictor
        if isinstance(chosen, UsesPredictor):
            self._predictor = registry.predictor(predictor)
            chosen = chosen.with_predictor(self._predictor)
        self._policy: Policy = chosen
        asking = [chosen, *(weigher for _, weigher, _ in loaded)]
        self._wants_flavors = any("flavors" in getattr(one, "reads", ()) for one in asking)
        self._wants_cloud = bool({"scarce", "small"} & set(getattr(chosen, "reads", ())))
        self._heeds_groups = isinstance(chosen, UsesWeighers)
        self._remembers = chosen if isinstance(chosen, Remembers) else None
        self._on_fault = on_fault
        self._fallback = registry.policy(on_fault.policy) if on_fault.policy else None
        self._asker = Asker(on_fault.limit_s)
        # Weighers are timed one by one: a late one is not the policy's fault.
        self._policy_asker = Asker(inf) if loaded else self._asker
        self._turn = threading.Lock()
        self._scored: ScoresHosts | None = None
        self._cache: ScoreCache | None = None
        if isinstance(chosen, ScoresHosts):
            if ScoreCache.suits(self._filters, chosen):
                self._cache = ScoreCache(self._filters, policy, chosen, self._asker)
            if not isinstance(chosen, Chooses | Remembers):
                self._scored = chosen
        self._faults: Counter[tuple[str, str]] = Counter()
        self._faults_lock = threading.Lock()

    @property
    def faults(self) -> dict[tuple[str, str], int]:
        """How often each broken plug-in was met, by kind and name, since the start."""
        with self._faults_lock:
            return dict(self._faults)

    @property
    def wants_flavors(self) -> bool:
        """Whether a plug-in goes by the flavors on offer."""
        return self._wants_flavors

    @property
    def goes_by_lifetimes(self) -> bool:
        """Whether the policy goes by a predictor, which is to be told of those that ended."""
        return self._predictor is not None

    @property
    def places_together(self) -> bool:
        """Whether `place` sees several requests at once, not one after the other."""
        return isinstance(self._policy, PlacesTogether)

    @property
    def keeps_scores(self) -> bool:
        """Whether `pick` keeps scores between picks; else it ranks all hosts each time."""
        return self._cache is not None

    def rank(
        self, hosts: HostColumns, request: PlacementRequest, *, dry_run: bool = False,
        first: int | None = None,
    ) -> tuple[Ranking, Decision]:
        """Order the hosts that pass every filter, best first, and give the record of it.

        No host passes: the order is empty and `explain` says why. A dry run leaves no trace in a
        policy that remembers. `first`: a host that comes before the policy's own order, if it is in
        that. What was done about a broken plug-in is noted in the record.

        Raises `PluginError` when a filter or the policy is broken and the settings name nothing to
        fall back to.
        """
        if self._wants_cloud:
            request = replace(request, scarce=hosts.scarce, small=hosts.small)
        masks: list[BoolArray] = []
        refused: dict[str, int] = {}
        faults: list[str] = []
        passing = np.ones(len(hosts), dtype=np.bool_)
        left = len(hosts)
        everyone = np.ones(len(hosts), dtype=np.bool_)
        for name, one in self._filters:
            try:
                if not self._concerned(name, request):
                    masks.append(everyone)
                    refused[name] = 0
                    continue
                mask = self._asker.passes(name, one, hosts, request)
            except PluginError as error:
                self._count(error)
                if self._on_fault.filter == "fail":
                    raise
                faults.append(f"{error}; every host passes it")
                mask = everyone
            masks.append(mask)
            passing &= mask
            now = int(np.count_nonzero(passing))
            refused[name] = left - now
            left = now

        candidates = hosts if left == len(hosts) else hosts.take(np.flatnonzero(passing))
        ranking = Ranking.empty()
        if left:
            ranking = self._order(candidates, request, faults, dry_run=dry_run)
            ranking = _led(ranking, first)
        for fault in ranking.faults:
            self._count(fault)

        def detail() -> Detail:
            return _detail(self._filters, masks, hosts, request, ranking)

        def name_of(host: int) -> str:
            return _name(hosts, host)

        notes = (*faults, *ranking.notes)
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

    def pick(self, table: HostTable, request: PlacementRequest) -> int | None:
        """Give the first host of what `rank` gives over the table's snapshot, None for none.

        Only the table's writer may ask. Raises `PluginError` as `rank` does.
        """
        quick = self._scored if self._cache is None else self._cache
        if quick is not None and not (request.group_hosts and self._is_drawn(request)):
            try:
                if isinstance(quick, ScoreCache):
                    host = quick.pick(table, request)
                else:
                    host = self._highest(table, request, quick)
            except (PluginError, RowFault) as error:
                # `rank` meets it again, counts it, and falls back as the settings say.
                log.debug("pick_failed", error=str(error))
            else:
                if self._remembers is not None and host is not None:
                    self._remembers.chosen(host)
                return host
        ranking, _ = self.rank(table.columns(), request)
        return int(ranking.ids[0]) if len(ranking) else None

    def _highest(
        self, table: HostTable, request: PlacementRequest, policy: ScoresHosts
    ) -> int | None:
        """The host with the highest score of those that pass, of equals the first."""
        hosts = table.live
        if self._wants_cloud:
            request = replace(request, scarce=table.scarce, small=table.small)
        passing = np.ones(len(hosts), dtype=np.bool_)
        for name, one in self._filters:
            if self._concerned(name, request):
                passing &= self._asker.passes(name, one, hosts, request)
        rows = np.flatnonzero(passing)
        if not len(rows):
            return None
        every = np.ones(len(rows), dtype=np.bool_)
        part = hosts.take(rows)
        scores = self._policy_asker.masked(self.policy, policy, part, request, every)
        return int(hosts.ids[rows[scores.argmax()]])

    def place(
        self, hosts: HostColumns, requests: Sequence[PlacementRequest]
    ) -> list[int | None]:
        """Place several requests at once: a host id for each, None for none.

        A policy that places together sees them all; with another one, each is placed on what the
        ones before it have left, in the order given. Errors: `PluginError`.
        """
        if isinstance(self._policy, PlacesTogether) and len(hosts):
            masks = np.ones((len(requests), len(hosts)), dtype=np.bool_)
            for row, request in enumerate(requests):
                for name, one in self._filters:
                    masks[row] &= self._asker.passes(name, one, hosts, request)
            try:
                return self._asker.place(self.policy, self._policy, requests, hosts, masks)
            except PluginError as error:
                self._count(error)
                raise
        table = HostTable(hosts)
        placed: list[int | None] = []
        for request in requests:
            host = self.pick(table, request)
            placed.append(host)
            view = None if host is None else table.view(host)
            if view is not None:
                need = view.disk_need_mib(request)
                table.use(view.id, request.vcpus, request.memory_mib, need)
        return placed

    def expects(self, request: PlacementRequest) -> float | None:
        """How long the instance is expected to live, seconds; None where the policy does not ask.

        For `HostView.busy_until`, which the caller keeps. Raises `PluginError`, also for what is no
        length of time.
        """
        if self._predictor is None:
            return None
        name = self._predictor_name
        try:
            found = call_plugin("predictor", name, self._predictor.lifetime_s, request)
            if not isinstance(found, Real) or not 0 <= float(found) < inf:
                raise PluginError("predictor", name, f"it gave {found!r} for a length of time")
        except PluginError as error:
            self._count(error)
            raise
        return float(found)

    def ended(self, request: PlacementRequest, lifetime_s: float) -> None:
        """Tell the predictor, where the policy uses one, how long an instance has lived. Raises
        `PluginError`."""
        if self._predictor is None:
            return
        try:
            call_plugin(
                "predictor", self._predictor_name, self._predictor.ended, request, lifetime_s
            )
        except PluginError as error:
            self._count(error)
            raise

    def _concerned(self, name: str, request: PlacementRequest) -> bool:
        """Whether the filter may refuse any host. Errors: `PluginError`."""
        concerns = self._concerns.get(name)
        return concerns is None or call_plugin("filter", name, concerns, request)

    def _order(
        self, hosts: HostColumns, request: PlacementRequest, faults: list[str], *, dry_run: bool
    ) -> Ranking:
        try:
            if self._remembers is None:
                ranking = self._policy_asker.rank(self.policy, self._policy, request, hosts)
                return _drawn(ranking, request) if self._is_drawn(request) else ranking
            with self._turn:
                ranking = self._policy_asker.rank(self.policy, self._policy, request, hosts)
                if self._is_drawn(request):
                    ranking = _drawn(ranking, request)
                if len(ranking) and not dry_run:
                    first = int(ranking.ids[0])
                    call_plugin("policy", self.policy, self._remembers.chosen, first)
                return ranking
        except PluginError as error:
            self._count(error)
            if self._fallback is None:
                raise
            instead = self._on_fault.policy
            faults.append(f"{error}; {instead} has ordered the hosts")
            try:
                return self._asker.rank(instead, self._fallback, request, hosts)
            except PluginError as second:
                self._count(second)
                raise

    def _is_drawn(self, request: PlacementRequest) -> bool:
        """Whether a soft group has a say where the policy gives it none."""
        return request.group in SOFT and bool(request.group_hosts) and not self._heeds_groups

    def _count(self, error: PluginError) -> None:
        with self._faults_lock:
            self._faults[error.kind, error.plugin] += 1
        log.warning(
            "plugin_fault", kind=error.kind, plugin=error.plugin, problem=error.problem
        )


def _drawn(ranking: Ranking, request: PlacementRequest) -> Ranking:
    """The same order, but hosts with more members of the request's soft group first, or last."""
    members = dict(request.group_hosts)
    sign = SOFT[request.group or ""]
    order = np.argsort([-sign * members.get(host, 0) for host in ranking], kind="stable")
    return Ranking(
        ranking.ids[order], ranking.scores[order],
        {name: share[order] for name, share in ranking.shares.items()},
        (*ranking.notes, f"the group's {request.group} came before the policy"), ranking.faults,
    )


def _led(ranking: Ranking, first: int | None) -> Ranking:
    """The same order, but one of its hosts before all others."""
    if first is None or first not in ranking.ids:
        return ranking
    order = np.argsort(ranking.ids != first, kind="stable")
    return Ranking(
        ranking.ids[order], ranking.scores[order],
        {name: share[order] for name, share in ranking.shares.items()},
        (*ranking.notes, "the first was chosen for all of the request's instances at once"),
        ranking.faults,
    )


def explain(decision: Decision) -> str:
    """Say in one sentence, for operators, how a decision came out.

    For instance "no host can take it: 2 hosts lack memory (need 4096 MiB, at most 2048 free), 1 is
    down". `Decision.public` has the sentence for tenants.
    """
    return sentence(decision)


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
