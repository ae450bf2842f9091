"""Bringing images in: from this machine, over SSH, over HTTP.

What `fetch` is given is said by the operator's file or by an administrator, who may reach this
network and this machine anyhow; so loopback and private addresses are allowed. What an ordinary
user names goes through `fetch_url` with a `Guard`: else we would ask and read on his behalf what he
cannot reach himself.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urljoin, urlsplit

from treadle.errors import RetryLater
from treadle.image.blobs import sync
from treadle.image.guard import Guard
from treadle.image.inspect import ImageGone, ImageRefused, looks_like_html, open_regular
from treadle.image.sources import (
    HttpUrl,
    LocalPath,
    Source,
    SshPath,
    bracketed,
    wrong_url,
)

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

BLOCK = 1 << 20
MAX_REDIRECTS = 5
CONNECT_S = 15.0
READ_S = 60.0

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and how many there will be, None where nobody says."""


class FetchFailed(RetryLater):
    """The image did not arrive now; the same fetch may succeed later."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """`max_bytes` of the file, and `seconds` for the whole of it."""

    max_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where the content is now, and its SHA-256 (64 hex digits) and size."""

    path: Path
    sha256: str
    size_bytes: int


# ----------------------------------------------------------------- fetch


def fetch(
    source: Source,
    into: Path,
    *,
    ssh_config: Path | None,
    limits: FetchLimits,
    progress: Progress,
) -> Fetched:
    """Have the content of `source` on this machine, whole, and its SHA-256.

    A local file stays where it is and is only read. Everything else is written to
    `into/RANDOM.part` and, once it is whole and on disk, named `into/SHA256`; a fetch that fails
    leaves nothing there. `ssh_config` is the file for `ssh -F`, None: the user's own.

    Errors: `FetchFailed` where another try may help, `ImageGone` and `ImageRefused` where not.
    """
    end = time.monotonic() + limits.seconds
    if isinstance(source, LocalPath):
        return _hash_in_place(source.path, limits, end, progress)
    with _part_file(into) as part:
        try:
            if isinstance(source, SshPath):
                size = _fetch_ssh(source, part, ssh_config, limits, end, progress)
                digest = sha256_file(part, end - time.monotonic())
            else:
                digest, size = _fetch_http(source, part, limits, end, progress)
            if size == 0:
                raise ImageRefused(f"{source} is empty: put the image there again")
            target = into / digest
            sync(part)
            part.rename(target)
            sync(into)
        except OSError as error:
            raise _disk_fault(into, error) from error
    return Fetched(target, digest, size)


def fetch_url(source: HttpUrl, file: Path, limits: FetchLimits, guard: Guard) -> None:
    """Write what a URL gives over the file, whole, where the guard lets it.

    Errors: `FetchFailed` where another try may help, `ImageGone` and `ImageRefused` where not.
    """
    end = time.monotonic() + limits.seconds
    try:
        _, size = _fetch_http(source, file, limits, end, lambda _here, _all: None, guard)
    except OSError as error:
        raise _disk_fault(file.parent, error) from error
    if size == 0:
        raise ImageRefused(f"{source} is empty: put the image there again")


def sha256_file(path: Path, deadline_s: float) -> str:
    """The SHA-256 (64 hex digits) of a regular file, read in blocks, within `deadline_s` seconds.

    Errors: `FetchFailed` where there was no time or the file changed, `ImageRefused`, `ImageGone`.
    """
    end = time.monotonic() + deadline_s
    with open_regular(path) as file:
        return _hash(path, file, end, lambda _here, _all: None)


def scp_argv(source: SshPath, into: Path, ssh_config: Path | None) -> list[str]:
    """The command that copies `source` to the file `into` (an absolute path), without a shell.

    `-s` has it speak SFTP only: the path is then never seen by a shell of the other machine. Its
    wildcards are still expanded there, so what would be one is escaped.
    """
    if not into.is_absolute():
        raise ValueError("the target must be an absolute path")
    argv = ["scp", "-s", "-B"]
    if ssh_config is not None:
        argv += ["-F", str(ssh_config)]
    for option in (
        f"ConnectTimeout={CONNECT_S:.0f}",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
        "LogLevel=ERROR",
    ):
        argv += ["-o", option]
    if source.port is not None:
        argv += ["-P", str(source.port)]
    path = re.sub(r"([\\*?\[\]{}])", r"\\\1", source.path)
    return [*argv, "--", f"{source.user}@{bracketed(source.host)}:{path}", str(into)]


# ------------------------------------------------------------ local file


