"""Users, projects and roles for tests of identity, made over HTTP as an administrator would."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx2
from answerkit import hold
from cloudkit import Cloud

from treadle.api.openstack.identity import SERVICE

V3 = "/identity/v3"
_numbers = count(1)


def unique(kind: str) -> str:
    """A name that no other test uses."""
    return f"{kind}-{next(_numbers)}"


@dataclass
class Keystone:
    """Identity as one caller sees it."""

    cloud: Cloud
    headers: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, status: int, **options: Any) -> httpx2.Response:
        """A call whose status must be this."""
        headers = {**self.headers, **options.pop("headers", {})}
        answer = self.cloud.client.request(method, f"{V3}{path}", headers=headers, **options)
        assert answer.status_code == status, (method, path, answer.status_code, answer.text)
        if status >= 400:
            error = answer.json()["error"]
            assert error["code"] == status
            assert error["message"]
        elif answer.content and method != "HEAD":
            hold(SERVICE, method, f"/v3{path}", answer.json())
        if status == 204:
            assert answer.content == b""
        return answer

    def get(self, path: str, status: int = 200) -> Any:
        """The body of a GET."""
        answer = self.call("GET", path, status)
        return answer.json() if answer.content else None

    def make(self, kind: str, path: str = "", status: int = 201, **values: Any) -> Any:
        """A new thing, such as `make("project", name="x")`."""
        path = path or f"/{kind}s"
        body = self.call("POST", path, status, json={kind: values}).json()
        return body[kind] if status < 400 else body

    def change(self, kind: str, id: str, status: int = 200, **values: Any) -> Any:
        """Change a thing."""
        body = self.call("PATCH", f"/{kind}s/{id}", status, json={kind: values}).json()
        return body[kind] if status < 400 else body

    def drop(self, path: str, status: int = 204) -> None:
        """Remove something."""
        self.call("DELETE", path, status)

    def project(self, **values: Any) -> Any:
        """A new project."""
        return self.make("project", **{"name": unique("project"), **values})

    def domain(self, **values: Any) -> Any:
        """A new domain."""
        return self.make("domain", **{"name": unique("domain"), **values})

    def user(self, **values: Any) -> Any:
        """A new user with the password `secret`."""
        return self.make("user", **{"name": unique("user"), "password": "secret", **values})

    def group(self, **values: Any) -> Any:
        """A new group."""
        return self.make("group", **{"name": unique("group"), **values})

    def role_id(self, name: str) -> str:
        """The id of a role."""
        found = self.get(f"/roles?name={name}")["roles"]
        return str(found[0]["id"])

    def give(
        self, role: str, target: str, actor: str, method: str = "PUT", status: int = 204, *,
        inherited: bool = False,
    ) -> None:
        """Give a role by name; `target` and `actor` are as in the path: `projects/ID`."""
        path = f"/{target}/{actor}/roles/{self.role_id(role)}"
        if inherited:
            path = f"/OS-INHERIT{path}/inherited_to_projects"
        self.call(method, path, status)

    def names(self, path: str) -> list[str]:
        """The names in a list."""
        body = self.get(path)
        kind = next(key for key in body if key != "links")
        return sorted(one["name"] for one in body[kind])

    def as_user(self, user: Any, password: str = "secret", **scope: Any) -> Keystone:
        """The same, as that user in a scope."""
        return Keystone(self.cloud, self.token(user, password, **scope))

    def token(self, user: Any, password: str = "secret", **scope: Any) -> dict[str, str]:
        """The headers of that user in a scope."""
        answer = self.try_token(user, password, **scope)
        assert answer.status_code == 201, answer.text
        return {"X-Auth-Token": answer.headers["x-subject-token"]}

    def try_token(self, user: Any, password: str = "secret", **scope: Any) -> httpx2.Response:
        """What the answer is when that user logs in by his id."""
        auth: dict[str, Any] = {"identity": {
            "methods": ["password"],
            "password": {"user": {"id": user["id"], "password": password}},
        }}
        if scope:
            auth["scope"] = {kind: {"id": id} if kind in ("project", "domain") else id
                             for kind, id in scope.items()}
        return self.cloud.client.post(f"{V3}/auth/tokens", json={"auth": auth})

    def works(self) -> bool:
        """Whether the token is still taken."""
        answer = self.cloud.get(f"{V3}/auth/projects", headers=self.headers)
        assert answer.status_code in (200, 401), answer.text
        return answer.status_code == 200


def administrator(cloud: Cloud) -> Keystone:
    """Identity as the cloud's administrator sees it."""
    return Keystone(cloud, cloud.log_in())


def member(
    root: Keystone, role: str = "member", **user: Any
) -> tuple[Any, Any, Keystone]:
    """A new user with a role in a new project: user, project, and identity as he sees it."""
    person, project = root.user(**user), root.project()
    root.give(role, f"projects/{project['id']}", f"users/{person['id']}")
    return person, project, root.as_user(person, project=project["id"])
