"""Files that are put into a server at its first boot."""

from __future__ import annotations

import base64
from typing import Any

from computekit import CALLERS, Api
from test_compute_servers import ask, become, gone

from treadle.compute import quota


def files(**contents: str) -> list[dict[str, str]]:
    return [{"path": f"/etc/{name}", "contents": base64.b64encode(text.encode()).decode()}
            for name, text in contents.items()]


def told(api: Api, id: str) -> Any:
    """What the one host that has the guest was given of files."""
    [found] = [host.guests[id] for host in api.cloud.fleet.hosts.values() if id in host.guests]
    return [(path, base64.b64decode(content)) for path, content in found.spec.seed.files]


def refused(api: Api, image_id: str, status: int, says: str, minor: int = 1, **more: Any) -> None:
    wish: dict[str, Any] = {"name": "x", "imageRef": image_id, "flavorRef": "1", **more}
    if minor >= 37:
        wish["networks"] = "none"
    api.fails("POST", "/servers", {"server": wish}, status=status, by="member", minor=minor,
              says=says)


def test_a_host_is_given_the_files_and_others_at_a_rebuild(api: Api, image_id: str) -> None:
    id = ask(api, image_id, 56, personality=files(a="one\n", b="two\n"))["id"]
    become(api, id, "ACTIVE")
    assert told(api, id) == [("/etc/a", b"one\n"), ("/etc/b", b"two\n")]
    again = {"rebuild": {"imageRef": image_id, "personality": files(c="three\n")}}
    api.ok("POST", f"/servers/{id}/action", again, status=202, by="member")
    become(api, id, "ACTIVE")
    assert told(api, id) == [("/etc/c", b"three\n")]
    api.ok("POST", f"/servers/{id}/action", {"rebuild": {"imageRef": image_id}}, status=202,
           by="member")
    become(api, id, "ACTIVE")
    assert told(api, id) == []
    many = files(**dict.fromkeys("abcdef", "x"))
    wrong = {"rebuild": {"imageRef": image_id, "personality": many}}
    api.fails("POST", f"/servers/{id}/action", wrong, status=403, by="member", says="too many")
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)


def test_what_cannot_be_put_there_is_refused(api: Api, image_id: str) -> None:
    for one in ({"path": "/a"}, {"contents": ""}, {"path": "/a", "contents": "", "mode": "x"},
                {"path": "", "contents": ""}):
        refused(api, image_id, 400, "personality", personality=[one])
    refused(api, image_id, 400, "base64", personality=[{"path": "/a", "contents": "abc"}])
    refused(api, image_id, 400, "path of a file", personality=[{"path": "/a/..", "contents": ""}])
    refused(api, image_id, 400, "cloud-init", personality=files(a="x"),
            user_data=base64.b64encode(b"{}").decode())
    refused(api, image_id, 400, "personality", minor=57, personality=files(a="x"))


def test_quotas_bound_number_path_and_content(api: Api, image_id: str) -> None:
    refused(api, image_id, 403, "too many files", personality=files(**dict.fromkeys("abcdef", "x")))
    refused(api, image_id, 403, "too large", personality=files(a="x" * 10241))
    refused(api, image_id, 403, "too long", personality=files(**{"a" * 260: "x"}))
    project = CALLERS["member"].project_id
    assert project is not None
    database = api.cloud.treadle.database
    database.write(lambda conn: quota.set_limits(conn, project, {
        "injected_files": -1, "injected_file_content_bytes": -1, "injected_file_path_bytes": -1,
    }))
    id = ask(api, image_id, personality=files(**dict.fromkeys("abcdef", "x" * 10300)))["id"]
    become(api, id, "ACTIVE")
    assert len(told(api, id)) == 6
    database.write(lambda conn: quota.clear(conn, project))
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)
