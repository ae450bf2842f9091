"""What is taken as an image, and what never reaches a host."""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from treadle.errors import Permanent, RetryLater
from treadle.hypervisor.base import ImageBroken
from treadle.image import inspect as module
from treadle.image.inspect import (
    ImageGone,
    ImageInfo,
    ImageRefused,
    InspectFailed,
    inspect,
    looks_like_html,
)

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

MIB = 1 << 20
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """An image made by qemu-img: `make("qcow2", "10M", options, ...)`."""

    def run(image_format: str, size: str, options: str = "", *more: str) -> Path:
        path = tmp_path / f"disk.{image_format}"
        chosen = ["-o", options] if options else []
        command = ["qemu-img", "create", "-q", "-f", image_format, *chosen, *more, str(path), size]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=30)
        return path

    return run


def patch(path: Path, offset: int, content: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ImageRefused) as caught:
        inspect(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    return message.removeprefix(str(path))


def filled(tmp_path: Path, *options: str) -> Path:
    """A qcow2 image of 8 MiB of random data."""
    raw = tmp_path / "source.raw"
    raw.write_bytes(random.Random(1).randbytes(8 * MIB))
    path = tmp_path / "filled.qcow2"
    command = ["qemu-img", "convert", "-O", "qcow2", *options, str(raw), str(path)]
    subprocess.run(command, check=True, timeout=30)
    return path


# ----------------------------------------------------------------------- taken


@pytest.mark.parametrize(
    "options",
    [
        "",
        "compat=0.10",
        "extended_l2=on,cluster_size=128k",
        "cluster_size=512",
        "cluster_size=2M",
        "compression_type=zstd",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "preallocation=metadata",
        "preallocation=falloc",
    ],
)
def test_qcow2(make: Make, options: str) -> None:
    path = make("qcow2", "10M", options)
    assert inspect(path) == ImageInfo("qcow2", 10 * MIB, path.stat().st_size)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-c",),
        ("-o", "cluster_size=512"),
        ("-o", "extended_l2=on"),
        ("-c", "-o", "compression_type=zstd,cluster_size=2M"),
    ],
)
def test_qcow2_with_content(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = filled(tmp_path, *options)
    assert inspect(path) == ImageInfo("qcow2", 8 * MIB, path.stat().st_size)


def test_qcow2_with_a_snapshot(tmp_path: Path) -> None:
    path = filled(tmp_path)
    subprocess.run(["qemu-img", "snapshot", "-c", "one", str(path)], check=True, timeout=30)
    assert inspect(path).virtual_bytes == 8 * MIB


def test_raw(make: Make) -> None:
    assert inspect(make("raw", "3M")) == ImageInfo("raw", 3 * MIB, 3 * MIB)


def test_a_link_is_followed(make: Make, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(make("qcow2", "1M"))
    assert inspect(tmp_path / "link").format == "qcow2"


@pytest.mark.parametrize("name", ["nbd:127.0.0.1:1:x", "json:{}", "-f", "a b\\'\""])
def test_a_name_means_nothing_to_qemu_img(make: Make, tmp_path: Path, name: str) -> None:
    assert inspect(make("qcow2", "1M").rename(tmp_path / name)).format == "qcow2"


def test_the_file_is_not_changed(make: Make) -> None:
    path = make("qcow2", "10M")
    before = path.read_bytes()
    inspect(path)
    assert path.read_bytes() == before


# --------------------------------------------------------------- other formats


@pytest.mark.parametrize(
    ("image_format", "name"),
    [
        ("vmdk", "vmdk"),
        ("vdi", "vdi"),
        ("vhdx", "vhdx"),
        ("vpc", "vpc"),
        ("qed", "qed"),
        ("parallels", "parallels"),
        ("qcow", "qcow (version 1)"),
    ],
)
def test_other_formats_are_named(make: Make, image_format: str, name: str) -> None:
    message = refused(make(image_format, "4M"))
    assert message.startswith(f" is {name}")
    assert "only qcow2 and raw" in message


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"LUKS\xba\xbe\0\1" + bytes(MIB), "encrypted"),
        (b"\x1f\x8b\x08\0" + bytes(MIB), "gzip"),
        (b"\xfd7zXZ\0\0" + bytes(MIB), "xz"),
        (b"PK\3\4" + bytes(MIB), "zip"),
        (bytes(257) + b"ustar\x0000" + bytes(MIB), "tar"),
        (bytes(2 * MIB - 512) + b"koly" + bytes(508), "dmg"),
        (bytes(2 * MIB - 512) + b"conectix" + bytes(504), "vpc"),
        (b"<!DOCTYPE html><html>Not found</html>".ljust(MIB), "HTML"),
        (b"\xef\xbb\xbf\r\n <HTML>" + bytes(MIB), "HTML"),
        (b"Access denied\n", "text"),
        ("é".encode() * MIB, "text"),
        (b"", "empty"),
        (bytes(512), "512 bytes"),
        (bytes(MIB + 1), "1048577 bytes"),
        (b"QFI", "text"),
    ],
)
def test_not_an_image(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    assert name in refused(path)


def test_html() -> None:
    assert looks_like_html(b"\n<?xml version")
    assert not looks_like_html(b"\0<html>")


# -------------------------------------------------------------- not a file


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageGone, match="not there"):
        inspect(tmp_path / "none")
    with pytest.raises(ImageGone, match="not there"):
        inspect(tmp_path / "none" / "none")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(ImageGone, match="a link to nothing"):
        inspect(tmp_path / "link")


