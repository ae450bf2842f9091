"""Tokens over HTTP: made, shown, ended, and dead with what they rest on."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from cloudkit import Cloud, Start, assert_no_insides

from treadle.cli.serve import assemble
from treadle.config import Settings
from treadle.db.schema import instance, token, user_account
from treadle.hypervisor.fake import FakeFleet
from treadle.identity import store
from treadle.identity.tokens import hash_of

V3 = "/identity/v3"
TOKENS = f"{V3}/auth/tokens"
REFUSAL = {"error": {
    "code": 401, "title": "Unauthorized",
    "message": "The request you have made requires authentication.",
}}


def text_of(headers: dict[str, str]) -> str:
    return headers["X-Auth-Token"]


def seen(cloud: Cloud, headers: dict[str, str], subject: str) -> httpx2.Response:
    return cloud.get(TOKENS, headers={**headers, "X-Subject-Token": subject})


def body_of(answer: httpx2.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["token"]
    return found


def test_a_token_says_who_where_and_what(shared: Cloud) -> None:
    answer = shared.authenticate()
    assert answer.status_code == 201
    assert answer.headers["vary"] == "X-Auth-Token"
    assert len(answer.headers["x-subject-token"]) == 43
    body = body_of(answer)
    assert body["methods"] == ["password"]
    assert body["user"]["name"] == "admin"
    assert body["user"]["domain"] == {"id": "default", "name": "Default"}
    assert body["project"]["name"] == "admin"
    assert body["is_domain"] is False
    assert [one["name"] for one in body["roles"]] == ["admin", "member", "reader"]
    assert body["issued_at"] < body["expires_at"]
    assert body["expires_at"].endswith("Z")
    assert len(body["audit_ids"]) == 1
    again = seen(shared, shared.log_in(), answer.headers["x-subject-token"])
    assert again.status_code == 200
    assert again.headers["x-subject-token"] == answer.headers["x-subject-token"]
    assert body_of(again) == body


def test_the_catalog_has_the_address_that_the_client_used(shared: Cloud) -> None:
    headers = shared.log_in()
    catalog = {one["type"]: one for one in body_of(shared.authenticate())["catalog"]}
    assert {"identity", "compute"} <= catalog.keys()
    urls = {one["interface"]: one["url"] for one in catalog["compute"]["endpoints"]}
    assert urls == dict.fromkeys(("public", "internal", "admin"), f"{shared.url}/compute/v2.1")
    assert {one["url"] for one in catalog["identity"]["endpoints"]} == {f"{shared.url}/identity"}
    assert {one["region_id"] for one in catalog["identity"]["endpoints"]} == {"RegionOne"}
    alone = shared.get(f"{V3}/auth/catalog", headers=headers).json()
    assert alone["catalog"] == list(catalog.values())
    other = shared.get(f"{V3}/auth/catalog", headers={**headers, "Host": "cloud.example:81"}).json()
    assert "http://cloud.example:81/identity" in json.dumps(other)
    answer = seen(shared, headers, text_of(headers))
    assert answer.status_code == 200
    without = shared.get(
        f"{TOKENS}?nocatalog", headers={**headers, "X-Subject-Token": text_of(headers)}
    )
    assert "catalog" not in body_of(without)


def test_a_public_address_stands_in_the_catalog_and_the_links(start: Start) -> None:
    cloud = start(settings={"server.public_url": "https://cloud.example.org"})
    body = json.dumps(body_of(cloud.authenticate())["catalog"])
    assert "https://cloud.example.org/compute/v2.1" in body
    assert cloud.url not in body
    clouds = (cloud.treadle.folder / "clouds.yaml").read_text()
    assert "https://cloud.example.org/identity" in clouds


@pytest.mark.parametrize(("scope", "key"), [
    ({"project": {"name": "ADMIN", "domain": {"name": "DEFAULT"}}}, "project"),
    ({"project": {"name": "admin", "domain": {"name": "default"}}}, "project"),
    ({"domain": {"id": "default"}}, "domain"),
    ({"domain": {"name": "dEfAuLt"}}, "domain"),
    ({"system": {"all": True}}, "system"),
    ({"unscoped": {}}, None),
])
def test_scopes(shared: Cloud, scope: dict[str, Any], key: str | None) -> None:
    body = body_of(shared.authenticate(**scope))
    assert {"project", "domain", "system"} & body.keys() == ({key} if key else set())
    assert ("catalog" in body) is ("roles" in body) is (key is not None)


@pytest.mark.parametrize("scope", [
    {"project": {"name": "nothing", "domain": {"id": "default"}}},
    {"project": {"name": "admin", "domain": {"id": "nowhere"}}},
    {"project": {"id": "default"}}, {"project": {"id": "\U0001f9f5"}},
    {"domain": {"id": "nowhere"}}, {"domain": {"name": "nowhere"}},
])
def test_a_scope_that_is_not_there_is_refused_like_a_wrong_password(
    shared: Cloud, scope: dict[str, Any]
) -> None:
    answer = shared.authenticate(**scope)
    assert (answer.status_code, answer.json()) == (401, REFUSAL)


@pytest.mark.parametrize(("user", "password", "domain"), [
    ("admin", "wrong", "default"), ("nobody", "wrong", "default"), ("admin", "wrong", "nowhere"),
    ("admin", "", "default"), ("\U0001f9f5", "\U0001f9f5", "default"),
])
def test_whoever_cannot_prove_it_is_told_nothing(
    shared: Cloud, user: str, password: str, domain: str
) -> None:
    answer = shared.authenticate(user, password, user_domain=domain)
    assert (answer.status_code, answer.json()) == (401, REFUSAL)
    assert "x-subject-token" not in answer.headers
    assert answer.headers["www-authenticate"].startswith("Keystone uri=")


PASSWORD = {"methods": ["password"]}


@pytest.mark.parametrize(("body", "status"), [
    ("", 400), ("{", 400), ("[]", 400), ("null", 400), ("{}", 400), ('"auth"', 400),
    ({"auth": None}, 400), ({"auth": {}}, 400), ({"auth": {"identity": {}}}, 400),
    ({"auth": {"identity": {"methods": "password"}}}, 400),
    ({"auth": {"identity": {"methods": []}}}, 401),
    ({"auth": {"identity": {"methods": ["totp"]}}}, 401),
    ({"auth": {"identity": {"methods": ["password", "saml2"]}}}, 401),
    ({"auth": {"identity": PASSWORD}}, 400),
    ({"auth": {"identity": {**PASSWORD, "password": {}}}}, 400),
    ({"auth": {"identity": {**PASSWORD, "password": {"user": {"name": "admin"}}}}}, 400),
    ({"auth": {"identity": {**PASSWORD, "password": {"user": {"name": "a", "password": "b"}}}}},
     400),
    ({"auth": {"identity": {**PASSWORD, "password": {"user": {"id": 7, "password": "b"}}}}}, 400),
    ({"auth": {"identity": {**PASSWORD, "password": {"user": {"id": "a\0", "password": "b"}}}}},
     400),
    ({"auth": {"identity": {"methods": ["token"], "token": {"id": "forged"}}}}, 404),
    ({"auth": {"identity": {"methods": ["token"], "token": {}}}}, 400),
    ({"auth": {"identity": {"methods": ["application_credential"],
                            "application_credential": {"id": "x", "secret": "y"}}}}, 401),
    ({"auth": {"identity": {"methods": ["application_credential"],
                            "application_credential": {"secret": "y"}}}}, 400),
    ({"auth": {"identity": {**PASSWORD, "password": {"user": {"id": "a", "password": "b"}}},
               "scope": {"project": {"name": "no domain"}}}}, 400),
    ({"auth": {"identity": {**PASSWORD, "password": {"user": {"id": "a", "password": "b"}}},
               "scope": {"project": {"id": "x"}, "domain": {"id": "y"}}}}, 400),
    ({"auth": {"identity": {**PASSWORD, "password": {"user": {"id": "a", "password": "b"}}},
               "scope": {"system": {"all": "yes"}}}}, 400),
    ({"auth": {"identity": {**PASSWORD, "password": {"user": {"id": "a", "password": "b"}}},
               "scope": {"planet": {"id": "x"}}}}, 400),
])
def test_a_body_that_is_not_right_is_refused_in_keystones_way(
    shared: Cloud, body: Any, status: int
) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    answer = shared.client.post(
        TOKENS, content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == status
    assert error["title"]
    assert error["message"]
    assert_no_insides(answer.text)


@pytest.mark.parametrize("text", ["", "x", "a" * 43, "%00", "\xe9" * 43, "a" * 4000])
def test_a_forged_token_is_no_token(shared: Cloud, text: str) -> None:
    headers: dict[str, Any] = {"X-Auth-Token": text.encode("latin-1")}
    answer = shared.get(f"{V3}/projects", headers=headers)
    assert (answer.status_code, answer.json()) == (401, REFUSAL)
    answer = shared.get(
        TOKENS, headers={**shared.log_in(), "X-Subject-Token": text.encode("latin-1")}
    )
    assert answer.status_code == 404
    assert answer.json()["error"]["title"] == "Not Found"


def test_calls_without_a_token_are_refused(shared: Cloud) -> None:
    for method in ("GET", "HEAD", "DELETE"):
        assert shared.client.request(method, TOKENS).status_code == 401
    assert shared.client.put(TOKENS).status_code == 405
    assert shared.get(f"{V3}/nothing").status_code == 404


def test_head_says_whether_there_is_such_a_token(shared: Cloud) -> None:
    headers = shared.log_in()
    answer = shared.client.head(TOKENS, headers={**headers, "X-Subject-Token": text_of(headers)})
    assert (answer.status_code, answer.content) == (200, b"")


def test_an_ended_token_is_dead_at_once(shared: Cloud) -> None:
    keeper, gone = shared.log_in(), shared.log_in()
    for _ in range(3):
        assert shared.get(f"{V3}/projects", headers=gone).status_code == 200
    answer = shared.client.delete(TOKENS, headers={**gone, "X-Subject-Token": text_of(gone)})
    assert (answer.status_code, answer.content) == (204, b"")
    assert shared.get(f"{V3}/projects", headers=gone).status_code == 401
    assert seen(shared, keeper, text_of(gone)).status_code == 404
    assert shared.client.delete(
        TOKENS, headers={**keeper, "X-Subject-Token": text_of(gone)}
    ).status_code == 404
    assert shared.get(f"{V3}/projects", headers=keeper).status_code == 200


def test_a_token_is_exchanged_for_one_that_lasts_no_longer(shared: Cloud) -> None:
    answer = shared.authenticate(unscoped={})
    first = body_of(answer)
    by_token = {"methods": ["token"], "token": {"id": answer.headers["x-subject-token"]}}
    scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
    answer = shared.client.post(TOKENS, json={"auth": {"identity": by_token, "scope": scope}})
    assert answer.status_code == 201
    second = body_of(answer)
    assert second["expires_at"] == first["expires_at"]
    assert second["methods"] == ["token", "password"]
    assert second["audit_ids"][1] == first["audit_ids"][0]
    assert second["project"]["name"] == "admin"


def test_only_the_hash_of_a_token_is_kept(shared: Cloud) -> None:
    text = text_of(shared.log_in())
    rows = shared.treadle.database.read(lambda conn: conn.execute(sa.select(token)).all())
    assert hash_of(text) in {one.hash for one in rows}
    assert text not in str(rows)


def test_an_expired_token_is_dead_in_the_store_and_in_memory(start: Start) -> None:
    cloud = start()
    headers = cloud.log_in()
    assert cloud.get(f"{V3}/projects", headers=headers).status_code == 200

    def age(conn: sa.Connection) -> None:
        conn.execute(sa.update(token).values(expires_at=sa.literal(1.0)))
        store.changed(conn)

    cloud.treadle.database.write(age)
    assert cloud.get(f"{V3}/projects", headers=headers).status_code == 401
    cloud.treadle.context.login._purged_at = 0.0
    cloud.log_in()
    left = cloud.treadle.database.read(lambda conn: conn.execute(sa.select(token)).all())
    assert len(left) == 1, "what has expired is removed by and by"


def test_what_memory_knows_ends_with_the_token(start: Start) -> None:
    cloud = start()
    headers = cloud.log_in()
    tokens = cloud.treadle.context.tokens
    (key, (ends, caller)), = tokens._known.items()
    assert key == hash_of(text_of(headers)) == caller.token
    assert cloud.get(f"{V3}/projects", headers=headers).status_code == 200
    tokens._known[key] = (ends - 3600, caller)
    cloud.treadle.database.write(lambda conn: conn.execute(sa.delete(token)) and None)
    assert cloud.get(f"{V3}/projects", headers=headers).status_code == 401


def test_a_new_start_knows_the_tokens_of_before(start: Start) -> None:
    cloud = start()
    headers = cloud.log_in()
    cloud.stop()
    again = start(folder=cloud.treadle.folder)
    assert again.get(f"{V3}/projects", headers=headers).status_code == 200


def test_failures_of_one_user_are_limited_and_say_when_to_come_back(start: Start) -> None:
    cloud = start(settings={"identity.failures_per_user": 3})
    for _ in range(3):
        assert cloud.authenticate(password="wrong").status_code == 401
    for password in ("wrong", None):
        answer = cloud.authenticate(password=password)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "60"
        assert answer.json()["error"]["title"] == "Too Many Requests"
    assert cloud.authenticate("other", "wrong").status_code == 401, "another user is not limited"


def test_failures_from_one_address_are_limited(start: Start) -> None:
    cloud = start(settings={"identity.failures_per_address": 3})
    for name in ("a", "b", "c"):
        assert cloud.authenticate(name, "wrong").status_code == 401
    assert cloud.authenticate("d", "wrong").status_code == 429


def test_log_ins_that_succeed_are_not_limited(start: Start) -> None:
    cloud = start(settings={"identity.failures_per_user": 1, "identity.failures_per_address": 1})
    for _ in range(5):
        cloud.log_in()


def test_wrong_passwords_lock_an_account_for_a_while(start: Start) -> None:
    cloud = start(settings={"identity.lockout_failures": 3, "identity.lockout_s": 3600})
    for _ in range(2):
        assert cloud.authenticate(password="wrong").status_code == 401
    cloud.log_in()
    for _ in range(3):
        assert cloud.authenticate(password="wrong").status_code == 401
    answer = cloud.authenticate()
    assert (answer.status_code, answer.json()) == (401, REFUSAL)

    def later(conn: sa.Connection) -> None:
        conn.execute(sa.update(user_account).values(failed_at=user_account.c.failed_at - 3600))

    cloud.treadle.database.write(later)
    cloud.log_in()


def test_the_first_start_makes_a_cloud_that_is_ready(start: Start) -> None:
    cloud = start()
    folder = cloud.treadle.folder
    for name in ("admin-password", "clouds.yaml"):
        facts = os.stat(folder / name)
        assert stat.S_IMODE(facts.st_mode) == 0o600
    password = (folder / "admin-password").read_text().strip()
    assert len(password) == 24
    assert f"password: {password}\n" in (folder / "clouds.yaml").read_text()
    assert not list(folder.glob("*.part"))
    headers = cloud.log_in()
    projects = cloud.get(f"{V3}/projects", headers=headers).json()["projects"]
    assert [one["name"] for one in projects] == ["admin"]
    home = cloud.treadle.database.read(lambda conn: store.get_meta(conn, "admin_project"))
    assert projects[0]["id"] == home


def test_later_starts_change_nothing_and_adopt_what_is_nobodys(start: Start) -> None:
    cloud = start()
    cloud.create("old")
    cloud.treadle.database.write(
        lambda conn: conn.execute(sa.update(instance).values(project_id="", user_id="")) and None
    )
    before = (cloud.treadle.folder / "admin-password").read_text()
    (cloud.treadle.folder / "clouds.yaml").unlink()
    home = cloud.treadle.database.read(lambda conn: store.get_meta(conn, "admin_project"))
    cloud.stop()
    again = start(folder=cloud.treadle.folder)
    assert (again.treadle.folder / "admin-password").read_text() == before
    assert not (again.treadle.folder / "clouds.yaml").exists()
    again.log_in()
    owners = again.treadle.database.read(
        lambda conn: conn.execute(sa.select(instance.c.project_id)).scalars().all()
    )
    assert set(owners) == {home}


def test_a_start_that_died_after_the_file_takes_its_password(
    start: Start, tmp_path: Path, sqlite_template: Path
) -> None:
    folder = tmp_path / "died"
    folder.mkdir(mode=0o700)
    (folder / "treadle.sqlite").write_bytes(sqlite_template.read_bytes())
    (folder / "admin-password").write_text("chosen before\n")
    (folder / "clouds.yaml.part").write_text("half")
    cloud = start(folder=folder)
    cloud.log_in(password="chosen before")
    assert "chosen before" in (folder / "clouds.yaml").read_text()


def test_two_controllers_that_start_on_one_database_make_one_cloud(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cluster = request.getfixturevalue("postgres_cluster")
    name = cluster.create()
    settings = Settings().with_overrides({"database.url": cluster.url(name)})
    made = []
    for one in ("a", "b"):
        folder = tmp_path / one
        folder.mkdir(mode=0o700)
        made.append(assemble(settings, folder, FakeFleet().driver))
    for one in made:
        one.close()
    cluster.drop(name)
    assert (tmp_path / "a" / "admin-password").exists()
    assert not (tmp_path / "b" / "admin-password").exists()
    assert not (tmp_path / "b" / "clouds.yaml").exists()
