"""Key pairs in every microversion that changed them."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
from computekit import CALLERS, Api, named, schema
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
from tempest.lib.services.compute.keypairs_client import KeyPairsClient

MINORS = (1, 2, 9, 10, 34, 35, 75, 91, 92, 104)


@pytest.fixture(scope="module")
def public_key(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What ssh-keygen makes of an Ed25519 key."""
    path = tmp_path_factory.mktemp("key") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True,
                   timeout=30)
    return path.with_suffix(".pub").read_text()


def md5_of(public_key: str, folder: Path) -> str:
    """The fingerprint that ssh-keygen itself gives."""
    path = folder / "key.pub"
    path.write_text(public_key)
    said = subprocess.run(["ssh-keygen", "-l", "-E", "md5", "-f", path], check=True, timeout=30,
                          capture_output=True, text=True).stdout
    return said.split()[1].removeprefix("MD5:")


def make(api: Api, minor: int = 10, by: str = "member", **said: Any) -> dict[str, Any]:
    made: dict[str, Any] = api.ok(
        "POST", "/os-keypairs", {"keypair": {"name": named("key"), **said}}, minor=minor, by=by,
        status=201 if minor >= 2 else 200, judge=schema(KeyPairsClient, minor).create_keypair,
    )["keypair"]
    return made


@pytest.mark.parametrize("minor", MINORS)
def test_answers_are_as_tempest_wants_them(
    api: Api, minor: int, public_key: str, tmp_path: Path
) -> None:
    judge = schema(KeyPairsClient, minor)
    made = make(api, minor, public_key=public_key)
    assert made["public_key"] == public_key
    assert made["fingerprint"] == md5_of(public_key, tmp_path)
    assert made["user_id"] == CALLERS["member"].user_id
    assert made.get("type") == ("ssh" if minor >= 2 else None)
    assert "private_key" not in made
    path = f"/os-keypairs/{made['name']}"
    shown = api.get(path, minor=minor, by="member", judge=judge.get_keypair)["keypair"]
    assert made.items() <= shown.items()
    listed = api.get("/os-keypairs", minor=minor, by="member", judge=judge.list_keypairs)
    assert {"keypair": {k: v for k, v in made.items() if k != "user_id"}} in listed["keypairs"]
    gone = api.call("DELETE", path, minor=minor, by="member")
    assert (gone.status_code, gone.content) == (204 if minor >= 2 else 202, b"")
    for method in ("GET", "DELETE"):
        api.fails(method, path, minor=minor, by="member", status=404, says=made["name"])


def test_a_key_is_made_for_who_has_none(api: Api, tmp_path: Path) -> None:
    made = make(api, 1)
    private = load_pem_private_key(made["private_key"].encode(), None)
    assert private.key_size == 2048
    path = tmp_path / "id"
    path.write_text(made["private_key"])
    path.chmod(0o600)
    said = subprocess.run(["ssh-keygen", "-y", "-f", path], check=True, timeout=30,
                          capture_output=True, text=True).stdout
    assert said.split()[:2] == made["public_key"].split()[:2]
    assert made["fingerprint"] == md5_of(made["public_key"], tmp_path)
    assert "private_key" not in api.get(f"/os-keypairs/{made['name']}", by="member")["keypair"]


def test_certificates_are_keys_too(api: Api) -> None:
    made = make(api, 2, type="x509")
    assert made["type"] == "x509"
    key, certificate, _ = pkcs12.load_key_and_certificates(
        base64.b64decode(made["private_key"]), None
    )
    assert certificate is not None
    assert key is not None
    assert certificate == x509.load_pem_x509_certificate(made["public_key"].encode())
    assert key.public_key() == certificate.public_key()
    assert len(made["fingerprint"].split(":")) == 20
    again = make(api, 2, type="x509", public_key=made["public_key"])
    assert again["fingerprint"] == made["fingerprint"]
    api.fails("POST", "/os-keypairs", {"keypair": {
        "name": named("key"), "type": "x509", "public_key": "ssh-ed25519 AAAA"
    }}, minor=2, by="member", status=400, says="fingerprint")


def test_from_292_on_keys_are_not_made_and_names_may_have_dots(api: Api, public_key: str) -> None:
    body = {"keypair": {"name": f"me@host.{named('x')}"}}
    api.fails("POST", "/os-keypairs", body, minor=92, by="member", status=400, says="public_key")
    body["keypair"]["public_key"] = public_key
    api.fails("POST", "/os-keypairs", body, minor=91, by="member", status=400, says="name")
    api.ok("POST", "/os-keypairs", body, minor=92, by="member", status=201)
    assert api.get(f"/os-keypairs/{body['keypair']['name']}", by="member")


