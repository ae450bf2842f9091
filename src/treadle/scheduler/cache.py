"""Scores that are kept: one vector for each kind of request, of which changed rows are renewed.

Two requests are of one kind where they differ in nothing that a row-local plug-in may look at. The
vector holds `NEVER` where a filter refuses. Over many hosts the highest score is found through what
bounds each block of rows. Hosts that a request names are not part of its kind as long as no plug-in
looks at them but filters that say which they refuse (`NamesHosts`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import replace
from math import isfinite
from operator import attrgetter
from typing import Any

import numpy as np

from treadle.scheduler.checks import NEVER, Asker
from treadle.scheduler.columns import BoolArray, FloatArray, HostColumns, IntArray
from treadle.scheduler.model import HostRow, PlacementRequest
from treadle.scheduler.plugin import (
    Chooses,
    Concerns,
    Filter,
    FiltersRows,
    NamesHosts,
    PluginError,
    Policy,
    Remembers,
    ScoresHosts,
    ScoresRows,
    is_blind,
    is_static,
)
from treadle.scheduler.table import HostTable

MOST_KINDS = 256
MOST_BYTES = 64 << 20
"""How many vectors are kept, and how much memory they take: the least recently used goes first."""
BLOCK = 256
BLOCKED_FROM = 8 * BLOCK
MANY = 256
"""From so many changed rows on, the columns' formula is quicker than that of single rows."""

_ASKED = (
    "vcpus", "memory_mib", "disk_mib", "image", "image_mib", "arch", "capabilities", "zone",
    "extra_specs", "image_properties", "numa_nodes", "pci",
)
_FACTS = "scarce", "small"
"""What the table says, not the request."""
_NAMED = (
    "excluded_hosts", "only_hosts", "tried_hosts", "group", "group_hosts", "max_per_host",
)

Test = Callable[[HostRow], bool]
Score = Callable[[HostRow], float]


class RowFault(Exception):
    """A formula for single rows raised; the columns' formula has the word then."""


_id_of = attrgetter("id")


def _elements(array: Any) -> Any:
    return memoryview(array)


class _Kind:
    """The scores for one kind of request, up to a place in the table's log.

    No score in a block of rows is above the block's element of `bounds`; it may be below, until
    `first` looks. `counts` has how many of a block pass, where a policy wants to know.
    """

    __slots__ = (
        "at", "bounds", "bounds_at", "counts", "request", "score", "scores", "scores_at", "static",
        "static_at", "static_test", "tests", "used",
    )

    def __init__(
        self, request: PlacementRequest, static: BoolArray, scores: FloatArray, at: int,
        counted: bool,
    ) -> None:
        self.request = request
        self.at = at
        self.used = 0
        self.scores = scores
        # Single elements are read and written faster through these than through the arrays.
        self.static_at = bytearray(static)
        self.static: BoolArray = np.frombuffer(self.static_at, dtype=np.bool_)
        self.scores_at = _elements(scores)
        self.bounds: FloatArray | None = None
        self.bounds_at: Any = None
        self.counts: IntArray | None = None
        if len(scores) >= BLOCKED_FROM:
            starts = np.arange(0, len(scores), BLOCK)
            self.bounds = np.maximum.reduceat(scores, starts)
            self.bounds_at = _elements(self.bounds)
            if counted:
                self.counts = np.add.reduceat(scores != NEVER, starts, dtype=np.int64)
        self.static_test: Test | None = None
        # Two at most, so that no call is spent on going through them.
        self.tests: tuple[Test, Test | None] | None = None
        self.score: Score | None = None

    def put(self, row: int, score: float) -> float:
        """Change one score; the one before comes back."""
        before: float = self.scores_at[row]
        self.scores_at[row] = score
        if self.bounds is not None:
            block = row // BLOCK
            if score > self.bounds_at[block]:
                self.bounds_at[block] = score
            if self.counts is not None and (before == NEVER) != (score == NEVER):
                self.counts[block] += 1 if before == NEVER else -1
        return before

    def put_many(self, rows: IntArray, scores: FloatArray) -> None:
        """Change the scores at `rows`."""
        blocks = rows // BLOCK
        if self.counts is not None:
            passed = (self.scores[rows] != NEVER).astype(np.int64)
            np.add.at(self.counts, blocks, (scores != NEVER) - passed)
        if self.bounds is not None:
            np.maximum.at(self.bounds, blocks, scores)
        self.scores[rows] = scores

    def first(self) -> int:
        """The row of the highest score, of equals the first; -1 where all are refused."""
        scores, bounds = self.scores, self.bounds
        if bounds is None:
            row = int(scores.argmax())
            return -1 if self.scores_at[row] == NEVER else row
        while True:
            # Of equal bounds the first: no block before it can hold as high a score.
            block = int(bounds.argmax())
            bound = self.bounds_at[block]
            if bound == NEVER:
                return -1
            start = block * BLOCK
            row = start + int(scores[start:start + BLOCK].argmax())
            highest = self.scores_at[row]
            if highest == bound:
                return row
            self.bounds_at[block] = highest


