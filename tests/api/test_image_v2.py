"""Image v2 over HTTP: what a project does with its images, and what others never see of them."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from answerkit import hold
from cloudkit import ROOMY, Cloud, start_cloud, until
from obstore.store import MemoryStore

from treadle.api.openstack.image import SERVICE
from treadle.compute.creating import Wish, create
from treadle.db.clock import now as clock
from treadle.db.schema import work
from treadle.errors import Conflict, Unauthorized
from treadle.identity.model import Caller
from treadle.image import store as images
from treadle.image.actions import Limits
from treadle.image.blobs import ObjectBlobs

CALLERS = {
    "admin": Caller(user_id="u0", project_id="p0", roles=frozenset({"admin", "member"})),
    "one": Caller(user_id="u1", project_id="p1", roles=frozenset({"member", "reader"})),
    "looker": Caller(user_id="u1r", project_id="p1", roles=frozenset({"reader"})),
    "two": Caller(user_id="u2", project_id="p2", roles=frozenset({"member"})),
    "three": Caller(user_id="u3", project_id="p3", roles=frozenset({"member"})),
    "four": Caller(user_id="u5", project_id="p4", roles=frozenset({"member"})),
    "nobody": Caller(user_id="u4"),
}
OCTETS = {"Content-Type": "application/octet-stream"}
NEWER = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
OLDER = {"Content-Type": "application/openstack-images-v2.0-json-patch"}
RAW = {"container_format": "bare", "disk_format": "raw"}
NOWHERE = "/v2/images/00000000-0000-4000-8000-000000000000"


class KnownTokens:
    """The token is the name of whoever holds it."""

    async def check(self, token: str) -> Caller:
        if token not in CALLERS:
            raise Unauthorized("The request you have made requires authentication.")
        return CALLERS[token]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def cloud(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, disk_image: Path,
) -> Iterator[Cloud]:
    settings: dict[str, object] = {"image.max_gib": 1, "image.project_gib": 1}
    drop = None
    if request.param == "postgresql":
        cluster = request.getfixturevalue("postgres_cluster")
        name = cluster.create()
        settings["database.url"] = cluster.url(name)
        drop = (cluster, name)
    made = start_cloud(
        tmp_path_factory.mktemp("images"), hosts=(f"fake://h1{ROOMY}",), image=disk_image,
        settings=settings,
    )
    made.treadle.context.tokens = KnownTokens()  # type: ignore[assignment]
    yield made
    made.stop()
    if drop is not None:
        drop[0].drop(drop[1])


def ask(
    cloud: Cloud, method: str, path: str, token: str = "one", **more: Any
) -> Any:
    headers = {"X-Auth-Token": token} if token else {}
    return cloud.client.request(
        method, f"/image{path}", headers=headers | more.pop("headers", {}), **more
    )


def ok(cloud: Cloud, method: str, path: str, token: str = "one", **more: Any) -> Any:
    answer = ask(cloud, method, path, token, **more)
    assert answer.status_code < 300, (method, path, answer.status_code, answer.text)
    assert answer.headers["x-openstack-request-id"].startswith("req-")
    if answer.content and answer.headers["content-type"] == "application/json":
        hold(SERVICE, method, path, answer.json())
    return answer.json() if answer.content else None


def refused(answer: Any, status: int, says: str = "") -> str:
    assert answer.status_code == status, (answer.status_code, answer.text)
    message: str = answer.json()["error"]["message"]
    assert says in message, message
    return message


def make(cloud: Cloud, token: str = "one", **said: Any) -> dict[str, Any]:
    made: dict[str, Any] = ok(cloud, "POST", "/v2/images", token, json=said)
    return made


def put(cloud: Cloud, id: str, content: Any, token: str = "one", verb: str = "file") -> Any:
    return ask(cloud, "PUT", f"/v2/images/{id}/{verb}", token, content=content, headers=OCTETS)


def full(cloud: Cloud, content: bytes, **said: Any) -> dict[str, Any]:
    made = make(cloud, **{"name": "full", **RAW, **said})
    assert put(cloud, made["id"], content).status_code == 204
    shown: dict[str, Any] = ok(cloud, "GET", f"/v2/images/{made['id']}")
    return shown


def ids(cloud: Cloud, query: str = "", token: str = "one") -> list[str]:
    return [one["id"] for one in ok(cloud, "GET", f"/v2/images{query}", token)["images"]]


def patch(cloud: Cloud, id: str, *todo: dict[str, Any], token: str = "one") -> Any:
    return ask(cloud, "PATCH", f"/v2/images/{id}", token, json=list(todo), headers=NEWER)


def qemu_image(folder: Path, kind: str, *options: str) -> bytes:
    """4 MiB of which 1 MiB is noise, in one of qemu-img's formats."""
    raw, made = folder / "noise.raw", folder / f"made.{kind}"
    raw.write_bytes(os.urandom(1 << 20) + bytes(3 << 20))
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", kind, *options, raw, made], check=True,
        timeout=60,
    )
    return made.read_bytes()


# -- what is published


def test_versions_are_told_without_a_token(cloud: Cloud) -> None:
    for path, status in (("", 300), ("/", 300), ("/versions", 200), ("/v2", 300)):
        answer = ask(cloud, "GET", path, token="")
        assert answer.status_code == status
        first = answer.json()["versions"][0]
        assert first["status"] == "CURRENT"
        assert first["links"] == [{"rel": "self", "href": f"{cloud.url}/image/v2/"}]
    assert ask(cloud, "GET", "/v2/images", token="").status_code == 401
    assert ask(cloud, "GET", "/v2/images", token="forged").status_code == 401


