"""Who may call: networks, web pages of other sites, and the holder of the token."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cloudkit import ROOMY, Cloud, Start, assert_failure, start_cloud
from starlette.routing import Route, WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from treadle.api import native
from treadle.api.classic import CALLS

OPEN_TO_ALL = {
    "/healthz", "/docs/openapi.json", "/docs/openapi/{face}.json", "/console/{kind}.html",
    "/console/assets/{path:path}",
}
"""Nothing of anybody's is there: what the calls are, and the pages that ask for a console."""
NAMES = {"{id}": "1", "{face}": "native", "{kind}": "serial", "{path:path}": "console.css"}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, disk_image: Path) -> Iterator[Cloud]:
    """A controller that lets one address call, and knows one name of its own."""
    made = start_cloud(
        tmp_path_factory.mktemp("guarded"), hosts=(f"fake://h1{ROOMY}",), image=disk_image,
        settings={
            "server.classic_networks": ["127.0.0.1/32"], "server.names": ["Cloud.Example.Org"],
        },
    )
    yield made
    made.stop()


def from_address(cloud: Cloud, address: str) -> httpx2.Client:
    return httpx2.Client(
        base_url=cloud.url, trust_env=False,
        transport=httpx2.HTTPTransport(local_address=address, trust_env=False),
    )


def filled(path: str) -> str:
    for name, value in NAMES.items():
        path = path.replace(name, value)
    return path


def refuses_handshake(cloud: Cloud, path: str) -> None:
    """A WebSocket without a token of its own is never opened."""
    url = cloud.url.replace("http://", "ws://") + path
    with pytest.raises(InvalidStatus) as caught, connect(url, proxy=None):
        pass
    assert caught.value.response.status_code == 403, path


# -- every route


def test_every_route_has_a_guard(asked: Cloud) -> None:
    """A route that is added without one is found here: an outsider without a token tries all."""
    classic = {spec.path for spec in CALLS}
    tried = set()
    with from_address(asked, "127.0.0.2") as outsider:
        for route in asked.treadle.app.routes:
            if isinstance(route, WebSocketRoute):
                refuses_handshake(asked, route.path)
                continue
            assert isinstance(route, Route), f"{route} is of a kind that this test does not know"
            for method in sorted(route.methods or ()):
                answer = outsider.request(method, filled(route.path))
                if route.path in OPEN_TO_ALL:
                    assert answer.status_code == 200, (method, route.path)
                    continue
                assert answer.status_code == 403, (method, route.path)
                if method == "HEAD":
                    continue
                error = answer.json()["error"]
                if route.path.startswith(native.PREFIX):
                    assert error["type"] == "Forbidden"
                    assert "admin-token" in error["message"]
                else:
                    assert route.path in classic
                    assert "server.classic_networks" in error
                tried.add(route.path)
    assert tried >= classic


def test_every_call_that_changes_something_refuses_another_site(asked: Cloud) -> None:
    changing = {spec.path for spec in CALLS if spec.changes}
    assert {p for p in changing if "list" in p or "query" in p or "types" in p} == set()
    assert len(changing) == 1 + 1 + 6 + 4
    for spec in CALLS:
        if not spec.changes:
            continue
        for method in ("GET", "POST"):
            answer = asked.client.request(
                method, spec.path, headers={"Sec-Fetch-Site": "cross-site"}
            )
            assert_failure(answer, 403, spec.failure, "a web page of another site")


def test_looking_at_the_head_of_a_call_changes_nothing(asked: Cloud) -> None:
    """HEAD is what link checkers and previews send, and it promises to change nothing."""
    for spec in CALLS:
        answer = asked.client.head(spec.path)
        if spec.changes:
            assert answer.status_code == 405
            assert set(answer.headers["allow"].split(", ")) == {"GET", "POST"}
        else:
            assert answer.status_code != 405


# -- networks


def test_a_caller_from_an_outside_network_is_refused(asked: Cloud) -> None:
    with from_address(asked, "127.0.0.2") as outsider:
        assert_failure(
            outsider.get("/vm/list"), 403, {"vmids": 0}, "add your network to"
        )
        assert_failure(
            outsider.get("/vm/create?name=web&instance_type=1"), 403, {"vmid": 0}
        )
    assert asked.ok("/vm/list") == {"vmids": []}


def test_a_forwarded_address_from_outside_counts_for_nothing(asked: Cloud) -> None:
    with from_address(asked, "127.0.0.2") as outsider:
        for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
            answer = outsider.get("/vm/list", headers={name: "127.0.0.1"})
            assert answer.status_code == 403


def test_a_proxy_on_this_machine_is_asked_for_whom_it_speaks(asked: Cloud) -> None:
    for address in ("203.0.113.9", "2001:db8::1", "nonsense", "127.0.0.1.evil", "::ffff:1.2.3.4"):
        answer = asked.get("/vm/list", headers={"X-Forwarded-For": address})
        assert_failure(answer, 403, {"vmids": 0})
    for address in ("127.0.0.1", "::ffff:127.0.0.1"):
        assert asked.get("/vm/list", headers={"X-Forwarded-For": address}).status_code == 200


def test_the_operators_api_is_guarded_by_its_token_not_by_a_network(asked: Cloud) -> None:
    with from_address(asked, "127.0.0.2") as outsider:
        answer = outsider.get("/treadle/v1/hosts", headers=asked.admin)
        assert answer.status_code == 200


# -- web pages


