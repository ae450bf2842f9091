"""Consoles over WebSocket: who gets in, what is carried, and what ends it."""

from __future__ import annotations

import socket
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from cloudkit import Cloud, Start, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from treadle.api import consoles as relay
from treadle.compute import store
from treadle.db.schema import console_token, host, instance
from treadle.hypervisor.base import ConsoleKind, Power
from treadle.placement import ledger

PATIENCE_S = 20


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every thread that carried a console has ended."""
    before = set(threading.enumerate())
    yield

    def ended() -> bool:
        return not [t for t in threading.enumerate()
                    if t not in before and t.name in ("fake-console", "serial-console")]

    until(ended, "the consoles' threads")


def ask(cloud: Cloud, vmid: int, kind: str = "serial") -> dict[str, Any]:
    """A token and where it leads."""
    answer = cloud.native("POST", f"/instances/{vmid}/console", json={"kind": kind})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def go(cloud: Cloud, path: str, **options: Any) -> ClientConnection:
    """A client at a WebSocket."""
    return connect(
        f"ws://127.0.0.1:{cloud.port}{path}", subprotocols=["binary"],  # type: ignore[list-item]
        compression=None, open_timeout=PATIENCE_S, proxy=None, **options,
    )


def enter(cloud: Cloud, vmid: int, kind: str = "serial", **options: Any) -> ClientConnection:
    """A client at a console."""
    return go(cloud, ask(cloud, vmid, kind)["socket"], **options)


def visit(cloud: Cloud, path: str, **options: Any) -> None:
    """Get in, and leave."""
    with go(cloud, path, **options):
        pass


def refused(cloud: Cloud, path: str, **options: Any) -> int:
    """The status of a handshake that must fail, without a word more."""
    with pytest.raises(InvalidStatus) as caught, go(cloud, path, **options):
        pass
    assert not caught.value.response.body
    return caught.value.response.status_code


def turned_away(cloud: Cloud, path: str) -> tuple[int, str]:
    """Why a client that may come in is let go at once."""
    with go(cloud, path) as client:
        return end_of(client)


def read_until(client: ClientConnection, wanted: bytes) -> bytes:
    got = b""
    while wanted not in got:
        more = client.recv(timeout=PATIENCE_S)
        assert isinstance(more, bytes)
        got += more
    return got


def end_of(client: ClientConnection) -> tuple[int, str]:
    """How the server ended it."""
    try:
        while True:
            client.recv(timeout=PATIENCE_S)
    except ConnectionClosed as error:
        closed = error.rcvd
    assert closed is not None
    return closed.code, closed.reason


def uuid_of(cloud: Cloud, vmid: int) -> str:
    found = cloud.treadle.database.read(lambda conn: store.get(conn, vmid))
    assert found is not None
    return found.uuid


def host_of(cloud: Cloud, vmid: int) -> Any:
    """The simulated machine of an instance."""
    uuid = uuid_of(cloud, vmid)
    return next(one for one in cloud.fleet.hosts.values() if uuid in one.guests)


# -- what is carried


def test_a_serial_console_is_carried_both_ways(cloud: Cloud) -> None:
    vmid = cloud.create()
    with enter(cloud, vmid) as client:
        assert client.subprotocol == "binary"
        client.send(b"knock")
        read_until(client, b"knock")
        client.send("text too")
        read_until(client, b"text too")
        big = bytes(range(65, 91)) * 20_000
        client.send(big)
        read_until(client, big[-40:])
    until(lambda: host_of(cloud, vmid).consoles.count() == 0, "the guest's side to end")


def test_tempest_is_let_in_at_the_screen(cloud: Cloud) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tempest.common import compute

    class Validator(compute.NoVNCValidateMixin):
        def runTest(self) -> None:
            """unittest wants one."""

    judge = Validator()
    url = cloud.url + ask(cloud, cloud.create(), "vnc")["page"]
    judge.validate_novnc_html(url)
    judge.websocket = compute.create_websocket(url)
    judge.validate_websocket_upgrade()
    judge.validate_rfb_negotiation()
    judge.websocket.close()

    bad = cloud.url + ask(cloud, cloud.create("other"), "vnc")["page"].replace(
        "token%3D", "token%3Dbad"
    )
    websocket = compute.create_websocket(bad)
    assert not websocket.receive_frame()
    websocket.close()


def test_the_native_api_counts_what_a_guest_uses(cloud: Cloud) -> None:
    vmid = cloud.create()
    seen = cloud.native("GET", f"/instances/{vmid}/diagnostics").json()
    assert seen["power"] == "running"
    assert seen["memory_mib"] == 512
    assert len(seen["cpu_ns"]) == 1
    assert cloud.native("GET", "/instances/999/diagnostics").status_code == 404


# -- who gets in


def test_a_token_lets_one_client_in_once(cloud: Cloud) -> None:
    path = ask(cloud, cloud.create())["socket"]
    visit(cloud, path)
    assert refused(cloud, path) == 403


def test_of_many_with_one_token_one_gets_in(cloud: Cloud) -> None:
    path = ask(cloud, cloud.create())["socket"]

    def gets_in(_: int) -> bool:
        try:
            visit(cloud, path)
        except InvalidStatus:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(gets_in, range(6))) == 1


def test_only_a_digest_of_a_token_is_kept(cloud: Cloud) -> None:
    opened = ask(cloud, cloud.create())
    assert len(opened["token"]) == 43, "256 bits"
    rows = cloud.treadle.database.read(
        lambda conn: conn.execute(sa.select(console_token)).mappings().all()
    )
    assert len(rows) == 1
    assert opened["token"] not in repr(rows)


def test_a_token_that_has_run_out_is_none(cloud: Cloud) -> None:
    path = ask(cloud, cloud.create())["socket"]
    cloud.treadle.database.write(
        lambda conn: conn.execute(sa.update(console_token).values(expires_at=1.0))
    )
    assert refused(cloud, path) == 403


@pytest.mark.parametrize("query", ["", "?token=", "?token=" + "x" * 43, "?token=" + "y" * 5000])
def test_who_has_no_token_stays_out(cloud: Cloud, query: str) -> None:
    for kind in ConsoleKind:
        assert refused(cloud, f"/console/{kind}{query}") in (403, 431)


def test_a_token_is_for_one_kind_of_console(cloud: Cloud) -> None:
    opened = ask(cloud, cloud.create(), "vnc")
    assert refused(cloud, f"/console/serial?token={opened['token']}") == 403
    visit(cloud, opened["socket"])


def test_tokens_of_one_instance_do_not_pile_up(cloud: Cloud) -> None:
    vmid = cloud.create()
    first = ask(cloud, vmid)["socket"]
    for _ in range(40):
        last = ask(cloud, vmid)["socket"]
    count = sa.select(sa.func.count()).select_from(console_token)
    assert cloud.treadle.database.read(lambda conn: conn.execute(count).scalar_one()) <= 32
    assert refused(cloud, first) == 403
    visit(cloud, last)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1.evil.example",
                                    "http://127.0.0.1:1"])
def test_a_page_of_another_origin_stays_out(cloud: Cloud, origin: str) -> None:
    path = ask(cloud, cloud.create())["socket"]
    assert refused(cloud, path, origin=origin) == 403
    visit(cloud, path, origin=cloud.url)


def test_a_name_that_is_not_ours_stays_out(cloud: Cloud) -> None:
    path = ask(cloud, cloud.create())["socket"]
    said = cloud.raw(
        f"GET {path} HTTP/1.1\r\nHost: rebound.example\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert said.startswith(b"HTTP/1.1 403")


def test_what_does_not_run_has_no_console(cloud: Cloud) -> None:
    vmid = cloud.create()
    path = ask(cloud, vmid)["socket"]
    assert cloud.ok(f"/vm/stop?vmid={vmid}") == {"status": 1}
    answer = cloud.native("POST", f"/instances/{vmid}/console", json={"kind": "serial"})
    assert answer.status_code == 409
    assert "stopped" in answer.json()["error"]["message"]
    code, reason = turned_away(cloud, path)
    assert code == 1011
    assert "does not run" in reason
    cloud.ok(f"/vm/destroy?vmid={vmid}")
    answer = cloud.native("POST", f"/instances/{vmid}/console", json={"kind": "serial"})
    assert answer.status_code == 404


def test_a_console_that_a_host_lacks_is_refused_by_its_name(cloud: Cloud) -> None:
    vmid = cloud.create()
    row = cloud.treadle.database.read(lambda conn: ledger.list_hosts(conn))
    assert row[0].facts is not None
    cloud.treadle.controller.stop()

    def without(conn: sa.Connection) -> None:
        for id, facts in conn.execute(sa.select(host.c.id, host.c.facts)).all():
            conn.execute(sa.update(host).where(host.c.id == id).values(
                facts=facts.replace("vnc_console", "none")
            ))

    cloud.treadle.database.write(without)
    answer = cloud.native("POST", f"/instances/{vmid}/console", json={"kind": "vnc"})
    assert answer.status_code == 400
    assert "vnc_console" in answer.json()["error"]["message"]
    assert ask(cloud, vmid, "serial")["token"]
    answer = cloud.native("POST", f"/instances/{vmid}/console", json={"kind": "spice"})
    assert answer.status_code == 400


def test_no_more_are_open_than_may_be(start: Start) -> None:
    cloud = start(settings={"console.max_open": 1})
    vmid = cloud.create()
    with enter(cloud, vmid, "vnc"):
        path = ask(cloud, vmid, "vnc")["socket"]
        code, reason = turned_away(cloud, path)
        assert code == 1013
        assert "console.max_open" in reason

    def again() -> bool:
        with go(cloud, path) as client:
            try:
                return b"RFB" in bytes(client.recv(timeout=PATIENCE_S))
            except ConnectionClosed:
                return False

    until(again, "a place that was given back")


# -- what ends it


def test_a_console_ends_with_its_instance(cloud: Cloud) -> None:
    vmid = cloud.create()
    with enter(cloud, vmid) as serial, enter(cloud, vmid, "vnc") as screen:
        read_until(screen, b"RFB")
        cloud.ok(f"/vm/destroy?vmid={vmid}")
        for client in (serial, screen):
            code, reason = end_of(client)
            assert code in (1000, 1001)
            assert "ended" in reason or "gone" in reason


def test_a_console_ends_where_the_instance_moves(cloud: Cloud) -> None:
    vmid = cloud.create()
    with enter(cloud, vmid, "vnc") as client:
        read_until(client, b"RFB")
        cloud.treadle.controller.stop()
        moved = sa.update(instance).where(instance.c.id == vmid).values(
            host_id=sa.case((instance.c.host_id == 1, 2), else_=1)
        )
        cloud.treadle.database.write(lambda conn: conn.execute(moved))
        assert end_of(client) == (1001, "the instance is gone, or on another host")
    uuid = uuid_of(cloud, vmid)
    assert host_of(cloud, vmid).guests[uuid].power is Power.RUNNING


def test_a_token_for_a_host_that_was_left_is_none(cloud: Cloud) -> None:
    vmid = cloud.create()
    path = ask(cloud, vmid)["socket"]
    cloud.treadle.controller.stop()
    moved = sa.update(instance).where(instance.c.id == vmid).values(
        host_id=sa.case((instance.c.host_id == 1, 2), else_=1)
    )
    cloud.treadle.database.write(lambda conn: conn.execute(moved))
    assert refused(cloud, path) == 403


def test_a_host_dies_under_a_console(cloud: Cloud) -> None:
    vmid = cloud.create()
    path = ask(cloud, vmid)["socket"]
    with enter(cloud, vmid) as client:
        read_until(client, b"simulated")
        host_of(cloud, vmid).cut_off()
        assert end_of(client) == (1000, "the guest's console has ended")
    code, reason = turned_away(cloud, path)
    assert code == 1011
    assert "does not answer" in reason


def test_nobody_says_anything(start: Start) -> None:
    cloud = start(settings={"console.idle_s": 1.0})
    with enter(cloud, cloud.create()) as client:
        assert end_of(client) == (1000, "nothing was said for 1 s")


def test_who_comes_last_has_the_serial_port(cloud: Cloud) -> None:
    vmid = cloud.create()
    with enter(cloud, vmid) as first, enter(cloud, vmid) as second:
        assert end_of(first)[0] == 1000
        second.send(b"mine")
        read_until(second, b"mine")


def raw_client(cloud: Cloud, path: str) -> socket.socket:
    """A client that has shaken hands and from then on does as the test wants."""
    client = socket.create_connection(("127.0.0.1", cloud.port), timeout=PATIENCE_S)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{cloud.port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    said = b""
    while b"\r\n\r\n" not in said:
        said += client.recv(1)
    assert said.startswith(b"HTTP/1.1 101")
    return client


@pytest.mark.parametrize("how", ["reset", "silence"])
def test_a_client_vanishes(start: Start, how: str) -> None:
    cloud = start(serving={"ws_ping_interval": 0.2, "ws_ping_timeout": 0.4})
    vmid = cloud.create()
    client = raw_client(cloud, ask(cloud, vmid)["socket"])
    consoles = host_of(cloud, vmid).consoles
    until(lambda: consoles.count() == 1, "the console to be open")
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
    until(lambda: consoles.count() == 0, "the guest's side to end")
    client.close()


def frame(data: bytes) -> bytes:
    """A binary message of a client (RFC 6455, section 5.2), masked with zeros."""
    return b"\x82\xff" + len(data).to_bytes(8, "big") + bytes(4) + data


def test_a_client_that_does_not_read_is_let_go(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "STALL_S", 0.3)
    cloud = start()
    vmid = cloud.create()
    client = raw_client(cloud, ask(cloud, vmid)["socket"])
    consoles = host_of(cloud, vmid).consoles
    until(lambda: consoles.count() == 1, "the console to be open")
    chunk = frame(b"x" * 60_000)

    def flood() -> None:
        try:
            for _ in range(2000):
                client.sendall(chunk)
        except OSError:
            return

    thread = threading.Thread(target=flood)
    thread.start()
    until(lambda: consoles.count() == 0, "the guest's side to end")
    client.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE_S)
    client.close()
    assert not thread.is_alive()


def test_a_message_that_is_too_large_ends_it(cloud: Cloud) -> None:
    with enter(cloud, cloud.create()) as client:
        client.send(b"x" * (relay.MESSAGE_MAX + 1))
        assert end_of(client)[0] == 1009


# -- pages


def test_pages_say_nothing_to_others(cloud: Cloud) -> None:
    for kind, name in (("vnc", "noVNC"), ("serial", "xterm")):
        page = cloud.get(f"/console/{kind}.html")
        assert page.status_code == 200
        assert name in page.text
        assert page.headers["referrer-policy"] == "no-referrer"
        assert "script-src 'self'" in page.headers["content-security-policy"]
        script = cloud.get(f"/console/assets/{kind}.js")
        assert script.headers["content-type"].startswith("text/javascript")
    assert cloud.get("/console/other.html").status_code == 404


@pytest.mark.parametrize("path", [
    "__init__.py", "..%2f__init__.py", "%2e%2e/config.py", "vendor", "", "vnc.html", ".hidden",
    "vendor/%2e%2e/vnc.js", "nothing.js", "%00",
])
def test_no_other_file_is_served(cloud: Cloud, path: str) -> None:
    assert cloud.get(f"/console/assets/{path}").status_code == 404
