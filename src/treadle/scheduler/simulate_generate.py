"""A generator of traces with the shape of a public cloud's: needs no file, seeded.

What it has of real ones (the public Azure trace of 2017, Cortez et al., Resource Central, SOSP
2017): requests in batches with a long tail, all of one size; a daily wave; mostly small sizes of
one ratio of memory to cores, few with four times as much memory that stay long; lifetimes that
are alike within a batch, most under an hour, with a few per cent that never end and make up most
of the load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from treadle.errors import InvalidInput
from treadle.scheduler.simulate_trace import GIB, Arrival, Trace

TICK_S = 300


@dataclass(frozen=True, slots=True)
class Size:
    """A size that is asked for. Memory and disk in MiB; `share` of the batches, in any unit.

    `stays`: how much likelier than others it is to outlive the trace.
    """

    vcpus: int
    memory_mib: int
    disk_mib: int = 0
    share: float = 1.0
    stays: float = 1.0


SIZES = (
    Size(1, 768, 0, 0.02, 1.5), Size(1, 1792, 0, 0.54), Size(2, 3584, 0, 0.22, 1.5),
    Size(4, 7168, 0, 0.12, 2.0), Size(8, 14336, 0, 0.08), Size(2, 14 * GIB, 0, 0.005, 6.0),
    Size(4, 28 * GIB, 0, 0.005, 6.0), Size(8, 56 * GIB, 0, 0.01, 9.0),
)
"""What is asked for where nothing else is said."""
_BATCH_MEAN = 5.0
_STAYS = 0.045
"""How many of a batch's VMs outlive the trace, before the size's factor."""


def generate(vms: int, hours: float, seed: int, sizes: Sequence[Size] = SIZES) -> Trace:
    """About `vms` arrivals (exactly that many) over `hours`. The same seed, the same trace.

    Batches come by a Poisson process whose rate follows the hour of the day (from 0.5 to 1.5 of
    the mean); their sizes are geometric mixed with a tail; lifetimes are log-normal, one median a
    batch (40 minutes), a spread within it. Errors: `InvalidInput`.
    """
    if not 1 <= vms <= 50_000_000:
        raise InvalidInput("vms", vms, "from 1 to 50000000 can be generated")
    if not (math.isfinite(hours) and 0.1 <= hours <= 24 * 3660):
        raise InvalidInput("hours", hours, "from 0.1 to 87840 hours can be generated")
    if seed < 0:
        raise InvalidInput("seed", seed, "a whole number from 0 on is needed")
    rng = np.random.default_rng(seed)
    shares = np.array([size.share for size in sizes], dtype=np.float64)
    shares /= shares.sum()
    counts: list[int] = []
    total = 0
    while total < vms:
        wide = rng.random() < 0.03
        count = int(rng.geometric(1 / (40.0 if wide else _BATCH_MEAN * 0.77)))
        count = min(count, 800, vms - total)
        counts.append(count)
        total += count
    ticks = max(1, int(hours * 3600 / TICK_S))
    hour = np.arange(ticks) * TICK_S / 3600
    rate = 1.0 + 0.5 * np.sin(2 * np.pi * (hour - 9) / 24)
    moments = np.sort(rng.choice(ticks, size=len(counts), p=rate / rate.sum())) * TICK_S
    chosen = rng.choice(len(sizes), size=len(counts), p=shares)
    medians = np.exp(rng.normal(math.log(2400), 1.5, size=len(counts)))
    arrivals: list[Arrival] = []
    for batch, count in enumerate(counts):
        size = sizes[chosen[batch]]
        at = float(moments[batch])
        stays = rng.random(count) < _STAYS * size.stays
        lives = np.maximum(30.0, medians[batch] * np.exp(rng.normal(0, 0.3, size=count)))
        for place in range(count):
            arrivals.append(Arrival(
                f"g{len(arrivals)}", at, math.inf if stays[place] else at + float(lives[place]),
                size.vcpus, size.memory_mib, size.disk_mib, str(batch),
            ))
    return Trace(
        f"generated: {vms} VMs in {hours:g} hours, seed {seed}", arrivals, 0.0,
        float(ticks * TICK_S), batched=True,
    )