REFUSED: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "nonsense"}, {"Sec-Fetch-Site": ""},
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": ""},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    {"Origin": "http://127.0.0.1"}, {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1.evil.example"}, {"Origin": "file://"},
    {"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Host": "127.0.0.1.evil.example"},
    {"Host": "localhost.evil.example"}, {"Host": "localhost."}, {"Host": "[evil]"},
    {"Host": "127.0.0.1@evil.example"}, {"Host": "evil.example", "Origin": "http://evil.example"},
    {"Host": "0x7f000001"}, {"Host": "2130706433"}, {"Host": "["}, {"Host": "]"}, {"Host": ":80"},
    {"Host": ""},
]


@pytest.mark.parametrize("headers", REFUSED, ids=str)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_another_site_caused_is_refused(
    asked: Cloud, method: str, headers: dict[str, str]
) -> None:
    answer = asked.client.request(
        method, "/vm/create?name=web&instance_type=1", headers=headers
    )
    assert_failure(answer, 403, {"vmid": 0})


def own(cloud: Cloud, name: str) -> dict[str, str]:
    return {"Host": f"{name}:{cloud.port}", "Origin": f"http://{name}:{cloud.port}"}


def test_what_this_site_or_no_site_caused_passes(asked: Cloud) -> None:
    names = ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "192.0.2.7", "cloud.example.org",
             "CLOUD.example.ORG", socket.gethostname()]
    passed: list[dict[str, str]] = [
        {}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"},
        *(own(asked, name) for name in names),
        *({"Host": name} for name in names),
        {"Host": "127.0.0.1", "Origin": "https://127.0.0.1", "Sec-Fetch-Site": "same-origin"},
    ]
    for headers in passed:
        answer = asked.client.post("/vm/destroy?vmid=999", headers=headers)
        assert_failure(answer, 404, {"status": 0}, "there is no VM 999")


def test_a_page_of_another_site_may_be_linked_to_what_only_reads(asked: Cloud) -> None:
    answer = asked.get("/vm/types", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200
    # The browser keeps the answer from that page: nothing here says that it may have it.
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_request_without_a_host_is_refused(asked: Cloud) -> None:
    said = asked.raw(b"GET /vm/create?name=web&instance_type=1 HTTP/1.0\r\n\r\n")
    assert b" 403 " in said.splitlines()[0]
    said = asked.raw(
        b"GET http://127.0.0.1/vm/create?name=web&instance_type=1 HTTP/1.1\r\n"
        b"Host: evil.example\r\nConnection: close\r\n\r\n"
    )
    assert b" 403 " in said.splitlines()[0]
    assert asked.ok("/vm/list") == {"vmids": []}


# -- the token

WRONG_TOKENS = [
    None, "", "Bearer", "Bearer ", "bearer {}", "Basic {}", "{}", "Bearer {} ", "Bearer  {}",
    "Bearer {}x", "Bearer x{}", "Bearer \u00e9", "Bearer " + "x" * 10_000, "Token {}",
]


@pytest.mark.parametrize("given", WRONG_TOKENS, ids=lambda text: ascii(text)[:20])
def test_the_operators_api_needs_the_token_to_the_letter(asked: Cloud, given: str | None) -> None:
    headers: dict[str, Any] = {}
    if given is not None:
        text = given.format(asked.treadle.context.admin_token)
        if text.endswith(" "):
            # A client's library takes white space off the end, and so does the server.
            text = text.rstrip() + " x"
        headers["Authorization"] = text.encode("latin-1")
    answer = asked.client.get("/treadle/v1/hosts", headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "Forbidden"
    assert asked.treadle.context.admin_token not in answer.text


def test_the_token_is_compared_in_constant_time(
    asked: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    import secrets

    compared = []
    real = secrets.compare_digest

    def compare(given: bytes, right: bytes) -> bool:
        compared.append((given, right))
        return real(given, right)

    monkeypatch.setattr(secrets, "compare_digest", compare)
    assert asked.native("GET", "/hosts").status_code == 200
    assert asked.get("/treadle/v1/hosts").status_code == 403
    assert len(compared) == 2


def test_the_token_is_a_secret_of_the_folder(start: Start) -> None:
    cloud = start()
    path = cloud.treadle.folder / "admin-token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() == cloud.treadle.context.admin_token
    assert len(cloud.treadle.context.admin_token) >= 40


# -- health


def test_anybody_may_ask_whether_it_is_well(asked: Cloud) -> None:
    with from_address(asked, "127.0.0.2") as outsider:
        answer = outsider.get("/healthz")
    assert answer.json() == {"status": "ok", "hosts_up": 1, "hosts": 1}


def test_a_database_that_does_not_answer_shows_in_the_health(start: Start) -> None:
    cloud = start()
    engine = cloud.treadle.database._read_engine  # type: ignore[attr-defined]
    from sqlalchemy import event
    from sqlalchemy.exc import OperationalError

    def fail(*_: Any) -> None:
        raise OperationalError("SELECT secret", None, OSError("disk I/O error"))

    event.listen(engine, "before_cursor_execute", fail)
    answer = cloud.get("/healthz")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["status"] == "error"
    assert_failure(cloud.get("/vm/list"), 503, {"vmids": 0}, "the database does not answer")
    answer = cloud.native("GET", "/hosts")
    assert answer.status_code == 503
    assert "secret" not in answer.text
    event.remove(engine, "before_cursor_execute", fail)
    assert cloud.ok("/healthz")["status"] == "ok"