def test_schemas_are_published(cloud: Cloud) -> None:
    for name in ("image", "images", "member", "members", "task", "tasks"):
        assert ok(cloud, "GET", f"/v2/schemas/{name}")["name"] == name
    for path, name in (
        ("namespace", "namespace"), ("namespaces", "namespaces"),
        ("resource_type", "resource_type_association"),
        ("resource_types", "resource_type_associations"), ("object", "object"), ("tags", "tags"),
    ):
        assert ok(cloud, "GET", f"/v2/schemas/metadefs/{path}")["name"] == name
    for path in ("/v2/schemas/other", "/v2/schemas/metadefs", "/v2/schemas/metadefs/other"):
        refused(ask(cloud, "GET", path), 404)
    assert ok(cloud, "GET", "/v2/info/stores") == {"stores": [{"id": "file", "default": "true"}]}
    methods = ok(cloud, "GET", "/v2/info/import")["import-methods"]["value"]
    assert methods == ["glance-direct", "web-download"]


# -- made, shown, changed


def test_an_image_is_made_and_shown_with_all_that_was_said(cloud: Cloud) -> None:
    answer = ask(cloud, "POST", "/v2/images", json={
        "name": "mine", **RAW, "min_disk": 2, "min_ram": 64, "tags": ["b", "a"],
        "os_distro": "debian", "owner_specified.openstack.md5": "", "ramdisk_id": "r-1",
    })
    assert answer.status_code == 201
    made = answer.json()
    assert answer.headers["location"] == f"{cloud.url}/image/v2/images/{made['id']}"
    assert answer.headers["openstack-image-import-methods"] == "glance-direct,web-download"
    assert ok(cloud, "GET", f"/v2/images/{made['id']}") == made
    times = made.pop("created_at"), made.pop("updated_at")
    assert times[0] <= times[1]
    assert times[0].endswith("Z")
    path = f"/v2/images/{made['id']}"
    assert made == {
        "id": made["id"], "name": "mine", "status": "queued", "visibility": "shared",
        "protected": False, "os_hidden": False, "owner": "p1", "size": None,
        "virtual_size": None, "checksum": None, "os_hash_algo": None, "os_hash_value": None,
        **RAW, "min_disk": 2, "min_ram": 64, "tags": ["a", "b"], "self": path,
        "file": f"{path}/file", "schema": "/v2/schemas/image", "os_distro": "debian",
        "owner_specified.openstack.md5": "", "ramdisk_id": "r-1",
    }


def test_an_id_may_be_given_once(cloud: Cloud) -> None:
    uuid = "12345678-1234-4234-8234-123456789abc"
    assert make(cloud, id=uuid)["id"] == uuid
    refused(ask(cloud, "POST", "/v2/images", "two", json={"id": uuid}), 409)


@pytest.mark.parametrize(("said", "status"), [
    ({"id": "../x"}, 400), ({"name": "x" * 256}, 400), ({"name": 7}, 400),
    ({"container_format": "wrong"}, 400), ({"disk_format": "wrong"}, 400),
    ({"min_disk": -1}, 400), ({"min_ram": "1"}, 400), ({"visibility": "all"}, 400),
    ({"protected": "yes"}, 400), ({"tags": "a"}, 400), ({"tags": ["x" * 256]}, 400),
    ({"mine": 1}, 400), ({"mine": {"a": 1}}, 400), ({"x" * 256: "y"}, 400),
    ({"tags": [str(n) for n in range(129)]}, 400),
    ({f"p{n}": "" for n in range(129)}, 413),
    ({"status": "active"}, 403), ({"size": 1}, 400), ({"checksum": "x"}, 403),
    ({"os_glance_x": "y"}, 403), ({"deleted": "x"}, 403), ({"locations": []}, 400),
    ({"owner": "p2"}, 403), ({"visibility": "public"}, 403),
])
def test_what_cannot_be_said_is_refused(
    cloud: Cloud, said: dict[str, Any], status: int
) -> None:
    before = ids(cloud, "?limit=1000")
    answer = ask(cloud, "POST", "/v2/images", json=said)
    assert answer.status_code == status, answer.text
    assert ids(cloud, "?limit=1000") == before


def test_only_roles_count(cloud: Cloud) -> None:
    one = make(cloud)
    assert ok(cloud, "GET", f"/v2/images/{one['id']}", "looker")["id"] == one["id"]
    refused(ask(cloud, "POST", "/v2/images", "looker", json={}), 403)
    refused(ask(cloud, "DELETE", f"/v2/images/{one['id']}", "looker"), 403)
    refused(patch(cloud, one["id"], token="looker"), 403)
    refused(ask(cloud, "GET", "/v2/images", "nobody"), 403)


def test_a_patch_changes_what_it_names(cloud: Cloud) -> None:
    one = make(cloud, name="before", mine="1", gone="2", tags=["t"])
    changed = patch(
        cloud, one["id"],
        {"op": "replace", "path": "/name", "value": "after"},
        {"op": "add", "path": "/slash~1and~0tilde", "value": "x"},
        {"op": "replace", "path": "/mine", "value": "3"},
        {"op": "remove", "path": "/gone"},
        {"op": "add", "path": "/tags/-", "value": "u"},
        {"op": "add", "path": "/tags/0", "value": "s"},
        {"op": "replace", "path": "/min_ram", "value": 5},
        {"op": "add", "path": "/protected", "value": True},
    ).json()
    assert ok(cloud, "GET", f"/v2/images/{one['id']}") == changed
    assert (changed["name"], changed["slash/and~tilde"], changed["mine"]) == ("after", "x", "3")
    assert (changed["tags"], changed["min_ram"], changed["protected"]) == (["s", "t", "u"], 5, True)
    assert "gone" not in changed
    older = ask(cloud, "PATCH", f"/v2/images/{one['id']}", headers=OLDER, json=[
        {"replace": "/protected", "value": False}, {"add": "/more", "value": "m"},
        {"remove": "/mine"},
    ]).json()
    assert (older["protected"], older["more"], "mine" in older) == (False, "m", False)


