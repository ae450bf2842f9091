"""Every plug-in's formula once more, for one host at a time and in plain Python, by its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from treadle.scheduler.model import HostView, PlacementRequest

LIMITS = ("vcpus_limit", "memory_limit_mib", "disk_limit_mib")
USED = ("vcpus_used", "memory_used_mib", "disk_used_mib")
Three = list[float]


def need(host: HostView, request: PlacementRequest) -> list[int]:
    there = request.image is None or request.image in host.images
    disk = request.disk_mib + (0 if there else request.image_mib)
    return [request.vcpus, request.memory_mib, disk]


def free(host: HostView) -> list[int]:
    pairs = zip(LIMITS, USED, strict=True)
    return [getattr(host, limit) - getattr(host, used) for limit, used in pairs]


def after(host: HostView, request: PlacementRequest) -> list[int]:
    return [have - take for have, take in zip(free(host), need(host, request), strict=True)]


def parts(host: HostView, amounts: Sequence[int]) -> Three:
    limits = [getattr(host, limit) for limit in LIMITS]
    return [
        amount * (1 / limit if limit > 0 else 0.0)
        for amount, limit in zip(amounts, limits, strict=True)
    ]


def left(host: HostView, request: PlacementRequest) -> float:
    a, b, c = parts(host, after(host, request))
    return a + b + c


def members(host: HostView, request: PlacementRequest) -> int:
    return dict(request.group_hosts).get(host.id, 0)


def numa(host: HostView, request: PlacementRequest) -> bool:
    count = request.numa_nodes
    if not count:
        return True
    share = -(-request.vcpus // count), -(-request.memory_mib // count)
    fit = [1 for v, m in host.numa if v >= share[0] and m >= share[1]]
    own = [key for key, _ in request.extra_specs if key.startswith(("hw:numa_cpus", "hw:numa_mem"))]
    return len(fit) >= count and request.vcpus >= count and not own


def specs(host: HostView, request: PlacementRequest) -> bool:
    for key, wanted in request.extra_specs:
        scope, _, rest = key.rpartition(":")
        if scope in ("", "aggregate_instance_extra_specs"):
            values = [v for k, v in host.properties if k == rest]
            if wanted.startswith("<or>"):
                if not set(values) & set(wanted.replace("<or>", " ").split()):
                    return False
            elif wanted.startswith(">="):
                if not any(float(v) >= float(wanted[2:]) for v in values if v.isdigit()):
                    return False
            elif wanted not in values:
                return False
    return True


def image(host: HostView, request: PlacementRequest) -> bool:
    for key, value in request.image_properties:
        if key == "hw_architecture" and host.arch != value:
            return False
        if key == "hw_firmware_type" and value == "uefi" and "uefi" not in host.capabilities:
            return False
        if key == "trait:console" and ("console" in host.capabilities) != (value == "required"):
            return False
    return True


def fewest(host: HostView) -> float:
    said = [v for k, v in host.properties if k == "max_instances"]
    return min((int(v) for v in said if v.isdigit()), default=math.inf)


PASSES: dict[str, Callable[[HostView, PlacementRequest], bool]] = {
    "state": lambda h, _: h.state == "up",
    "capacity": lambda h, r: all(amount >= 0 for amount in after(h, r)),
    "capabilities": lambda h, r: (
        (r.arch is None or h.arch == r.arch) and r.capabilities <= h.capabilities
    ),
    "instance_limit": lambda h, _: h.instances < fewest(h),
    "numa": numa,
    "pci": lambda h, r: all(dict(h.pci).get(alias, 0) >= count for alias, count in r.pci),
    "zone": lambda h, r: r.zone is None or h.zone == r.zone,
    "aggregate_specs": specs,
    "image_properties": image,
    "excluded": lambda h, r: h.id not in r.excluded_hosts,
    "pinned": lambda h, r: r.only_hosts is None or h.id in r.only_hosts,
    "retry": lambda h, r: h.id not in r.tried_hosts,
    "affinity": lambda h, r: (
        r.group != "affinity" or not r.group_hosts or members(h, r) > 0
    ),
    "anti_affinity": lambda h, r: (
        r.group != "anti-affinity" or members(h, r) < r.max_per_host or members(h, r) == 0
    ),
}


def spread(host: HostView, request: PlacementRequest) -> float:
    pairs = zip(parts(host, after(host, request)), LIMITS, strict=True)
    some = [part for part, limit in pairs if getattr(host, limit) > 0]
    return max(some) - min(some) if some else 0.0


def stranded(host: HostView, amounts: Sequence[int], request: PlacementRequest) -> float:
    a, b, c = (max(part, 0.0) for part in parts(host, amounts))
    unfit = 0
    for flavor in request.flavors:
        if any(have < wanted for have, wanted in zip(amounts, flavor, strict=True)):
            unfit += 1
    return (a + b + c) / 3 * unfit / max(len(request.flavors), 1)


def fragments(host: HostView, request: PlacementRequest) -> float:
    before = stranded(host, free(host), request)
    return before - stranded(host, after(host, request), request)


def near(host: HostView, request: PlacementRequest, hosts: Sequence[HostView], what: str) -> float:
    place = getattr(host, what)
    if place is None:
        return 0.0
    return -float(sum(members(h, request) for h in hosts if getattr(h, what) == place))


Weigh = Callable[[HostView, PlacementRequest, Sequence[HostView]], float]
WEIGHS: dict[str, Weigh] = {
    "cpu_free": lambda h, r, _: float(after(h, r)[0]),
    "memory_free": lambda h, r, _: float(after(h, r)[1]),
    "disk_free": lambda h, r, _: float(after(h, r)[2]),
    "image_local": lambda h, r, _: float(r.image is not None and r.image in h.images),
    "balance": lambda h, r, _: -spread(h, r),
    "fragmentation": lambda h, r, _: fragments(h, r),
    "power_on": lambda h, _r, _: 0.0 if h.instances else -1.0,
    "load": lambda h, _r, _: -(0.5 if h.load is None else h.load),
    "group": lambda h, r, _: members(h, r) * {
        "soft-affinity": 1.0, "soft-anti-affinity": -1.0
    }.get(r.group or "", 0.0),
    "rack_spread": lambda h, r, every: near(h, r, every, "rack"),
    "zone_spread": lambda h, r, every: near(h, r, every, "zone"),
}


def dot(host: HostView, request: PlacementRequest) -> float:
    wants, has = parts(host, need(host, request)), parts(host, free(host))
    return wants[0] * has[0] + wants[1] * has[1] + wants[2] * has[2]


def cosine(host: HostView, request: PlacementRequest) -> float:
    a, b, c = parts(host, need(host, request))
    x, y, z = parts(host, free(host))
    lengths = math.sqrt((a * a + b * b + c * c) * (x * x + y * y + z * z))
    return (a * x + b * y + c * z) / lengths if lengths > 0 else 0.0


def lifetime(host: HostView, request: PlacementRequest) -> float:
    over = max(request.asked_at + 3600.0 - host.busy_until, 0.0)
    return -float(math.floor(np.log2(1 + over / 3600))) - left(host, request) / 1000


def balanced(host: HostView, request: PlacementRequest, every: Sequence[HostView]) -> float:
    cores, memory, _ = parts(host, free(host))
    before = max(0.0, cores - 1.5 * memory)
    cores, memory, _ = parts(host, after(host, request))
    stranded = max(0.0, cores - 1.5 * memory) - before
    up = [one for one in every if one.state == "up"]
    plenty = sum(1 for one in up if not one.instances) * 10 >= len(up)
    opening = 100.0 if plenty and not host.instances else 0.0
    return -left(host, request) - 10.0 * stranded - opening


SCORES: dict[str, Callable[[HostView, PlacementRequest], float]] = {
    "first-fit": lambda _h, _r: 0.0,
    "best-fit": lambda h, r: -left(h, r),
    "best-fit-cpu": lambda h, r: -parts(h, after(h, r))[0],
    "best-fit-memory": lambda h, r: -parts(h, after(h, r))[1],
    "best-fit-disk": lambda h, r: -parts(h, after(h, r))[2],
    "worst-fit": left,
    "dot-product": dot,
    "cosine": cosine,
    "fragmentation-aware": lambda h, r: fragments(h, r) - left(h, r) / 1000,
    "lifetime-aware": lifetime,
    "solver": lambda h, r: -left(h, r),
}


def drawn(seed: int, number: int, below: int) -> int:
    mask = 2**64 - 1
    bits = (seed + (number + 1) * 0x9E3779B97F4A7C15) & mask
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
    return (bits ^ (bits >> 31)) * below >> 64


def by_chance(first: Sequence[HostView], hosts: Sequence[HostView], seed: int) -> list[int]:
    begin = [host.id for host in first]
    rest = [host.id for host in hosts if host.id not in begin]
    np.random.default_rng(seed).shuffle(rest)
    return [*begin, *rest]


def sums(
    able: Sequence[HostView], request: PlacementRequest, weighers: dict[str, float],
    hosts: Sequence[HostView],
) -> list[float]:
    totals = [0.0] * len(able)
    for name, multiplier in weighers.items():
        scores = [WEIGHS[name](host, request, hosts) for host in able]
        low, high = min(scores), max(scores)
        for number, score in enumerate(scores):
            totals[number] += multiplier * ((score - low) / (high - low) if high > low else 0.0)
    return totals


def drawn_by_group(
    found: list[tuple[int, float]], request: PlacementRequest
) -> list[tuple[int, float]]:
    """Hosts with members of a soft group first, or last, whatever the policy says."""
    members = dict(request.group_hosts)
    sign = {"soft-affinity": -1, "soft-anti-affinity": 1}.get(request.group or "", 0)
    return sorted(found, key=lambda pair: sign * members.get(pair[0], 0))


def ordered(
    policy: str, filters: Sequence[str], hosts: Sequence[HostView], request: PlacementRequest,
    weighers: dict[str, float],
) -> list[tuple[int, float]]:
    """Ids and scores, best first; round-robin as at its start."""
    able = sorted(
        (h for h in hosts if all(PASSES[name](h, request) for name in filters)),
        key=lambda host: host.id,
    )
    if not able:
        return []
    ids: list[int] = []
    if policy == "round-robin":
        ids = [host.id for host in able]
    elif policy == "random":
        ids = by_chance([able[drawn(request.seed, 0, len(able))]], able, request.seed)
    elif policy == "two-choices":
        pair = {drawn(request.seed, n, len(able)) for n in (0, 1)}
        two = sorted((able[n] for n in pair), key=lambda h: (-left(h, request), h.id))
        ids = by_chance(two, able, request.seed)
    if ids:
        return drawn_by_group([(host, -1.0 * place) for place, host in enumerate(ids)], request)
    scores: list[Any]
    if policy == "weighted":
        scores = sums(able, request, weighers, hosts)
    elif policy == "adaptive" and sum(host.state == "up" for host in hosts) < 16:
        scores = [left(host, request) for host in able]
    elif policy in ("balanced-fit", "adaptive"):
        scores = [balanced(host, request, hosts) for host in able]
    else:
        scores = [SCORES[policy](host, request) for host in able]
    scored = [(host.id, score) for host, score in zip(able, scores, strict=True)]
    found = sorted(scored, key=lambda pair: (-pair[1], pair[0]))
    return found if policy == "weighted" else drawn_by_group(found, request)
