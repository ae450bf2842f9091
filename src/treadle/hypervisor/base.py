"""The boundary to a physical machine: one Protocol of about a dozen verbs.

Values in, values out. Every verb is idempotent and keyed by the instance's UUID, which is the
domain's UUID too: what is already so is success. Every call ends within its deadline with a value
or with one of the errors below; it never hangs. No verb may be called while a database transaction
is open (`treadle.db.engine.forbid_in_transaction` is what enforces it).

What only some hypervisors can do (console, probe) is a small Protocol of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from treadle.errors import Permanent, RetryLater


class HostUnreachable(RetryLater):
    """The host does not answer: refused, timed out, wrong key, connection lost."""


class VerbTimeout(HostUnreachable):
    """A verb did not end within its deadline. What it did on the host is unknown."""


class HostRefused(Permanent):
    """The host answered and refuses: another host may take it."""


class HostFull(HostRefused):
    """The host has no disk or memory left for it."""


class Unsupported(HostRefused):
    """This hypervisor has no such capability."""


class AtNextStart(HostRefused):
    """It is stored, but the guest goes on without it: it has effect from its next start on."""


class AgentFailed(HostRefused):
    """The guest's agent is not there, did not answer in time, or answered with a failure."""


class ImageBroken(Permanent):
    """The image itself is at fault: no host can use it."""


class Power(StrEnum):
    """What a domain is doing. `REMNANT`: no domain, but volumes of one are there."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    SAVED = "saved"
    REMNANT = "remnant"


class StopCause(StrEnum):
    """Why a domain is off. `GUEST`: the guest shut itself down, asked or of its own will."""

    NONE = "none"
    GUEST = "guest"
    FORCED = "forced"
    CRASHED = "crashed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Domain:
    """What a host says of one instance.

    `generation` is the one that the running guest was started with; of a domain that is not
    running, the one of its definition. 0 where it is not known. `stored`: of one that runs, the one
    of its definition, 0 where that is not known. `autostart`: whether it is started
    with its host; None where that is not known. `copied`: a copy of its disk is there; only
    `observe_all` tells. `defined`: False where it runs and its definition is gone. `changed`: what
    somebody else has changed in its stored definition: "memory", "vcpus", "disks", "cards", ...
    `room`: the vcpus and the memory in MiB that it can come to while it runs; None where it can be
    given no more. `disk_grows`: whether its root disk can become larger while it runs. `disk`: the
    number of the volume that it was moved onto for that, or is about to be; 0 where it is on the
    one that it was started with. `split`: it has gone on at another host before all its memory was
    there (post-copy): each of the two domains has a part that the other lacks. `torn`: so, and
    nothing brings the rest (`Moves.resume_move` does).
    """

    uuid: str
    power: Power
    generation: int = 0
    cause: StopCause = StopCause.NONE
    addresses: tuple[str, ...] = ()
    autostart: bool | None = None
    copied: bool = False
    defined: bool = True
    changed: tuple[str, ...] = ()
    room: tuple[int, int] | None = None
    disk_grows: bool = False
    disk: int = 0
    stored: int = 0
    split: bool = False
    torn: bool = False


class NumaCell(NamedTuple):
    """Processors and the memory that is near them: one NUMA node of a host. `cpus` names the
    processors as libvirt does ("0-3,8"), `vcpus` is how many they are."""

    id: int
    cpus: str
    vcpus: int
    memory_mib: int


class GuestNode(NamedTuple):
    """One NUMA node of a guest, with what it has, on the host's cell `cell`."""

    cell: int
    vcpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host is. Memory and disk in MiB; `disk_mib` is the whole pool.

    `virt_types` are what libvirt offers ("kvm", "qemu", "lxc", "test", ...), best first.
    `capabilities` names the optional things that work: "suspend", "graceful_stop", "console" (the
    log), "serial_console", "vnc_console", "agent", "diagnostics", ... `booted_at`: seconds since
    1970 by the controller's clock, to the minute; None where it is not known. `machines`: the full
    names of the machine types that its emulator offers; none where that counts for nothing.
    `processor` is the vendor and the model of what guests run on where they are not emulated, and
    `features` what that has; "" and none where that is not known. `load` is the part of its
    processors' time (0 to 1, in steps of 0.05) that was spent since it was last asked over this
    connection; None the first time, and where it is not counted. `cells`, by id, are its NUMA
    nodes that guests can be bound to; none where they cannot.

    `storage_token` is what the host has last written into its pool to say that it is there, and
    `storage_others` are those of other hosts that it sees in it, each "HOST_UUID.…": hosts that
    see each other's share their storage. "" where it writes none.
    """

    hostname: str
    host_uuid: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    arch: str
    virt_types: tuple[str, ...]
    libvirt_version: str
    hypervisor: str
    hypervisor_version: str
    capabilities: frozenset[str] = frozenset()
    booted_at: float | None = None
    storage_token: str = ""
    storage_others: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()
    processor: str = ""
    features: tuple[str, ...] = ()
    load: float | None = None
    cells: tuple[NumaCell, ...] = ()


@dataclass(frozen=True, slots=True)
class HostSetup:
    """What Treadle wants to find on a host: where volumes lie and which network guests join.

    `virt_type` is "auto" until a probe has found what boots. `subnet` is in CIDR form and belongs
    to this host alone; the host is its first address. `bridge`, where set, is an existing bridge
    to join instead of making a network.
    """

    pool: str = "treadle"
    pool_path: str = ""
    network: str = "treadle"
    subnet: str = ""
    bridge: str = ""
    virt_type: str = "auto"


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An image as a host needs to know it: content is named by `sha256` (64 hex digits)."""

    sha256: str
    format: str
    size_bytes: int
    virtual_bytes: int