def _hash_in_place(path: Path, limits: FetchLimits, end: float, progress: Progress) -> Fetched:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ImageRefused(f"{path} is empty: put the image there again")
        if size > limits.max_bytes:
            raise _too_large(path, limits)
        return Fetched(path, _hash(path, file, end, progress), size)


def _hash(path: Path, file: BinaryIO, end: float, progress: Progress) -> str:
    before = os.fstat(file.fileno())
    digest = hashlib.sha256()
    done = 0
    try:
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            progress(done, before.st_size)
            if done > before.st_size:
                break
            if time.monotonic() > end:
                raise FetchFailed(f"{path} could not be read in time")
    except OSError as error:
        raise FetchFailed(f"{path} cannot be read: {error.strerror}") from error
    after = os.fstat(file.fileno())
    if done != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise FetchFailed(f"{path} changed while it was read")
    return digest.hexdigest()


@contextmanager
def _part_file(into: Path) -> Iterator[Path]:
    """An empty file of mode 0600 in `into`, which is gone afterwards unless it was renamed."""
    part = into.absolute() / f"{secrets.token_hex(16)}.part"
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _disk_fault(into, error) from error
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _disk_fault(into: Path, error: OSError) -> FetchFailed:
    return FetchFailed(f"the image cannot be written to {into}: {error.strerror}")


def _too_large(source: object, limits: FetchLimits) -> ImageRefused:
    return ImageRefused(f"{source} is larger than {limits.max_bytes} bytes: raise image.max_gib")


# ------------------------------------------------------------------- ssh


def _fetch_ssh(
    source: SshPath,
    part: Path,
    ssh_config: Path | None,
    limits: FetchLimits,
    end: float,
    progress: Progress,
) -> int:
    """Copy it; its size comes back. The kernel itself stops what writes more than the limit."""
    limit = ["prlimit", f"--fsize={limits.max_bytes + 1}", "--core=0", "--"]
    with tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                limit + scp_argv(source, part, ssh_config),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                env=dict(os.environ) | {"LC_ALL": "C"},
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise FetchFailed("images need prlimit: install util-linux") from error
        try:
            while True:
                try:
                    code = process.wait(timeout=max(0.0, min(0.2, end - time.monotonic())))
                    break
                except subprocess.TimeoutExpired:
                    size = part.stat().st_size
                    progress(size, None)
                    if size > limits.max_bytes:
                        raise _too_large(source, limits) from None
                    if time.monotonic() > end:
                        raise FetchFailed(f"{source} did not arrive in time") from None
        finally:
            # Its own session: this ends the ssh that it started, too.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        err.seek(0)
        said = err.read(4000).decode(errors="replace")
    size = part.stat().st_size
    if size > limits.max_bytes:
        raise _too_large(source, limits)
    if code != 0:
        raise scp_fault(source, code, said)
    progress(size, size)
    return size


def scp_fault(source: SshPath, code: int, said: str) -> FetchFailed | ImageRefused:
    """The error for an `scp` that ended with `code` and said `said`."""
    lines = ["".join(c if c.isprintable() else " " for c in line) for line in said.splitlines()]
    lines = [line.strip() for line in lines if line.strip()]
    # What ssh says of a failed connection stands before this line, and says more.
    lines = [line for line in lines if line != "scp: Connection closed"]
    why = lines[-1][:300] if lines else f"scp ended with {code}"
    if "failed to execute scp" in said:
        return FetchFailed("images over SSH need scp: install openssh-client")
    if why.startswith("scp: /") and why.endswith("No such file or directory"):
        return ImageGone(f"{source} is not there: name an image file")
    if "not a regular file" in said:
        return ImageRefused(f"{source} is not a regular file: name an image file")
    return FetchFailed(f"{source} did not arrive: {why}")


# ------------------------------------------------------------------ http


