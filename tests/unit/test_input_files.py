"""The three files of the classic start."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from treadle.cli.files import (
    BadFile,
    FlavorEntry,
    HostEntry,
    read_flavor_file,
    read_image_file,
    read_pm_file,
)
from treadle.hypervisor.fake import FakeFleet
from treadle.image.sources import HttpUrl, LocalPath, SshPath

WHOLE = "&".join(f"{name}=1" for name in FakeFleet.LIMITS)
READERS: list[Callable[[Path], list]] = [read_pm_file, read_image_file, read_flavor_file]


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "file.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


Put = Callable[[str | bytes], Path]


def refused(read: Callable[[Path], object], path: Path) -> BadFile:
    with pytest.raises(BadFile) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return caught.value


# ------------------------------------------------------------------ every file


@pytest.mark.parametrize("read", READERS)
class TestEveryFile:
    def test_missing(self, read: Callable[[Path], object], tmp_path: Path) -> None:
        assert "no such file" in str(refused(read, tmp_path / "none"))

    def test_directory(self, read: Callable[[Path], object], tmp_path: Path) -> None:
        assert "it is a directory" in str(refused(read, tmp_path))

    def test_fifo_does_not_hold_it_up(self, read: Callable[[Path], object], tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        assert "not a regular file" in str(refused(read, tmp_path / "pipe"))

    @pytest.mark.parametrize("content", ["", " \n\t\n", "\ufeff", "# only a comment\n"])
    def test_empty(self, read: Callable[[Path], object], put: Put, content: str) -> None:
        assert refused(read, put(content)).line == 1

    @pytest.mark.parametrize("content", [b"a\n\0b", b"a\n\x1b[2J", b"a\n\xff\xfe", b"a\nb\rc"])
    def test_binary(self, read: Callable[[Path], object], put: Put, content: bytes) -> None:
        assert refused(read, put(content)).line == 2

    def test_too_large(self, read: Callable[[Path], object], put: Put) -> None:
        assert "larger than 1 MiB" in str(refused(read, put(b"\n" * ((1 << 20) + 1))))

    def test_too_deep_a_path(self, read: Callable[[Path], object]) -> None:
        refused(read, Path("/" + "a" * 5000))

    def test_unreadable(self, read: Callable[[Path], object], put: Put) -> None:
        path = put("x")
        path.chmod(0)
        # Root may read everything, so it is nobody who tries.
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            assert "Permission denied" in str(refused(read, path))
        finally:
            if root:
                os.seteuid(0)

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        content=st.binary(max_size=200)
        | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
        | st.text(alphabet="{}[](),:'\"\\-+#=@%/. \n\t01ae&?typescpurmdisktqf", max_size=120).map(
            str.encode
        )
    )
    @example(content=b"((((((((((((((")
    @example(content=b'{"types": [' + b"-" * 5000 + b"1]}")
    @example(content=b"1" + b"+1" * 20000)
    @example(content=b'"""a""((((("""')
    @example(content=b"9" * 4000)
    @example(content=b"'\\N{nope}'")
    @example(content=b"qemu://[::1/system")
    @example(content=b"http://[::1/a")
    @example(content=b"http://a:99999999/a")
    @example(content=b"http://a/%ff.img")
    @example(content=b"qemu+ssh://a:\xd9\xa3/system")
    def test_only_bad_file_is_raised(
        self, read: Callable[[Path], object], put: Put, content: bytes
    ) -> None:
        try:
            read(put(content))
        except BadFile as error:
            message = str(error)
        else:
            message = ""
        assert message.isprintable()


# -------------------------------------------------------------------- machines


@pytest.mark.parametrize(
    ("text", "uri", "address"),
    [
        ("10.0.0.1", "qemu+ssh://10.0.0.1/system", "10.0.0.1"),
        ("node-1.example.org", "qemu+ssh://node-1.example.org/system", "node-1.example.org"),
        ("root@node1", "qemu+ssh://root@node1/system", "node1"),
        ("root@node1:2222", "qemu+ssh://root@node1:2222/system", "node1"),
        ("node1:2222", "qemu+ssh://node1:2222/system", "node1"),
        ("[2001:db8::1]", "qemu+ssh://[2001:db8::1]/system", "2001:db8::1"),
        ("a@[fe80::1%eth0]:22", "qemu+ssh://a@[fe80::1%25eth0]:22/system", "fe80::1%eth0"),
        ("qemu:///system", "qemu:///system", "localhost"),
        ("test:///default", "test:///default", "localhost"),
        ("lxc+ssh://root@h/", "lxc+ssh://root@h/", "h"),
        ("qemu+tls://h:16000/system?pkipath=/x", "qemu+tls://h:16000/system?pkipath=/x", "h"),
        ("fake://a?vcpus=4&memory_mib=8", "fake://a?vcpus=4&memory_mib=8", "a"),
        (f"fake://a?{WHOLE}", f"fake://a?{WHOLE}", "a"),
    ],
)
def test_machine(put: Put, text: str, uri: str, address: str) -> None:
    assert read_pm_file(put(f"\ufeff# head\r\n\r\n  {text}  # rack 3\r\n")) == [
        HostEntry(3, uri, address)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "-oProxyCommand=x",
        "-l@host",
        "a b",
        "10.0.0.256",
        "10.0.0",
        "::1",
        "[::1",
        "[::1]x",
        "[10.0.0.1]",
        "[fe80::1%../x]",
        "a@",
        "@a",
        "a@b@c",
        "host:0",
        "host:65536",
        "host:",
        "host:٣",
        "ho$(st)",
        "-host",
        "host-",
        "a..b",
        "a" * 254,
        "http://host/",
        "qemu+ssh:///system",
        "qemu+ssh://a:b@host/system",
        "qemu+telnet://host/system",
        "qemu+://host/system",
        "qemu+ssh://host",
        "qemu+ssh://-host/system",
        "qemu+ssh://h\u00f6st/system",
        "fake://",
        "fake://a/b",
        "fake://a?vcpus=many",
        "fake://a?colour=1",
    ],
)
def test_machine_refused(put: Put, text: str) -> None:
    assert refused(read_pm_file, put(f"good\n{text}\n")).line == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a", "a"),
        ("a", "A"),
        ("a", "root@a"),
        ("a", "a:22"),
        ("a", "qemu+ssh://root@a/system?keyfile=/x"),
        ("a", "qemu+tls://a/system"),
        ("a", "qemu+tls://a:16514/system"),
        ("fake://a?vcpus=1", "fake://A?vcpus=2"),
    ],
)
def test_machine_twice(put: Put, first: str, second: str) -> None:
    error = refused(read_pm_file, put(f"{first}\n\n{second}\n"))
    assert error.line == 3
    assert "line 1" in str(error)


def test_machines_that_only_look_alike(put: Put) -> None:
    lines = ["a", "a:2222", "a:2223", "qemu+ssh://u@a/session", "qemu+ssh://v@a/session"]
    lines += ["lxc+ssh://a/", "test+unix:///default?socket=/1", "test+unix:///default?socket=/2"]
    assert [entry.line for entry in read_pm_file(put("\n".join(lines)))] == list(range(1, 9))


def test_long_line(put: Put) -> None:
    assert "too long" in str(refused(read_pm_file, put("a\n" + "#" * 4097)))
    assert len(read_pm_file(put("a\n" + "#" * 4096))) == 1


# ---------------------------------------------------------------------- images


def test_images(put: Put) -> None:
    lines = [
        "/srv/Ubuntu-12.04-amd64.qcow2",
        "  /srv/with space#1.img   # a comment",
        "root@10.0.0.1:/srv/a.raw",
        "https://example.org/b/c.img?x=1",
    ]
    entries = read_image_file(put("\r\n".join(lines)))
    assert [(e.line, e.source, e.name) for e in entries] == [
        (1, LocalPath(Path("/srv/Ubuntu-12.04-amd64.qcow2")), "Ubuntu-12.04-amd64"),
        (2, LocalPath(Path("/srv/with space#1.img")), "with space#1"),
        (3, SshPath("root", "10.0.0.1", None, "/srv/a.raw"), "a"),
        (4, HttpUrl("https://example.org/b/c.img?x=1"), "c"),
    ]


@pytest.mark.parametrize("text", ["a.img", "ftp://a/b", "-a@b:/c", "a@-b:/c", "/dir/", "http://a"])
def test_image_refused(put: Put, text: str) -> None:
    assert refused(read_image_file, put(f"/ok\n{text}")).line == 2


def test_image_twice(put: Put) -> None:
    assert "line 1" in str(refused(read_image_file, put("/a.img\n/a.img")))


# --------------------------------------------------------------------- flavors


@pytest.mark.parametrize(
    "text",
    [
        '{"types": [{"cpu": 1, "ram": 512, "disk": 1}, {"disk": 2, "cpu": 2, "ram": 1024}]}',
        "{'types': [{'cpu': 1, 'ram': 512, 'disk': 1,}, {'cpu': 2, 'ram': 1024, 'disk': 2},],}",
        '\ufeff\r\n  {"types": (  # sizes\r\n {"tid": 1, "cpu": 1, "ram": 512, "disk": 1},\r\n'
        ' {"tid": 2, "cpu": +2, "ram": 0x400, "disk": 2})}\r\n # end',
    ],
)
def test_flavors(put: Put, text: str) -> None:
    assert read_flavor_file(put(text)) == [FlavorEntry(1, 1, 512, 1), FlavorEntry(2, 2, 1024, 2)]


ROW = '{"cpu": 1, "ram": 512, "disk": 1}'


def row(**values: str) -> str:
    fields = {"cpu": "1", "ram": "512", "disk": "1"} | values
    return "{" + ", ".join(f'"{key}": {value}' for key, value in fields.items() if value) + "}"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (f'{{"types": [\n{ROW},\n{row(cpu="true")}]}}', 3, '"cpu" is true'),
        (f'{{"types": [\n{row(cpu="True")}]}}', 2, '"cpu" is True'),
        (f'{{"types": [\n{row(ram="1.5")}]}}', 2, '"ram" is 1.5'),
        (f'{{"types": [\n{row(ram="null")}]}}', 2, '"ram" is null'),
        (f'{{"types": [\n{row(ram="[]")}]}}', 2, '"ram" is not a number'),
        (f'{{"types": [\n{row(disk=chr(34) + "1" + chr(34))}]}}', 2, "\"disk\" is '1'"),
        (f'{{"types": [\n{row(disk="0")}]}}', 2, '"disk" is 0'),
        (f'{{"types": [\n{row(disk="-1")}]}}', 2, '"disk" is -1'),
        (f'{{"types": [\n{row(cpu="9" * 25)}]}}', 2, '"cpu" is 999'),
        (f'{{"types": [\n{row(cpu="9" * 99)}]}}', 2, "too long for a number"),
        (f'{{"types": [\n{row(cpu="")}]}}', 2, 'no "cpu"'),
        (f'{{"types": [\n{row(gpu="1")}]}}', 2, "unknown key"),
        (f'{{"types": [\n{ROW[:-1]},\n "cpu": 2}}]}}', 3, '"cpu" twice'),
        (f'{{"types": [\n{row(tid="1")},\n{row(tid="1")}]}}', 3, "line 2 already"),
        (f'{{"types": [{row(tid="1")}, {row(tid="1")}]}}', 1, "tid 1"),
        (f'{{"types": [{row(tid="1")},\n{ROW}]}}', 2, "no tid"),
        (f'{{"types": [{ROW},\n{row(tid="2")}]}}', 2, "a tid"),
        (f'{{"types": [\n{row(tid="0")}]}}', 2, '"tid" is 0'),
        ('{"types": []}', 1, "empty"),
        ('{"types":\n{}}', 2, "not a list"),
        ('{"types": [\n1]}', 2, "row 1 is not a table"),
        ("[]", 1, "the file is not a table"),
        ("{}", 1, "missing"),
        ('{"sorts": []}', 1, "unknown key"),
        ('{"types": [], "types": []}', 1, "twice"),
        ("{1: 2}", 1, "not text"),
        ('{\n"types": [\n', 2, "missing"),
        ('{"types": [\n)', 2, "closes nothing"),
        ("{'types':}", 1, "not a literal"),
        ("{}\n]", 2, "closes nothing"),
        ("{}) + ({}", 1, "closes nothing"),
        ("\n__import__('os').system('true')", 2, "not a literal"),
        ("{'types': [\nf'{1}']}", 2, "not a literal"),
        ("{'a':\n1 + 1}", 2, "missing before +"),
        ("{'a': - - 1}", 1, "sign"),
        ("[[[[[[[[[]]]]]]]]]", 1, "too deeply"),
        ("{'a' 'b'}", 1, "missing before"),
        ("{**{}}", 1, "cannot stand here"),
    ],
)
def test_flavor_refused(put: Put, text: str, line: int, words: str) -> None:
    error = refused(read_flavor_file, put(text))
    assert words in str(error)
    assert error.line == line


def test_flavor_file_that_means_work(put: Put) -> None:
    began = time.monotonic()
    refused(read_flavor_file, put("[" + "1," * 400_000 + "]"))
    assert time.monotonic() - began < 3


FLAVOR = st.builds(
    FlavorEntry,
    st.integers(1, 2**31 - 1),
    st.integers(1, 4096),
    st.integers(1, 1 << 26),
    st.integers(1, 1 << 16),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FLAVOR, min_size=1, max_size=20, unique_by=lambda flavor: flavor.tid))
def test_flavors_come_back(put: Put, flavors: list[FlavorEntry]) -> None:
    rows = [
        {"tid": f.tid, "cpu": f.vcpus, "ram": f.memory_mib, "disk": f.disk_gib} for f in flavors
    ]
    assert read_flavor_file(put(repr({"types": rows}))) == flavors
