"""Where images come from, and that only whole ones arrive."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import InvalidInput, RetryLater
from treadle.image import fetch as module
from treadle.image.fetch import (
    Fetched,
    FetchFailed,
    FetchLimits,
    fetch,
    scp_argv,
    scp_fault,
    sha256_file,
)
from treadle.image.inspect import ImageGone, ImageRefused
from treadle.image.sources import HttpUrl, LocalPath, Source, SshPath, image_name, parse_source

CONTENT = os.urandom(3 * (1 << 20) + 12345)
SHA256 = hashlib.sha256(CONTENT).hexdigest()

# ------------------------------------------------------------ sources and names


@pytest.mark.parametrize(
    ("text", "source", "name"),
    [
        ("/a/b.img", LocalPath(Path("/a/b.img")), "b"),
        ("/Ubuntu-12.04-amd64.qcow2", LocalPath(Path("/Ubuntu-12.04-amd64.qcow2")), None),
        ("/a/b.tar.RAW", LocalPath(Path("/a/b.tar.RAW")), "b.tar"),
        ("/a/debian-12.5", LocalPath(Path("/a/debian-12.5")), "debian-12.5"),
        ("/a/b c.img", LocalPath(Path("/a/b c.img")), "b c"),
        ("u@h:/x.img", SshPath("u", "h", None, "/x.img"), "x"),
        ("u@10.0.0.1:2222:/x:y.img", SshPath("u", "10.0.0.1", 2222, "/x:y.img"), "x:y"),
        ("u@[::1]:/x.img", SshPath("u", "::1", None, "/x.img"), "x"),
        ("u@[fe80::1%eth0]:22:/x.img", SshPath("u", "fe80::1%eth0", 22, "/x.img"), "x"),
        ("http://h/x%20y.img?a=b/c", HttpUrl("http://h/x%20y.img?a=b/c"), "x y"),
        ("HTTPS://[::1]:8443/x.img", HttpUrl("HTTPS://[::1]:8443/x.img"), "x"),
    ],
)
def test_source(text: str, source: Source, name: str | None) -> None:
    assert parse_source(text) == source
    assert image_name(source) == (name or "Ubuntu-12.04-amd64")
    if not isinstance(source, HttpUrl):
        assert str(source) == text


@pytest.mark.parametrize(
    "texts",
    [
        ("", "x.img", "./x.img", "/x/", " /x", "/" + "x" * 5000),
        ("/x\n", "/x\0y", "/x\x1b[2J", "/\ud800"),
        ("h:/x", "u@h:x", "u@h", "u@h:0:/x", "u@h:99999:/x"),
        ("-l@h:/x", "-oProxyCommand=x@h:/x", "u@-h:/x", "u@h h:/x", "u;x@h:/x"),
        ("u@[::1:/x", "u@[-x]:/x", "u@::1:/x", "u@10.0.0.999:/x"),
        ("ssh://u@h/x", "file:///x", "ftp://h/x"),
        ("http:///x", "http://h:0/x", "http://h:/x", "http://h:99999/x", "http://[::1/x"),
        ("http://u:p@h/x", "http://h/x#y", "http://h\\@g/x", "http://-h/x"),
        ("http://h/x y", "http://h/\u00fc"),
    ],
)
def test_source_refused(texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(InvalidInput):
            parse_source(text)


@pytest.mark.parametrize(
    "source",
    [
        LocalPath(Path("/a/.qcow2")),
        LocalPath(Path("/a/..")),
        LocalPath(Path("/" + "x" * 300)),
        HttpUrl("http://h/"),
        HttpUrl("http://h"),
        HttpUrl("http://h/%2e%2e"),
        HttpUrl("http://h/a%2Fb"),
        HttpUrl("http://h/a%0Ab"),
        HttpUrl("http://h/%ff"),
    ],
)
def test_name_refused(source: Source) -> None:
    with pytest.raises(InvalidInput):
        image_name(source)


@given(st.text(max_size=60) | st.text(alphabet="u@h:/[]%1.-x?#", max_size=30))
def test_any_text_is_a_source_or_refused(text: str) -> None:
    try:
        source = parse_source(text)
        name = image_name(source)
    except InvalidInput:
        return
    assert name
    assert name.isprintable()
    if isinstance(source, SshPath):
        assert source.path.startswith("/")
        assert source.user[0] != "-"
        assert source.host[0] != "-"


def test_a_query_is_not_shown() -> None:
    assert str(HttpUrl("http://h/x?key=secret")) == "http://h/x"


# ------------------------------------------------------------------------- ssh


def test_scp_argv() -> None:
    source = SshPath("u", "fe80::1", 2222, "/a b/$(x)`y`/*[1]?{a,b}\\'\"~;#.img")
    argv = scp_argv(source, Path("/into/x.part"), Path("/conf ig"))
    assert argv[0] == "scp"
    assert "-s" in argv
    assert "-B" in argv
    assert argv[argv.index("-F") + 1] == "/conf ig"
    assert argv[argv.index("-P") + 1] == "2222"
    assert argv[-3:] == [
        "--",
        "u@[fe80::1]:/a b/$(x)`y`/\\*\\[1\\]\\?\\{a,b\\}\\\\'\"~;#.img",
        "/into/x.part",
    ]


def test_scp_argv_without_choices() -> None:
    argv = scp_argv(SshPath("u", "h", None, "/x"), Path("/y"), None)
    assert "-F" not in argv
    assert "-P" not in argv
    with pytest.raises(ValueError):
        scp_argv(SshPath("u", "h", None, "/x"), Path("h:y"), None)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("scp: /x\\[1\\]: No such file or directory\n", ImageGone, "not there"),
        ("scp: download /x: not a regular file\n", ImageRefused, "not a regular file"),
        ("u@h: Permission denied (publickey).\r\nscp: Connection closed\n", FetchFailed, "denied"),
        ("ssh: connect to host h port 22: Connection refused\r\n", FetchFailed, "refused"),
        ("Can't open user config file /c: No such file or directory\n", FetchFailed, "config"),
        ("\x1b[2Jboo", FetchFailed, "boo"),
        ("", FetchFailed, "ended with 255"),
        ("prlimit: failed to execute scp: No such file or directory", FetchFailed, "install"),
    ],
)
def test_scp_fault(said: str, kind: type[Exception], words: str) -> None:
    error = scp_fault(SshPath("u", "h", None, "/x[1]"), 255, said)
    assert type(error) is kind
    assert words in str(error)
    assert str(error).isprintable()


# ----------------------------------------------------------------- local files


def limits(max_bytes: int = 1 << 30, seconds: float = 20) -> FetchLimits:
    return FetchLimits(max_bytes, seconds)


def quiet(_here: int, _all: int | None) -> None:
    return


def local(path: Path, into: Path, limit: FetchLimits | None = None) -> Fetched:
    return fetch(LocalPath(path), into, ssh_config=None, limits=limit or limits(), progress=quiet)


def test_local_file_is_used_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(CONTENT)
    into = tmp_path / "into"
    into.mkdir()
    seen: list[tuple[int, int | None]] = []
    fetched = fetch(
        LocalPath(path),
        into,
        ssh_config=None,
        limits=limits(),
        progress=lambda here, all_: seen.append((here, all_)),
    )
    assert fetched == Fetched(path, SHA256, len(CONTENT))
    assert list(into.iterdir()) == []
    assert seen[0] == (1 << 20, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_local_file_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageGone):
        local(tmp_path / "none", tmp_path)
    with pytest.raises(ImageRefused, match="a directory"):
        local(tmp_path, tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageRefused, match="a FIFO"):
        local(tmp_path / "fifo", tmp_path)
    path = tmp_path / "a.img"
    path.write_bytes(b"")
    with pytest.raises(ImageRefused, match="empty"):
        local(path, tmp_path)
    path.write_bytes(b"123")
    with pytest.raises(ImageRefused, match="larger than 2 bytes"):
        local(path, tmp_path, limits(2))
    with pytest.raises(FetchFailed, match="in time"):
        local(path, tmp_path, limits(seconds=0))


def test_local_file_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(CONTENT)

    def grow(_here: int, _all: int | None) -> None:
        with path.open("ab") as file:
            file.write(b"x")

    with pytest.raises(FetchFailed, match="changed"):
        fetch(LocalPath(path), tmp_path, ssh_config=None, limits=limits(), progress=grow)


def test_sha256_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    assert sha256_file(path, 10) == SHA256
    with pytest.raises(FetchFailed, match="in time"):
        sha256_file(path, 0)
    with pytest.raises(ImageGone):
        sha256_file(tmp_path / "none", 10)


# ------------------------------------------------------------------------ http


class Web:
    """A web server on loopback. `answer` is what the next requests get."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = content
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.stop = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.paths.append(self.path)
                web.headers.append(dict(self.headers))
                self.close_connection = True
                try:
                    web.answer(self)
                except ConnectionError:
                    return

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.scheme = "http"

    def url(self, path: str = "/a.img") -> str:
        return f"{self.scheme}://127.0.0.1:{self.server.server_port}{path}"


