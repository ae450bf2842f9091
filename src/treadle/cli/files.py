"""The three files of the classic start: machines, images, flavors.

Every fault is a `BadFile`, one line: `FILE:LINE: what is wrong: what was expected`. The files are
read whole (at most 1 MiB) and nothing in them is run.
"""

from __future__ import annotations

import ast
import os
import re
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NoReturn
from urllib.parse import SplitResult, parse_qsl, urlsplit

from treadle.errors import CallerError, InvalidInput
from treadle.image.sources import HOST_LABEL, USER_NAME, Source, image_name, parse_source

MAX_FILE = 1 << 20
MAX_LINE = 4096
MAX_ROWS = 10_000
MAX_DEPTH = 8
MAX_TOKENS = 200_000

MACHINE = "ADDRESS, USER@ADDRESS, USER@ADDRESS:PORT or a libvirt URI was expected"
SHAPE = '{"types": [{"cpu": 1, "ram": 512, "disk": 1}, ...]} was expected'

# key in the file → what it counts, largest value
_AMOUNTS = {
    "cpu": ("cores", 4096),
    "ram": ("MiB", 64 * 1024 * 1024),
    "disk": ("GiB", 64 * 1024),
}
_MAX_TID = 2**31 - 1

_DRIVERS = frozenset(
    {"qemu", "xen", "lxc", "test", "ch", "bhyve", "vz", "openvz", "vbox", "esx", "vpx", "gsx"}
    | {"hyperv", "vmwareplayer", "vmwarews", "vmwarefusion"}
)
_TRANSPORT_PORTS = {"ssh": 22, "libssh": 22, "libssh2": 22, "tls": 16514, "tcp": 16509}
_TRANSPORTS = frozenset({"", "unix", "ext", *_TRANSPORT_PORTS})
# These say how to get to a machine, not which machine it is.
_HOW_TO_CONNECT = frozenset(
    {"keyfile", "known_hosts", "known_hosts_verify", "sshauth", "no_verify", "no_tty"}
    | {"pkipath", "tls_priority", "netcat", "proxy", "command"}
)
_FAKE_SIZES = ("vcpus", "memory_mib", "disk_mib", "numa")
_FAKE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_SCOPE = re.compile(r"[A-Za-z0-9._-]{1,32}")


