"""Which instances to move so that hosts become empty, or alike; and how such a plan is carried out.

A plan is a list to review. Nothing here knows how an instance is moved: `carry_out` asks a `Mover`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

from treadle.errors import InvalidInput, TreadleError
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import HostRow, PlacementRequest
from treadle.scheduler.simulate_cloud import CloudNow
from treadle.scheduler.simulate_trace import Arrival
from treadle.scheduler.table import HostTable

Goal = Literal["consolidate", "spread"]
LEAST_GAIN = 1e-3
"""What a spreading move must take off the sum of squared loads to be worth it."""


@dataclass(frozen=True, slots=True)
class Move:
    """One instance from a host to another (ids).

    `gain`: consolidate: hosts that become empty, shared among the moves that empty one; spread:
    what the sum over hosts of load**2 goes down by, with load = the part that is used of what the
    host has least left of (0 to 1). `cost_mib`: memory and disk that are copied, MiB, at most.
    """

    instance: str
    source: int
    target: int
    gain: float
    cost_mib: int


@dataclass(frozen=True, slots=True)
class Rebalancing:
    """A plan: its moves in the order in which they are to be made.

    `fixed`: instances that were left alone, and why. Empty hosts and the highest load are counted
    over hosts that are up, before and after.
    """

    goal: Goal
    moves: tuple[Move, ...]
    fixed: dict[str, str]
    empty: tuple[int, int]
    highest_load: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Rebalancing:
        """Build it from what `to_dict` gave. Errors: `InvalidInput`."""
        try:
            moves = tuple(Move(**move) for move in data["moves"])
            return cls(
                data["goal"], moves, dict(data["fixed"]), tuple(data["empty"]),
                tuple(data["highest_load"]),
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            mend = "it is not what 'treadle rebalance --plan --save FILE' wrote"
            raise InvalidInput("plan", str(error), mend) from error


def load_of(row: HostRow) -> float:
    """The part of the host that is used, of what it has least left of: 0 to 1, and over."""
    free = min(
        free * part for free, part in (
            (row.free_vcpus, row.part_of_vcpus), (row.free_memory_mib, row.part_of_memory),
        ) if part > 0
    ) if row.part_of_vcpus > 0 or row.part_of_memory > 0 else 1.0
    return 1.0 - free


class _Board:
    """The hosts, and who is where, while a plan is made."""

    def __init__(self, cloud: CloudNow, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.table = HostTable(cloud.hosts)
        self.on: dict[int, dict[str, Arrival]] = {host.id: {} for host in cloud.hosts}
        self.fixed: dict[str, str] = {}
        for one in cloud.running:
            host = one.host
            if host is None or host not in self.on:
                continue
            self.table.use(host, one.vcpus, one.memory_mib, one.disk_mib)
            self.on[host][one.name] = one
            if one.wish is None:
                self.fixed[one.name] = "there is no record of what it asked for"
            elif one.wish.group is not None:
                self.fixed[one.name] = "it is in a group whose rules its host is part of"
            elif one.wish.numa_nodes or one.wish.pci:
                self.fixed[one.name] = "it has devices or nodes of its host"

    def row(self, host: int) -> HostRow:
        number = self.table.row_of(host)
        assert number is not None
        return self.table.rows[number]

    def up(self) -> Iterator[int]:
        return (host for host in self.on if self.row(host).static.state == "up")

    def request(self, one: Arrival, allowed: frozenset[int]) -> PlacementRequest:
        """What the scheduler is asked, where only some hosts are allowed."""
        only = allowed if one.wish is None or one.wish.only_hosts is None else (
            allowed & one.wish.only_hosts
        )
        return replace(one.request(0), only_hosts=only)

    def target(self, one: Arrival, allowed: frozenset[int]) -> int | None:
        """Where the scheduler would put it, of the hosts that are allowed."""
        return self.scheduler.pick(self.table, self.request(one, allowed))

    def targets(
        self, some: Sequence[Arrival], allowed: frozenset[int]
    ) -> Sequence[int | None]:
        """Where the scheduler would put all of them."""
        return self.scheduler.place(
            self.table.columns(), [self.request(one, allowed) for one in some]
        )

    def move(self, one: Arrival, source: int, target: int) -> None:
        self.table.use(source, -one.vcpus, -one.memory_mib, -one.disk_mib, -1)
        self.table.use(target, one.vcpus, one.memory_mib, one.disk_mib)
        del self.on[source][one.name]
        self.on[target][one.name] = one

    def figures(self) -> tuple[int, float]:
        hosts = list(self.up())
        return (
            sum(1 for host in hosts if not self.row(host).instances),
            max((load_of(self.row(host)) for host in hosts), default=0.0),
        )


def make_plan(
    cloud: CloudNow, goal: Goal, filters: Sequence[str], most: int = 100, *, solve: bool = False
) -> Rebalancing:
    """At most `most` moves towards the goal, each allowed by the filters at its turn.

    consolidate: the host with the least on it is emptied onto others that are in use, by best fit
    (`solve`: by the policy `solver`, for all that is on it at once), all or nothing, and so on with
    the next. spread: from the most loaded host, the instance goes
    to where the scheduler's worst fit puts it that lowers the sum of squared loads most.
    Instances in groups, or with devices of a host, are left where they are.
    """
    if most < 1:
        raise InvalidInput("most", most, "a whole number from 1 on is needed")
    if solve and goal == "spread":
        raise InvalidInput("solve", solve, "only consolidation is solved for")
    packing = "solver" if solve else "best-fit"
    policy = packing if goal == "consolidate" else "worst-fit"
    wanted = list(dict.fromkeys(("state", "capacity", *filters, "pinned")))
    board = _Board(cloud, Scheduler(policy, wanted, {}))
    empty, load = board.figures()
    moves = (_consolidate if goal == "consolidate" else _spread)(board, most)
    after, lower = board.figures()
    return Rebalancing(goal, tuple(moves), board.fixed, (empty, after), (load, lower))


def _consolidate(board: _Board, most: int) -> list[Move]:
    moves: list[Move] = []
    tried: set[int] = set()
    while len(moves) < most:
        used = [host for host in board.up() if board.on[host] and host not in tried]
        if not used:
            break
        source = min(used, key=lambda host: (load_of(board.row(host)), host))
        tried.add(source)
        leaving = sorted(
            board.on[source].values(), key=lambda one: (-one.memory_mib, -one.vcpus, one.name)
        )
        others = frozenset(
            host for host in board.up() if host != source and board.row(host).instances
        )
        if len(moves) + len(leaving) > most or board.row(source).instances > len(leaving):
            continue
        if any(one.name in board.fixed for one in leaving):
            continue
        targets = board.targets(leaving, others)
        made = [
            (one, target) for one, target in zip(leaving, targets, strict=True)
            if target is not None
        ]
        if len(made) < len(leaving):
            continue
        for one, target in made:
            board.move(one, source, target)
        moves += [
            Move(one.name, source, target, 1 / len(made), one.memory_mib + one.disk_mib)
            for one, target in made
        ]
        # What has been filled up shall not be emptied again.
        tried.update(target for _, target in made)
    return moves


def _spread(board: _Board, most: int) -> list[Move]:
    moves: list[Move] = []
    moved: set[str] = set()
    for _ in range(most):
        best: tuple[float, Arrival, int, int] | None = None
        hosts = sorted(board.up(), key=lambda host: (-load_of(board.row(host)), host))
        for source in hosts[:3]:
            others = frozenset(host for host in hosts if host != source)
            for one in list(board.on[source].values()):
                if one.name in board.fixed or one.name in moved:
                    continue
                target = board.target(one, others)
                if target is None:
                    continue
                gain = _gain(board, one, source, target)
                if gain > LEAST_GAIN and (best is None or gain > best[0]):
                    best = gain, one, source, target
        if best is None:
            break
        gain, one, source, target = best
        board.move(one, source, target)
        moved.add(one.name)
        moves.append(Move(one.name, source, target, gain, one.memory_mib + one.disk_mib))
    return moves


def _gain(board: _Board, one: Arrival, source: int, target: int) -> float:
    """By how much the loads' squares go down; 0 where the target would come to be higher than the
    source was."""
    def loads() -> tuple[float, float]:
        return load_of(board.row(source)), load_of(board.row(target))

    high, low = loads()
    board.move(one, source, target)
    left, risen = loads()
    board.move(one, target, source)
    return high**2 + low**2 - left**2 - risen**2 if risen <= high else 0.0


# -- carrying it out


class Mover(Protocol):
    """How an instance is moved while it runs."""

    def begin(self, move: Move, /) -> None:
        """Ask for the move; it goes on by itself. Errors: `TreadleError`."""
        ...

    def state(self, move: Move, /) -> Literal["moving", "done"] | str:
        """How it stands: "moving", "done", or why it has failed."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How moves are made: `at_once` at most, each for at most `seconds`, looked at each `look_s`
    seconds. `go_on`: also after one has failed, since none counts on the room of another."""

    at_once: int = 2
    seconds: float = 600.0
    look_s: float = 0.5
    go_on: bool = False


DEFAULT_PACE = Pace()
Outcome = Literal["done", "failed", "skipped"]
Tell = Callable[[Move, Outcome, str], None]


def carry_out(
    moves: Sequence[Move], mover: Mover, tell: Tell, stop: threading.Event,
    pace: Pace = DEFAULT_PACE,
) -> None:
    """Make the moves in their order until `stop` is set.

    Those under way then are waited for. A move to a host waits until earlier moves away from it
    have ended. After a failure no other move is begun (but see `Pace`): the room that the rest
    counts on may not be there. `tell` is called once for each move.
    """
    waiting = list(moves)
    under_way: dict[Move, float] = {}
    failed = False
    while waiting or under_way:
        for move in list(under_way):
            late = time.monotonic() - under_way[move] > pace.seconds
            said = _state(mover, move, late, pace.seconds)
            if said != "moving":
                del under_way[move]
                failed = failed or (said != "done" and not pace.go_on)
                tell(move, "done" if said == "done" else "failed", "" if said == "done" else said)
        if failed or stop.is_set():
            why = "an earlier one has failed" if failed else "it was stopped"
            for move in waiting:
                tell(move, "skipped", why)
            waiting = []
        while waiting and len(under_way) < pace.at_once:
            move = waiting[0]
            if any(other.source == move.target for other in under_way):
                break
            waiting.pop(0)
            try:
                mover.begin(move)
            except TreadleError as error:
                failed = not pace.go_on
                tell(move, "failed", str(error))
                break
            under_way[move] = time.monotonic()
        if under_way:
            stop.wait(pace.look_s) if not stop.is_set() else time.sleep(pace.look_s)


def _state(mover: Mover, move: Move, late: bool, seconds: float) -> str:
    try:
        said = mover.state(move)
    except TreadleError as error:
        # Asking has failed, the move may go on: it is asked again until its time is over.
        said = "moving" if not late else str(error)
    if said == "moving" and late:
        return f"it has not ended in {seconds:g} s"
    return said