def respond(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str | None
) -> None:
    handler.send_response(status)
    headers = {"Content_Length": str(len(body))} | headers
    for name, value in headers.items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def content(handler: BaseHTTPRequestHandler) -> None:
    respond(handler, 200, CONTENT)


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    thread = threading.Thread(target=server.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.stop.set()
    server.server.shutdown()
    server.server.server_close()
    thread.join()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def get(
    url: str, into: Path, limit: FetchLimits | None = None, progress: module.Progress = quiet
) -> Fetched:
    return fetch(
        parse_source(url), into, ssh_config=None, limits=limit or limits(), progress=progress
    )


def test_http(web: Web, into: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    fetched = get(
        web.url("/a%20b.img?x=%2F&y"), into, progress=lambda here, all_: seen.append((here, all_))
    )
    assert fetched == Fetched(into / SHA256, SHA256, len(CONTENT))
    assert fetched.path.read_bytes() == CONTENT
    assert fetched.path.stat().st_mode & 0o777 == 0o600
    assert list(into.iterdir()) == [fetched.path]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert web.paths == ["/a%20b.img?x=%2F&y"]
    assert web.headers[0]["Accept-Encoding"] == "identity"
    # Once more, over what is there.
    assert get(web.url(), into).path.read_bytes() == CONTENT


def test_http_without_a_path(web: Web, into: Path) -> None:
    assert get(web.url(""), into).sha256 == SHA256
    assert get(web.url("?x"), into).sha256 == SHA256
    assert web.paths == ["/", "/?x"]


def test_http_without_a_length(web: Web, into: Path) -> None:
    web.answer = lambda handler: respond(handler, 200, CONTENT, Content_Length=None)
    assert get(web.url(), into).sha256 == SHA256


def chunked(*chunks: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        respond(handler, 200, body, Content_Length=None, Transfer_Encoding="chunked")

    return answer


def test_http_chunked(web: Web, into: Path) -> None:
    web.answer = chunked(CONTENT[:7], CONTENT[7:], b"")
    assert get(web.url(), into).sha256 == SHA256
    web.answer = chunked(CONTENT[:7], CONTENT[7:])
    with pytest.raises(FetchFailed):
        get(web.url(), into)
    web.answer = chunked(b"x" * 600, b"x" * 600, b"")
    with pytest.raises(ImageRefused, match="larger"):
        get(web.url(), into, limits(1000))
    assert [path.name for path in into.iterdir()] == [SHA256]


def redirect(location: str, status: int = 302) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/end":
            content(handler)
        else:
            respond(handler, status, b"moved", Location=location)

    return answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect(web: Web, into: Path, status: int) -> None:
    web.answer = redirect("/end", status)
    assert get(web.url(), into).sha256 == SHA256
    web.answer = redirect(web.url("/end") + "#part", status)
    assert get(web.url(), into).sha256 == SHA256


def count_down(handler: BaseHTTPRequestHandler) -> None:
    left = int(handler.path.removeprefix("/"))
    if left:
        respond(handler, 302, b"", Location=f"/{left - 1}")
    else:
        content(handler)


def test_redirects_are_counted(web: Web, into: Path) -> None:
    web.answer = count_down
    assert get(web.url("/5"), into).sha256 == SHA256
    with pytest.raises(ImageRefused, match="more than 5 times"):
        get(web.url("/6"), into)


@pytest.mark.parametrize(
    "location",
    ["", "file:///etc/passwd", "ftp://h/x", "http://u:p@h/", "http://[::1", "http://h:0/", "//-h/"],
)
def test_redirect_to_what_is_not_fetched(web: Web, into: Path, location: str) -> None:
    web.answer = redirect(location)
    with pytest.raises(ImageRefused, match="redirected"):
        get(web.url(), into)
    assert len(web.paths) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, ImageGone),
        (410, ImageGone),
        (401, ImageRefused),
        (403, ImageRefused),
        (408, FetchFailed),
        (429, FetchFailed),
        (500, FetchFailed),
        (503, FetchFailed),
        (206, FetchFailed),
    ],
)
def test_status(web: Web, into: Path, status: int, kind: type[Exception]) -> None:
    web.answer = lambda handler: respond(handler, status, b"no")
    with pytest.raises(kind, match=f"HTTP {status}") as caught:
        get(web.url("/a?secret"), into)
    assert type(caught.value) is kind
    assert "secret" not in str(caught.value)
    assert list(into.iterdir()) == []