@dataclass(frozen=True, slots=True)
class Seed:
    """What the guest is told at its first boot (cloud-init's NoCloud). `files` are pairs of an
    absolute path and the content in base64."""

    hostname: str
    user_data: str = ""
    ssh_keys: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """All that a host needs to define one instance. Memory in MiB, disk in GiB.

    `disks` are the numbers of the root disk's volumes, the uppermost first: each lies over the
    next, the last over `image`. Only the uppermost is ever made anew. `rescue`: boot from a disk
    of this image, the own one beside it; with `rescue_on`, a device and a bus, it comes after the
    others, which keep their names. `most`: the vcpus and the memory in MiB that it may come to
    while it runs, each at least what it has; where the host has no "grow", it counts for nothing.
    `mac` is that of its one network card, "" where it has none. `nodes`: the NUMA nodes that it is
    made of, bound each to its cell of the host; none: it has one and may be anywhere. With `nodes`,
    `most` counts for nothing.
    """

    uuid: str
    name: str
    generation: int
    vcpus: int
    memory_mib: int
    disk_gib: int
    mac: str
    image: ImageSpec | None
    seed: Seed
    metadata: Mapping[str, str] = field(default_factory=dict)
    disks: tuple[int, ...] = (1,)
    rescue: ImageSpec | None = None
    rescue_on: tuple[str, str] | None = None
    most: tuple[int, int] | None = None
    nodes: tuple[GuestNode, ...] = ()


NOT_BY_HOST = "not-by-host"
"""The key of `DomainSpec.metadata` with which a domain is never made to start with its host, but by
`autostart` alone."""


class EventKind(StrEnum):
    """What `watch` tells. Hints only: the truth is what `observe` says."""

    DOMAIN = "domain"
    HOST_LOST = "host_lost"


Watcher = Callable[[EventKind, str], None]
"""Called with the kind and the domain's UUID ("" for the host); must return at once."""