@pytest.mark.parametrize(("todo", "status"), [
    ({"op": "replace", "path": "/id", "value": "x"}, 403),
    ({"op": "replace", "path": "/status", "value": "active"}, 403),
    ({"op": "replace", "path": "/checksum", "value": "x"}, 403),
    ({"op": "add", "path": "/os_glance_foo", "value": "x"}, 403),
    ({"op": "replace", "path": "/owner", "value": "p2"}, 403),
    ({"op": "replace", "path": "/visibility", "value": "public"}, 403),
    ({"op": "remove", "path": "/name"}, 403),
    ({"op": "remove", "path": "/none"}, 409),
    ({"op": "replace", "path": "/none", "value": "x"}, 409),
    ({"op": "replace", "path": "/name", "value": 1}, 400),
    ({"op": "replace", "path": "/visibility", "value": "mine"}, 400),
    ({"op": "add", "path": "/mine", "value": 1}, 400),
    ({"op": "add", "path": "name", "value": "x"}, 400),
    ({"op": "add", "path": "/", "value": "x"}, 400),
    ({"op": "add", "path": "/a/b", "value": "x"}, 400),
    ({"op": "add", "path": "/mine"}, 400),
    ({"op": "move", "path": "/mine", "from": "/x"}, 400),
    ({"op": "add", "path": "/tags/9", "value": "x"}, 409),
    ({}, 400),
])
def test_a_patch_that_cannot_be_is_refused_whole(
    cloud: Cloud, todo: dict[str, Any], status: int
) -> None:
    one = make(cloud, name="kept", owned="1")
    answer = patch(cloud, one["id"], {"op": "add", "path": "/other", "value": "x"}, todo)
    assert answer.status_code == status, answer.text
    assert ok(cloud, "GET", f"/v2/images/{one['id']}") == one


def test_clients_may_take_away_what_they_do_not_know(cloud: Cloud) -> None:
    one = full(cloud, b"x" * 50)
    assert one["stores"] == "file"
    changed = patch(
        cloud, one["id"], {"op": "remove", "path": "/stores"},
        {"op": "remove", "path": "/os_glance_failed_import"},
        {"op": "add", "path": "/speed", "value": "fast"},
    ).json()
    assert (changed["stores"], changed["speed"]) == ("file", "fast")


def test_a_patch_of_another_type_is_refused(cloud: Cloud) -> None:
    one = make(cloud)
    path = f"/v2/images/{one['id']}"
    assert ask(cloud, "PATCH", path, json=[]).status_code == 415
    assert ask(cloud, "PATCH", path, headers=NEWER, content=b"{").status_code == 400
    assert ask(cloud, "PATCH", path, headers=NEWER, json={"op": "add"}).status_code == 400


def test_formats_stay_once_there_is_content(cloud: Cloud) -> None:
    one = full(cloud, b"x" * 100)
    refused(patch(cloud, one["id"], {"op": "replace", "path": "/disk_format", "value": "iso"}), 403)


def test_a_protected_image_stays(cloud: Cloud) -> None:
    one = make(cloud, protected=True)
    refused(ask(cloud, "DELETE", f"/v2/images/{one['id']}"), 403, "protected")
    patch(cloud, one["id"], {"op": "replace", "path": "/protected", "value": False})
    ok(cloud, "DELETE", f"/v2/images/{one['id']}")
    refused(ask(cloud, "GET", f"/v2/images/{one['id']}"), 404)
    refused(ask(cloud, "DELETE", f"/v2/images/{one['id']}"), 404)
    assert one["id"] not in ids(cloud)


def test_a_path_without_an_id_is_no_image(cloud: Cloud) -> None:
    for method in ("GET", "DELETE"):
        assert ask(cloud, method, "/v2/images/").status_code == 404


def test_the_classic_list_is_beside_it(cloud: Cloud) -> None:
    make(cloud, name="unseen")
    names = [one["name"] for one in cloud.ok("/image/list")["images"]]
    assert "unseen" not in names
    assert names


def test_tags_come_and_go(cloud: Cloud) -> None:
    one = make(cloud)
    path = f"/v2/images/{one['id']}"
    for _ in range(2):
        ok(cloud, "PUT", f"{path}/tags/a%20b")
    assert ok(cloud, "GET", path)["tags"] == ["a b"]
    ok(cloud, "DELETE", f"{path}/tags/a%20b")
    refused(ask(cloud, "DELETE", f"{path}/tags/a%20b"), 404)
    refused(ask(cloud, "PUT", f"{NOWHERE}/tags/a"), 404)
    refused(ask(cloud, "PUT", f"{path}/tags/{'x' * 256}"), 400)


# -- who sees what


def test_other_projects_never_see_a_private_image(cloud: Cloud) -> None:
    one = full(cloud, b"secret", visibility="private")
    path = f"/v2/images/{one['id']}"
    for method, below, more in (
        ("GET", "", {}), ("DELETE", "", {}), ("GET", "/file", {}), ("GET", "/members", {}),
        ("GET", "/tasks", {}), ("PUT", "/tags/x", {}), ("POST", "/actions/deactivate", {}),
        ("PUT", "/file", {"content": b"x", "headers": OCTETS}),
        ("PATCH", "", {"json": [], "headers": NEWER}),
        ("POST", "/members", {"json": {"member": "p2"}}),
        ("POST", "/import", {"json": {"method": {"name": "glance-direct"}}}),
    ):
        there = refused(ask(cloud, method, path + below, "two", **more), 404)
        never = refused(ask(cloud, method, NOWHERE + below, "two", **more), 404)
        assert there.replace(one["id"], "") == never.replace(NOWHERE.rpartition("/")[2], "")
    for query in ("", "?visibility=private", "?visibility=all", f"?id=in:{one['id']}"):
        assert one["id"] not in ids(cloud, query, "two")
    refused(ask(cloud, "GET", f"/v2/images?marker={one['id']}", "two"), 400)
    assert one["id"] in ids(cloud, "?limit=1000", "admin")