def test_web_page(web: Web, into: Path) -> None:
    web.answer = lambda handler: respond(handler, 200, b"<!DOCTYPE HTML><html>Sign in</html>")
    with pytest.raises(ImageRefused, match="web page"):
        get(web.url(), into)


def test_compressed_on_the_way(web: Web, into: Path) -> None:
    body = gzip.compress(CONTENT[:1000])
    web.answer = lambda handler: respond(handler, 200, body, Content_Encoding="gzip")
    with pytest.raises(ImageRefused, match="compressed"):
        get(web.url(), into)


def test_empty(web: Web, into: Path) -> None:
    web.answer = lambda handler: respond(handler, 200, b"")
    with pytest.raises(ImageRefused, match="empty"):
        get(web.url(), into)


def test_truncated(web: Web, into: Path) -> None:
    web.answer = lambda handler: respond(
        handler, 200, CONTENT, Content_Length=str(len(CONTENT) + 1)
    )
    with pytest.raises(FetchFailed):
        get(web.url(), into)
    assert list(into.iterdir()) == []


def test_too_large(web: Web, into: Path) -> None:
    with pytest.raises(ImageRefused, match="larger"):
        get(web.url(), into, limits(len(CONTENT) - 1))
    web.answer = lambda handler: respond(handler, 200, CONTENT, Content_Length=None)
    with pytest.raises(ImageRefused, match="larger"):
        get(web.url(), into, limits(len(CONTENT) - 1))
    assert list(into.iterdir()) == []
    assert get(web.url(), into, limits(len(CONTENT))).sha256 == SHA256


