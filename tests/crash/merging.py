"""Cases that come to the same world are one from there on: what comes of it is found once.

Between two passes, the world and what the controller remembers are all that the rest follows from
(`likeness`). So a case that comes to where one was before ends as that did. It is exhaustive in
states, and spares repetitions. Some cases are run to their end all the same and compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from brain import Brain, Memory
from likeness import likeness
from world import World

from treadle.compute.model import State


@dataclass(frozen=True)
class End:
    """How a case ends: what was wrong, from some moment on, and the instances."""

    wrong: tuple[str, ...]
    rows: tuple[tuple[int, State, str | None, bool], ...]
    """Number, state, fault, and whether it is all or none."""


class Known(BaseException):
    """It has been here before; `end` is what came of it."""

    def __init__(self, end: End) -> None:
        self.end = end


Known_ = dict[bytes, tuple[float | None, End]]


@dataclass
class _Visit:
    key: bytes
    left: bytes
    """The key where the time did not suffice: with the time that was left."""
    at: float
    wrong: int
    took: float | None = None
    """Until all was as wanted."""
    over: bool = False


class Merged:
    """What came of each state that the cases of one scenario have been in."""

    def __init__(self, world: World, known: Known_ | None = None) -> None:
        """`known`: of other scenarios, for as long as the code is the same."""
        self._world = world
        self._known = {} if known is None else known
        self._path: list[_Visit] = []
        self._proving = False
        self.expected: End | None = None
        """What the case shall come to, where it is one that is run to its end all the same."""
        self._resting = True
        self.hits = self.visits = 0

    def begin(self, *, proving: bool) -> None:
        """Follow a case, from its fault on."""
        self._path = []
        self._proving = proving
        self.expected = None
        self._resting = False

    def rest(self) -> None:
        """Until the next case begins."""
        self._resting = True

    def at_birth(self, end: float) -> None:
        """Before there is a controller, which will know nothing and has until `end`. Errors:
        `Known`."""
        self._look(Memory.of_new(self._world), end)

    def at(self, brain: Brain, end: float) -> None:
        """Errors: `Known`."""
        if not self._resting:
            self._look(brain.memory(), end)

    def _look(self, memory: Memory, end: float) -> None:
        world = self._world
        if self.expected is not None:
            return
        assert world.left is None
        self.visits += 1
        now = world.clock.now
        key = blake2b(b"%d" % world.stage + likeness(world, memory), digest_size=20).digest()
        left = key + b"%.4f" % (end - now)
        found = self._known.get(key)
        if found is None or found[0] is None or now + found[0] > end:
            found = self._known.get(left)
        if found is None:
            self._path.append(_Visit(key, left, now, len(world.wrong)))
            return
        self.hits += 1
        took, known = found
        if self._proving:
            self.expected = End((*world.wrong, *known.wrong), known.rows)
        self._drive_over(None if took is None else now + took)
        known = End((*world.wrong, *known.wrong), known.rows)
        self._keep(known)
        if not self._proving:
            raise Known(known)

    def over(self, settled: bool) -> None:
        """The drive has ended."""
        self._drive_over(self._world.clock.now if settled else None)

    def _drive_over(self, at: float | None) -> None:
        for visit in reversed(self._path):
            if visit.over:
                break
            visit.over = True
            visit.took = None if at is None else at - visit.at

    def ended(self, end: End) -> None:
        """The case was run to its end."""
        if self.expected is None:
            self._keep(end)

    def _keep(self, end: End) -> None:
        for visit in self._path:
            key = visit.left if visit.took is None else visit.key
            self._known[key] = visit.took, End(end.wrong[visit.wrong:], end.rows)
        self._path = []
