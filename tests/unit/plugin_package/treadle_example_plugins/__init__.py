"""One plug-in of each kind."""

import numpy as np

from treadle.scheduler.columns import BoolArray, FloatArray, HostColumns
from treadle.scheduler.model import HostView, PlacementRequest
from treadle.scheduler.plugin import Ranking

MOST = 3


class MaxInstances:
    """Refuses hosts that have 3 instances or more."""

    name = "max_instances"
    row_local = True

    def passes(self, hosts: HostColumns, _request: PlacementRequest, /) -> BoolArray:
        """Give True where one more is welcome."""
        return hosts.instances < MOST

    def reason(self, host: HostView, _request: PlacementRequest, /) -> str:
        """Say how many it has."""
        return f"takes {MOST} instances, has {host.instances}"


class FewInstances:
    """Prefers hosts with few instances."""

    name = "few_instances"
    row_local = True

    def score(self, hosts: HostColumns, _request: PlacementRequest, /) -> FloatArray:
        """Give minus the number of instances."""
        return -hosts.instances.astype(np.float64)


class LastFit:
    """Takes the host with the highest id."""

    def rank(
        self, _request: PlacementRequest, hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        """Order by id, the highest first."""
        return Ranking(hosts.ids[::-1], np.zeros(len(hosts), dtype=np.float64))
