"""What an instance is: frozen values, no behaviour beyond reading them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Goal(StrEnum):
    """What the instance shall come to be. `FAILED`: taken off its host, kept as an error."""

    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    DELETED = "deleted"
    FAILED = "failed"


class State(StrEnum):
    """What the instance was last seen, or brought, to be."""

    BUILDING = "building"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    ERROR = "error"
    DELETED = "deleted"


class Phase(StrEnum):
    """How far the instance is tied to a host.

    It may be moved to another host without asking the first only before `DEFINED`: nothing has
    been started until then. `LEAVING`: the host refused it; what it holds there is being removed.
    """

    QUEUED = "queued"
    PLACED = "placed"
    DEFINED = "defined"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Instance:
    """One row of the instance table. Memory in MiB, disk in GiB, times in seconds since 1970.

    `revision` counts what users asked for; `generation` is raised by each reboot, and the guest
    that runs must have been started with it; `deadline` is when the goal is given up.
    """

    id: int
    uuid: str
    name: str
    flavor_id: int
    vcpus: int
    memory_mib: int
    disk_gib: int
    image_id: int
    mac: str
    user_data: str
    ssh_keys: tuple[str, ...]
    goal: Goal
    state: State
    phase: Phase
    revision: int
    generation: int
    settled_generation: int
    graceful: bool
    deadline: float
    attempts: int
    excluded: frozenset[int]
    batch: str
    rollback: bool
    host_id: int | None
    address: str | None
    fault: str | None
    created_at: float
    launched_at: float | None
    deleted_at: float | None
    hostname: str | None = None
    project_id: str = ""


BUSY_WORDS = {
    Goal.DELETED: "deleting",
    Goal.STOPPED: "stopping",
    Goal.PAUSED: "pausing",
    Goal.SUSPENDED: "suspending",
}
SETTLED = {
    State.RUNNING: Goal.RUNNING,
    State.STOPPED: Goal.STOPPED,
    State.PAUSED: Goal.PAUSED,
    State.SUSPENDED: Goal.SUSPENDED,
    State.ERROR: Goal.FAILED,
    State.DELETED: Goal.DELETED,
}


def shown_state(goal: Goal, state: State, generation: int, settled_generation: int) -> str:
    """One word for people: the state, or what is being done where it is not yet as wanted."""
    if state is State.BUILDING and goal is Goal.RUNNING:
        return "building"
    if SETTLED.get(state) is goal:
        if goal is Goal.RUNNING and generation != settled_generation:
            return "rebooting"
        return str(state)
    if goal is Goal.FAILED:
        return "error"
    if goal is Goal.RUNNING:
        return "resuming" if state in (State.PAUSED, State.SUSPENDED) else "starting"
    return BUSY_WORDS[goal]
