"""Compute v2.1 as a client sees it, and tempest's schemas as the judge of what is answered."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace
from typing import Any

import httpx2
from answerkit import hold
from cloudkit import Cloud
from tempest.lib.common.rest_client import RestClient
from tests.judging import judge_quickly

from treadle.api.openstack.compute import HIGHEST, SERVICE
from treadle.db.schema import project
from treadle.errors import Unauthorized
from treadle.identity.model import Caller

CALLERS = {
    "admin": Caller(
        user_id="a" * 32, project_id="0" * 32, roles=frozenset({"admin", "member", "reader"}),
    ),
    "member": Caller(user_id="b" * 32, project_id="1" * 32, roles=frozenset({"member", "reader"})),
    "reader": Caller(user_id="c" * 32, project_id="1" * 32, roles=frozenset({"reader"})),
    "other": Caller(user_id="d" * 32, project_id="2" * 32, roles=frozenset({"member", "reader"})),
    "service": Caller(user_id="e" * 32, project_id="3" * 32, roles=frozenset({"service"})),
    "nothing": Caller(user_id="f" * 32),
}
NUMBERS = count(1)
judge_quickly()


def named(what: str) -> str:
    """A name that no other test has."""
    return f"{what}-{next(NUMBERS)}"


class KnownTokens:
    """The token is the name of whoever holds it."""

    async def check(self, token: str) -> Caller:
        if token not in CALLERS:
            raise Unauthorized("The request you have made requires authentication.")
        return CALLERS[token]


@dataclass
class Api:
    """One client; `minor` and `by` are the microversion and the caller of each call."""

    cloud: Cloud

    def __post_init__(self) -> None:
        self.cloud.treadle.context.tokens = KnownTokens()
        for id in sorted({one.project_id for one in CALLERS.values() if one.project_id}):
            self.project(id)

    def project(self, id: str | None = None) -> str:
        """The id of a new project."""
        id = id or named("project")
        self.cloud.treadle.database.write(lambda conn: conn.execute(project.insert().values(
            id=id, name=id, name_key=id, domain_id="default", parent_id="default", created_at=0.0,
        )))
        return id

    def call(
        self, method: str, path: str, body: Any = None, *, minor: int = 1, by: str = "admin",
        **more: Any,
    ) -> httpx2.Response:
        """One call, as it was answered."""
        headers = {
            "X-Auth-Token": by, "OpenStack-API-Version": f"compute 2.{minor}",
            **more.pop("headers", {}),
        }
        if body is not None:
            more["json"] = body
        answer = self.cloud.client.request(
            method, f"/compute/v2.1{path}", headers=headers, **more
        )
        assert answer.status_code < 500, (method, path, answer.text)
        assert answer.headers["OpenStack-API-Version"] == f"compute 2.{minor}"
        return answer

    def ok(self, method: str, path: str, body: Any = None, *, status: int = 200,
           judge: Any = None, **more: Any) -> Any:
        """The body of a call that must succeed; `judge` is tempest's schema of the answer."""
        answer = self.call(method, path, body, **more)
        assert answer.status_code == status, (method, path, answer.status_code, answer.text)
        content = answer.json() if answer.content else None
        if judge is not None:
            RestClient.validate_response(judge, SimpleNamespace(status=status), content)
        if more.get("minor") == HIGHEST and answer.content:
            hold(SERVICE, method, f"/v2.1{path}", content, HIGHEST)
        return content

    def get(self, path: str, **more: Any) -> Any:
        """The body of a GET that must succeed."""
        return self.ok("GET", path, **more)

    def fails(self, method: str, path: str, body: Any = None, *, status: int, says: str = "",
              **more: Any) -> str:
        """The message of a call that must be refused."""
        answer = self.call(method, path, body, **more)
        assert answer.status_code == status, (method, path, answer.status_code, answer.text)
        [(kind, fault)] = answer.json().items()
        assert kind == KINDS.get(status, "computeFault")
        assert set(fault) == {"code", "message"}
        assert fault["code"] == status
        assert says in fault["message"], fault
        message: str = fault["message"]
        return message


KINDS = {400: "badRequest", 403: "forbidden", 404: "itemNotFound", 405: "badMethod",
         409: "conflictingRequest", 413: "overLimit"}


def schema(client: Any, minor: int) -> Any:
    """The schemas by which one of tempest's clients judges answers of a microversion."""
    for step in client.schema_versions_info:
        low = 1 if step["min"] is None else int(step["min"].partition(".")[2])
        high = 999 if step["max"] is None else int(step["max"].partition(".")[2])
        if low <= minor <= high:
            return step["schema"]
    raise AssertionError(f"no schema for 2.{minor}")