def test_public_images_are_everybodys_to_see_and_the_owners_to_change(cloud: Cloud) -> None:
    one = make(cloud, "admin", visibility="public", **RAW)
    assert one["id"] in ids(cloud, "?limit=1000", "two")
    path = f"/v2/images/{one['id']}"
    assert ok(cloud, "GET", path, "two")["owner"] == "p0"
    for answer in (
        ask(cloud, "DELETE", path, "two"), ask(cloud, "PUT", f"{path}/tags/x", "two"),
        put(cloud, one["id"], b"x", "two"),
        patch(cloud, one["id"], {"op": "add", "path": "/a", "value": "b"}, token="two"),
    ):
        refused(answer, 403)


def test_community_images_are_found_by_who_asks_for_them(cloud: Cloud) -> None:
    one = make(cloud, visibility="community")
    assert one["id"] in ids(cloud, "?limit=1000")
    assert one["id"] not in ids(cloud, "?limit=1000", "two")
    assert one["id"] in ids(cloud, "?visibility=community", "two")
    assert one["id"] in ids(cloud, "?visibility=all&limit=1000", "two")
    assert ok(cloud, "GET", f"/v2/images/{one['id']}", "two")["visibility"] == "community"


def test_a_shared_image_is_listed_by_who_accepts_it(cloud: Cloud) -> None:
    one = full(cloud, b"x" * 20)
    path = f"/v2/images/{one['id']}/members"
    member = ok(cloud, "POST", path, json={"member": "p2"})
    assert (member["member_id"], member["image_id"], member["status"], member["schema"]) == (
        "p2", one["id"], "pending", "/v2/schemas/member"
    )
    refused(ask(cloud, "POST", path, json={"member": "p2"}), 409)
    assert one["id"] not in ids(cloud, "", "two")
    assert ids(cloud, "?visibility=shared&member_status=pending", "two") == [one["id"]]
    assert ok(cloud, "GET", f"/v2/images/{one['id']}", "two")["id"] == one["id"]
    assert ask(cloud, "GET", f"/v2/images/{one['id']}/file", "two").content == b"x" * 20
    refused(ask(cloud, "PUT", f"{path}/p2", json={"status": "accepted"}), 403)
    refused(ask(cloud, "PUT", f"{path}/p2", "two", json={"status": "gladly"}), 400)
    ok(cloud, "PUT", f"{path}/p2", "two", json={"status": "accepted"})
    assert one["id"] in ids(cloud, "", "two")
    ok(cloud, "POST", path, json={"member": "p3"})
    assert [m["member_id"] for m in ok(cloud, "GET", path)["members"]] == ["p2", "p3"]
    assert [m["member_id"] for m in ok(cloud, "GET", path, "two")["members"]] == ["p2"]
    refused(ask(cloud, "GET", f"{path}/p3", "two"), 404)
    assert ok(cloud, "GET", f"{path}/p2", "two")["status"] == "accepted"
    refused(ask(cloud, "DELETE", f"{path}/p3", "two"), 403)
    ok(cloud, "PUT", f"{path}/p2", "two", json={"status": "rejected"})
    assert one["id"] not in ids(cloud, "", "two")
    ok(cloud, "DELETE", f"{path}/p2")
    refused(ask(cloud, "GET", f"/v2/images/{one['id']}", "two"), 404)
    refused(ask(cloud, "DELETE", f"{path}/p2"), 404)
    private = make(cloud, visibility="private")
    refused(
        ask(cloud, "POST", f"/v2/images/{private['id']}/members", json={"member": "p2"}), 403
    )


def test_an_administrator_makes_images_for_others(cloud: Cloud) -> None:
    one = make(cloud, "admin", owner="p3", visibility="private")
    assert one["id"] in ids(cloud, "", "three")
    changed = patch(
        cloud, one["id"], {"op": "replace", "path": "/owner", "value": "p2"}, token="admin"
    )
    assert changed.json()["owner"] == "p2"
    assert one["id"] not in ids(cloud, "", "three")


# -- lists


@pytest.fixture(scope="module")
def listed(cloud: Cloud) -> dict[str, dict[str, Any]]:
    """Images of project p3: a of 100 bytes, b of 2000, c without content, h hidden."""
    def of(name: str, content: bytes, **said: Any) -> dict[str, Any]:
        made = make(cloud, "three", name=name, **{**RAW, **said})
        if content:
            assert put(cloud, made["id"], content, "three").status_code == 204
        return dict(ok(cloud, "GET", f"/v2/images/{made['id']}", "three"))

    return {
        "a": of("a", b"a" * 100, tags=["red", "round"], os_distro="debian"),
        "b": of("b,c", b"b" * 2000, disk_format="iso", tags=["red"], protected=True, min_ram=7),
        "c": of('say "c"', b"", visibility="private", **{"it's \"odd\".x": "y%'"}),
        "h": of("h", b"", os_hidden=True),
    }


