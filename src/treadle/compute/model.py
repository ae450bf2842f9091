"""What an instance is: frozen values, no behaviour beyond reading them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple


class Goal(StrEnum):
    """What the instance shall come to be. `FAILED`: taken off its host, kept as an error.
    `OFFLOADED`: taken off its host, kept as an image."""

    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    DELETED = "deleted"
    FAILED = "failed"
    OFFLOADED = "offloaded"


class State(StrEnum):
    """What the instance was last seen, or brought, to be."""

    BUILDING = "building"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    ERROR = "error"
    DELETED = "deleted"
    OFFLOADED = "offloaded"


class Phase(StrEnum):
    """How far the instance is tied to a host.

    It may be moved to another host without asking the first only before `DEFINED`: nothing has
    been started until then. `LEAVING`: the host refused it; what it holds there is being removed.
    """

    QUEUED = "queued"
    PLACED = "placed"
    DEFINED = "defined"
    LEAVING = "leaving"


class Mode(StrEnum):
    """What the instance is besides running or not. One at a time.

    `RESIZED`: its new size can still be taken back. `SHELVED`: kept as an image; with
    `Goal.OFFLOADED` as that alone. `ERROR`: an administrator has marked it so.
    """

    NORMAL = ""
    RESCUED = "rescued"
    RESIZED = "resized"
    SHELVED = "shelved"
    SOFT_DELETED = "soft-delete"
    ERROR = "error"


class Task(StrEnum):
    """What is being done for a user, in the words of OpenStack's task states."""

    SCHEDULING = "scheduling"
    SPAWNING = "spawning"
    POWERING_ON = "powering-on"
    POWERING_OFF = "powering-off"
    REBOOTING = "rebooting"
    REBOOTING_HARD = "rebooting_hard"
    PAUSING = "pausing"
    UNPAUSING = "unpausing"
    SUSPENDING = "suspending"
    RESUMING = "resuming"
    RESCUING = "rescuing"
    UNRESCUING = "unrescuing"
    REBUILDING = "rebuilding"
    RESIZE_PREP = "resize_prep"
    RESIZE_FINISH = "resize_finish"
    RESIZE_CONFIRMING = "resize_confirming"
    RESIZE_REVERTING = "resize_reverting"
    SHELVING = "shelving"
    SHELVING_OFFLOADING = "shelving_offloading"
    UNSHELVING = "unshelving"
    IMAGE_SNAPSHOT = "image_snapshot"
    IMAGE_UPLOADING = "image_uploading"
    UPDATING_PASSWORD = "updating_password"
    MIGRATING = "migrating"
    ATTACHING_INTERFACE = "attaching_interface"
    DETACHING_INTERFACE = "detaching_interface"
    SOFT_DELETING = "soft-deleting"
    RESTORING = "restoring"
    DELETING = "deleting"


class Ha(StrEnum):
    """What shall become of the instance where its host is off for sure: built anew on another, from
    its image, or left until its host is back. `UNSAID`: as the settings say."""

    UNSAID = ""
    EVACUATE = "evacuate"
    WAIT = "wait"


HA_KEY = "treadle:ha"
"""The key under which an instance's metadata, or else its flavor's extra specs, say it."""


MOST_KEYS = ("treadle:max_vcpus", "treadle:max_memory_mib")
"""The keys under which a flavor's extra specs say what its instances can come to while they run."""


NUMA_KEY = "hw:numa_nodes"
"""The key under which a flavor's extra specs say of how many NUMA nodes its instances are made."""


def numa_nodes(flavor: str) -> int:
    """What a flavor, as an instance's row keeps it, says by `NUMA_KEY`; 0: nothing."""
    if NUMA_KEY not in flavor:
        return 0
    return nodes_wanted(json.loads(flavor).get("extra_specs", {}))


def nodes_wanted(specs: Mapping[str, Any]) -> int:
    """What extra specs say by `NUMA_KEY`; 0: nothing."""
    said = str(specs.get(NUMA_KEY, ""))
    return int(said) if re.fullmatch("[0-9]{1,9}", said) else 0