@pytest.mark.parametrize("length", ["9" * 30, "-5", "abc", "1, 2"])
def test_strange_length(web: Web, into: Path, length: str) -> None:
    web.answer = lambda handler: respond(handler, 200, CONTENT, Content_Length=length)
    with pytest.raises((FetchFailed, ImageRefused)):
        get(web.url(), into, limits(len(CONTENT) - 1))
    assert list(into.iterdir()) == []


def drip(web: Web, start: bytes, drop: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """A byte now and then, so that no single read ever takes long."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while not web.stop.wait(0.05):
            handler.wfile.write(drop)

    return answer


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (HEAD + b"Content-Length: 1000000\r\n\r\n", b"x"),
        (HEAD + b"\r\n", b"x"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        (HEAD, b"x"),
        (b"", b""),
    ],
)
def test_slow_server(web: Web, into: Path, start: bytes, drop: bytes) -> None:
    web.answer = drip(web, start, drop)
    began = time.monotonic()
    with pytest.raises(FetchFailed, match="in time"):
        get(web.url(), into, limits(seconds=0.4))
    assert time.monotonic() - began < 3
    assert list(into.iterdir()) == []


def test_nobody_answers(web: Web, into: Path) -> None:
    url = web.url()
    web.server.server_close()
    with pytest.raises(RetryLater, match="did not arrive"):
        get(url, into)


def test_not_http(web: Web, into: Path) -> None:
    web.answer = lambda handler: handler.wfile.write(b"\x00\x01 hello\r\n\r\n")
    with pytest.raises(FetchFailed):
        get(web.url(), into)


def test_folder_that_is_not_there(web: Web, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="cannot be written"):
        get(web.url(), tmp_path / "none")
    assert web.paths == []


def test_interrupted(web: Web, into: Path) -> None:
    def stop(_here: int, _all: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(web.url(), into, progress=stop)
    assert list(into.iterdir()) == []


# ------------------------------------------------------------------------- tls


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return key, cert


@pytest.fixture
def secure(web: Web, certificate: tuple[Path, Path]) -> Web:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    web.server.socket = context.wrap_socket(
        web.server.socket, server_side=True, do_handshake_on_connect=False
    )
    web.scheme = "https"
    return web


def test_certificate_is_checked(
    secure: Web, into: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FetchFailed, match="certificate"):
        get(secure.url(), into)
    assert secure.paths == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    assert get(secure.url(), into).sha256 == SHA256
    with pytest.raises(FetchFailed, match=r"certificate|match"):
        get(secure.url().replace("127.0.0.1", "localhost"), into)
    secure.answer = redirect(secure.url("/end").replace("https:", "http:"))
    with pytest.raises(ImageRefused, match="from https to http"):
        get(secure.url(), into)


def test_slow_handshake(into: Path) -> None:
    """A server that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        with pytest.raises(FetchFailed, match="in time"):
            get(f"https://127.0.0.1:{listener.getsockname()[1]}/x", into, limits(seconds=0.4))
    assert time.monotonic() - began < 3