@pytest.mark.parametrize(("query", "found"), [
    ("owner=p3", "cba"), ("owner=p1", ""), ("name=a", "a"), ("name=in:a,h", "a"),
    ('name=in:"b,c",a', "ba"), ('name=in:"say \\"c\\""', "c"), ("name=A", ""),
    ("status=active&owner=p3", "ba"), ("status=in:queued,saving&owner=p3", "c"), ("status=odd", ""),
    ("visibility=private", "c"), ("visibility=shared", "ba"), ("owner=p3&os_hidden=true", "h"),
    ("tag=red", "ba"), ("tag=red&tag=round", "a"), ("tag=blue", ""),
    ("size=100&owner=p3", "a"), ("size_min=100&size_max=1999&owner=p3", "a"),
    ("size_min=101&owner=p3", "b"),
    ("protected=true", "b"), ("protected=false&owner=p3", "ca"), ("min_ram=7", "b"),
    ("disk_format=iso", "b"), ("disk_format=in:iso,raw&owner=p3", "cba"),
    ("container_format=bare&owner=p3", "cba"),
    ("os_distro=debian", "a"), ("os_distro=fedora", ""),
    ("it's+%22odd%22.x=y%25'", "c"), ("it's+%22odd%22.x=y_'", ""),
    ("created_at=gt:2020-01-01T00:00:00Z&owner=p3", "cba"),
    ("created_at=lt:2020-01-01T00:00:00Z", ""),
    ("updated_at=gte:2020-01-01T00:00:00%2B02:00&updated_at=lt:2999-01-01&owner=p3", "cba"),
    ("owner=p3&sort=size:desc", "bac"), ("owner=p3&sort=size:asc", "cab"),
    ("owner=p3&sort_key=name&sort_dir=asc", "abc"),
    ("owner=p3&sort=disk_format:asc,name:desc", "bca"),
    ("owner=p3&sort_key=disk_format&sort_key=name&sort_dir=asc&sort_dir=desc", "bca"),
    ("os_hash_algo=md5", ""),
])
def test_lists_are_filtered_and_sorted(
    cloud: Cloud, listed: dict[str, dict[str, Any]], query: str, found: str
) -> None:
    names = {one["id"]: name for name, one in listed.items()}
    assert "".join(names[id] for id in ids(cloud, f"?{query}", "three") if id in names) == found


@pytest.mark.parametrize("query", [
    "limit=-1", "limit=x", "sort=odd", "sort=name:up", "sort=name&sort_key=name", "sort_key=odd",
    "sort_dir=up", "visibility=odd", "member_status=odd", "protected=maybe", "os_hidden=1",
    "size=x", "size_min=-1", "size_max=99999999999999999999", "created_at=yesterday",
    "created_at=about:2020-01-01", "marker=odd", f"marker={NOWHERE.rpartition('/')[2]}",
    'name=in:"a', 'name=in:a"b',
])
def test_what_cannot_be_listed_is_refused(cloud: Cloud, query: str) -> None:
    refused(ask(cloud, "GET", f"/v2/images?{query}"), 400)


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("order", ["size:asc", "size:desc", "name:asc,size:desc", "status:desc"])
def test_pages_follow_one_another(cloud: Cloud, order: str) -> None:
    whole = ids(cloud, f"?owner=p3&sort={order}", "three")
    assert len(whole) == 3
    path, seen = f"/v2/images?owner=p3&sort={order}&limit=1", []
    for _ in range(5):
        page = ok(cloud, "GET", path, "three")
        assert page["schema"] == "/v2/schemas/images"
        assert page["first"].startswith("/v2/images?owner=p3")
        seen += [one["id"] for one in page["images"]]
        if "next" not in page:
            break
        path = page["next"]
    assert seen == whole


def test_no_images_are_a_page_too(cloud: Cloud) -> None:
    page = ok(cloud, "GET", "/v2/images?limit=0")
    assert page["images"] == []
    assert "next" not in page


# -- content


def test_content_comes_back_as_it_was(cloud: Cloud) -> None:
    one = make(cloud, **RAW)
    path = f"/v2/images/{one['id']}/file"
    assert ask(cloud, "GET", path).status_code == 204
    content = os.urandom(3 * (1 << 20) + 77)

    def blocks() -> Iterator[bytes]:
        for start in range(0, len(content), 65536):
            yield content[start:start + 65536]

    assert put(cloud, one["id"], blocks()).status_code == 204
    shown = ok(cloud, "GET", f"/v2/images/{one['id']}")
    assert (shown["status"], shown["size"], shown["os_hash_algo"], shown["stores"]) == (
        "active", len(content), "sha512", "file"
    )
    assert shown["os_hash_value"] == hashlib.sha512(content).hexdigest()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    answer = ask(cloud, "GET", path)
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-md5"] == shown["checksum"] == md5
    assert answer.headers["content-type"] == "application/octet-stream"
    part = ask(cloud, "GET", path, headers={"Range": "bytes=1000000-1000099"})
    assert (part.status_code, part.content) == (206, content[1000000:1000100])
    assert part.headers["content-range"] == f"bytes 1000000-1000099/{len(content)}"
    refused_range = ask(cloud, "GET", path, headers={"Range": f"bytes={len(content)}-"})
    assert refused_range.status_code == 416
    refused(put(cloud, one["id"], b"again"), 409)


def test_nothing_is_content_too(cloud: Cloud) -> None:
    """What the command line sends where its standard input is closed."""
    one = full(cloud, b"")
    assert (one["status"], one["size"], one["virtual_size"]) == ("active", 0, 0)
    assert ask(cloud, "GET", f"/v2/images/{one['id']}/file").content == b""
    row = cloud.treadle.database.read(lambda conn: images.by_uuid(conn, one["id"]))
    assert row is not None
    with pytest.raises(Conflict, match="it is empty"):
        cloud.treadle.database.write(lambda conn: create(
            conn, Wish("empty", 1, row), request_id="r", build_deadline_s=20.0
        ))


@pytest.mark.parametrize("kind", ["raw", "iso", "ami", "ari", "aki"])
def test_what_is_no_disk_is_kept_as_it_is(cloud: Cloud, kind: str) -> None:
    content = os.urandom(1024)
    one = full(cloud, content, disk_format=kind)
    assert (one["status"], one["size"], one["virtual_size"]) == ("active", 1024, 1024)


