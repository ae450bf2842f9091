"""Whatever is sent to a face, the answer is an error in that face's own form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs
import pytest
from cloudkit import ROOMY, Cloud, assert_no_insides, log_in, start_cloud

from treadle.api.app import SERVICES
from treadle.api.openstack.wire import BODY_MAX, Call, Service, keystone_body, shape_of
from treadle.errors import NotFound
from treadle.identity.model import Caller
from treadle.identity.rules import Rules

JSON = "application/json"
NOBODYS = "11111111-2222-4333-8444-555555555555"
DEEP = 20_000

BODIES: dict[str, tuple[bytes, str, int]] = {
    "no JSON": (b"{'name': 'x'}", JSON, 400),
    "cut off": (b'{"server": {"name": "x"', JSON, 400),
    "not UTF-8": (b'{"name": "\xff\xfe"}', JSON, 400),
    "too deep": (b"[" * DEEP + b"]" * DEEP, JSON, 400),
    "objects too deep": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, JSON, 400),
    "too large": (b'{"name": "' + b"x" * (BODY_MAX + 1) + b'"}', JSON, 413),
    "a form": (b"name=x", "application/x-www-form-urlencoded", 415),
    "XML": (b"<server/>", "application/xml", 415),
}
STRANGE: dict[str, Any] = {
    "an empty object": {}, "a list": [], "a list of lists": [[[]]], "a number": 7,
    "a string": "server", "nothing": None, "true": True,
    "unknown fields": {"colour": {"of": "magic"}},
    "a NUL": {"server": {"name": "a\u0000b"}, "\u0000": "\u0000"},
    "a lone surrogate": {"name": "\udcff"},
    "a huge number": {"quota_set": {"cores": 10**30}, "limit": 10**400},
}


def calls(service: Service, *methods: str) -> list[Call]:
    """The calls of a service that are in its highest microversion."""
    highest = service.microversions[1] if service.microversions else 999
    return [
        call for call in service.calls
        if call.method in methods and call.since <= highest <= call.until
    ]


TAKES_BODY = [
    pytest.param(service, call, id=f"{service.root} {call.method} {call.path}")
    for service in SERVICES for call in calls(service, "POST", "PUT", "PATCH") if not call.raw
]
ASKS_WHO = [
    pytest.param(service, call, id=f"{service.root} {call.method} {call.path}")
    for service in SERVICES for call in calls(service, "GET", "POST", "PUT", "PATCH", "DELETE")
    if call.rule
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, disk_image: Path) -> Iterator[Cloud]:
    cloud = start_cloud(
        tmp_path_factory.mktemp("hostile"), hosts=(f"fake://h1{ROOMY}",), image=disk_image,
        settings={},
    )
    cloud.client.headers["X-Auth-Token"] = log_in(cloud)
    yield cloud
    cloud.stop()


def send(
    cloud: Cloud, service: Service, call: Call, token: str | None = None,
    headers: dict[str, str] | None = None, content: bytes | None = None,
) -> httpx2.Response:
    """The call with ids that nobody has."""
    path = re.sub(r"\{[^}]+\}", NOBODYS, call.path)
    given = {} if token is None else {"X-Auth-Token": token.encode("latin-1")}
    if service.microversions:
        given["OpenStack-API-Version"] = f"compute 2.{service.microversions[1]}".encode()
    return cloud.client.request(
        call.method, service.root + path, content=content,
        headers=given | {name: value.encode() for name, value in (headers or {}).items()},
    )


def assert_refused(service: Service, answer: httpx2.Response, *statuses: int) -> None:
    """The status, and a body in the form of the service, with nothing of our insides."""
    assert answer.status_code in statuses, (answer.status_code, answer.text[:500])
    assert answer.headers["x-openstack-request-id"].startswith("req-")
    status = answer.status_code
    fault = keystone_body if status == 401 else service.fault
    shape = shape_of(fault(status, "", NotFound("")))
    assert jsonschema_rs.validator_for(shape).is_valid(answer.json()), answer.text[:500]
    assert_no_insides(answer.text)
    assert len(answer.text) < 4000


@pytest.mark.parametrize(("service", "call"), TAKES_BODY)
def test_bodies_that_are_no_json(service: Service, call: Call, hostile: Cloud) -> None:
    for name, (content, kind, status) in BODIES.items():
        answer = send(hostile, service, call, headers={"Content-Type": kind}, content=content)
        assert answer.status_code == status, (name, answer.status_code, answer.text[:300])
        assert_refused(service, answer, status)


@pytest.mark.parametrize(("service", "call"), TAKES_BODY)
def test_bodies_of_wrong_types(service: Service, call: Call, hostile: Cloud) -> None:
    """No schema takes them, or the thing is not there; no answer is a failure of the server's."""
    for name, body in STRANGE.items():
        content = json.dumps(body).encode("utf-8", "surrogatepass")
        answer = send(hostile, service, call, headers={"Content-Type": JSON}, content=content)
        assert answer.status_code < 500, (name, answer.status_code, answer.text[:500])
        if answer.status_code >= 400:
            assert_refused(service, answer, *range(400, 430))
        elif call.body is not None:
            call.body.check(body, service.microversions[1] if service.microversions else 999)


