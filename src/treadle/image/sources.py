"""What an image is brought from: a file here, one of another machine, a URL. Nothing is opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from urllib.parse import unquote, urlsplit

from treadle.errors import InvalidInput

_MAX_SOURCE = 4096
_EXTENSIONS = frozenset(
    {".qcow2", ".qcow", ".img", ".raw", ".disk", ".iso", ".vmdk", ".vdi", ".vhd", ".vhdx"}
)
USER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,31}")
HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_SSH = re.compile(r"([^@:/]+)@(\[[^\[\]@/]+\]|[^@:/\[\]]+)(?::([0-9]{1,5}))?:(/.*)")
_FORMS = (
    "/full/path, USER@ADDRESS:/full/path, USER@ADDRESS:PORT:/full/path or an http(s):// URL was "
    "expected"
)


@dataclass(frozen=True, slots=True)
class LocalPath:
    """A file of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class SshPath:
    """A file of another machine. `host` without brackets; `port` None: what ssh would take."""

    user: str
    host: str
    port: int | None
    path: str

    def __str__(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"{self.user}@{bracketed(self.host)}{port}:{self.path}"


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """A file of a web server."""

    url: str

    def __str__(self) -> str:
        """Without the query, which may hold a key."""
        return self.url.partition("?")[0]


Source = LocalPath | SshPath | HttpUrl


def parse_source(text: str) -> Source:
    """What a source says. Nothing is opened. Errors: `InvalidInput` (its `field` is "image")."""

    def refuse(mend: str) -> InvalidInput:
        return InvalidInput("image", text, mend)

    if not text or len(text) > _MAX_SOURCE:
        raise refuse(f"{_FORMS}, at most {_MAX_SOURCE} characters")
    if not text.isprintable() or text != text.strip():
        raise refuse("no control characters, and no white space around it")
    if text.endswith("/"):
        raise refuse("a file was expected, not a folder")
    if text.startswith("/"):
        return LocalPath(Path(text))
    if text[:8].lower().startswith(("http://", "https://")):
        wrong = wrong_url(text)
        if wrong:
            raise refuse(wrong)
        return HttpUrl(text)
    parts = _SSH.fullmatch(text)
    if parts is None:
        raise refuse(_FORMS)
    user, host, port, path = parts.groups()
    if not USER_NAME.fullmatch(user):
        raise refuse("a plain user name was expected before the @")
    if not _is_host(host):
        raise refuse("a host name or an address was expected after the @ (IPv6 in brackets)")
    if port is not None and not 1 <= int(port) <= 65535:
        raise refuse("a port from 1 to 65535 was expected")
    return SshPath(user, host.strip("[]"), int(port) if port else None, path)


def image_name(source: Source) -> str:
    """The name an image gets: the base name, without one extension that is known of images.

    1 to 255 printable characters. Errors: `InvalidInput`.
    """
    if isinstance(source, HttpUrl):
        base = urlsplit(source.url).path.rpartition("/")[2]
        try:
            base = unquote(base, errors="strict")
        except UnicodeDecodeError as error:
            raise InvalidInput("image", str(source), "its name is not UTF-8") from error
    else:
        base = str(source.path).rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    name = stem if dot and f".{extension.lower()}" in _EXTENSIONS else base
    if not 1 <= len(name) <= 255 or not name.isprintable() or name != name.strip():
        mend = "the file's name, without its extension, must have 1 to 255 printable characters"
        raise InvalidInput("image", str(source), mend)
    if name in (".", "..") or "/" in name:
        raise InvalidInput("image", str(source), "a name of a file was expected at the end")
    return name


def wrong_url(text: str) -> str | None:
    """What is wrong with an http(s) URL, None where nothing is."""
    if not text.isascii() or re.search(r"[\s\"<>\\^`{|}]", text):
        return "a URL holds no white space, quotes or letters beyond ASCII; write them as %XX"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "the address in the URL is not in order"
    if parts.scheme not in ("http", "https"):
        return "only http:// and https:// can be fetched"
    if "@" in parts.netloc:
        return "a user or a password cannot be part of the URL, since it is kept and shown"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    if not _is_host(host) or port == 0 or parts.netloc.endswith(":"):
        return "the address in the URL is not in order"
    if parts.fragment or text.endswith("#"):
        return "what follows # means nothing to a server; leave it out"
    return None


def _is_host(host: str) -> bool:
    """A host name, an IPv4 address, or an IPv6 address in brackets."""
    try:
        if host.startswith("["):
            IPv6Address(host[1:-1].partition("%")[0])
            return bool(re.fullmatch(r"\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]{1,32})?\]", host))
        if re.fullmatch(r"[0-9.]+", host):
            IPv4Address(host)
            return True
    except ValueError:
        return False
    labels = host.removesuffix(".").split(".")
    return len(host) <= 253 and all(map(HOST_LABEL.fullmatch, labels))


def bracketed(host: str) -> str:
    """The host as it stands before a colon."""
    return f"[{host}]" if ":" in host else host
