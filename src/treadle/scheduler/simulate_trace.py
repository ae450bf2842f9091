"""What a simulation is fed with: VMs that come and go, and the hosts for them.

Three sources give the same `Trace`: a CSV file, a record of a cloud (`treadle simulate --record`),
and a generator. Times are seconds on the trace's own clock, memory and disk MiB.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

import msgspec
import numpy as np

from treadle.errors import InvalidInput
from treadle.scheduler.model import HostView, Pairs, PlacementRequest

FORMAT = "treadle-record"
VERSION = 1
_MOST_HOSTS = 200_000
GIB = 1024


Sizes = tuple[tuple[int, int, int], ...]
"""vCPUs, MiB of memory and MiB of disk of each."""
_MOST_SIZES = 64


@dataclass(frozen=True, slots=True)
class Arrival:
    """One VM: when it is asked for, when it leaves (infinity: not within the trace), what it needs.

    `wish` is the whole request where the source has one; else the amounts are all there is. `host`
    is where it was placed when it was recorded. `group` names its server group where that is known:
    then the replay says which hosts have members, and not the wish.
    """

    name: str
    at: float
    until: float
    vcpus: int
    memory_mib: int
    disk_mib: int = 0
    batch: str | None = None
    tenant: str | None = None
    wish: PlacementRequest | None = None
    host: int | None = None
    group: str | None = None

    def request(self, seed: int, flavors: Sizes = ()) -> PlacementRequest:
        """What the scheduler is asked. `flavors` are the sizes on offer."""
        if self.wish is not None:
            return replace(
                self.wish, vcpus=self.vcpus, memory_mib=self.memory_mib, disk_mib=self.disk_mib,
                seed=seed, batch=self.batch, tenant=self.tenant, asked_at=self.at,
                flavors=self.wish.flavors or flavors,
            )
        return PlacementRequest(
            self.name, self.vcpus, self.memory_mib, self.disk_mib, seed=seed, batch=self.batch,
            tenant=self.tenant, asked_at=self.at, flavors=flavors,
        )


@dataclass(frozen=True, slots=True)
class Trace:
    """Arrivals in order of time, and the window they are measured in (seconds).

    `hosts` are there where the source knows them: a record of a cloud.
    """

    source: str
    arrivals: Sequence[Arrival]
    begin: float
    end: float
    hosts: tuple[HostView, ...] = ()
    batched: bool = False

    def __len__(self) -> int:
        return len(self.arrivals)

    def sizes(self) -> Sizes:
        """The sizes that are asked for, as flavors on offer: the 64 most frequent, sorted."""
        counts = Counter((one.vcpus, one.memory_mib, one.disk_mib) for one in self.arrivals)
        return tuple(sorted(size for size, _ in counts.most_common(_MOST_SIZES)))

    def part(self, since_h: float | None, until_h: float | None) -> Trace:
        """Only what comes from `since_h` on and before `until_h`, hours after its begin."""
        if since_h is None and until_h is None:
            return self
        begin = self.begin + (since_h or 0.0) * 3600
        end = self.end if until_h is None else min(self.end, self.begin + until_h * 3600)
        if end <= begin:
            raise InvalidInput("window", [since_h, until_h], "it has to end after it begins, and "
                               f"the trace is {(self.end - self.begin) / 3600:.1f} hours long")
        kept = [one for one in self.arrivals if begin <= one.at < end]
        return replace(self, arrivals=kept, begin=begin, end=end)

    def shuffled(self, seed: int) -> Trace:
        """The batches that come at the same moment in another order; VMs of a batch stay together.

        Seed 0 leaves all as it is. How sensitive a result is to an order that nobody chose.
        """
        if seed == 0:
            return self
        rng = np.random.default_rng(seed)
        arrivals: list[Arrival] = []
        for group in _moments(self.arrivals):
            batches: dict[str, list[Arrival]] = {}
            for one in group:
                batches.setdefault(one.batch if one.batch is not None else one.name, []).append(one)
            every = list(batches.values())
            for place in rng.permutation(len(every)):
                arrivals.extend(every[place])
        return replace(self, arrivals=arrivals)


def _moments(arrivals: Iterable[Arrival]) -> Iterator[list[Arrival]]:
    group: list[Arrival] = []
    for one in arrivals:
        if group and one.at != group[0].at:
            yield group
            group = []
        group.append(one)
    if group:
        yield group


# -- hosts

_HOSTS = re.compile(r"(?:(\d+)x)?(\d+)c(\d+)g(?:(\d+)d)?")


def parse_hosts(spec: str, first_id: int = 1) -> list[HostView]:
    """Hosts out of `700x48c128g` or `5x64c256g2000d,3x32c64g`: count, cores, GiB, GiB of disk.

    Cores and memory are what may be given out, overcommit applied. Without disk there is none.
    Errors: `InvalidInput`.
    """
    mend = "write COUNTxCORES'c'GIB'g', for instance 700x48c128g, or 5x64c256g2000d,3x8c32g"
    hosts: list[HostView] = []
    for part in re.split(r"[,+]", spec.replace(" ", "")):
        found = _HOSTS.fullmatch(part.lower())
        if found is None:
            raise InvalidInput("hosts", part, mend)
        count, cores, memory, disk = (int(text or 0) for text in found.groups())
        count = 1 if found[1] is None else count
        if not 1 <= count <= _MOST_HOSTS - len(hosts):
            raise InvalidInput("hosts", part, f"from 1 to {_MOST_HOSTS} hosts can be simulated")
        if not (0 < cores <= 2**20 and 0 < memory <= 2**20 and disk <= 2**30):
            raise InvalidInput("hosts", part, "cores and memory from 1 to 1048576 are needed")
        for _ in range(count):
            number = first_id + len(hosts)
            hosts.append(HostView(
                number, f"sim-{number}", "up", None, frozenset(), cores, 0, memory * GIB, 0,
                disk * GIB, 0,
            ))
    return hosts


# -- CSV


def read_trace(path: Path) -> Trace:
    """Read a `.csv`, `.csv.gz` or `.jsonl` (`.jsonl.gz`) file. Errors: `InvalidInput`."""
    suffixes = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    readers = {"csv": _read_csv, "jsonl": _read_record}
    if suffixes not in readers:
        raise InvalidInput("trace", str(path), "a .csv, .csv.gz, .jsonl or .jsonl.gz file is read")
    try:
        with _open(path) as file:
            return readers[suffixes](path, file)
    except OSError as error:
        problem = error.strerror or str(error)
        raise InvalidInput("trace", str(path), f"it cannot be read: {problem}") from error
    except (EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise InvalidInput("trace", str(path), f"it is damaged: {error}") from error


def _open(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


_NEEDED = ("vm_id", "arrival_s", "vcpus", "mem_mib")
_KNOWN = (*_NEEDED, "batch", "lifetime_s", "censored", "disk_mib", "tenant", "life_bin")


def _read_csv(path: Path, file: Iterable[str]) -> Trace:
    rows = csv.reader(file)
    header = next(rows, [])
    places = {name.strip(): place for place, name in enumerate(header)}
    for name in _NEEDED:
        if name not in places:
            raise InvalidInput(
                f"{path}:1 header", ",".join(header),
                f"a column {name} is missing; read are {', '.join(_KNOWN)}",
            )
    at_most = len(header)
    where = [places.get(name) for name in _KNOWN[:-1]]
    c_id, c_at, c_cpu, c_mem, c_batch, c_life, c_censored, c_disk, c_tenant = where
    assert c_id is not None
    assert c_at is not None
    assert c_cpu is not None
    assert c_mem is not None
    arrivals: list[Arrival] = []
    last = -math.inf
    for row in rows:
        line = rows.line_num
        if not row:
            continue
        if len(row) != at_most:
            raise InvalidInput(f"{path}:{line} row", ",".join(row), f"{at_most} fields are needed")

        def number(name: str, place: int, least: float, row: list[str] = row) -> float:
            try:
                value = float(row[place])
            except ValueError:
                value = math.nan
            if not least <= value < 2**50:
                raise InvalidInput(
                    f"{path}:{rows.line_num} {name}", row[place],
                    f"a number from {least:g} on is needed",
                )
            return value

        def whole(name: str, place: int, least: int, row: list[str] = row) -> int:
            text = row[place]
            if text.isascii() and text.isdecimal() and least <= int(text) < 2**50:
                return int(text)
            raise InvalidInput(
                f"{path}:{rows.line_num} {name}", text, f"a whole number from {least} on is needed"
            )

        at = number("arrival_s", c_at, 0)
        if at < last:
            raise InvalidInput(
                f"{path}:{line} arrival_s", row[c_at],
                f"the row before it comes at {last:g}: sort the rows by arrival_s",
            )
        last = at
        until = math.inf
        if c_life is not None and not (c_censored is not None and row[c_censored] == "1"):
            until = at + number("lifetime_s", c_life, 0)
        arrivals.append(Arrival(
            row[c_id], at, until, whole("vcpus", c_cpu, 1), whole("mem_mib", c_mem, 0),
            0 if c_disk is None or row[c_disk] == "" else whole("disk_mib", c_disk, 0),
            None if c_batch is None or row[c_batch] == "" else row[c_batch],
            None if c_tenant is None or row[c_tenant] == "" else row[c_tenant],
        ))
    return _trace(str(path), arrivals, batched=c_batch is not None)


def _trace(source: str, arrivals: list[Arrival], *, batched: bool) -> Trace:
    if not arrivals:
        raise InvalidInput("trace", source, "there is no VM in it")
    return Trace(source, arrivals, arrivals[0].at, arrivals[-1].at, batched=batched)


# -- a record of a cloud


Number = Annotated[float, msgspec.Meta(ge=0, lt=2**50)]
Whole = Annotated[int, msgspec.Meta(ge=0, lt=2**50)]


class _Host(msgspec.Struct):
    """A line of the kind "host"."""

    id: Whole
    vcpus_limit: Whole
    memory_limit_mib: Whole
    disk_limit_mib: Whole
    name: str = ""
    state: str = "up"
    arch: str | None = None
    capabilities: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    disk_used_mib: Whole = 0
    zone: str | None = None
    rack: str | None = None
    properties: Pairs = ()
    numa: tuple[tuple[Whole, Whole], ...] = ()

    def view(self) -> HostView:
        return HostView(
            self.id, self.name or str(self.id), self.state, self.arch, self.capabilities,
            self.vcpus_limit, 0, self.memory_limit_mib, 0, self.disk_limit_mib, self.disk_used_mib,
            images=self.images, zone=self.zone, rack=self.rack,
            properties=tuple(sorted(self.properties)), numa=self.numa,
        )


class _Instance(msgspec.Struct):
    """A line of the kind "instance"."""

    at: Number
    vcpus: Annotated[int, msgspec.Meta(ge=1, lt=2**50)]
    memory_mib: Whole
    disk_mib: Whole
    id: str = ""
    until: Number | None = None
    batch: str | None = None
    tenant: str | None = None
    group: str | None = None
    host: int | None = None
    request: PlacementRequest | None = None

    def arrival(self) -> Arrival:
        until = math.inf if self.until is None else max(self.at, self.until)
        return Arrival(
            self.id, self.at, until, self.vcpus, self.memory_mib, self.disk_mib, self.batch,
            self.tenant, self.request, self.host, self.group,
        )


class _Head(msgspec.Struct):
    """What the first line says besides its kind and version."""

    at: Number


_L = TypeVar("_L", bound=msgspec.Struct)


def _read_record(path: Path, file: Iterable[str]) -> Trace:
    """Read what `record_lines` wrote. Errors: `InvalidInput` with file, line and field."""
    hosts: list[HostView] = []
    arrivals: list[Arrival] = []
    end: float | None = None
    for line, text in enumerate(file, 1):
        here = f"{path}:{line}"
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InvalidInput(here, text[:60], "each line has to be a JSON object") from error
        kind = data.get("kind") if isinstance(data, dict) else None
        if line == 1:
            if kind != FORMAT or data.get("version") != VERSION:
                mend = f'the first line has to be {{"kind": "{FORMAT}", "version": {VERSION}, …}}'
                raise InvalidInput(here, text[:60], mend)
            end = _line(here, data, _Head).at
        elif kind == "host":
            hosts.append(_line(here, data, _Host).view())
        elif kind == "instance":
            arrivals.append(_line(here, data, _Instance).arrival())
        else:
            raise InvalidInput(f"{here} kind", kind, 'it has to be "host" or "instance"')
    if end is None:
        raise InvalidInput("trace", str(path), "there is nothing in it")
    arrivals.sort(key=lambda one: one.at)
    begin = arrivals[0].at if arrivals else end
    last = arrivals[-1].at if arrivals else end
    return Trace(str(path), arrivals, begin, max(end, last), tuple(hosts), batched=True)


def _line(here: str, data: dict[str, Any], kind: type[_L]) -> _L:
    """The line as `kind`. Errors: `InvalidInput` that names the field."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        missing = re.search(r"missing required field `(\w+)`", problem)
        field = ".".join(filter(None, (place.rstrip("`"), missing and missing[1])))
        value = data.get(re.split(r"[.\[]", field)[0])
        raise InvalidInput(f"{here} {field}", value, problem) from error
    except InvalidInput as error:
        raise InvalidInput(f"{here} request.{error.field}", error.value, error.mend) from error


def record_lines(record: dict[str, Any]) -> Iterator[str]:
    """Write a cloud's answer of `GET /treadle/v1/record` as the lines of a `.jsonl` file.

    The first line is `{"kind": "treadle-record", "version": 1, "at": now}`; then a line for each
    host (kind "host": id, name, state, arch, capabilities, images, the three limits, the disk in
    use, zone, rack, properties as pairs, and numa, the vcpus and MiB of each NUMA node), then one
    for each instance (kind "instance": id, at, until or null, vcpus, memory_mib, disk_mib, batch,
    tenant, group, host, and the request that it was first placed by). Times are seconds since 1970.
    """
    yield json.dumps({"kind": FORMAT, "version": VERSION, "at": record["at"]}) + "\n"
    for kind, rows in (("host", record["hosts"]), ("instance", record["instances"])):
        for row in rows:
            yield json.dumps({"kind": kind, **row}, separators=(",", ":")) + "\n"


def trace_of_record(record: dict[str, Any], source: str) -> Trace:
    """A cloud's answer as a trace, as if it had been written and read."""
    return _read_record(Path(source), record_lines(record))