@pytest.mark.parametrize(("service", "call"), ASKS_WHO)
def test_tokens_that_are_none(service: Service, call: Call, hostile: Cloud) -> None:
    for token in ("", "forged", "a" * 4000, "\u00ff", "' OR 1=1 --"):
        assert_refused(service, send(hostile, service, call, token), 401)


@pytest.fixture(scope="module")
def revoked(hostile: Cloud) -> str:
    """A token that was good, and has been given back."""
    token = log_in(hostile)
    answer = hostile.client.delete("/identity/v3/auth/tokens", headers={"X-Subject-Token": token})
    assert answer.status_code == 204, answer.text
    return token


@pytest.fixture(scope="module")
def unscoped(hostile: Cloud) -> str:
    """A token for no project, domain or system."""
    return log_in(hostile, scoped=False)


@pytest.mark.parametrize(("service", "call"), ASKS_WHO)
def test_tokens_that_were_given_back(
    service: Service, call: Call, hostile: Cloud, revoked: str
) -> None:
    assert_refused(service, send(hostile, service, call, revoked), 401)


NO_SCOPE = Rules()


@pytest.mark.parametrize(("service", "call"), [
    one for one in ASKS_WHO
    if not NO_SCOPE.allows(one.values[1].rule, Caller(user_id=NOBODYS))
])
def test_tokens_of_the_wrong_scope(
    service: Service, call: Call, hostile: Cloud, unscoped: str
) -> None:
    """An administrator's, but not for his project: nothing is done, and nothing is told."""
    assert_refused(service, send(hostile, service, call, unscoped), 403)


@pytest.mark.parametrize("service", [
    pytest.param(one, id=one.root) for one in SERVICES if one.microversions
])
@pytest.mark.parametrize(("asked", "status"), [
    ("compute 9.9", 406), ("compute 2.999", 406), ("compute 2.0", 406), ("compute 1.1", 406),
    ("compute 2", 400), ("compute two.one", 400), ("compute 2.1.1", 400), ("compute -2.1", 400),
    ("compute 2.1e3", 400), ("compute " + "9" * 5000, 400), ("compute \u00b2.\u00b9", 400),
])
def test_microversions_that_are_none(
    service: Service, asked: str, status: int, hostile: Cloud
) -> None:
    answer = hostile.client.get(
        f"{service.root}/v2.1/servers",
        headers=[(b"OpenStack-API-Version", asked.encode())],
    )
    assert_refused(service, answer, status)
    assert answer.headers["vary"] == "OpenStack-API-Version, X-OpenStack-Nova-API-Version"


@pytest.mark.parametrize("service", [pytest.param(one, id=one.root) for one in SERVICES])
def test_paths_and_methods_that_are_none(service: Service, hostile: Cloud) -> None:
    for path in ("/nothing", "/v2.1/nothing", "/%00", "/v3/%ff", "/" + "a/" * 500,
                 "/..%2f..%2fetc/passwd", "/v2/images/" + "x" * 5000):
        answer = hostile.client.get(service.root + path)
        assert_refused(service, answer, 400, 404)
    for method in ("TRACE", "PURGE", "OPTIONS"):
        answer = hostile.client.request(method, f"{service.root}/")
        assert_refused(service, answer, 405)
        assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("service", [pytest.param(one, id=one.root) for one in SERVICES])
def test_queries_that_are_none(service: Service, hostile: Cloud) -> None:
    for call in calls(service, "GET"):
        for query in ("limit=-1", "limit=1e9", "limit=" + "9" * 400, "marker=%00", "marker=%ff",
                      "sort_key=%00", "sort_dir=sideways&sort_key=id", "a=1&" * 300, "%", "=&=&",
                      "name=%5B%28", "fields=%00", "name=" + "x" * 5000):
            path = re.sub(r"\{[^}]+\}", NOBODYS, call.path)
            answer = hostile.client.get(f"{service.root}{path}?{query}")
            assert answer.status_code < 500, (call.path, query, answer.text[:500])
            if answer.status_code >= 400:
                assert_refused(service, answer, *range(400, 430))
