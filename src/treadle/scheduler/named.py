"""The filters that go by the hosts that a request names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from treadle.scheduler.columns import BoolArray, HostColumns
from treadle.scheduler.model import HostRow, HostView, PlacementRequest
from treadle.scheduler.plugin import Cause


class ByName:
    """A filter that goes by the hosts that a request names (`NamesHosts`), and nothing else."""

    row_local = static = True
    name: str
    is_refused: str
    are_refused: str
    why: str

    def refuses(self, _request: PlacementRequest, /) -> Collection[int]:
        """Give the hosts that cannot take it."""
        return ()

    def confines(self, _request: PlacementRequest, /) -> Collection[int] | None:
        """Give the only hosts that can take it, None for any."""
        return None

    def concerns(self, request: PlacementRequest, /) -> bool:
        """Only requests that name some."""
        return bool(self.refuses(request)) or self.confines(request) is not None

    def passes(self, hosts: HostColumns, request: PlacementRequest, /) -> BoolArray:
        """Give True where the host is not refused."""
        confined = self.confines(request)
        every = np.ones(len(hosts), dtype=np.bool_)
        result = every if confined is None else hosts.among(confined)
        return result & ~hosts.among(self.refuses(request))

    def row_test(self, request: PlacementRequest, /) -> Callable[[HostRow], bool]:
        """As `passes`, of one."""
        refused, confined = self.refuses(request), self.confines(request)
        return lambda host: host.id not in refused and (confined is None or host.id in confined)

    def reason(self, _host: HostView, _request: PlacementRequest, /) -> str:
        """Say why a named host is refused, or another one."""
        return self.why

    def causes(self, refused: HostColumns, _request: PlacementRequest, /) -> Sequence[Cause]:
        """Give one cause for all."""
        return [Cause(self.name, len(refused), self.is_refused, self.are_refused)]


class Excluded(ByName):
    """Refuses the hosts that the request excludes.

    passes = (id is not among the excluded)
    """

    name = "excluded"
    why = "is excluded by the request"
    is_refused, are_refused = "is excluded", "are excluded"

    def refuses(self, request: PlacementRequest, /) -> Collection[int]:
        """Give the excluded hosts."""
        return request.excluded_hosts


class Pinned(ByName):
    """Passes only the hosts that the request is confined to, where it is.

    passes = (the request names no hosts, or this one)
    """

    name = "pinned"
    why = "is not the host that is asked for"
    is_refused, are_refused = "is not asked for", "are not asked for"

    def confines(self, request: PlacementRequest, /) -> Collection[int] | None:
        """Give the hosts asked for."""
        return request.only_hosts


class Retry(ByName):
    """Refuses the hosts where the same build has failed already.

    passes = (id is not among the tried)
    """

    name = "retry"
    why = "was tried already, and the build failed there"
    is_refused, are_refused = "has failed at it", "have failed at it"

    def refuses(self, request: PlacementRequest, /) -> Collection[int]:
        """Give the tried hosts."""
        return request.tried_hosts


class Affinity(ByName):
    """Keeps the members of a group with the rule "affinity" on one host.

    passes = (no member is placed yet, or one is here)
    """

    name = "affinity"
    why = "has no member of the group"
    is_refused, are_refused = "has no member of the group", "have no member of the group"

    def confines(self, request: PlacementRequest, /) -> Collection[int] | None:
        """Give the hosts that have members."""
        if request.group != "affinity" or not request.group_hosts:
            return None
        return frozenset(host for host, _ in request.group_hosts)


class AntiAffinity(ByName):
    """Keeps the members of a group with the rule "anti-affinity" on different hosts.

    passes = (members here < max_per_host), where max_per_host is 1 unless the group says more
    """

    name = "anti_affinity"
    why = "has a member of the group"
    is_refused, are_refused = "has a member of the group", "have members of the group"

    def refuses(self, request: PlacementRequest, /) -> Collection[int]:
        """Give the hosts that have enough members."""
        if request.group != "anti-affinity":
            return ()
        most = request.max_per_host
        return frozenset(host for host, members in request.group_hosts if members >= most)