class BadFile(CallerError):
    """A file that cannot be taken. `line` counts from 1; 0: the file as a whole."""

    def __init__(self, path: Path, line: int, wrong: str, expected: str) -> None:
        place = f"{path}:{line}" if line else str(path)
        super().__init__(_one_line(f"{place}: {wrong}: {expected}"))
        self.path = path
        self.line = line
        self.wrong = wrong
        self.expected = expected


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One machine. `uri` is libvirt's; `address` is its host, "localhost" where it has none."""

    line: int
    uri: str
    address: str


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image: where it comes from, and the name it gets."""

    line: int
    source: Source
    name: str


@dataclass(frozen=True, slots=True)
class FlavorEntry:
    """One size of instance."""

    tid: int
    vcpus: int
    memory_mib: int
    disk_gib: int


def read_pm_file(path: Path) -> list[HostEntry]:
    """The machines, in the order of the file. Errors: `BadFile`."""
    entries: list[HostEntry] = []
    seen: dict[object, int] = {}
    for line, raw in _lines(path):
        text = raw.partition("#")[0].strip()
        if not text:
            continue
        try:
            uri, address, machine = _machine(text)
        except ValueError as error:
            raise BadFile(path, line, f"{_shown(text)}: {error}", MACHINE) from error
        _once(path, line, text, seen, machine, "each machine once")
        entries.append(HostEntry(line, uri, address))
    if not entries:
        raise BadFile(path, 1, "there is no machine in it", MACHINE)
    return entries


def read_image_file(path: Path) -> list[ImageEntry]:
    """The images, in the order of the file; none is fetched or looked at. Errors: `BadFile`."""
    expected = "/full/path, USER@ADDRESS:/full/path or an http(s):// URL was expected"
    entries: list[ImageEntry] = []
    seen: dict[object, int] = {}
    for line, raw in _lines(path):
        # A path or a URL may hold a "#" of its own, so a comment starts after white space.
        text = re.split(r"(?:^|\s)#", raw, maxsplit=1)[0].strip()
        if not text:
            continue
        try:
            source = parse_source(text)
            name = image_name(source)
        except InvalidInput as error:
            raise BadFile(path, line, f"{_shown(text)} is not an image", error.mend) from error
        _once(path, line, text, seen, source, "each image once")
        entries.append(ImageEntry(line, source, name))
    if not entries:
        raise BadFile(path, 1, "there is no image in it", expected)
    return entries


def read_flavor_file(path: Path) -> list[FlavorEntry]:
    """The flavors, in the order of the file. Errors: `BadFile`."""
    text = _text(path)
    _scan(path, text)
    root = _table(path, _literal(path, text), "the file", {"types"})
    if "types" not in root:
        raise BadFile(path, 1, 'the key "types" is missing', SHAPE)
    rows = root["types"]
    if not isinstance(rows, ast.List | ast.Tuple):
        raise BadFile(path, rows.lineno, '"types" is not a list', SHAPE)
    if not rows.elts:
        raise BadFile(path, rows.lineno, '"types" is empty', SHAPE)
    if len(rows.elts) > MAX_ROWS:
        raise BadFile(path, rows.lineno, "there are too many rows", f"at most {MAX_ROWS}")
    entries: list[FlavorEntry] = []
    seen: dict[object, int] = {}
    first_has_tid = False
    for number, node in enumerate(rows.elts, start=1):
        row = _table(path, node, f"row {number}", {"tid", *_AMOUNTS})
        has_tid = "tid" in row
        if number == 1:
            first_has_tid = has_tid
        elif has_tid != first_has_tid:
            wrong = f"row {number} has {'a' if has_tid else 'no'} tid, unlike the rows before it"
            raise BadFile(path, node.lineno, wrong, "a tid in every row, or in none")
        tid = _integer(path, row["tid"], "tid", "a number", _MAX_TID) if has_tid else number
        _once(path, node.lineno, f"tid {tid}", seen, tid, "each tid once")
        amounts = []
        for key, (unit, most) in _AMOUNTS.items():
            if key not in row:
                wrong = f'row {number} has no "{key}"'
                raise BadFile(path, node.lineno, wrong, f"tid (optional), {', '.join(_AMOUNTS)}")
            amounts.append(_integer(path, row[key], key, unit, most))
        entries.append(FlavorEntry(tid, *amounts))
    return entries


# ------------------------------------------------------------------ text


def _text(path: Path) -> str:
    """The whole text, line ends as newlines. Errors: `BadFile`."""
    expected = "a text file was expected"
    try:
        # Non-blocking, so that a FIFO nobody writes to cannot hold up the start.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            os.close(handle)
            what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise BadFile(path, 0, f"it is {what}", expected)
        with open(handle, "rb") as file:
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError as error:
        raise BadFile(path, 0, "there is no such file", expected) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a name of a file"
        raise BadFile(path, 0, f"it cannot be read ({reason})", expected) from error
    if len(content) > MAX_FILE:
        raise BadFile(path, 0, "it is larger than 1 MiB", "a short text file was expected")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadFile(path, line, "it is not UTF-8", expected) from error
    text = text.replace("\r\n", "\n")
    control = re.search(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]", text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise BadFile(path, line, f"there is a control character {control[0]!a}", expected)
    if not text.strip():
        raise BadFile(path, 1, "it is empty", "at least one entry was expected")
    return text


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every line. Errors: `BadFile`."""
    for line, text in enumerate(_text(path).split("\n"), start=1):
        if len(text) > MAX_LINE:
            raise BadFile(path, line, "the line is too long", f"at most {MAX_LINE} characters")
        if line > MAX_ROWS:
            raise BadFile(path, line, "there are too many lines", f"at most {MAX_ROWS}")
        yield line, text


def _once(
    path: Path, line: int, text: str, seen: dict[object, int], key: object, expected: str
) -> None:
    if key in seen:
        raise BadFile(path, line, f"{_shown(text)} is in line {seen[key]} already", expected)
    seen[key] = line