class _Places:
    """The rows that pass, for a policy that chooses."""

    def __init__(self, kind: _Kind, table: HostTable) -> None:
        self._kind = kind
        self._table = table
        self._rows: IntArray | None = None
        self._found: dict[int, int] = {}
        self._ends: IntArray | None = None
        if kind.counts is None:
            self._rows = np.flatnonzero(kind.scores != NEVER)
            self._size = len(self._rows)
        else:
            self._ends = kind.counts.cumsum()
            self._size = int(self._ends[-1])

    def __len__(self) -> int:
        return self._size

    def row(self, place: int) -> int:
        if self._rows is not None:
            return int(self._rows[place])
        row = self._found.get(place)
        if row is None:
            assert self._ends is not None
            block = int(self._ends.searchsorted(place, side="right"))
            before = int(self._ends[block - 1]) if block else 0
            start = block * BLOCK
            inside = np.flatnonzero(self._kind.scores[start:start + BLOCK] != NEVER)
            row = self._found[place] = start + int(inside[place - before])
        return row

    def id(self, place: int, /) -> int:
        return self._table.rows[self.row(place)].id

    def score(self, place: int, /) -> float:
        return float(self._kind.scores_at[self.row(place)])

    def after(self, host: int, /) -> int:
        known = self._table.row_of(host)
        row = bisect_right(self._table.rows, host, key=_id_of) if known is None else known + 1
        if self._rows is not None:
            place = int(self._rows.searchsorted(row))
        else:
            assert self._ends is not None
            block = row // BLOCK
            start = block * BLOCK
            place = int(self._ends[block - 1]) if block else 0
            place += int(np.count_nonzero(self._kind.scores[start:row] != NEVER))
        return place if place < self._size else 0


class _Filter:
    """A filter, with what it has besides."""

    def __init__(self, name: str, one: Filter) -> None:
        self.name = name
        self.filter = one
        self.static = is_static(one)
        self.row_test = one.row_test if isinstance(one, FiltersRows) else None
        self._concerns = one.concerns if isinstance(one, Concerns) else None

    def concerned(self, request: PlacementRequest) -> bool:
        return self._concerns is None or self._concerns(request)


