"""Credentials: secrets that users leave with identity."""

from __future__ import annotations

import hashlib
import json
import stat
from typing import Any

import pytest
import sqlalchemy as sa
from cloudkit import Cloud
from identitykit import Keystone, administrator, member, unique
from test_identity_app_credentials import make, program

from treadle.db.schema import credential, meta
from treadle.errors import NotAvailable
from treadle.identity.vault import FILE, MARK, Vault


@pytest.fixture
def root(shared: Cloud) -> Keystone:
    return administrator(shared)


def blob(**more: Any) -> str:
    return json.dumps({"access": unique("access"), "secret": "of-mine", **more})


def test_it_is_made_shown_changed_and_removed(root: Keystone) -> None:
    user, project, me = member(root)
    words = blob()
    made = me.make("credential", type="ec2", blob=words, project_id=project["id"], note="x")
    id = hashlib.sha256(json.loads(words)["access"].encode()).hexdigest()
    assert made == {
        "id": id, "type": "ec2", "blob": words, "project_id": project["id"],
        "user_id": user["id"], "note": "x", "links": made["links"],
    }
    assert made["links"]["self"].endswith(f"/identity/v3/credentials/{id}")
    me.make("credential", status=409, type="ec2", blob=words, project_id=project["id"])
    assert me.get(f"/credentials/{id}")["credential"] == made
    other = me.make("credential", type="totp", blob="SEED")
    assert other["project_id"] is None
    assert me.get("/credentials?type=totp")["credentials"] == [other]
    assert {one["id"] for one in me.get("/credentials")["credentials"]} == {id, other["id"]}
    first = me.get("/credentials?limit=1")
    assert len(first["credentials"]) == 1
    assert first["links"]["next"].endswith(f"limit=1&marker={first['credentials'][0]['id']}")
    again = blob()
    changed = me.change("credential", id, blob=again, type="ec2", note="y")
    assert (changed["blob"], changed["note"], changed["id"]) == (again, "y", id)
    assert me.get(f"/credentials/{id}")["credential"] == changed
    for wrong in ({"type": "totp"}, {"user_id": "x"}, {"project_id": None}, {"blob": "no JSON"}):
        me.change("credential", id, 400, **wrong)
    me.drop(f"/credentials/{id}")
    me.get(f"/credentials/{id}", 404)
    me.drop(f"/credentials/{id}", 404)


@pytest.mark.parametrize("wrong", [
    {"type": "ec2"}, {"blob": "x"}, {"type": "ec2", "blob": "{}"}, {"type": "ec2", "blob": "[]"},
    {"type": "ec2", "blob": '{"access": 1}'}, {"type": "", "blob": "x"},
    {"type": "ec2", "blob": '{"access": "a"}', "project_id": None},
    {"type": "x", "blob": "x", "user_id": "no such user"}, {"type": "x", "blob": 1},
    {"type": "x", "blob": "x" * 65536},
])
def test_what_is_wrong_is_said(root: Keystone, wrong: dict[str, Any]) -> None:
    project = root.project()
    root.make("credential", status=400, **{"project_id": project["id"], **wrong})
    root.make("credential", status=400, type="x", blob="x", user_id="0" * 32)
    root.make("credential", status=400, type="x", blob="x", project_id="0" * 32)


def test_users_have_their_own_and_see_no_others(root: Keystone) -> None:
    user, _, me = member(root)
    other, project, them = member(root)
    mine = root.make("credential", type="cert", blob="of-mine", user_id=user["id"])
    assert me.get(f"/credentials/{mine['id']}")["credential"] == mine
    assert me.get("/credentials")["credentials"] == [mine]
    assert them.get("/credentials")["credentials"] == []
    assert them.get(f"/credentials?user_id={user['id']}")["credentials"] == []
    them.get(f"/credentials/{mine['id']}", 404)
    them.change("credential", mine["id"], 404, blob="x")
    them.drop(f"/credentials/{mine['id']}", 404)
    them.make("credential", status=403, type="cert", blob="x", user_id=user["id"])
    me.make("credential", status=400, type="cert", blob="x", project_id=project["id"])
    assert mine in root.get(f"/credentials?user_id={user['id']}")["credentials"]
    root.drop(f"/users/{user['id']}")
    root.get(f"/credentials/{mine['id']}", 404)
    kept = them.make("credential", type="ec2", blob=blob(), project_id=project["id"])
    root.drop(f"/projects/{project['id']}")
    root.get(f"/credentials/{kept['id']}", 404)
    assert root.get(f"/credentials?user_id={other['id']}")["credentials"] == []