class Hypervisor(Protocol):
    """One physical machine. All verbs block; call them from a thread of that host."""

    def prepare(self, setup: HostSetup) -> None:
        """Connect, and make the storage pool and the network that `setup` names."""

    def assume(self, setup: Callable[[], HostSetup | None]) -> None:
        """Unless `prepare` comes first, have the next verb prepare the host with what `setup` gives
        then; None: it is not known yet. Does not connect. A verb that finds that the host cannot be
        prepared raises `HostUnreachable`."""

    def facts(self) -> HostFacts:
        """What the host is, measured now."""

    def observe(self, uuid: str) -> Domain | None:
        """The instance as the host has it; None where neither a domain nor a volume is left."""

    def observe_all(self) -> Sequence[Domain]:
        """Every domain (or remnant) that carries Treadle's mark. Foreign ones are not named."""

    def ensure_image(self, image: ImageSpec, content: Path) -> None:
        """Have the image on the host, whole and checked against its SHA-256, or not at all.

        Errors: `ImageBroken` where `content` is gone or does not hash to `image.sha256`.
        """

    def remove_image(self, sha256: str) -> None:
        """Take the image off the host. Errors: `HostRefused` where a disk is built on it."""

    def define(self, spec: DomainSpec) -> None:
        """Make the disk (unless it is there), the seed and the definition; of what is not running,
        remove the disks that `spec` does not name. Starts nothing.

        Errors: `HostRefused` where a disk under the uppermost is gone, or where its disk is in
        storage that hosts share and is another host's alone (`SharedStorage.take`).
        """

    def autostart(self, uuid: str, on: bool) -> None:
        """Have it started with its host, or not. Verbs that make it run or stop see to it too."""

    def start(self, uuid: str) -> None:
        """Run it; a saved one goes on where it was."""

    def restart(self, spec: DomainSpec) -> None:
        """Stop it now, `define` it and run that; a saved memory image is thrown away. What is of
        this generation already is only run. On an error it may be off, and defined or not."""

    def pause(self, uuid: str) -> None:
        """Stop its virtual processors; memory stays."""

    def resume(self, uuid: str) -> None:
        """Let a paused one go on."""

    def suspend(self, uuid: str) -> None:
        """Write its memory to the host's disk and stop it."""

    def shut_down(self, uuid: str) -> None:
        """Ask the guest to stop (ACPI). Returns at once; the guest may ignore it."""

    def power_off(self, uuid: str) -> None:
        """Stop it now. A saved memory image is thrown away."""

    def undefine(self, uuid: str) -> None:
        """Stop it and remove the domain and every volume of its own, but for volumes that another
        host has as well. Never touches a domain without Treadle's mark."""

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` on every change of a domain, and when the host is lost."""

    def close(self) -> None:
        """Let the connection go."""


@runtime_checkable
class Console(Protocol):
    """A hypervisor that keeps what guests print on their serial port."""

    def console_log(self, uuid: str, limit: int) -> bytes:
        """At most the last `limit` bytes that the guest printed since it was started."""


class ConsoleKind(StrEnum):
    """How somebody gets at a guest: its first serial port, or its screen (RFB, RFC 6143)."""

    SERIAL = "serial"
    VNC = "vnc"


@dataclass(frozen=True, slots=True)
class ConsoleLine:
    """An open console: a connected stream socket with the guest's bytes both ways.

    Its end of file is the end of the console, whatever ended it. Whoever opened it calls `close`,
    once or more often, from a thread that may wait a few seconds: the socket goes, and all that
    was started for it.
    """

    socket: socket.socket
    close: Callable[[], None]


@runtime_checkable
class Consoles(Protocol):
    """A hypervisor that lets somebody in at a guest's console. Opens no port of the host."""

    def open_console(self, uuid: str, kind: ConsoleKind) -> ConsoleLine:
        """Connect to a running guest's console; on the serial port, whoever was there is put out.

        Errors: `Unsupported` where the host has no such console; `HostRefused` where the guest is
        not there or does not run.
        """


@dataclass(frozen=True, slots=True)
class NicStats:
    """What went through a network card since the guest was started; bytes, packets."""

    mac: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_drop: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_drop: int = 0


@dataclass(frozen=True, slots=True)
class DiskStats:
    """What went through a disk since the guest was started; `device` is its name in the domain."""

    device: str
    read_bytes: int = 0
    read_requests: int = 0
    write_bytes: int = 0
    write_requests: int = 0


@dataclass(frozen=True, slots=True)
class GuestStats:
    """What a guest uses. Memory in MiB (`memory_used_mib` None where the host cannot tell), times
    of each virtual processor in nanoseconds; empty where it does not run."""

    power: Power
    memory_mib: int
    memory_used_mib: int | None = None
    cpu_ns: tuple[int, ...] = ()
    nics: tuple[NicStats, ...] = ()
    disks: tuple[DiskStats, ...] = ()


@runtime_checkable
class Diagnostics(Protocol):
    """A hypervisor that counts what guests use."""

    def diagnostics(self, uuid: str) -> GuestStats:
        """The counters now. Errors: `HostRefused` where there is no such domain."""


@runtime_checkable
class Agent(Protocol):
    """A hypervisor with a channel to an agent inside the guest (QEMU's guest agent).

    The agent is the tenant's program: it may be absent, hang or lie. Each verb ends within its
    deadline, with `AgentFailed` where the agent did not do its part.
    """

    def freeze(self, uuid: str) -> int:
        """Flush the guest's file systems and hold writes; how many, as the agent says.

        Whatever comes of it, `AgentFailed` included, the caller calls `thaw` after: a late answer
        may have frozen them all the same.
        """

    def thaw(self, uuid: str) -> int:
        """Let writes go on; how many file systems. What is not frozen is success."""

    def set_password(self, uuid: str, user: str, password: str) -> None:
        """Have the agent set a user's password."""


@dataclass(frozen=True, slots=True)
class MoveOptions:
    """How a running guest is moved. `seconds` is when it is given up.

    `bandwidth_mib_s` 0: as fast as it goes. `auto_converge`: slow the guest down where it writes
    faster than is sent. `post_copy`: let it go on at the target before all its memory is there,
    where it does not converge; a host or network that fails then takes the guest with it.
    `shared`: its disk is in storage that both hosts share, and the target has taken it.
    """

    seconds: float = 600.0
    bandwidth_mib_s: int = 0
    auto_converge: bool = True
    post_copy: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class MoveProgress:
    """How far a move is, in bytes."""

    memory_total: int = 0
    memory_processed: int = 0
    memory_remaining: int = 0
    disk_total: int = 0
    disk_processed: int = 0
    disk_remaining: int = 0


@runtime_checkable
class Moves(Protocol):
    """A hypervisor that can move a running guest, with its disk, to another of its kind."""

    def machine(self, uuid: str) -> str:
        """On the source: the machine type of the guest, by its full name, which the target's
        `HostFacts.machines` must name; "" where it has none. Errors: `HostRefused` where there is
        no such domain."""

    def expect(self, spec: DomainSpec) -> None:
        """On the target: make the volumes for a guest that is about to come. Starts and defines
        nothing. Of a spec without an image, the disk is whole."""

    def move(self, uuid: str, target: Hypervisor, options: MoveOptions) -> None:
        """On the source: move the running or paused guest to `target`, which expects it. When it
        returns, the guest is at the target and no domain is here; volumes may be left. On an error
        it may be at either: look at the target first. With `post_copy`, the source is not told
        any more to start it with its host: what it has may be old by then. Errors: `HostRefused`
        where nothing was moved; `VerbTimeout`, `HostUnreachable`."""

    def resume_move(self, uuid: str, target: Hypervisor, options: MoveOptions) -> None:
        """On the source: bring the rest of a guest that is torn, here and at `target`. When it
        returns, that is as after `move`. On an error it may be torn still. Errors as of `move`."""

    def move_progress(self, uuid: str) -> MoveProgress | None:
        """How far the move of the guest away from here is; None where none is under way."""

    def abort_move(self, uuid: str) -> None:
        """End the move that is under way; none is success."""

    def hurry_move(self, uuid: str) -> None:
        """Have the move come to its end: the guest goes on at the target now where `post_copy` lets
        it, else it is paused until it is there. Errors: `HostRefused` where it is too early."""


@runtime_checkable
class SharedStorage(Protocol):
    """A hypervisor whose storage other hosts may see too. What is written of that is in the storage
    itself: which hosts are there, and which of them have which disk. A disk goes with the last that
    has it."""

    def shares(self, other: Hypervisor) -> bool:
        """Whether what this host writes into its storage is seen by `other` at this moment."""

    def take(self, spec: DomainSpec) -> None:
        """Have the disk of an instance, which another host has, as this one's too. Makes, defines
        and starts nothing. Errors: `HostRefused` where a part of it is not there, no host has it,
        or a domain with its UUID is here."""


class Reach(StrEnum):
    """What became of a connection to a host's port. `OPEN` and `REFUSED` are answers of its kernel:
    it runs. `SILENT`: none came in time, or no way led there. `UNKNOWN`: it cannot be tried."""

    OPEN = "open"
    REFUSED = "refused"
    SILENT = "silent"
    UNKNOWN = "unknown"


@runtime_checkable
class Beats(Protocol):
    """A hypervisor that can be asked at little cost whether it still answers."""

    def beat(self, seconds: float) -> bool | None:
        """Whether it answers within `seconds`, over the connection that is open; None where none
        is. Opens none, breaks none."""


@runtime_checkable
class Transfers(Protocol):
    """A hypervisor that can send the disk of a guest that is off to another of its kind."""

    def send_disk(
        self, uuid: str, target: Hypervisor, seconds: float, tell: Callable[[int, int], None]
    ) -> None:
        """On the source: copy the root disk of the guest, which is off, to `target`, in place of
        what a broken copy left there. Nothing is changed here, and nothing is defined there; the
        image under the disk must be there. `seconds`, and more for a large disk, is when it is
        given up. `tell` gets bytes done and in all, often; what it raises ends it. On an error
        something may be left at the target. Errors: `HostRefused` where it is not off, or a domain
        with its UUID is at the target; `HostFull`, `VerbTimeout`, `HostUnreachable`."""


@runtime_checkable
class Grows(Protocol):
    """A hypervisor that can give a running guest more vcpus and memory ("grow"), or a larger root
    disk ("grow_disk")."""

    def grow(self, spec: DomainSpec) -> None:
        """Give the running guest the vcpus, the memory and the root disk of `spec`, and store that
        definition. A disk grows onto the uppermost volume, which lies over the one that it runs on.
        It is of that generation once it has all of it; until then, all may be done again. Takes
        nothing away. Errors: `HostFull` where there is no room for the volume: nothing was done
        then; `HostRefused` where it does not run, is of a newer generation, has no such room, or
        the host cannot give it; a part may have been given then."""


@runtime_checkable
class Plugs(Protocol):
    """A hypervisor that can give a running guest its network card, or have it taken ("plug")."""

    def plug(self, spec: DomainSpec) -> None:
        """Give the running or paused guest the card of `spec`, or have it let go of the one it has
        where `spec` has none, and store that definition. It is of that generation once that is
        done; until then, all may be done again. Errors: `HostRefused` where it does not run, is of
        a newer generation, has not let go of the card that it had before, or the host cannot give
        it: nothing is stored then. `AtNextStart` where the guest does not let go: all else is done,
        and nothing goes through that card any more."""


@runtime_checkable
class Probes(Protocol):
    """A hypervisor on which a probe guest can be booted."""

    def probe(self, virt_type: str, seconds: float) -> bool:
        """Whether a guest of that type boots and powers itself off within `seconds`."""

    def unprepare(self) -> None:
        """Undo `prepare`, where nothing is in the pool and no guest on the network."""


@runtime_checkable
class Snapshots(Protocol):
    """A hypervisor that can copy the root disk of a guest while it runs. One copy at a time."""

    def begin_copy(self, uuid: str) -> None:
        """Copy the instance's own root disk as it is now: what is written from here on is not in
        it. Returns at once. A copy that was begun before is thrown away."""

    def fetch_copy(self, uuid: str, into: Callable[[bytes], None]) -> None:
        """Wait until the copy is whole and hand over its bytes, in order: a qcow2 that needs no
        other file. What `into` raises ends it. Errors: `HostRefused` where no copy was begun."""

    def drop_copy(self, uuid: str) -> None:
        """End the copy, and remove what there is of it. Absent is success."""


DriverFactory = Callable[[str], Hypervisor]
"""Makes the driver of a host from its URI; the composition root picks it. Does not connect."""
