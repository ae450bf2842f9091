"""Labs of a test run's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from treadle.lab.fabric import Lab, LabHost, can_run

FOREIGN = "5d0c5f6e-0000-4000-8000-00000000000{number}"
FOREIGN_XML = """
<domain type='qemu'><name>not-ours</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory>
<vcpu>1</vcpu><os><type arch='x86_64'>hvm</type></os><devices/></domain>
"""
#: cli; hlt; jmp to the hlt; what tells the BIOS that this sector boots.
RESTS = bytes([0xFA, 0xF4, 0xEB, 0xFD]).ljust(510, b"\0") + b"\x55\xaa"
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def lab_name(kind: str) -> str:
    """Three letters, and this process's number: neither another worker's lab nor what an
    interrupted run has left up is of that name."""
    number, digits = os.getpid(), ""
    while number:
        number, digit = divmod(number, len(DIGITS))
        digits = DIGITS[digit] + digits
    return f"{kind}{digits}"


def idle_disk(folder: Path) -> Path:
    """A raw disk of 3 MiB, unlike others, that boots to a processor that rests: a guest for tests
    in which nothing but its domain matters. The small Linux takes 5.5 s of processor time."""
    path = folder / "image.raw"
    path.write_bytes(RESTS + os.urandom((3 << 20) - len(RESTS)))
    return path


@dataclass(frozen=True)
class Foreign:
    """What a host says of the domain on it that is not ours. `runs`: its number and its state,
    which both change with a stop."""

    definition: str
    runs: tuple[str, str]


def foreign(lab: Lab, host: LabHost) -> Foreign:
    """How the foreign domain of the host is now."""
    def virsh(word: str, *more: str) -> str:
        done = lab.exec(host.name, "virsh", "-q", word, *more, "not-ours")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return Foreign(
        virsh("dumpxml", "--inactive"), (virsh("domid"), virsh("domstate", "--reason"))
    )


@contextmanager
def with_foreign(lab: Lab) -> Iterator[None]:
    """A domain that is not ours runs on every host meanwhile, and nobody has touched it."""
    hosts = lab.status()
    for number, host in enumerate(hosts):
        xml = FOREIGN_XML.format(uuid=FOREIGN.format(number=number))
        lab.exec(host.name, "virsh", "-q", "define", "/dev/stdin", stdin=xml)
        lab.exec(host.name, "virsh", "-q", "start", "not-ours")
    before = {host.name: (host.pid, foreign(lab, host)) for host in hosts}
    yield
    for host in lab.status():
        pid, was = before[host.name]
        now_is = foreign(lab, host)
        assert now_is.definition == was.definition, "a foreign domain was changed"
        if host.pid == pid:  # it never lost its power
            assert now_is.runs == was.runs, "a foreign domain was stopped or started"


@contextmanager
def a_lab(
    kind: str, hosts: int, folder: Path | None = None, *, shared: bool = False
) -> Iterator[Lab]:
    """A lab that is up, with a domain of somebody else's on each host; it is ended whatever
    happens. Skips where there can be none."""
    problem = can_run()
    if problem:
        pytest.skip(problem)
    lab = Lab(lab_name(kind), folder)
    lab.down()
    try:
        lab.up(hosts, shared=shared)
        with with_foreign(lab):
            yield lab
    finally:
        lab.down()