def test_a_program_that_may_not_make_others_makes_none(root: Keystone) -> None:
    user, _, me = member(root)
    mine = me.make("credential", type="cert", blob="x")
    it = program(me, make(me, user))
    it.make("credential", status=403, type="cert", blob="x")
    it.change("credential", mine["id"], 403, blob="y")
    it.drop(f"/credentials/{mine['id']}", 403)


def test_nothing_of_it_can_be_read_in_the_database(root: Keystone) -> None:
    made = root.make("credential", type="cert", blob="a-secret-of-mine")
    [kept] = root.cloud.treadle.database.read(lambda conn: conn.execute(
        sa.select(credential.c.blob).where(credential.c.id == made["id"])
    ).scalars().all())
    assert "secret" not in kept
    folder = root.cloud.treadle.folder
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    assert Vault(folder).open(kept) == "a-secret-of-mine"


def test_a_new_key_goes_above_the_old_one_and_another_one_opens_nothing(
    shared: Cloud, tmp_path: Any
) -> None:
    database = shared.treadle.database
    database.write(lambda conn: conn.execute(sa.delete(meta).where(meta.c.key == MARK)))
    first = Vault(tmp_path)
    sealed = database.write(lambda conn: first.seal(conn, "words"))
    (tmp_path / "second").mkdir()
    foreign = Vault(tmp_path / "second")
    with pytest.raises(NotAvailable, match=FILE):
        foreign.open(sealed)
    with pytest.raises(NotAvailable, match=FILE):
        database.write(lambda conn: foreign.seal(conn, "words"))
    key, new = (tmp_path / FILE).read_text(), (tmp_path / "second" / FILE).read_text()
    (tmp_path / FILE).write_text(new + key)
    both = Vault(tmp_path)
    assert both.open(sealed) == "words"
    again = database.write(lambda conn: both.seal(conn, "more"))
    assert foreign.open(again) == "more"
    (tmp_path / FILE).write_text("no key\n")
    with pytest.raises(NotAvailable, match="no key"):
        Vault(tmp_path).open(again)
    database.write(lambda conn: conn.execute(sa.delete(meta).where(meta.c.key == MARK)))


def test_keys_of_ec2_are_made_here(root: Keystone) -> None:
    user, project, me = member(root)
    other, theirs, them = member(root)
    path = f"/users/{user['id']}/credentials/OS-EC2"
    made = me.call("POST", path, 201, json={"tenant_id": project["id"]}).json()["credential"]
    assert (made["user_id"], made["tenant_id"]) == (user["id"], project["id"])
    assert len(made["access"]) == len(made["secret"]) == 32
    assert me.get(path)["credentials"] == [made]
    assert me.get(f"{path}/{made['access']}")["credential"] == made
    [kept] = me.get("/credentials?type=ec2")["credentials"]
    assert json.loads(kept["blob"])["secret"] == made["secret"]
    me.call("POST", path, 400, json={"tenant_id": other["id"]})
    me.call("POST", path, 400, json={})
    root.call("POST", path, 400, json={"tenant_id": "0" * 32})
    them.get(path, 403)
    them.get(f"{path}/{made['access']}", 403)
    them.get(f"/users/{other['id']}/credentials/OS-EC2/{made['access']}", 404)
    them.call("POST", path, 403, json={"tenant_id": theirs["id"]})
    it = program(me, make(me, user))
    it.call("POST", path, 403, json={"tenant_id": project["id"]})
    me.drop(f"{path}/{made['access']}")
    me.get(f"{path}/{made['access']}", 404)
