"""What the first start makes: the domain Default, the project and user admin, the roles."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa

from treadle.db.engine import Database
from treadle.db.schema import (
    project,
    region,
    role,
    role_assignment,
    role_implied,
    user_account,
)
from treadle.identity import store
from treadle.identity.passwords import hash_now

DOMAIN_ID, DOMAIN = "default", "Default"
ADMIN = "admin"
ADMIN_PROJECT, ADMIN_USER = "admin_project", "admin_user"
ROLES = (ADMIN, "member", "reader", "service")
IMPLIED = ((ADMIN, "member"), ("member", "reader"))
PASSWORD_FILE, CLOUDS_FILE = "admin-password", "clouds.yaml"
CLOUD = "treadle"


def bootstrap(database: Database, folder: Path, *, url: str, region_name: str) -> None:
    """Make what is missing, and adopt what was made before there were projects.

    The first start writes the administrator's password into `admin-password` and a ready
    `clouds.yaml` with the cloud `treadle`, both for the controller's user only. `url` is the
    address under which this machine reaches the controller.
    """
    known = database.read(lambda conn: store.get_meta(conn, ADMIN_PROJECT))
    if known is None:
        # The file first: were the process to end in between, the next start takes what it finds.
        password, ours = _password(folder)
        hashed = hash_now(password)
        if database.write(lambda conn: _make(conn, hashed, region_name)):
            _write_private(folder / CLOUDS_FILE, clouds_yaml(url, password, region_name))
        elif ours:
            (folder / PASSWORD_FILE).unlink()
    if database.read(store.has_foundlings):
        database.write(_adopt)


def clouds_yaml(url: str, password: str, region_name: str) -> str:
    """A file for OpenStack's clients."""
    return f"""clouds:
  {CLOUD}:
    auth:
      auth_url: {url}/identity
      username: {ADMIN}
      password: {password}
      project_name: {ADMIN}
      user_domain_name: {DOMAIN}
      project_domain_name: {DOMAIN}
    region_name: {region_name}
    identity_api_version: "3"
"""


def _password(folder: Path) -> tuple[str, bool]:
    path = folder / PASSWORD_FILE
    if path.exists():
        return path.read_text().strip(), False
    password = secrets.token_urlsafe(18)
    _write_private(path, password + "\n")
    return password, True


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, and for this user's eyes only."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(part, flags, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def _adopt(conn: sa.Connection) -> None:
    home, user = store.get_meta(conn, ADMIN_PROJECT), store.get_meta(conn, ADMIN_USER)
    if home and user:
        store.adopt(conn, home, user)


def _make(conn: sa.Connection, hashed: str, region_name: str) -> bool:
    """False where another controller has been quicker."""
    if store.get_meta(conn, ADMIN_PROJECT) is not None:
        return False
    store.insert(conn, project, {
        "id": DOMAIN_ID, "name": DOMAIN, "name_key": DOMAIN.casefold(), "domain_id": "",
        "parent_id": "", "is_domain": True, "description": "The default domain",
    })
    home, user = uuid4().hex, uuid4().hex
    store.insert(conn, project, {
        "id": home, "name": ADMIN, "name_key": ADMIN, "domain_id": DOMAIN_ID,
        "parent_id": DOMAIN_ID, "description": "The project of the cloud's administrators",
    })
    store.insert(conn, user_account, {
        "id": user, "name": ADMIN, "name_key": ADMIN, "domain_id": DOMAIN_ID,
    })
    store.put_password(conn, user, hashed, None, 0)
    roles = {name: uuid4().hex for name in ROLES}
    for name, id in roles.items():
        store.insert(conn, role, {"id": id, "name": name, "name_key": name})
    for prior, implied in IMPLIED:
        store.insert(
            conn, role_implied, {"prior_id": roles[prior], "implied_id": roles[implied]}
        )
    for target, target_id in (("project", home), ("domain", DOMAIN_ID), ("system", "system")):
        store.insert(conn, role_assignment, {
            "actor": "user", "actor_id": user, "target": target, "target_id": target_id,
            "role_id": roles[ADMIN], "inherited": False,
        })
    store.insert(conn, region, {"id": region_name})
    store.put_meta(conn, ADMIN_PROJECT, home)
    store.put_meta(conn, ADMIN_USER, user)
    return True
