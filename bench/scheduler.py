"""Decisions of the scheduler: pick, claim, and the end of another instance, on one core.

Hosts are 75 % full of four sizes of instances, a quarter of them is in an aggregate that half of
the requests want, and a tenth of the requests are of anti-affine groups. Every filter that is on by
default is on. Times are the thread's own processor time, and of several rounds the best counts,
each figure by itself: what else the machine does only ever adds, by half and more for minutes.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import thread_time

from treadle.config import Settings
from treadle.scheduler import HostTable, HostView, PlacementRequest, Registry, Scheduler

SIZES = {"100": 100, "1k": 1_000, "10k": 10_000, "100k": 100_000}
FLAVORS = ((1, 2048, 20_000), (2, 4096, 40_000), (4, 8192, 80_000), (8, 16_384, 160_000))
VCPUS, MEMORY_MIB, DISK_MIB = 64, 192 * 1024, 4_000_000
FULL = 0.75
GROUPS, MEMBERS = 20, 8
SECONDS = 0.5
MOST = 50_000
COLD = 15
ROUNDS = 3

Amounts = tuple[int, int, int]


@dataclass
class Cluster:
    """Hosts, and what runs on them."""

    views: list[HostView]
    running: list[tuple[int, Amounts]]


def cluster(count: int) -> Cluster:
    """Hosts by chance about 75 % full: each between 50 % and 100 %."""
    chance = Random(count)
    views, running = [], []
    for number in range(1, count + 1):
        aim = VCPUS * (FULL + chance.uniform(-0.25, 0.25))
        used = [0, 0, 0]
        instances = 0
        while True:
            flavor = FLAVORS[chance.randrange(len(FLAVORS))]
            if used[0] + flavor[0] > aim:
                break
            used = [have + more for have, more in zip(used, flavor, strict=True)]
            instances += 1
            running.append((number, flavor))
        views.append(HostView(
            number, f"h{number}", "up", "x86_64", frozenset(), VCPUS, used[0], MEMORY_MIB, used[1],
            DISK_MIB, used[2], instances, zone="nova", rack=f"r{number % 40}",
            properties=(("disk", "ssd"),) if number % 4 == 0 else (), load=(number % 10) / 10,
        ))
    return Cluster(views, running)


def request(flavor: Amounts, aggregate: bool, seed: int, **more: object) -> PlacementRequest:
    """One request; `aggregate`: it wants the aggregate's hosts."""
    return PlacementRequest(
        f"i-{seed}", *flavor, seed=seed, flavors=FLAVORS,
        extra_specs=(("disk", "ssd"),) if aggregate else (), **more,  # type: ignore[arg-type]
    )


def decide(policy: str, hosts: Cluster, table: HostTable) -> dict[str, float]:
    """Decisions a second, the middle and the 99th part of a hundred, and a cold kind of request."""
    chosen = Settings().scheduler
    scheduler = Scheduler(policy, chosen.filters, chosen.weighers)
    chance = Random(1)
    running = list(hosts.running)
    groups: list[dict[int, int]] = [{} for _ in range(GROUPS)]
    for flavor in FLAVORS:
        for aggregate in (False, True):
            scheduler.pick(table, request(flavor, aggregate, 0))
    times: list[float] = []
    begun = thread_time()
    while len(times) < MOST and (len(times) < 10 or thread_time() - begun < SECONDS):
        number = len(times)
        more: dict[str, object] = {}
        group = None
        if number % 10 == 0:
            group = groups[chance.randrange(GROUPS)]
            if len(group) >= MEMBERS:
                group.clear()
            more = {"group": "anti-affinity", "group_hosts": tuple(sorted(group.items()))}
        flavor = FLAVORS[chance.randrange(len(FLAVORS))]
        asked = request(flavor, bool(chance.getrandbits(1)), number, **more)
        victim = chance.randrange(len(running))
        on, size = running[victim]
        start = thread_time()
        host = scheduler.pick(table, asked)
        if host is not None:
            table.use(host, *flavor)
        table.use(on, -size[0], -size[1], -size[2], -1)
        times.append(thread_time() - start)
        if host is None:
            running[victim] = running[-1]
            running.pop()
        else:
            running[victim] = host, flavor
            if group is not None:
                group[host] = 1
    cold = []
    for number in range(COLD):
        asked = request((3, 5000 + number, 50_000), True, 0)
        start = thread_time()
        scheduler.pick(table, asked)
        cold.append(thread_time() - start)
    times.sort()
    cold.sort()
    return {
        "per_s": len(times) / sum(times),
        "p50_ms": times[len(times) // 2] * 1000,
        "p99_ms": times[len(times) * 99 // 100] * 1000,
        "cold_ms": cold[len(cold) // 2] * 1000,
    }


def scheduler(_folder: Path) -> dict[str, float]:
    """Every policy at every size; the keys are POLICY_WHAT_SIZE."""
    figures: dict[str, float] = {}
    for size, count in SIZES.items():
        hosts = cluster(count)
        # Rounds of one policy are some seconds apart.
        for policy in [*Registry().names("policy")] * ROUNDS:
            table = HostTable(hosts.views)
            gc.collect()
            gc.freeze()
            for what, value in decide(policy, hosts, table).items():
                key = f"{policy.replace('-', '_')}_{what}_{size}"
                better = max if what == "per_s" else min
                figures[key] = better(value, figures.get(key, value))
            gc.unfreeze()
    return figures