def _shown(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# -------------------------------------------------------------- machines


def _machine(text: str) -> tuple[str, str, object]:
    """URI, address, and a key that is equal for two spellings of one machine.

    Errors: `ValueError` with what is wrong.
    """
    if "://" in text:
        return _machine_of_uri(text)
    user, at, rest = text.rpartition("@")
    if at and not USER_NAME.fullmatch(user):
        raise ValueError("the user is not a plain user name")
    host, port = _host_and_port(rest)
    place = f"{user}@{_in_uri(host)}" if at else _in_uri(host)
    uri = f"qemu+ssh://{place}{f':{port}' if port else ''}/system"
    return uri, host, ("qemu", host.lower(), 0 if port == 22 else port, "/system", "", ())


def check_uri(text: str) -> None:
    """Whether a URI can be a machine's. Errors: `InvalidInput`."""
    try:
        _machine_of_uri(text)
    except ValueError as error:
        mend = f"{error}: give a libvirt URI such as qemu+ssh://root@HOST/system"
        raise InvalidInput("uri", text, mend) from error


def _machine_of_uri(text: str) -> tuple[str, str, object]:
    if not text.isascii() or re.search(r"[\s\"<>\\^`{|}]", text):
        raise ValueError("a URI holds no white space, quotes or letters beyond ASCII")
    parts = urlsplit(text)
    if parts.scheme == "fake":
        return _machine_of_fake(text, parts)
    driver, plus, transport = parts.scheme.partition("+")
    if driver not in _DRIVERS:
        raise ValueError(f"{driver} is not a hypervisor that libvirt knows")
    if transport not in _TRANSPORTS or (plus and not transport):
        raise ValueError(f"{transport or 'an empty transport'} is not a transport of libvirt's")
    user, at, rest = parts.netloc.rpartition("@")
    if at and not USER_NAME.fullmatch(user):
        raise ValueError("the user is not a plain user name (a password cannot be part of it)")
    host, port = _host_and_port(rest.replace("%25", "%")) if rest else ("", 0)
    if not host and (at or transport in _TRANSPORT_PORTS):
        raise ValueError("the address is missing")
    if not parts.path.startswith("/"):
        raise ValueError("the path is missing, such as /system")
    query = parse_qsl(parts.query, keep_blank_values=True)
    which = tuple(sorted(pair for pair in query if pair[0] not in _HOW_TO_CONNECT))
    if port == _TRANSPORT_PORTS.get(transport or "tls"):
        port = 0
    # A session belongs to its user; the system's daemon is the same one for everybody.
    owner = user if parts.path == "/session" else ""
    return text, host or "localhost", (driver, host.lower(), port, parts.path, owner, which)


def _machine_of_fake(text: str, parts: SplitResult) -> tuple[str, str, object]:
    if not _FAKE_NAME.fullmatch(parts.netloc):
        raise ValueError("the name of a fake machine holds only letters, digits, . _ and -")
    if parts.path not in ("", "/"):
        raise ValueError("a fake machine has no path")
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _FAKE_SIZES or not re.fullmatch(r"[1-9][0-9]{0,11}", value):
            raise ValueError(f"a fake machine takes {', '.join(_FAKE_SIZES)} as whole numbers")
    return text, parts.netloc, ("fake", parts.netloc.lower())


def _host_and_port(text: str) -> tuple[str, int]:
    """Host without brackets, port or 0. Errors: `ValueError` with what is wrong."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("the brackets of the IPv6 address are not in order")
        address, percent, scope = host.partition("%")
        if percent and not _SCOPE.fullmatch(scope):
            raise ValueError("what follows % is not the name of a network interface")
        try:
            IPv6Address(address)
        except ValueError:
            raise ValueError("what is in brackets is not an IPv6 address") from None
        return host, _port(rest[1:]) if rest else 0
    if text.count(":") > 1:
        raise ValueError("an IPv6 address stands in brackets, such as [2001:db8::1]")
    host, colon, port = text.partition(":")
    if not host:
        raise ValueError("the address is missing")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            IPv4Address(host)
        except ValueError:
            raise ValueError("it is not a whole IPv4 address") from None
    elif len(host) > 253 or not all(map(HOST_LABEL.fullmatch, host.removesuffix(".").split("."))):
        raise ValueError("the address is not a host name")
    return host, _port(port) if colon else 0


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError("the port is not a number from 1 to 65535")
    return int(text)


def _in_uri(host: str) -> str:
    return f"[{host.replace('%', '%25')}]" if ":" in host else host


# --------------------------------------------------------------- flavors

_TOKEN = re.compile(
    r"""(?P<space>[ \t\n]+|\#[^\n]*)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<word>[A-Za-z0-9_.][A-Za-z0-9_.]*)
      | (?P<open>[\[{(])
      | (?P<close>[\]})])
      | (?P<sign>[-+])
      | (?P<mark>[,:])""",
    re.VERBOSE,
)
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_CONSTANTS = frozenset({"true", "false", "null", "True", "False", "None"})


def _scan(path: Path, text: str) -> None:
    """Let through only what a plain literal is made of, and only so deep.

    What passes cannot make the Python parser nest deeply: no operators but the sign of a number,
    no two strings in a row, brackets at most `MAX_DEPTH` deep. Errors: `BadFile`.
    """
    place, line, count = 0, 1, 0
    opened: list[tuple[str, int]] = []
    before = "mark"

    def refuse(wrong: str) -> NoReturn:
        raise BadFile(path, line, wrong, SHAPE)

    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            refuse(f"{text[place]!r} cannot stand here")
        kind, word = token.lastgroup or "", token[0]
        place = token.end()
        if kind == "space":
            line += word.count("\n")
            continue
        count += 1
        if kind == "open":
            opened.append((_CLOSES[word], line))
        if len(opened) > MAX_DEPTH:
            refuse("it is nested too deeply")
        if kind == "close" and (not opened or opened.pop()[0] != word):
            refuse(f"{word!r} closes nothing")
        if count > MAX_TOKENS:
            refuse("it is too long")
        if kind == "word" and not word[0].isdigit() and word not in _CONSTANTS:
            refuse(f"{_shown(word)} is not a literal")
        if kind == "word" and len(word) > 30:
            refuse(f"{word[:20]}... is too long for a number")
        if before == "sign" and not (kind == "word" and word[0].isdigit()):
            refuse("a sign stands without a number")
        if kind in ("word", "string", "sign", "open") and before in ("word", "string", "close"):
            refuse(f"a comma or a colon is missing before {_shown(word)}")
        before = kind
    if opened:
        closing, line = opened[-1]
        refuse(f"the {closing!r} for what is opened in this line is missing")


def _literal(path: Path, text: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # In brackets, white space before and after it means nothing to the parser.
            return ast.parse(f"({text}\n)", mode="eval").body
    except SyntaxError as error:
        line = min((error.lineno or 1), text.count("\n") + 1)
        raise BadFile(path, line, f"it is not a literal ({error.msg})", SHAPE) from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise BadFile(path, 1, "it is not a literal", SHAPE) from error


def _table(path: Path, node: ast.expr, what: str, known: set[str]) -> dict[str, ast.expr]:
    """The keys and values of a table with known keys, each once. Errors: `BadFile`."""
    if not isinstance(node, ast.Dict):
        raise BadFile(path, node.lineno, f"{what} is not a table", SHAPE)
    table: dict[str, ast.expr] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        line = (key or node).lineno
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            raise BadFile(path, line, f"{what} has a key that is not text", SHAPE)
        if key.value not in known:
            expected = f"{', '.join(sorted(known))} was expected"
            wrong = f"{what} has the unknown key {_shown(repr(key.value))}"
            raise BadFile(path, line, wrong, expected)
        if key.value in table:
            raise BadFile(path, line, f'{what} has "{key.value}" twice', "each key once")
        table[key.value] = value
    return table


def _integer(path: Path, node: ast.expr, key: str, unit: str, most: int) -> int:
    """A whole number from 1 to `most`. Errors: `BadFile`."""
    expected = f"a whole number ({unit}) from 1 to {most} was expected"
    value: object = None
    sign = 1
    inner = node
    if isinstance(inner, ast.UnaryOp) and isinstance(inner.op, ast.USub | ast.UAdd):
        sign = -1 if isinstance(inner.op, ast.USub) else 1
        inner = inner.operand
    if isinstance(inner, ast.Constant):
        value = inner.value
    if type(value) is not int:
        shown = _shown(repr(value)) if isinstance(inner, ast.Constant) else "not a number"
        if isinstance(inner, ast.Name):
            shown = inner.id
        raise BadFile(path, node.lineno, f'"{key}" is {shown}', expected)
    if not 1 <= sign * value <= most:
        raise BadFile(path, node.lineno, f'"{key}" is {_shown(str(sign * value))}', expected)
    return value