class _Cutter:
    """Ends whatever waits on the current connection when the time is over.

    Limits on a single read cannot do that: a server that sends a byte now and then meets them all.
    """

    def __init__(self, seconds: float) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.over = False
        self._timer = threading.Timer(max(0.0, seconds), self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Cutter:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        self.watch(None)

    def watch(self, connection: socket.socket | None) -> None:
        """From now on it is this one. A copy is kept: TLS takes the original over."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = connection.dup() if connection is not None else None
            if self.over:
                self._shut()

    def _cut(self) -> None:
        with self._lock:
            self.over = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return


def _connection(url: str, cutter: _Cutter, guard: Guard | None) -> Any:
    """A connection to the server of `url` that `cutter` can end and `guard` lets us make."""
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Watched(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            name = self._dns_host
            if guard is not None:
                self._dns_host = guard.resolve(name, self.port or 0)
            try:
                made = super()._new_conn()
            finally:
                self._dns_host = name
            cutter.watch(made)
            return made

    class Secure(Watched, HTTPSConnection):
        pass

    if guard is not None:
        guard.check(url)
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "http":
        return Watched(host, parts.port or 80, timeout=CONNECT_S)
    context = ssl.create_default_context()
    return Secure(host, parts.port or 443, timeout=CONNECT_S, ssl_context=context)


def _fetch_http(
    source: HttpUrl, part: Path, limits: FetchLimits, end: float, progress: Progress,
    guard: Guard | None = None,
) -> tuple[str, int]:
    """Copy it; its SHA-256 and size come back."""
    from urllib3.exceptions import HTTPError

    with _Cutter(end - time.monotonic()) as cutter:
        try:
            return _follow(source, part, limits, cutter, progress, guard)
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            if cutter.over:
                raise FetchFailed(f"{source} did not arrive in time") from error
            why = "".join(c if c.isprintable() else " " for c in str(error))[:300]
            raise FetchFailed(f"{source} did not arrive: {why}") from error


def _follow(
    source: HttpUrl, part: Path, limits: FetchLimits, cutter: _Cutter, progress: Progress,
    guard: Guard | None,
) -> tuple[str, int]:
    url = source.url
    for _ in range(MAX_REDIRECTS + 1):
        connection = _connection(url, cutter, guard)
        try:
            target = urlsplit(url)._replace(scheme="", netloc="").geturl() or "/"
            connection.request(
                "GET",
                target if target.startswith("/") else f"/{target}",
                headers={"Accept-Encoding": "identity", "User-Agent": "treadle"},
                preload_content=False,
                decode_content=False,
                enforce_content_length=True,
            )
            if connection.sock is not None:
                connection.sock.settimeout(READ_S)
            response = connection.getresponse()
            if response.status not in (301, 302, 303, 307, 308):
                _check_answer(source, response, limits)
                return _copy(source, response, part, limits, cutter, progress)
            url = _next_hop(source, url, response.headers.get("Location", ""))
        finally:
            connection.close()
    raise ImageRefused(f"{source} is redirected more than {MAX_REDIRECTS} times: name its end")


def _next_hop(source: HttpUrl, url: str, location: str) -> str:
    try:
        following = urljoin(url, location).partition("#")[0]
    except ValueError:
        following = ""
    if not location or wrong_url(following):
        raise ImageRefused(f"{source} is redirected to no http(s) URL: name the image itself")
    if url.lower().startswith("https:") and not following.lower().startswith("https:"):
        raise ImageRefused(f"{source} is redirected from https to http: name an https URL")
    return following


def _check_answer(source: HttpUrl, response: BaseHTTPResponse, limits: FetchLimits) -> None:
    """Errors where what follows is not the image, as far as the head of the answer says."""
    status = response.status
    if status in (404, 410):
        raise ImageGone(f"{source} is not there (HTTP {status}): check the URL")
    if 400 <= status < 500 and status not in (408, 425, 429):
        raise ImageRefused(f"{source} is not given to us (HTTP {status}): check the URL")
    if status != 200:
        raise FetchFailed(f"{source} did not arrive: the server answered HTTP {status}")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ImageRefused(f"{source} is sent compressed ({encoding[:20]!a}): serve it as it is")
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length[:19]) > limits.max_bytes:
        raise _too_large(source, limits)


def _copy(
    source: HttpUrl,
    response: BaseHTTPResponse,
    part: Path,
    limits: FetchLimits,
    cutter: _Cutter,
    progress: Progress,
) -> tuple[str, int]:
    length = response.headers.get("Content-Length", "")
    expected = int(length) if length.isdecimal() else None
    digest = hashlib.sha256()
    done = 0
    with part.open("wb") as file:
        while block := response.read(BLOCK):
            if done == 0 and looks_like_html(block):
                raise ImageRefused(f"{source} is a web page (HTML), not an image: check the URL")
            done += len(block)
            if done > limits.max_bytes:
                raise _too_large(source, limits)
            digest.update(block)
            try:
                file.write(block)
            except OSError as error:
                raise _disk_fault(part.parent, error) from error
            progress(done, expected)
            if cutter.over:
                raise FetchFailed(f"{source} did not arrive in time")
    # An answer without a length ends where the connection does, also where we cut it ourselves.
    if cutter.over:
        raise FetchFailed(f"{source} did not arrive in time")
    if expected is not None and done != expected:
        raise FetchFailed(f"{source} did not arrive whole: {done} of {expected} bytes")
    return digest.hexdigest(), done