def test_a_name_is_taken_once_by_each_user(api: Api, public_key: str) -> None:
    made = make(api, public_key=public_key)
    body = {"keypair": {"name": made["name"], "public_key": public_key}}
    api.fails("POST", "/os-keypairs", body, minor=2, by="member", status=409,
              says=f"Key pair '{made['name']}' already exists.")
    api.ok("POST", "/os-keypairs", body, minor=2, by="other", status=201)


@pytest.mark.parametrize("change", [
    {"name": ""}, {"name": "x" * 256}, {"name": r"key_/.\@:"}, {"name": " x"}, {"name": None},
    {"public_key": "ssh-rsa " + "A" * 2048 + " x@y"}, {"public_key": ""}, {"public_key": " "},
    {"public_key": "ssh-rsa JUNK nova@ubuntu"}, {"public_key": 5}, {"public_key": "x" * 70000},
    {"type": "dsa"}, {"color": "red"},
])
def test_bad_keys_are_refused(api: Api, public_key: str, change: dict[str, Any]) -> None:
    said = {"name": named("key"), "public_key": public_key, **change}
    message = api.fails("POST", "/os-keypairs", {"keypair": said}, minor=10, by="member",
                        status=400)
    assert next(iter(change)) in message


def test_a_key_of_two_lines_is_refused(api: Api, public_key: str) -> None:
    said = {"name": named("key"), "public_key": public_key + public_key}
    api.fails("POST", "/os-keypairs", {"keypair": said}, by="member", status=400)


def test_types_came_with_22_and_users_with_210(api: Api, public_key: str) -> None:
    other = CALLERS["other"].user_id
    said = {"name": named("key"), "public_key": public_key}
    for minor, more in ((1, {"type": "ssh"}), (9, {"user_id": other})):
        api.fails("POST", "/os-keypairs", {"keypair": {**said, **more}}, minor=minor, status=400)
    body = {"keypair": {**said, "user_id": other}}
    api.fails("POST", "/os-keypairs", body, minor=10, by="member", status=403)
    made = api.ok("POST", "/os-keypairs", body, minor=10, status=201)["keypair"]
    assert made["user_id"] == other
    path = f"/os-keypairs/{made['name']}"
    api.fails("GET", path, status=404)
    api.fails("GET", f"{path}?user_id={other}", minor=9, status=404)
    assert api.get(f"{path}?user_id={other}", minor=10)
    assert api.get(path, by="other")
    assert made["name"] in str(api.get(f"/os-keypairs?user_id={other}", minor=10))
    for method, place in (("GET", path), ("DELETE", path), ("GET", "/os-keypairs")):
        api.fails(method, f"{place}?user_id={other}", minor=10, by="member", status=403)
    api.fails("GET", path, by="member", status=404)
    assert api.call("DELETE", f"{path}?user_id={other}", minor=10).status_code == 204


def test_pages_came_with_235(api: Api, public_key: str) -> None:
    names = sorted(make(api, by="service", public_key=public_key)["name"] for _ in range(3))
    get = {"by": "service"}
    whole = api.get("/os-keypairs?limit=1", minor=34, **get)
    assert [one["keypair"]["name"] for one in whole["keypairs"]] == names
    first = api.get("/os-keypairs?limit=2", minor=35, **get)
    assert [one["keypair"]["name"] for one in first["keypairs"]] == names[:2]
    [link] = first["keypairs_links"]
    assert f"marker={names[1]}" in link["href"]
    rest = api.get(f"/os-keypairs?limit=2&marker={names[1]}", minor=35, **get)
    assert [one["keypair"]["name"] for one in rest["keypairs"]] == names[2:]
    assert "keypairs_links" not in rest
    api.fails("GET", "/os-keypairs?marker=none", minor=35, status=400)
    api.fails("GET", "/os-keypairs?limit=-1", minor=35, status=400)
    api.fails("GET", "/os-keypairs?color=red", minor=75, status=400)


def test_the_quota_of_keys_is_kept(api: Api, public_key: str) -> None:
    who = CALLERS["nothing"].user_id
    body = {"quota_set": {"key_pairs": 1}}
    api.ok("PUT", f"/os-quota-sets/{CALLERS['admin'].project_id}", body)
    said = {"public_key": public_key, "user_id": who}
    make(api, by="admin", **said)
    api.fails("POST", "/os-keypairs", {"keypair": {"name": named("key"), **said}}, minor=10,
              status=403, says="Quota exceeded, too many key pairs.")
    api.ok("DELETE", f"/os-quota-sets/{CALLERS['admin'].project_id}", status=202)
