"""What is to be believed of a host that does not answer: one pure function of the evidence.

"Gone" is said late and seldom: whoever says it has the host switched off. A host that anybody
reaches is not gone, whatever libvirt does there; nor is one where it is we who are cut off.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from treadle.hypervisor.base import Reach

ALIVE = frozenset({Reach.OPEN, Reach.REFUSED})


class Verdict(StrEnum):
    """`ANSWERS`: libvirt does. `DAEMON`: the host runs and its libvirt does not answer: it is being
    restarted, or is broken. `DOUBT`: silent, not for long enough. `UNSEEN`: there is no way to
    tell from here. `ASIDE`: others reach it, we do not. `CUT_OFF`: it is we who reach too few.
    `GONE`: take it for dead."""

    ANSWERS = "answers"
    DAEMON = "daemon"
    DOUBT = "doubt"
    UNSEEN = "unseen"
    ASIDE = "aside"
    CUT_OFF = "cut off"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Patience:
    """`silent_s`: how long nothing may have been heard of a host before it is gone, in seconds.
    `share`: the part of all hosts that may be silent at once; more, and nobody is gone."""

    silent_s: float = 8.0
    share: float = 0.5


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one host now. `libvirt`: whether it answers over the connection that there
    is. `silent_s`: seconds since anything was heard of it. `silent`, `hosts`: how many hosts are
    silent, this one included, and how many there are. `peers`: what other hosts that answer say of
    it when they are asked; empty where none was asked or could tell."""

    libvirt: bool
    reach: Reach
    silent_s: float
    silent: int
    hosts: int
    peers: tuple[Reach, ...] = ()


def judge(seen: Evidence, patience: Patience) -> Verdict:
    """The verdict. Without `peers` it is what would be said if none of them reached the host."""
    if seen.libvirt:
        return Verdict.ANSWERS
    if seen.reach in ALIVE:
        return Verdict.DAEMON
    if seen.reach is Reach.UNKNOWN:
        return Verdict.UNSEEN
    if seen.silent_s < patience.silent_s:
        return Verdict.DOUBT
    if seen.silent >= seen.hosts or seen.silent > patience.share * seen.hosts:
        return Verdict.CUT_OFF
    if ALIVE & set(seen.peers):
        return Verdict.ASIDE
    return Verdict.GONE