@dataclass(frozen=True, slots=True)
class Instance:
    """One row of the instance table. Memory in MiB, disk in GiB, times in seconds since 1970.

    `revision` counts what users asked for; `generation` is raised by each reboot, and the guest
    that runs must have been started with it; `deadline` is when the goal is given up.
    `mode` is wanted, `settled_mode` has been reached; `ends_at` is when that mode ends by itself.
    `task` is what is being done, for people: nothing is decided by it but whether another wish may
    come. `disks` are the numbers of the root disk's volumes, the uppermost first; `disk_image_id`
    is the image under the last of them where that is not `image_id`. `shelf_image_id` is the image
    that it is kept as, `snapshot_image_id` one that is being made of it. `only_host_id`: where it
    must be placed, if anywhere. `files` are what its first boot puts there, as `injected.text` has
    them. `before` is a JSON object:
    columns as they were before the wish that is being carried out, or can still be taken back.
    `ha`, `most` and `nodes` are no columns: its metadata or its flavor say them. `most`: the vcpus
    and the memory that it can come to while it runs, each at least what it has. `nodes`: the NUMA
    nodes that it is made of, 0: as it comes.
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
    mode: Mode = Mode.NORMAL
    settled_mode: Mode = Mode.NORMAL
    task: Task | None = None
    ends_at: float | None = None
    disks: tuple[int, ...] = (1,)
    disk_image_id: int | None = None
    rescue_image_id: int | None = None
    shelf_image_id: int | None = None
    snapshot_image_id: int | None = None
    before: str = ""
    locked_by: str | None = None
    locked_reason: str | None = None
    user_id: str = ""
    group_id: int | None = None
    only_host_id: int | None = None
    files: str = ""
    ha: Ha = Ha.UNSAID
    kept: int | None = None
    most: tuple[int, int] | None = None
    nodes: int = 0


SETTLED = {
    State.RUNNING: Goal.RUNNING,
    State.STOPPED: Goal.STOPPED,
    State.PAUSED: Goal.PAUSED,
    State.SUSPENDED: Goal.SUSPENDED,
    State.ERROR: Goal.FAILED,
    State.DELETED: Goal.DELETED,
    State.OFFLOADED: Goal.OFFLOADED,
}
VM_STATES = {
    State.BUILDING: "building",
    State.RUNNING: "active",
    State.STOPPED: "stopped",
    State.PAUSED: "paused",
    State.SUSPENDED: "suspended",
    State.ERROR: "error",
    State.DELETED: "deleted",
    State.OFFLOADED: "shelved_offloaded",
}
BUSY_WORDS = {
    Goal.DELETED: "deleting",
    Goal.STOPPED: "stopping",
    Goal.PAUSED: "pausing",
    Goal.SUSPENDED: "suspending",
    Goal.OFFLOADED: "shelving",
}


class Standing(NamedTuple):
    """What of an instance `vm_state` and `task_state` go by."""

    state: State
    settled_mode: Mode
    goal: Goal
    task: Task | None
    host_id: int | None


def vm_state(instance: Instance | Standing) -> str:
    """What the instance has last come to be, in the words of OpenStack's vm_state: active building
    paused suspended stopped rescued resized soft-delete deleted error shelved shelved_offloaded."""
    if instance.state in (State.BUILDING, State.ERROR, State.DELETED):
        return VM_STATES[instance.state]
    if instance.state is State.OFFLOADED and instance.settled_mode is Mode.SHELVED:
        return VM_STATES[instance.state]
    return instance.settled_mode or VM_STATES[instance.state]


def task_state(instance: Instance | Standing) -> str | None:
    """What is being done with the instance, one of `Task`; None where nothing is."""
    if instance.goal is Goal.DELETED:
        return None if instance.state is State.DELETED else Task.DELETING
    if instance.state is State.BUILDING and instance.goal is not Goal.FAILED:
        return Task.SCHEDULING if instance.host_id is None else Task.SPAWNING
    return instance.task


def is_settled(instance: Instance) -> bool:
    """Whether the instance was brought to be as it is wanted, and nobody has wished since."""
    return (
        SETTLED.get(instance.state) is instance.goal
        and instance.mode is instance.settled_mode
        and (instance.host_id is None or instance.generation == instance.settled_generation)
    )


def word(instance: Instance) -> str:
    """One word for people: the state, or what is being done where it is not yet as wanted."""
    goal, state = instance.goal, instance.state
    if state is State.BUILDING and goal is Goal.RUNNING:
        return "building"
    if SETTLED.get(state) is goal:
        if instance.task is not None:
            return instance.task
        if goal is Goal.RUNNING and instance.generation != instance.settled_generation:
            return "rebooting"
        return instance.settled_mode or str(state)
    if goal is Goal.FAILED:
        return "error"
    if goal is Goal.RUNNING:
        return "resuming" if state in (State.PAUSED, State.SUSPENDED) else "starting"
    return BUSY_WORDS[goal]