def test_not_a_file(tmp_path: Path) -> None:
    assert "a directory" in refused(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "a FIFO" in refused(tmp_path / "fifo")
    assert "a character device" in refused(Path("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert "a socket" in refused(tmp_path / "s")
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop")


def test_families() -> None:
    assert issubclass(ImageRefused, ImageBroken)
    assert issubclass(ImageRefused, Permanent)
    assert issubclass(InspectFailed, RetryLater)


# ------------------------------------------------------------- hostile headers


def test_backing_file(make: Make) -> None:
    base = make("raw", "1M")
    path = make("qcow2", "1M", "", "-b", str(base), "-F", "raw")
    assert "backing file" in refused(path)


def test_backing_file_that_is_only_in_the_header(make: Make) -> None:
    name = b"/etc/shadow"
    path = patch(make("qcow2", "10M"), 0x800, name)
    patch(path, 8, struct.pack(">QI", 0x800, len(name)))
    assert "backing file" in refused(path)


def test_data_file(make: Make, tmp_path: Path) -> None:
    path = make("qcow2", "1M", f"data_file={tmp_path / 'data'},data_file_raw=on")
    assert "data in another file" in refused(path)
    # The same without the feature's bit: only the extension names the file.
    features = struct.unpack(">Q", path.read_bytes()[72:80])[0]
    patch(path, 72, struct.pack(">Q", features & ~4))
    assert "another file" in refused(path)


def test_data_file_after_another_extension(make: Make) -> None:
    path = make("qcow2", "1M")
    extensions = struct.pack(">II5s3x", 0x12345678, 5, b"hello")
    extensions += struct.pack(">II12s4x", 0x44415441, 11, b"/etc/shadow")
    assert "another file" in refused(patch(path, 112, extensions))


def test_endless_extension(make: Make) -> None:
    assert "extension" in refused(
        patch(make("qcow2", "1M"), 112, struct.pack(">II", 7, 0xFFFFFFF0))
    )


def test_extension_up_to_where_we_read(make: Make) -> None:
    path = make("qcow2", "1M", "cluster_size=2M")
    assert "extension" in refused(patch(path, 112, struct.pack(">II", 7, (64 << 10) - 120)))


def test_encrypted(make: Make) -> None:
    header = struct.pack(">IIQQ", 0x0537BE77, 16, 0x50000, 0x1000)
    assert "encrypted" in refused(patch(make("qcow2", "1M"), 112, header))


@pytest.mark.parametrize(
    ("offset", "content", "words"),
    [
        (4, struct.pack(">I", 4), "version 4"),
        (4, struct.pack(">I", 0), "version 0"),
        (20, struct.pack(">I", 8), "clusters of 2^8"),
        (20, struct.pack(">I", 0xFFFFFFFF), "clusters of 2^"),
        (24, struct.pack(">Q", 0), "virtual size of 0"),
        (24, struct.pack(">Q", (64 << 40) + 512), "at most 64 TiB"),
        (24, struct.pack(">Q", 2**64 - 512), "at most 64 TiB"),
        (24, struct.pack(">Q", 1 << 40), "first table"),
        (32, struct.pack(">I", 1), "encrypted"),
        (36, struct.pack(">I", 0), "first table"),
        (36, struct.pack(">I", 0xFFFFFFFF), "first table"),
        (40, struct.pack(">Q", 0), "out of place"),
        (40, struct.pack(">Q", 0x30001), "out of place"),
        (40, struct.pack(">Q", 1 << 40), "beyond its end"),
        (48, struct.pack(">Q", 0), "references"),
        (48, struct.pack(">Q", 1 << 40), "references"),
        (56, struct.pack(">I", 0xFFFFFFFF), "references"),
        (60, struct.pack(">I", 0xFFFFFFFF), "snapshots"),
        (72, struct.pack(">Q", 2), "corrupt"),
        (72, struct.pack(">Q", 4), "another file"),
        (72, struct.pack(">Q", 1 << 5), "0x20"),
        (72, struct.pack(">Q", 1 << 63), "0x8000000000000000"),
        (100, struct.pack(">I", 96), "header of 96"),
        (100, struct.pack(">I", 0xFFFFFFF8), "extension"),
        (0x30000, struct.pack(">Q", 1 << 40), "before its tables"),
        (0x30000, struct.pack(">Q", 0x200), "before its tables"),
    ],
)
def test_hostile_header(make: Make, offset: int, content: bytes, words: str) -> None:
    assert words in refused(patch(make("qcow2", "10M"), offset, content))


@pytest.mark.parametrize("length", [8, 71, 103, 112, 4096, 0x30000, 0x30007])
def test_cut_off(make: Make, length: int) -> None:
    path = make("qcow2", "10M")
    os.truncate(path, length)
    assert "not whole" in refused(path)


@pytest.mark.parametrize("options", [(), ("-c",), ("-o", "extended_l2=on")])
def test_cut_off_within_the_data(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = filled(tmp_path, *options)
    os.truncate(path, path.stat().st_size * 3 // 4)
    assert "not whole" in refused(path)


def test_fields_that_only_qemu_img_looks_at(make: Make) -> None:
    path = patch(make("qcow2", "10M"), 96, struct.pack(">I", 99))
    message = refused(path)
    assert "qcow2" in message
    assert "/proc/self/fd" not in message


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(places=st.lists(st.tuples(st.integers(4, 130), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_header_is_refused_or_safe(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    places: list[tuple[int, int]],
) -> None:
    """Our own check alone, without the cost of a process for each example."""
    monkeypatch.setattr(module, "_confirm", lambda *_: None)
    folder = tmp_path_factory.getbasetemp()
    template = folder / "template.qcow2"
    if not template.exists():
        command = ["qemu-img", "create", "-q", "-f", "qcow2", str(template), "10M"]
        subprocess.run(command, check=True, timeout=30)
    content = bytearray(template.read_bytes())
    for offset, value in places:
        content[offset] = value
    path = folder / "changed.qcow2"
    path.write_bytes(content)
    try:
        info = inspect(path)
    except ImageRefused:
        return
    assert content[8:20] == bytes(12), "a backing file was let through"
    assert not content[79] & 6
    assert 0 < info.virtual_bytes <= 64 << 40


# ---------------------------------------------------------------------- limits


def test_no_time(make: Make) -> None:
    with pytest.raises(InspectFailed, match="in time"):
        inspect(make("qcow2", "1M"), deadline_s=0)


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Another program by the name of qemu-img, to see that the limits hold."""
    program = folder / "bin" / "qemu-img"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_time_limit(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("qcow2", "1M")
    stand_in(tmp_path, monkeypatch, "exec sleep 60")
    with pytest.raises(InspectFailed, match="in time"):
        inspect(path, deadline_s=0.3)


def test_output_limit(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("qcow2", "1M")
    stand_in(tmp_path, monkeypatch, "exec head -c 100000000 /dev/zero")
    assert "not a sound qcow2 image" in refused(path)


def test_memory_limit(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("qcow2", "1M")
    stand_in(tmp_path, monkeypatch, "exec dd if=/dev/zero of=/dev/null bs=2G count=1")
    assert "memory" in refused(path)


@pytest.mark.parametrize(
    "said",
    [
        '{"format": "raw", "virtual-size": 1048576}',
        '{"format": "qcow2", "virtual-size": 2}',
        '{"format": "qcow2", "virtual-size": 1048576, "backing-filename": "/etc/shadow"}',
        '{"format": "qcow2", "virtual-size": 1048576, "encrypted": true}',
        '{"format": "qcow2", "virtual-size": 1048576,'
        ' "format-specific": {"data": {"data-file": "/etc/shadow"}}}',
    ],
)
def test_qemu_img_sees_something_else(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    path = make("qcow2", "1M")
    stand_in(tmp_path, monkeypatch, f"echo '{said}'")
    assert "reads differently" in refused(path)


@pytest.mark.parametrize("said", ["", "[]", "{}", "[" * 5000])
def test_qemu_img_says_nothing_clear(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    path = make("qcow2", "1M")
    stand_in(tmp_path, monkeypatch, f"echo '{said}'")
    with pytest.raises(InspectFailed, match="cannot be understood"):
        inspect(path)


def test_no_qemu_img(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("qcow2", "1M")
    prlimit = shutil.which("prlimit")
    assert prlimit is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "prlimit").symlink_to(prlimit)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InspectFailed, match="install qemu-utils"):
        inspect(path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InspectFailed, match="install util-linux"):
        inspect(path)


def test_a_root_file_system_is_known_and_a_disk_is_none(tmp_path: Path) -> None:
    bare = tmp_path / "bare.raw"
    make = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", str(bare), "2M"]
    subprocess.run(make, check=True, timeout=30)
    assert inspect(bare).root_file_system
    data = bytearray(bare.read_bytes())
    data[510:512] = b"\x55\xaa"
    bootable = tmp_path / "bootable.raw"
    bootable.write_bytes(data)
    assert not inspect(bootable).root_file_system
