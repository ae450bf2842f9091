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
#: Fills 32 MiB from 1 MiB on, says B, and looks at eight of its pages at each tick of the clock:
#: a dot about once a second, X where one is not as it was written. Between ticks it rests.
#:
#:         cli; xor ax,ax; mov ds,ax; mov ss,ax; mov sp,0x7c00
#:         lgdt [0x7cc4]; mov eax,cr0; or al,1; mov cr0,eax; mov bx,8; mov es,bx
#:         and al,0xfe; mov cr0,eax; xor bx,bx; mov es,bx     es reaches 4 GiB from here on
#:         in al,0x92; or al,2; out 0x92,al; mov edi,0x100000
#: fill:   mov eax,edi; add eax,0x5a5a5a5a; mov [es:edi],eax; mov [es:edi+4],edi
#:         add edi,4096; cmp edi,0x2100000; jb fill; mov al,'B'; call say; sti; mov edi,0x100000
#: round:  mov cx,18
#: tick:   hlt; mov si,8
#: look:   mov eax,edi; add eax,0x5a5a5a5a; cmp [es:edi],eax; jne wrong; cmp [es:edi+4],edi
#:         jne wrong; add edi,4096; cmp edi,0x2100000; jb next; mov edi,0x100000
#: next:   dec si; jnz look; dec cx; jnz tick; mov al,'.'; call say; jmp round
#: wrong:  mov al,'X'; call say; cli; hlt; jmp wrong
#: say:    mov dx,0x3f8; out dx,al; ret
#: 7cb4:   dq 0, 0x00cf92000000ffff; 7cc4: dw 15; dd 0x7cb4
WATCHES = bytes.fromhex(
    "fa31c08ed88ed0bc007c660f0116c47c0f20c00c010f22c0bb08008ec324fe0f22c031db8ec3e4920c02e69266bf"
    "000010006689f866055a5a5a5a2667668907266766897f046681c7001000006681ff0000100272dcb042e85200fb"
    "66bf00001000b91200f4be08006689f866055a5a5a5a2667663907752b266766397f0475236681c7001000006681"
    "ff00001002720666bf000010004e75cf4975c8b02ee80b00ebbeb058e80400faf4ebf7baf803eec3669000000000"
    "00000000ffff00000092cf000f00b47c"
).ljust(510, b"\0") + b"\x55\xaa"
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
    return _disk(folder / "image.raw", RESTS)


def watching_disk(folder: Path) -> Path:
    """Likewise, of a guest that has memory to send and tells whether it is all there."""
    return _disk(folder / "watching.raw", WATCHES)


def _disk(path: Path, sector: bytes) -> Path:
    path.write_bytes(sector + os.urandom((3 << 20) - len(sector)))
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