def test_qcow2_goes_to_hosts_as_it_is(cloud: Cloud, tmp_path: Path) -> None:
    content = qemu_image(tmp_path, "qcow2")
    one = full(cloud, content, disk_format="qcow2")
    assert (one["status"], one["virtual_size"], one["size"]) == ("active", 4 << 20, len(content))
    row = cloud.treadle.database.read(lambda conn: images.by_uuid(conn, one["id"]))
    assert row is not None
    assert row.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("kind", "named", "options"), [
    ("vmdk", "vmdk", ()), ("vmdk", "vmdk", ("-o", "subformat=streamOptimized")),
    ("vpc", "vhd", ()), ("vpc", "vhd", ("-o", "subformat=fixed")), ("vhdx", "vhdx", ()),
    ("vdi", "vdi", ()),
])
def test_what_hosts_cannot_use_is_converted_and_comes_back_as_it_was(
    cloud: Cloud, tmp_path: Path, kind: str, named: str, options: tuple[str, ...]
) -> None:
    content = qemu_image(tmp_path, kind, *options)
    one = full(cloud, content, disk_format=named)
    assert (one["status"], one["size"], one["disk_format"]) == ("active", len(content), named)
    assert one["virtual_size"] >= 4 << 20
    assert ask(cloud, "GET", f"/v2/images/{one['id']}/file").content == content
    row = cloud.treadle.database.read(lambda conn: images.by_uuid(conn, one["id"]))
    assert row is not None
    assert row.path is not None
    assert row.format == "qcow2"
    host_copy = Path(row.path).read_bytes()
    assert hashlib.sha256(host_copy).hexdigest() == row.sha256
    back = tmp_path / "back.raw"
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", row.path, back], check=True, timeout=60
    )
    assert back.read_bytes()[:4 << 20] == (tmp_path / "noise.raw").read_bytes()


def test_an_image_that_was_uploaded_can_be_booted(cloud: Cloud, tmp_path: Path) -> None:
    one = full(cloud, qemu_image(tmp_path, "vmdk"), disk_format="vmdk")
    row = cloud.treadle.database.read(lambda conn: images.by_uuid(conn, one["id"]))
    assert row is not None
    assert row.sha256 is not None
    wish = Wish("booted", 1, row)
    [made] = cloud.treadle.database.write(
        lambda conn: create(conn, wish, request_id="r", build_deadline_s=20.0)
    )
    until(lambda: made.uuid in cloud.guests(), "the guest")
    assert row.sha256 in cloud.host("h1").images
    path = Path(row.path or "")
    ok(cloud, "DELETE", f"/v2/images/{one['id']}")
    until(lambda: deleted_work_waits(cloud, row.id), "the look at the image")
    assert path.exists()


def deleted_work_waits(cloud: Cloud, id: int) -> bool:
    """Whether the pass over a deleted image has found that it is still needed."""
    due = sa.select(work.c.due_at - work.c.lease_until).where(
        work.c.kind == "image", work.c.id == str(id), work.c.lease_until == 0
    )
    found = cloud.treadle.database.read(lambda conn: conn.execute(due).scalar())
    now = cloud.treadle.database.read(lambda conn: conn.execute(sa.select(clock())).scalar_one())
    return found is not None and found > now + 100


def test_a_client_that_says_another_length_is_refused(cloud: Cloud) -> None:
    one = make(cloud, **RAW)
    headers = OCTETS | {"X-OpenStack-Image-Size": "99"}
    refused(ask(cloud, "PUT", f"/v2/images/{one['id']}/file", content=b"x", headers=headers), 400)
    refused(ask(cloud, "PUT", f"/v2/images/{one['id']}/file", content=b"x"), 415)
    assert ok(cloud, "GET", f"/v2/images/{one['id']}")["status"] == "queued"


def test_what_is_too_large_is_refused_before_it_is_sent(cloud: Cloud) -> None:
    one = make(cloud, **RAW)
    headers = OCTETS | {"X-OpenStack-Image-Size": str((1 << 30) + 1)}
    answer = ask(
        cloud, "PUT", f"/v2/images/{one['id']}/file", content=iter([b"x"]), headers=headers
    )
    refused(answer, 413)
    assert ok(cloud, "GET", f"/v2/images/{one['id']}")["status"] == "queued"


