"""The record of a decision: what was asked, who was refused and why, who was chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from treadle.errors import CannotPlace
from treadle.scheduler.model import PlacementRequest
from treadle.scheduler.plugin import Cause

SHOWN_HOSTS = 100
SHOWN_TOP = 5


@dataclass(frozen=True, slots=True)
class Refusal:
    """A host that was refused: the first filter that did, and what it said."""

    host: int
    name: str
    filter: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """A host near the top of the order. `shares` are the weighers' parts of `score`."""

    host: int
    name: str
    score: float
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Detail:
    """The part of a decision's record that is worked out only when it is read."""

    refusals: tuple[Refusal, ...]
    top: tuple[Ranked, ...]
    causes: tuple[Cause, ...]


@dataclass(slots=True, eq=False)
class Decision:
    """The record of one decision: what was asked, who was refused and why, who was chosen.

    `version` is the snapshot's. `fits` is the length of the order that came out. `refused` maps
    each filter, in its order, to the number of hosts that it was the first to refuse. `conflicts`
    are hosts whose claim failed, in order; `winner` the one whose claim succeeded.
    """

    request: PlacementRequest
    version: int
    policy: str
    hosts: int
    fits: int
    refused: dict[str, int]
    notes: tuple[str, ...] = ()
    conflicts: list[int] = field(default_factory=list)
    winner: int | None = None
    winner_name: str = ""
    _detail: Detail | None = field(default=None, repr=False)
    _build: Callable[[], Detail] | None = field(default=None, repr=False)
    _names: Callable[[int], str] | None = field(default=None, repr=False)

    @property
    def detail(self) -> Detail:
        """The parts below, worked out at the first reading."""
        if self._detail is None:
            self._detail = self._build() if self._build else Detail((), (), ())
        return self._detail

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The refused hosts by id, the first 100 of them."""
        return self.detail.refusals

    @property
    def top(self) -> tuple[Ranked, ...]:
        """The first 5 of the order."""
        return self.detail.top

    @property
    def causes(self) -> tuple[Cause, ...]:
        """Why hosts were refused, most hosts first."""
        return self.detail.causes

    def lost(self, host: int) -> None:
        """Note that the claim on `host` failed: somebody else took the space."""
        self.conflicts.append(host)

    def won(self, host: int) -> None:
        """Note that the claim on `host` succeeded."""
        self.winner = host
        self.winner_name = self._names(host) if self._names else ""

    def to_dict(self) -> dict[str, Any]:
        """Give the whole record as JSON-able values, for operators: it names hosts."""
        return {
            "request": self.request.to_dict(),
            "version": self.version,
            "policy": self.policy,
            "hosts": self.hosts,
            "fits": self.fits,
            "refused": dict(self.refused),
            "refusals": [
                {"host": r.host, "name": r.name, "filter": r.filter, "reason": r.reason}
                for r in self.refusals
            ],
            "causes": [cause.to_dict() for cause in self.causes],
            "top": [
                {"host": r.host, "name": r.name, "score": r.score, "shares": dict(r.shares)}
                for r in self.top
            ],
            "notes": list(self.notes),
            "conflicts": list(self.conflicts),
            "winner": self.winner,
            "winner_name": self.winner_name,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        """Build it from what `to_dict` gave, for instance out of the database."""
        detail = Detail(
            tuple(Refusal(**refusal) for refusal in data["refusals"]),
            tuple(Ranked(**ranked) for ranked in data["top"]),
            tuple(Cause(**cause) for cause in data["causes"]),
        )
        return cls(
            PlacementRequest.from_dict(data["request"]),
            data["version"],
            data["policy"],
            data["hosts"],
            data["fits"],
            dict(data["refused"]),
            tuple(data["notes"]),
            list(data["conflicts"]),
            data["winner"],
            data["winner_name"],
            detail,
        )

    def public(self) -> dict[str, Any]:
        """Give what a tenant may see: counts for each cause, no host's name, id or amount."""
        refused: dict[str, int] = {}
        for cause in self.causes:
            refused[cause.code] = refused.get(cause.code, 0) + cause.hosts
        return {
            "instance_id": self.request.instance_id,
            "placed": self.winner is not None,
            "hosts": self.hosts,
            "fits": self.fits,
            "refused": refused,
            "message": sentence(self, public=True),
        }

    def error(self) -> CannotPlace:
        """Give the error that says that no host can take it; it names hosts."""
        return CannotPlace(sentence(self), {r.name: r.reason for r in self.refusals})


def sentence(decision: Decision, *, public: bool = False) -> str:
    """Say in one sentence how a decision came out; `public` leaves out hosts and amounts."""
    if decision.winner is not None:
        where = "" if public else f" on {decision.winner_name or decision.winner}"
        return f"placed{where}: {decision.fits} of {_count(decision.hosts)} could take it"
    tried = len(decision.conflicts)
    if decision.fits and tried >= decision.fits:
        return f"{_count(tried)} could take it, but the space was taken meanwhile"
    if decision.fits:
        return f"{decision.fits} of {_count(decision.hosts)} can take it"
    if not decision.hosts:
        return "no host can take it: there are none"
    phrases = [
        cause.phrase(noun=number == 0, detail=not public)
        for number, cause in enumerate(decision.causes)
    ]
    if not phrases:
        policy = "the policy" if public else f"the policy {decision.policy!r}"
        phrases = [f"{policy} left out all that could"]
    return f"no host can take it: {', '.join(phrases)}"


def _count(hosts: int) -> str:
    return "1 host" if hosts == 1 else f"{hosts} hosts"
