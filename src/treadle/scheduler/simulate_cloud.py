"""What if, on a cloud that runs: its hosts and instances as the start of a simulation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from treadle.errors import InvalidInput
from treadle.scheduler.model import HostView
from treadle.scheduler.simulate_generate import Size
from treadle.scheduler.simulate_trace import GIB, Arrival, Trace, parse_hosts, trace_of_record


@dataclass(frozen=True, slots=True)
class CloudNow:
    """A cloud at one moment: its hosts less what the instances take, and the instances.

    What else takes disk there (images) is in the hosts' use. Instances have `host` set, and never
    leave.
    """

    hosts: tuple[HostView, ...]
    running: tuple[Arrival, ...]

    def grown(self, spec: str) -> CloudNow:
        """With more hosts (`parse_hosts`), which can all that the cloud's hosts can."""
        first = max((host.id for host in self.hosts), default=0) + 1
        like = next((host for host in self.hosts if host.state == "up"), None)
        new = [
            host if like is None else replace(
                host, arch=like.arch, capabilities=like.capabilities, zone=like.zone
            )
            for host in parse_hosts(spec, first)
        ]
        return replace(self, hosts=(*self.hosts, *new))

    def drained(self, names: Collection[str]) -> tuple[CloudNow, tuple[Arrival, ...]]:
        """With hosts (by name or id) closed, and what was on them, to be placed anew at 0.

        Errors: `InvalidInput` for one that is not there.
        """
        known = {text: host.id for host in self.hosts for text in (str(host.id), host.name)}
        closed = set()
        for name in names:
            if name not in known:
                raise InvalidInput("drain", name, f"there are {', '.join(sorted(known)[:40])}")
            closed.add(known[name])
        moved = tuple(
            replace(one, at=0.0, host=None) for one in self.running if one.host in closed
        )
        kept = tuple(one for one in self.running if one.host not in closed)
        hosts = tuple(
            replace(host, state="disabled") if host.id in closed else host for host in self.hosts
        )
        return CloudNow(hosts, kept), moved

    def sizes(self) -> tuple[Size, ...]:
        """What the instances are like, as sizes for the generator."""
        counts: dict[tuple[int, int, int], int] = {}
        for one in self.running:
            size = one.vcpus, one.memory_mib, one.disk_mib
            counts[size] = counts.get(size, 0) + 1
        return tuple(Size(*size, share=count) for size, count in sorted(counts.items()))


def cloud_now(record: dict[str, Any], source: str) -> CloudNow:
    """The cloud's answer of `GET /treadle/v1/record` as it is now. Errors: `InvalidInput`."""
    living = [
        one | {"at": 0.0} for one in record["instances"]
        if one["until"] is None and one["host"] is not None
    ]
    trace = trace_of_record(record | {"instances": living}, source)
    running = tuple(trace.arrivals)
    taken: Counter[int | None] = Counter()
    for one in running:
        taken[one.host] += one.disk_mib
    hosts = tuple(
        replace(host, disk_used_mib=max(0, host.disk_used_mib - taken[host.id]))
        for host in trace.hosts
    )
    return CloudNow(hosts, running)


def before(load: Trace, moved: Sequence[Arrival]) -> Trace:
    """The load, with the moved ones placed first."""
    if not moved:
        return load
    first = [replace(one, at=load.begin) for one in moved]
    return replace(load, arrivals=[*first, *load.arrivals])


_SIZE = re.compile(r"(\d+(?:\.\d+)?):(\d+)c(\d+)g(?:(\d+)d)?")


def parse_mix(text: str) -> tuple[Size, ...]:
    """Sizes out of `60:1c2g20d,40:4c8g`: share, vCPUs, GiB of memory, GiB of disk.

    Errors: `InvalidInput`.
    """
    sizes = []
    for part in text.replace(" ", "").split(","):
        found = _SIZE.fullmatch(part)
        if found is None or float(found[1]) <= 0 or not 0 < int(found[2]) <= 2**20:
            mend = "write SHARE:CORES'c'GIB'g', for instance 60:1c2g20d,40:4c8g"
            raise InvalidInput("mix", part, mend)
        memory, disk = int(found[3]), int(found[4] or 0)
        if memory > 2**20 or disk > 2**20:
            raise InvalidInput("mix", part, "at most 1048576 GiB can be asked for")
        sizes.append(Size(int(found[2]), memory * GIB, disk * GIB, float(found[1])))
    return tuple(sizes)