@pytest.mark.parametrize("verb", ["file", "stage"])
def test_an_upload_of_unknown_length_ends_where_the_projects_room_does(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    context = cloud.treadle.context
    monkeypatch.setitem(context.__dict__, "image_limits", Limits(1000, 3 << 20))
    one = make(cloud, "four", **RAW)
    sent = iter([bytes(1 << 20)] * 4)
    refused(put(cloud, one["id"], sent, "four", verb), 413)
    assert ok(cloud, "GET", f"/v2/images/{one['id']}", "four")["status"] == "queued"
    assert put(cloud, one["id"], iter([bytes(1 << 20)] * 3), "four", verb).status_code == 204
    other = make(cloud, "four", **RAW)
    refused(put(cloud, other["id"], b"x", "four"), 413, "3145728 bytes in all")
    for made in (one, other):
        ok(cloud, "DELETE", f"/v2/images/{made['id']}", "four")


def test_an_image_without_formats_takes_no_content(cloud: Cloud) -> None:
    refused(put(cloud, make(cloud)["id"], b"x"), 409, "disk_format")


def test_an_image_that_was_taken_out_of_use_is_not_given(cloud: Cloud) -> None:
    one = full(cloud, b"z" * 600)
    path = f"/v2/images/{one['id']}"
    for _ in range(2):
        ok(cloud, "POST", f"{path}/actions/deactivate")
    assert ok(cloud, "GET", path)["status"] == "deactivated"
    refused(ask(cloud, "GET", f"{path}/file"), 403)
    assert ask(cloud, "GET", f"{path}/file", "admin").content == b"z" * 600
    ok(cloud, "POST", f"{path}/actions/reactivate")
    assert ask(cloud, "GET", f"{path}/file").content == b"z" * 600
    refused(ask(cloud, "POST", f"/v2/images/{make(cloud)['id']}/actions/deactivate"), 403)


def test_content_goes_with_its_image(cloud: Cloud) -> None:
    one = full(cloud, b"q" * 700)
    row = cloud.treadle.database.read(lambda conn: images.by_uuid(conn, one["id"]))
    assert row is not None
    assert row.path is not None
    path = Path(row.path)
    assert path.exists()
    ok(cloud, "DELETE", f"/v2/images/{one['id']}")
    until(lambda: not path.exists(), "the end of the content")


def test_no_upload_leaves_anything_beside_its_image(cloud: Cloud) -> None:
    folder = cloud.treadle.context.contents.folder
    assert [one.name for one in folder.iterdir() if one.suffix == ".part"] == []


def test_a_client_that_goes_away_leaves_the_image_as_it_was(cloud: Cloud) -> None:
    one = make(cloud, **RAW)
    head = (
        f"PUT /image/v2/images/{one['id']}/file HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "X-Auth-Token: one\r\nContent-Type: application/octet-stream\r\n"
        "Content-Length: 9000000\r\n\r\n"
    ).encode()
    path = f"/v2/images/{one['id']}"
    with socket.create_connection(("127.0.0.1", cloud.port), timeout=20) as gone:
        gone.sendall(head + bytes(3_000_000))
        until(lambda: ok(cloud, "GET", path)["status"] == "saving", "the upload")
    until(lambda: ok(cloud, "GET", path)["status"] == "queued", "the end of the upload")
    assert put(cloud, one["id"], b"whole").status_code == 204
    test_no_upload_leaves_anything_beside_its_image(cloud)


def test_content_in_an_object_store_is_given_in_ranges_and_booted(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = cloud.treadle.context.contents
    monkeypatch.setattr(contents, "blobs", ObjectBlobs(MemoryStore()))
    for kind, named in (("qcow2", "qcow2"), ("vmdk", "vmdk")):
        content = qemu_image(tmp_path, kind)
        before = set(contents.folder.iterdir())
        one = full(cloud, content, disk_format=named)
        path = f"/v2/images/{one['id']}/file"
        whole = ask(cloud, "GET", path)
        assert (whole.status_code, whole.content, one["stores"]) == (200, content, "s3")
        for asked, part in (
            ("bytes=10-19", content[10:20]), ("bytes=-5", content[-5:]),
            (f"bytes={len(content) - 3}-", content[-3:]),
        ):
            answer = ask(cloud, "GET", path, headers={"Range": asked})
            assert (answer.status_code, answer.content) == (206, part)
        for wrong in ("", "5-2", f"{len(content)}-", "1-2,4-5", "x-y"):
            refused(ask(cloud, "GET", path, headers={"Range": f"bytes={wrong}"}), 400)
        row = cloud.treadle.database.read(lambda conn, id=one["id"]: images.by_uuid(conn, id))
        assert row is not None
        [made] = cloud.treadle.database.write(lambda conn, row=row: create(
            conn, Wish("remote", 1, row), request_id="r", build_deadline_s=20.0
        ))
        until(lambda made=made: made.uuid in cloud.guests(), "the guest")
        until(
            lambda before=before: set(contents.folder.iterdir()) == before,
            "the end of the copy that the host was given",
        )


# -- hostile content


def hostile(tmp_path: Path) -> dict[str, tuple[str, bytes]]:
    """Content that is not what its disk format says, or that names files of whoever reads it."""
    qcow2 = qemu_image(tmp_path, "qcow2")
    vmdk = bytearray(qemu_image(tmp_path, "vmdk"))
    secret = tmp_path / "secret.raw"
    secret.write_bytes(b"secret" * 200_000)
    based = tmp_path / "based.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, based], check=True,
        timeout=60,
    )
    outside = tmp_path / "outside.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'd.raw'}",
         outside, "1M"], check=True, timeout=60,
    )
    flat = (
        '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"'
        f'\nRW 2048 FLAT "{secret}" 0\n'
    ).encode()
    place = vmdk.index(b'RW 8192 SPARSE "')
    end = vmdk.index(b"\n", place)
    named = bytes(vmdk[:place]) + f'RW 8192 FLAT "{secret}" 0'.encode().ljust(
        end - place, b" "
    ) + bytes(vmdk[end:])
    parent = bytes(vmdk).replace(
        b"parentCID=ffffffff", b"parentCID=12345678", 1
    )
    hinted = bytearray(vmdk)
    hint = b'parentFileNameHint="/etc/passwd"\n'
    spot = vmdk.index(b"ddb.")
    hinted[spot:spot + len(hint)] = hint
    empty = bytearray(vmdk)
    empty[12:20] = bytes(8)
    vhd = bytearray(qemu_image(tmp_path, "vpc"))
    for start in (0, len(vhd) - 512):
        vhd[start + 60:start + 64] = b"\0\0\0\4"
    return {
        "qcow2 as raw": ("raw", qcow2), "qcow2 as iso": ("iso", qcow2),
        "qcow2 as vmdk": ("vmdk", qcow2), "noise as qcow2": ("qcow2", os.urandom(5000)),
        "noise as vmdk": ("vmdk", os.urandom(5000)), "noise as vhd": ("vhd", os.urandom(5000)),
        "vmdk as qcow2": ("qcow2", bytes(vmdk)), "vmdk as raw": ("raw", bytes(vmdk)),
        "vhd as raw": ("raw", qemu_image(tmp_path, "vpc", "-o", "subformat=fixed")),
        "backing file": ("qcow2", based.read_bytes()),
        "data file": ("qcow2", outside.read_bytes()),
        "flat vmdk": ("vmdk", flat), "vmdk that names a file": ("vmdk", named),
        "vmdk with a parent": ("vmdk", parent), "vmdk with a hint": ("vmdk", bytes(hinted)),
        "vmdk of no size": ("vmdk", bytes(empty)), "differencing vhd": ("vhd", bytes(vhd)),
        "half a qcow2": ("qcow2", qcow2[:len(qcow2) // 2]),
        "half a vmdk": ("vmdk", bytes(vmdk[:1000])), "vhdx of one line": ("vhdx", b"vhdxfile"),
        "nothing": ("qcow2", b""),
    }


def test_hostile_content_is_refused_and_the_image_waits_for_better(
    cloud: Cloud, tmp_path: Path
) -> None:
    before = set(cloud.treadle.context.contents.folder.iterdir())
    for what, (named, content) in hostile(tmp_path).items():
        one = make(cloud, name=what, container_format="bare", disk_format=named)
        answer = put(cloud, one["id"], content)
        assert answer.status_code == 400, (what, answer.status_code, answer.text)
        for inside in (str(tmp_path), "Traceback", "/proc/", str(cloud.treadle.folder)):
            assert inside not in answer.text, (what, answer.text)
        shown = ok(cloud, "GET", f"/v2/images/{one['id']}")
        assert (shown["status"], shown["size"], shown["checksum"]) == ("queued", None, None), what
        ok(cloud, "DELETE", f"/v2/images/{one['id']}")
    until(
        lambda: set(cloud.treadle.context.contents.folder.iterdir()) == before,
        "the end of what was refused",
    )


# -- content that is imported


def importing(cloud: Cloud, id: str, **method: Any) -> Any:
    return ask(cloud, "POST", f"/v2/images/{id}/import", json={"method": method})


def settled(cloud: Cloud, id: str) -> dict[str, Any]:
    def look() -> Any:
        shown = ok(cloud, "GET", f"/v2/images/{id}")
        return shown if shown["status"] in ("active", "queued") else None

    found: dict[str, Any] = until(look, "the import")
    return found


def test_staged_content_is_imported(cloud: Cloud, tmp_path: Path) -> None:
    content = qemu_image(tmp_path, "vhdx")
    one = make(cloud, container_format="bare", disk_format="vhdx")
    refused(importing(cloud, one["id"], name="glance-direct"), 409)
    assert put(cloud, one["id"], content, verb="stage").status_code == 204
    assert ok(cloud, "GET", f"/v2/images/{one['id']}")["status"] == "uploading"
    assert ok(cloud, "GET", f"/v2/images/{one['id']}/tasks") == {"tasks": []}
    answer = importing(cloud, one["id"], name="glance-direct")
    assert (answer.status_code, answer.content) == (202, b"")
    done = settled(cloud, one["id"])
    assert (done["status"], done["size"]) == ("active", len(content))
    [task] = ok(cloud, "GET", f"/v2/images/{one['id']}/tasks")["tasks"]
    assert (task["status"], task["request_id"]) == (
        "success", answer.headers["x-openstack-request-id"]
    )
    assert task["input"]["import_req"]["method"]["name"] == "glance-direct"
    assert ok(cloud, "GET", f"/v2/tasks/{task['id']}")["id"] == task["id"]
    refused(ask(cloud, "GET", f"/v2/tasks/{task['id']}", "two"), 404)
    refused(ask(cloud, "POST", "/v2/tasks", json={"type": "import", "input": {}}), 403)


def test_staged_content_that_cannot_be_used_is_given_up(cloud: Cloud) -> None:
    one = make(cloud, container_format="bare", disk_format="qcow2")
    put(cloud, one["id"], os.urandom(3000), verb="stage")
    importing(cloud, one["id"], name="glance-direct")
    done = settled(cloud, one["id"])
    assert (done["status"], done["os_glance_failed_import"]) == ("queued", "file")
    [task] = ok(cloud, "GET", f"/v2/images/{one['id']}/tasks")["tasks"]
    assert task["status"] == "failure"
    assert "qcow2" in task["message"]


@pytest.mark.parametrize("uri", [
    "http://127.0.0.1/x", "http://[::1]/x", "http://10.0.0.1/x", "http://169.254.169.254/latest",
    "http://[::ffff:127.0.0.1]/x", "http://[64:ff9b::7f00:1]/x", "http://[2002:7f00:1::]/x",
    "http://192.168.1.1/x", "http://172.16.0.1/x", "http://0.0.0.0/x", "http://224.0.0.1/x",
    "http://100.64.0.1/x", "http://example.org:22/x", "ftp://example.org/x", "/etc/passwd",
    "root@example.org:/etc/passwd", "file:///etc/passwd", "http://user:pw@example.org/x", "", None,
])
def test_what_a_tenant_may_not_reach_is_not_fetched(cloud: Cloud, uri: str | None) -> None:
    one = make(cloud, **RAW)
    method = {"name": "web-download"} if uri is None else {"name": "web-download", "uri": uri}
    refused(importing(cloud, one["id"], **method), 400)
    assert ok(cloud, "GET", f"/v2/images/{one['id']}")["status"] == "queued"


def test_a_name_that_leads_inside_is_not_followed(cloud: Cloud) -> None:
    one = make(cloud, **RAW)
    assert importing(cloud, one["id"], name="web-download", uri="http://localhost/x").status_code \
        == 202
    done = settled(cloud, one["id"])
    assert done["os_glance_failed_import"] == "file"
    [task] = ok(cloud, "GET", f"/v2/images/{one['id']}/tasks")["tasks"]
    assert "does not pass filtering" in task["message"]


def test_an_import_of_another_kind_is_refused(cloud: Cloud) -> None:
    one = make(cloud, **RAW)
    refused(importing(cloud, one["id"], name="copy-image"), 400)
    refused(ask(cloud, "POST", f"/v2/images/{one['id']}/import", json={
        "method": {"name": "web-download", "uri": "http://example.org/x"}, "stores": ["other"],
    }), 400)


# -- an operator's images


def test_an_operators_image_is_public_and_can_be_downloaded(
    cloud: Cloud, disk_image: Path
) -> None:
    [one] = ok(cloud, "GET", f"/v2/images?name={disk_image.stem}")["images"]
    content = disk_image.read_bytes()
    assert (one["visibility"], one["status"], one["size"], one["container_format"]) == (
        "public", "active", len(content), "bare"
    )
    assert one["checksum"] == hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert ask(cloud, "GET", f"/v2/images/{one['id']}/file").content == content
    refused(ask(cloud, "DELETE", f"/v2/images/{one['id']}"), 403)