class ScoreCache:
    """Picks the first host. For one thread at a time, as the table is."""

    def __init__(
        self, filters: Sequence[tuple[str, Filter]], name: str, policy: ScoresHosts, asker: Asker
    ) -> None:
        self._name = name
        self._policy = policy
        self._asker = asker
        self._chooses = policy if isinstance(policy, Chooses) else None
        others = [one for _, one in filters if not isinstance(one, NamesHosts)]
        if is_blind(policy) and all(map(is_blind, others)):
            self._naming = [one for _, one in filters if isinstance(one, NamesHosts)]
            asked: tuple[str, ...] = _ASKED
            filters = [(n, one) for n, one in filters if not isinstance(one, NamesHosts)]
        else:
            self._naming = []
            asked = _ASKED + _NAMED
        reads = set(getattr(policy, "reads", ()))
        facts = sorted(reads & set(_FACTS))
        self._facts: Callable[[HostTable], Hashable] | None = attrgetter(*facts) if facts else None
        self._key: Callable[[PlacementRequest], Hashable] = attrgetter(
            *asked, *sorted(reads - set(_FACTS))
        )
        self._filters = [_Filter(name, one) for name, one in filters]
        self._row_score = policy.row_score if isinstance(policy, ScoresRows) and all(
            one.row_test is not None for one in self._filters
        ) else None
        self._table: HostTable | None = None
        self._epoch = -1
        self._most = 0
        self._kinds: dict[Hashable, _Kind] = {}
        self._picks = 0

    @staticmethod
    def suits(filters: Sequence[tuple[str, Filter]], policy: Policy) -> bool:
        """False where a plug-in may look at more than a host's own row."""
        if not isinstance(policy, ScoresHosts) or not policy.row_local:
            return False
        if isinstance(policy, Remembers) and not isinstance(policy, Chooses):
            return False
        return all(one.row_local for _, one in filters)

    def pick(self, table: HostTable, request: PlacementRequest) -> int | None:
        """Give the id of the first host, None where all are refused.

        Errors: `PluginError`, `RowFault`.
        """
        if table is not self._table or table.epoch != self._epoch:
            self._kinds.clear()
            self._table, self._epoch = table, table.epoch
            self._most = min(MOST_KINDS, max(16, MOST_BYTES // (9 * len(table) + 1)))
        if not table.rows:
            return None
        try:
            return self._pick(table, request)
        except PluginError:
            self._kinds.clear()
            raise
        except Exception as error:
            self._kinds.clear()
            raise RowFault(f"{type(error).__name__}: {error}") from error

    def _pick(self, table: HostTable, request: PlacementRequest) -> int | None:
        kind = self._kind(table, request)
        if self._chooses is not None:
            request = self._told(table, request)
        refused: Collection[int] = ()
        if self._naming and (
            request.group_hosts or request.excluded_hosts or request.tried_hosts
            or request.only_hosts is not None
        ):
            confined: Collection[int] | None = None
            for one in self._naming:
                some = one.refuses(request)
                if some:
                    refused = {*refused, *some} if refused else some
                only = one.confines(request)
                if only is not None:
                    confined = only if confined is None else set(confined) & set(only)
            if confined is not None:
                return self._among(kind, table, request, set(confined) - set(refused))
        if self._chooses is not None:
            row = self._chosen(kind, table, request, refused)
        elif refused:
            row = self._first_but(refused, kind, table)
        else:
            row = kind.first()
        return None if row < 0 else table.rows[row].id

    def _first_but(self, refused: Collection[int], kind: _Kind, table: HostTable) -> int:
        row = kind.first()
        hidden = []
        while row >= 0 and table.rows[row].id in refused:
            hidden.append((row, kind.put(row, NEVER)))
            row = kind.first()
        for one, score in hidden:
            kind.put(one, score)
        return row

    def _chosen(
        self, kind: _Kind, table: HostTable, request: PlacementRequest, refused: Collection[int]
    ) -> int:
        assert self._chooses is not None
        rows = [row for row in map(table.row_of, refused) if row is not None]
        hidden = [(row, kind.put(row, NEVER)) for row in rows]
        places = _Places(kind, table)
        row = -1
        if len(places):
            row = places.row(self._chooses.choose(request, places))
        for one, score in hidden:
            kind.put(one, score)
        return row

    def _among(
        self, kind: _Kind, table: HostTable, request: PlacementRequest, hosts: Collection[int]
    ) -> int | None:
        """Of a few hosts only."""
        rows = sorted(row for row in map(table.row_of, hosts) if row is not None)
        if not rows:
            return None
        scores = kind.scores[rows]
        if self._chooses is None:
            place = int(scores.argmax())
            return None if scores[place] == NEVER else table.rows[rows[place]].id
        part = np.full(len(table), NEVER)
        part[rows] = scores
        few = _Kind(request, kind.static, part, 0, True)
        row = self._chosen(few, table, request, ())
        return None if row < 0 else table.rows[row].id

    # -- the vectors

    def _kind(self, table: HostTable, request: PlacementRequest) -> _Kind:
        key = self._key(request)
        if self._facts is not None:
            key = key, self._facts(table)
        kind = self._kinds.get(key)
        changed = table.changed
        self._picks += 1
        if kind is None:
            if len(self._kinds) >= self._most:
                del self._kinds[min(self._kinds, key=lambda one: self._kinds[one].used)]
            kind = self._kinds[key] = self._begin(table, request)
        elif kind.at < len(changed):
            missed = set(changed[kind.at:])
            if self._row_score is not None and len(missed) <= MANY:
                self._renew_rows(kind, table, missed)
            else:
                rows = np.unique(np.array([r if r >= 0 else ~r for r in missed]))
                hosts = table.live
                if len(rows) <= len(table) // 4:
                    static, scores = self._evaluate(hosts.take(rows), kind.request)
                    kind.static[rows] = static
                    kind.put_many(rows, scores)
                else:
                    kind = self._kinds[key] = self._begin(table, request)
            kind.at = len(changed)
        kind.used = self._picks
        return kind

    def _told(self, table: HostTable, request: PlacementRequest) -> PlacementRequest:
        """The request with what the policy wants to know of the table."""
        if self._facts is None:
            return request
        return replace(request, scarce=table.scarce, small=table.small)

    def _begin(self, table: HostTable, request: PlacementRequest) -> _Kind:
        if self._naming:
            request = request.unnamed()
        request = self._told(table, request)
        static, scores = self._evaluate(table.live, request)
        kind = _Kind(request, static, scores, len(table.changed), self._chooses is not None)
        if self._row_score is not None:
            tests: dict[bool, list[Test]] = {True: [], False: []}
            for one in self._filters:
                if one.row_test is not None and one.concerned(request):
                    tests[one.static].append(one.row_test(request))
            kind.static_test, most = _all_of(tests[True]), tests[False]
            kind.tests = _all_of(most[:1]), _all_of(most[1:]) if most[1:] else None
            kind.score = self._row_score(request)
        return kind

    def _evaluate(
        self, hosts: HostColumns, request: PlacementRequest
    ) -> tuple[BoolArray, FloatArray]:
        """Whether each host passes the static filters, and the masked scores."""
        static = np.ones(len(hosts), dtype=np.bool_)
        rest = []
        for one in self._filters:
            if not one.concerned(request):
                continue
            mask = self._asker.passes(one.name, one.filter, hosts, request)
            if one.static:
                static &= mask
            else:
                rest.append(mask)
        passing = static
        for mask in rest:
            passing = passing & mask
        return static, self._asker.masked(self._name, self._policy, hosts, request, passing)

    def _renew_rows(self, kind: _Kind, table: HostTable, changed: set[int]) -> None:
        rows, static, scores, bounds = table.rows, kind.static_at, kind.scores_at, kind.bounds_at
        score, counted = kind.score, kind.counts is not None
        assert kind.tests is not None
        assert score is not None
        first, second = kind.tests
        for row in changed:
            if row < 0:
                row = ~row
                assert kind.static_test is not None
                static[row] = kind.static_test(rows[row])
                kind.put(row, NEVER)
            if not static[row]:
                continue
            host = rows[row]
            if first(host) and (second is None or second(host)):
                value = score(host)
                if not isfinite(value):
                    raise ValueError(f"a score of {value}")
            else:
                value = NEVER
            if counted:
                kind.put(row, value)
            else:
                scores[row] = value
                if bounds is not None and value > bounds[row // BLOCK]:
                    bounds[row // BLOCK] = value


def _all_of(tests: Sequence[Test]) -> Test:
    """One test out of several."""
    if len(tests) == 1:
        return tests[0]
    return lambda host: all(test(host) for test in tests)
