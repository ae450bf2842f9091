"""What is believed of a host that does not answer, as a table."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from treadle.compute.failure.verdict import ALIVE, Evidence, Patience, Verdict, judge
from treadle.hypervisor.base import Reach

PATIENCE = Patience(silent_s=8.0, share=0.5)
DEAD = Evidence(libvirt=False, reach=Reach.SILENT, silent_s=9.0, silent=1, hosts=3)


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, Verdict.GONE),
    ({"libvirt": True}, Verdict.ANSWERS),
    ({"libvirt": True, "reach": Reach.UNKNOWN}, Verdict.ANSWERS),
    ({"reach": Reach.OPEN}, Verdict.DAEMON),
    ({"reach": Reach.REFUSED}, Verdict.DAEMON),
    ({"reach": Reach.OPEN, "silent_s": 900.0}, Verdict.DAEMON),
    ({"reach": Reach.UNKNOWN, "silent_s": 900.0}, Verdict.UNSEEN),
    ({"silent_s": 7.9}, Verdict.DOUBT),
    ({"silent_s": 8.0}, Verdict.GONE),
    ({"silent": 2}, Verdict.CUT_OFF),
    ({"silent": 3}, Verdict.CUT_OFF),
    ({"silent": 1, "hosts": 1}, Verdict.CUT_OFF),
    ({"silent": 1, "hosts": 2}, Verdict.GONE),
    ({"silent": 2, "hosts": 4}, Verdict.GONE),
    ({"silent": 3, "hosts": 5}, Verdict.CUT_OFF),
    ({"silent": 40, "hosts": 100}, Verdict.GONE),
    ({"peers": (Reach.SILENT, Reach.SILENT)}, Verdict.GONE),
    ({"peers": (Reach.SILENT, Reach.OPEN)}, Verdict.ASIDE),
    ({"peers": (Reach.REFUSED,)}, Verdict.ASIDE),
    ({"peers": (Reach.UNKNOWN,)}, Verdict.GONE),
    ({"peers": (Reach.OPEN,), "silent": 3}, Verdict.CUT_OFF),
])
def test_the_table(change: dict[str, object], verdict: Verdict) -> None:
    assert judge(replace(DEAD, **change), PATIENCE) is verdict  # type: ignore[arg-type]


def test_nobody_who_is_reached_by_anyone_is_ever_gone() -> None:
    for libvirt, reach, silent_s, silent, peer in product(
        (False, True), Reach, (0.0, 8.0, 1e9), range(1, 6), Reach
    ):
        seen = Evidence(libvirt, reach, silent_s, silent, 5, (Reach.SILENT, peer))
        if judge(seen, Patience(0.0, 1.0)) is Verdict.GONE:
            assert not libvirt
            assert reach is Reach.SILENT
            assert peer not in ALIVE
            assert silent < 5
