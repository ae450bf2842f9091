"""What a plug-in is, and what it gives: filters, weighers, policies.

The first three Protocols are all that an author needs. The others are what a plug-in may have
besides, for speed or for better words; without them the engine goes by the columns' formula.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import numpy as np

from treadle.errors import Permanent
from treadle.scheduler.columns import BoolArray, FloatArray, HostColumns, IntArray
from treadle.scheduler.model import HostRow, HostView, PlacementRequest

_P = ParamSpec("_P")
_T = TypeVar("_T")


class PluginError(Permanent):
    """A filter, weigher or policy raised, or gave back what it must not.

    `kind` is "filter", "weigher", "policy" or "predictor", `plugin` the name it is chosen by.
    """

    def __init__(self, kind: str, plugin: str, problem: str) -> None:
        super().__init__(f"the {kind} {plugin!r} is broken: {problem}")
        self.kind = kind
        self.plugin = plugin
        self.problem = problem


def call_plugin(
    kind: str, plugin: str, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """Give what `call` gives; raise `PluginError` in place of whatever it raises."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        verb = getattr(call, "__name__", "call")
        raise PluginError(
            kind, plugin, f"{verb}() raised {type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Host ids, best first, with a score each.

    `ids` int64 and `scores` float64 have the shape (M,). `shares` maps a weigher's name to its
    part of each score, aligned with `ids`. `notes` are sentences for the record, `faults` say which
    weighers were left out because they are broken.
    """

    ids: IntArray
    scores: FloatArray
    shares: Mapping[str, FloatArray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    faults: tuple[PluginError, ...] = ()

    @classmethod
    def empty(cls) -> Ranking:
        """Give the order of no hosts."""
        return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64))

    @classmethod
    def by_score(
        cls,
        hosts: HostColumns,
        scores: FloatArray,
        shares: Mapping[str, FloatArray] | None = None,
        notes: tuple[str, ...] = (),
        faults: tuple[PluginError, ...] = (),
    ) -> Ranking:
        """Order `hosts` by `scores`, highest first; of equals the lowest host id comes first.

        `scores` and each of `shares` have the shape (N,) in the order of `hosts`. Raises
        `ValueError` where `scores` has another.
        """
        if scores.shape != (len(hosts),):
            raise ValueError(f"scores of shape {scores.shape} for {len(hosts)} hosts")
        order = np.argsort(-scores, kind="stable")
        return cls(
            hosts.ids[order],
            scores[order],
            {name: share[order] for name, share in (shares or {}).items()},
            notes,
            faults,
        )

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def __iter__(self) -> Iterator[int]:
        return (int(host) for host in self.ids)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a number of hosts cannot take a request, for people.

    `code` is one word ("memory"). `one` and `many` follow a count: "lacks memory", "lack memory".
    `detail` is for operators ("need 4096 MiB, at most 2048 free"); tenants do not see it.
    """

    code: str
    hosts: int
    one: str
    many: str
    detail: str = ""

    def phrase(self, *, noun: bool, detail: bool) -> str:
        """Give it as words: "2 hosts lack memory (need ...)"."""
        thing = (" host" if self.hosts == 1 else " hosts") if noun else ""
        verb = self.one if self.hosts == 1 else self.many
        more = f" ({self.detail})" if detail and self.detail else ""
        return f"{self.hosts}{thing} {verb}{more}"

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON-able values."""
        return {
            "code": self.code,
            "hosts": self.hosts,
            "one": self.one,
            "many": self.many,
            "detail": self.detail,
        }


@runtime_checkable
class Filter(Protocol):
    """Says which hosts can take a request. `name` is the name it is registered under.

    Called from many threads at once. `row_local` True promises that a host's answer depends on
    that host's row and the request alone.
    """

    name: str
    row_local: bool

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        """Give a bool array of shape (N,): True where the host can take it."""
        ...

    def reason(self, host: HostView, request: PlacementRequest, /) -> str:
        """Say what a refused host lacks: "needs 4 vcpus, has 2". Only for hosts that are shown."""
        ...


@runtime_checkable
class ExplainsCauses(Protocol):
    """What a filter may have besides: sums up why it refused, for one sentence about all hosts."""

    def causes(self, refused: HostColumns, request: PlacementRequest, /) -> Sequence[Cause]:
        """Give the causes over the refused hosts; each host is counted in one of them."""
        ...


@runtime_checkable
class Weigher(Protocol):
    """Scores hosts; higher is better. `name` is the name it is registered under.

    Called from many threads at once. `row_local` True promises that a host's score depends on that
    host's row and the request alone, so it may be kept until the row changes.
    """

    name: str
    row_local: bool

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give a finite float64 array of shape (N,), in any unit: it is normalised afterwards."""
        ...


@runtime_checkable
class Policy(Protocol):
    """A whole algorithm: orders the hosts that pass the filters. Called from many threads."""

    def rank(
        self, request: PlacementRequest, hosts: HostColumns, rng: np.random.Generator, /
    ) -> Ranking:
        """Order `hosts`, best first; some may be left out.

        `rng` is new for each call and seeded with the request's seed: take randomness from it only.
        """
        ...


@runtime_checkable
class Predictor(Protocol):
    """Says how long an instance will live, for policies that go by it."""

    def lifetime_s(self, request: PlacementRequest, /) -> float:
        """Give the expected lifetime in seconds, above 0, by what is known so far."""
        ...

    def ended(self, request: PlacementRequest, lifetime_s: float, /) -> None:
        """Learn that an instance of this request has lived so long."""
        ...


# -- what a plug-in may have besides


@runtime_checkable
class FiltersRows(Protocol):
    """A row-local filter that can look at one host faster than its columns' formula can."""

    def row_test(self, request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """Give a function that says of one host what `passes` says of it."""
        ...


@runtime_checkable
class NamesHosts(Protocol):
    """A filter that goes by the hosts that a request names, and by nothing else.

    `passes` is True exactly where the host is not among `refuses` and, unless `confines` is None,
    is among `confines`.
    """

    def refuses(self, request: PlacementRequest, /) -> Collection[int]:
        """Give the ids of hosts that cannot take it."""
        ...

    def confines(self, request: PlacementRequest, /) -> Collection[int] | None:
        """Give the ids of the only hosts that can take it, None for any."""
        ...


@runtime_checkable
class Concerns(Protocol):
    """A filter that has nothing to say about most requests."""

    def concerns(self, request: PlacementRequest, /) -> bool:
        """Give False where every host passes."""
        ...


def is_blind(plugin: object) -> bool:
    """Whether a plug-in has `blind = True`: it never looks at the hosts that a request names.

    These are the sets `only_hosts`, `excluded_hosts`, `tried_hosts` and `group_hosts`, with `group`
    and `max_per_host`. Requests that differ in nothing else share their scores then.
    """
    return getattr(plugin, "blind", False) is True


def is_static(plugin: object) -> bool:
    """Whether a filter has `static = True`: its answer does not depend on what is in use."""
    return getattr(plugin, "static", False) is True


@runtime_checkable
class ScoresHosts(Protocol):
    """A policy whose order is that of a score, highest first, of equals the lowest id.

    `row_local` True promises that a score depends on that host's row, and on the request without
    its instance_id, seed, asked_at, batch and tenant: the scores are kept, and only those of rows
    that change are worked out anew. Without it a pick scores all hosts that pass.
    `rank` gives `Ranking.by_score` of the same scores, unless the policy has `choose` as well. A
    score that depends on `flavors`, `scarce` or `small` says so: reads = ("flavors",).
    """

    row_local: bool

    def score(self, hosts: HostColumns, request: PlacementRequest, /) -> FloatArray:
        """Give a finite float64 array of shape (N,); higher is better."""
        ...


@runtime_checkable
class ScoresRows(Protocol):
    """A policy that scores hosts, and one host faster than its columns' formula can."""

    def row_score(self, request: PlacementRequest, /) -> Callable[[HostRow], float]:
        """Give a function that gives of one host what `score` gives, to the last bit."""
        ...


class Candidates(Protocol):
    """The hosts that pass the filters, by place: 0 is the lowest id."""

    def __len__(self) -> int: ...

    def id(self, place: int, /) -> int:
        """The host's id."""
        ...

    def score(self, place: int, /) -> float:
        """The host's score."""
        ...

    def after(self, host: int, /) -> int:
        """The place of the next host by id after `host`; 0 after the last."""
        ...


@runtime_checkable
class Chooses(Protocol):
    """A policy that scores hosts, but does not simply take the highest score."""

    def choose(self, request: PlacementRequest, candidates: Candidates, /) -> int:
        """Give the place of the first host that `rank` gives; there is at least one."""
        ...


@runtime_checkable
class UsesWeighers(Protocol):
    """A policy that wants the weighers that the settings choose."""

    def with_weighers(self, weighers: Sequence[tuple[str, Weigher, float]], /) -> Policy:
        """Give this policy with `weighers`: name, weigher, multiplier."""
        ...


@runtime_checkable
class UsesPredictor(Protocol):
    """A policy that wants the predictor that the settings choose."""

    def with_predictor(self, predictor: Predictor, /) -> Policy:
        """Give this policy with a predictor."""
        ...


@runtime_checkable
class PlacesTogether(Protocol):
    """A policy that can place several requests at once, better than one after the other."""

    def place(
        self, requests: Sequence[PlacementRequest], hosts: HostColumns, passing: BoolArray, /
    ) -> Sequence[int | None]:
        """Give a host id for each request, None for none; `passing` has the shape (requests, N)."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A policy whose next order depends on its last one.

    `rank` and `chosen` of one request are not interleaved with those of another.
    """

    def chosen(self, host: int, /) -> None:
        """Note the first host of the order just given. Not called in a dry run."""
        ...
