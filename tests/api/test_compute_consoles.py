"""Consoles, logs and counters as OpenStack's clients ask for them; tempest is the judge."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from cloudkit import until
from computekit import Api, named, schema
from tempest.lib.services.compute.servers_client import ServersClient
from websockets.sync.client import connect

from treadle.db.schema import image


@pytest.fixture(scope="module")
def server(api: Api) -> Iterator[str]:
    """A member's server that runs."""
    image_id = api.cloud.treadle.database.read(
        lambda conn: conn.execute(image.select()).first().uuid
    )
    wish = {"name": named("server"), "imageRef": image_id, "flavorRef": "1"}
    id = api.ok("POST", "/servers", {"server": wish}, status=202, by="member")["server"]["id"]
    path = f"/servers/{id}"
    until(lambda: api.get(path, by="member")["server"]["status"] == "ACTIVE", "ACTIVE")
    yield id
    api.ok("DELETE", path, status=204, by="member")
    until(lambda: api.call("GET", path, by="member").status_code == 404, "the end")


def remote(protocol: str, type: str) -> Any:
    return {"remote_console": {"protocol": protocol, "type": type}}


def assert_screen(url: str) -> None:
    """What tempest's test of noVNC does with a link."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tempest.common import compute

    class Validator(compute.NoVNCValidateMixin):
        def runTest(self) -> None:
            """unittest wants one."""

    judge = Validator()
    judge.validate_novnc_html(url)
    judge.websocket = compute.create_websocket(url)
    judge.validate_websocket_upgrade()
    judge.validate_rfb_negotiation()
    judge.websocket.close()


@pytest.mark.parametrize("minor", [6, 8, 48, 104])
def test_a_link_to_the_screen(api: Api, server: str, minor: int) -> None:
    body = api.ok(
        "POST", f"/servers/{server}/remote-consoles", remote("vnc", "novnc"), minor=minor,
        by="member", judge=schema(ServersClient, minor).get_remote_consoles,
    )
    assert body["remote_console"]["url"].startswith(f"{api.cloud.url}/console/vnc.html?path=")
    assert_screen(body["remote_console"]["url"])


def test_a_link_to_the_screen_as_it_was_before(api: Api, server: str) -> None:
    asked = {"os-getVNCConsole": {"type": "novnc"}}
    path = f"/servers/{server}/action"
    body = api.ok("POST", path, asked, minor=5, by="member",
                  judge=schema(ServersClient, 1).get_vnc_console)
    assert_screen(body["console"]["url"])
    api.fails("POST", path, asked, minor=6, by="member", status=400)
    api.fails("POST", f"/servers/{server}/remote-consoles", remote("vnc", "novnc"), minor=5,
              by="member", status=404)


@pytest.mark.parametrize("minor", [1, 6])
def test_a_link_to_the_serial_port(api: Api, server: str, minor: int) -> None:
    if minor < 6:
        body = api.ok("POST", f"/servers/{server}/action",
                      {"os-getSerialConsole": {"type": "serial"}}, by="member")["console"]
    else:
        body = api.ok("POST", f"/servers/{server}/remote-consoles", remote("serial", "serial"),
                      minor=minor, by="member")["remote_console"]
    assert body["url"].startswith("ws://127.0.0.1:")
    with connect(body["url"], proxy=None) as client:
        client.send(b"knock")
        said = b""
        while b"knock" not in said:
            said += bytes(client.recv(timeout=20))


@pytest.mark.parametrize(("protocol", "type"), [
    ("spice", "spice-html5"), ("rdp", "rdp-html5"), ("vnc", "xvpvnc"), ("serial", "novnc"),
])
def test_what_there_is_not_is_refused_by_its_name(
    api: Api, server: str, protocol: str, type: str
) -> None:
    api.fails("POST", f"/servers/{server}/remote-consoles", remote(protocol, type), minor=6,
              by="member", status=400, says=type)


@pytest.mark.parametrize("by", ["other", "nothing"])
def test_another_projects_server_is_not_there(api: Api, server: str, by: str) -> None:
    status = 404 if by == "other" else 403
    for path, body in (
        (f"/servers/{server}/remote-consoles", remote("vnc", "novnc")),
        (f"/servers/{server}/remote-consoles", remote("spice", "spice-html5")),
        (f"/servers/{server}/action", {"os-getConsoleOutput": {}}),
    ):
        api.fails("POST", path, body, minor=6, by=by, status=status)
    api.fails("GET", f"/servers/{server}/diagnostics", by=by, status=403)


def test_who_only_reads_has_no_console(api: Api, server: str) -> None:
    api.fails("POST", f"/servers/{server}/remote-consoles", remote("vnc", "novnc"), minor=6,
              by="reader", status=403)


def test_the_log_is_cut_to_lines(api: Api, server: str) -> None:
    def output(**asked: Any) -> str:
        text: str = api.ok("POST", f"/servers/{server}/action", {"os-getConsoleOutput": asked},
                           by="member", judge=schema(ServersClient, 1).get_console_output)["output"]
        return text

    whole = output()
    assert "TREADLE-GUEST-UP" in whole
    assert output(length=-1) == output(length=None) == whole
    assert len(output(length=2).split("\n")) == 2
    assert whole.endswith(output(length="1"))
    assert output(length=0) == ""
    for wrong in (-2, "x", 1.5, "1e3", True, [1]):
        api.fails("POST", f"/servers/{server}/action", {"os-getConsoleOutput": {"length": wrong}},
                  by="member", status=400)


@pytest.mark.parametrize("minor", [1, 47, 48, 104])
def test_what_it_uses(api: Api, server: str, minor: int) -> None:
    judge = schema(ServersClient, minor).show_server_diagnostics if minor >= 48 else None
    body = api.get(f"/servers/{server}/diagnostics", minor=minor, judge=judge)
    if minor < 48:
        assert body["memory"] == 512 * 1024
        assert body["cpu0_time"] == 0
    else:
        assert body["state"] == "running"
        assert body["num_cpus"] == 1
        assert body["memory_details"]["maximum"] == 512
    api.fails("GET", f"/servers/{server}/diagnostics", minor=minor, by="member", status=403)


def test_what_is_off_says_so(api: Api, server: str) -> None:
    path = f"/servers/{server}"
    api.ok("POST", f"{path}/action", {"os-stop": None}, status=202, by="member")
    until(lambda: api.get(path, by="member")["server"]["status"] == "SHUTOFF", "SHUTOFF")
    api.fails("POST", f"{path}/remote-consoles", remote("vnc", "novnc"), minor=6, by="member",
              status=409, says="stopped")
    assert api.get(f"{path}/diagnostics", minor=48)["state"] == "shutdown"
    api.ok("POST", f"{path}/action", {"os-start": None}, status=202, by="member")
    until(lambda: api.get(path, by="member")["server"]["status"] == "ACTIVE", "ACTIVE")


def test_administrators_are_told_where_a_token_leads(api: Api, server: str) -> None:
    body = api.ok("POST", f"/servers/{server}/remote-consoles", remote("vnc", "novnc"), minor=6,
                  by="member")
    token = body["remote_console"]["url"].rpartition("token%3D")[2]
    for minor in (31, 96, 31):
        told = api.get(f"/os-console-auth-tokens/{token}", minor=minor)["console"]
        assert told == {
            "instance_uuid": server, "host": told["host"], "port": 80,
            "internal_access_path": None,
        }
        assert told["host"] in ("h1", "h2")
    api.fails("GET", f"/os-console-auth-tokens/{token}", minor=30, status=400)
    api.fails("GET", "/os-console-auth-tokens/none", minor=31, status=404)
    api.fails("GET", f"/os-console-auth-tokens/{token}", minor=31, by="member", status=403)
