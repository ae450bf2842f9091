"""What tokens are worth, on both databases and over several controllers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from tests.conftest import Cluster

from treadle.db.engine import Database, PostgresDatabase
from treadle.db.schema import (
    project,
    role,
    role_assignment,
    token,
    user_account,
    user_password,
)
from treadle.errors import Unauthorized
from treadle.identity import grants, store, tokens
from treadle.identity.bootstrap import bootstrap
from treadle.identity.grants import Grant
from treadle.identity.model import Caller, Scope, Token
from treadle.identity.tokens import Tokens, hash_of, new_token

T = TypeVar("T")


@dataclass
class World:
    """A database with its first user and a token of his."""

    database: Database
    user: str
    project: str
    text: str

    @property
    def key(self) -> str:
        return hash_of(self.text)

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        return self.database.write(work)

    def give(self, text: str, scope: Scope = Scope.PROJECT, seconds: float = 3600.0) -> None:
        """Keep another token of the same user."""
        def add(conn: sa.Connection) -> None:
            time = store.time(conn)
            id = {Scope.PROJECT: self.project, Scope.DOMAIN: "default", Scope.SYSTEM: "system"}
            store.add_token(conn, Token(
                hash_of(text), self.user, scope, id.get(scope, ""), ("password",), ("a",), time,
                time + seconds,
            ))

        self.write(add)


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return first_world(database, tmp_path)


@pytest.fixture
def shared_world(postgres_database: PostgresDatabase, tmp_path: Path) -> World:
    return first_world(postgres_database, tmp_path)


def first_world(database: Database, tmp_path: Path) -> World:
    bootstrap(database, tmp_path, url="http://127.0.0.1", region_name="RegionOne")
    user, home = database.read(lambda conn: (
        store.get_meta(conn, "admin_user"), store.get_meta(conn, "admin_project")
    ))
    assert user
    assert home
    made = World(database, user, home, new_token())
    made.give(made.text)
    return made


def ask(known: Tokens, text: str) -> Caller | None:
    """Whose token it is; None where nobody's."""
    async def look() -> Caller:
        return await known.check(text)

    try:
        return asyncio.run(look())
    except Unauthorized:
        return None


def test_whose_a_token_is(world: World) -> None:
    caller = ask(Tokens(world.database), world.text)
    assert caller is not None
    assert (caller.user_id, caller.user_name, caller.user_domain_id) == (
        world.user, "admin", "default"
    )
    assert (caller.project_id, caller.project_name) == (world.project, "admin")
    assert caller.roles == {"admin", "member", "reader"}
    assert caller.is_admin
    assert caller.token == world.key


@pytest.mark.parametrize(("scope", "admin"), [
    (Scope.PROJECT, True), (Scope.SYSTEM, True), (Scope.DOMAIN, False), (Scope.NONE, False),
])
def test_what_each_scope_is_good_for(world: World, scope: Scope, admin: bool) -> None:
    text = new_token()
    world.give(text, scope)
    caller = ask(Tokens(world.database), text)
    assert caller is not None
    assert caller.is_admin is admin
    assert (caller.project_id is not None) is (scope is Scope.PROJECT)
    assert (caller.domain_id is not None) is (scope is Scope.DOMAIN)
    assert caller.system is (scope is Scope.SYSTEM)


def test_what_is_known_is_not_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Tokens(world.database)
    assert ask(known, world.text)
    monkeypatch.setattr(tokens, "TRUST_S", 3600.0)
    monkeypatch.setattr(store, "get_token", lambda *_: pytest.fail("asked again"))
    assert ask(known, world.text)


def test_what_was_read_before_a_change_is_not_kept_after_it(world: World) -> None:
    known = Tokens(world.database)
    caller = ask(known, world.text)
    assert caller is not None
    known._forget({store.ALL})
    stamp = known.stamp
    world.write(lambda conn: store.kill_one(conn, world.key))
    known.remember(world.key, caller, 3600.0, stamp)
    assert ask(known, world.text) is None


def test_memory_has_an_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MOST", 10)
    known = Tokens(world.database)
    for number in range(50):
        known.remember(str(number), Caller(), 60.0, known.stamp)
    assert len(known._known) <= 10
    assert "49" in known._known


def test_an_expired_token_is_not_found_and_removed(world: World) -> None:
    text = new_token()
    world.give(text, seconds=-1.0)
    assert ask(Tokens(world.database), text) is None
    world.write(store.forget_expired)
    left = world.database.read(lambda conn: conn.execute(sa.select(token.c.hash)).scalars().all())
    assert left == [world.key]


def _disable(table: sa.Table, id: str) -> Callable[[sa.Connection], None]:
    def work(conn: sa.Connection) -> None:
        store.update(conn, table, id, {"enabled": False})
        store.changed(conn)

    return work


def test_a_token_is_worth_nothing_without_user_project_or_domain(world: World) -> None:
    known = Tokens(world.database)
    for table, id in ((user_account, world.user), (project, world.project), (project, "default")):
        assert ask(known, world.text)
        world.write(_disable(table, id))
        assert ask(known, world.text) is None
        world.write(lambda conn, table=table, id=id: (  # type: ignore[misc]
            store.update(conn, table, id, {"enabled": True})
        ))


def test_the_clouds_first_rows_are_there_once(world: World, tmp_path: Path) -> None:
    bootstrap(world.database, tmp_path, url="http://x", region_name="RegionOne")

    def count(conn: sa.Connection) -> list[int]:
        return [
            conn.execute(sa.select(sa.func.count()).select_from(one)).scalar_one()
            for one in (project, user_account, user_password, role, role_assignment)
        ]

    assert world.database.read(count) == [2, 1, 1, 4, 3]


# -- several controllers


@pytest.fixture
def others(postgres_cluster: Cluster, shared_world: World) -> Iterator[list[Database]]:
    """Two more controllers' connections to the same PostgreSQL."""
    made = [postgres_cluster.open(postgres_cluster.migrated, pool_size=2) for _ in range(2)]
    assert shared_world
    yield list(made)
    for one in made:
        one.close()


Change = Callable[[sa.Connection, World], Any]
CHANGES: dict[str, Change] = {
    "ended": lambda conn, world: store.kill_one(conn, world.key),
    "all of a user": lambda conn, world: store.kill(conn, token.c.user_id == world.user),
    "role taken": lambda conn, world: grants.take(conn, Grant(
        "user", world.user, "project", world.project, grants.get_role(
            conn, str(store.named(conn, role, "admin", "")["id"])  # type: ignore[index]
        )["id"],
    )),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_once_an_end_is_answered_no_controller_takes_the_token(
    shared_world: World, others: list[Database], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every controller has the token in memory and is asked without a pause."""
    world = shared_world
    # Longer than it is, so that a controller that did not ask again would be found out.
    monkeypatch.setattr(tokens, "TRUST_S", 0.5)
    here = Tokens(world.database)
    there = [Tokens(one) for one in others]

    async def run() -> int:
        for known in (here, *there):
            await known.check(world.text)
        answered = asyncio.Event()
        taken_after: list[str] = []
        asked = 0

        async def hammer(known: Tokens) -> None:
            nonlocal asked
            refused = 0
            while refused < 20:
                was_answered = answered.is_set()
                try:
                    await known.check(world.text)
                    if was_answered:
                        taken_after.append("taken after the answer")
                        return
                except Unauthorized:
                    refused += 1
                asked += 1
                await asyncio.sleep(0)

        async def end() -> None:
            await asyncio.sleep(0.02)
            stamp = here.stamp
            await asyncio.wrap_future(world.database.submit(
                lambda conn: CHANGES[change](conn, world)
            ))
            await here.settled(stamp)
            answered.set()

        await asyncio.wait_for(
            asyncio.gather(end(), *(hammer(known) for known in (here, *there))), 30
        )
        assert taken_after == []
        return asked

    assert asyncio.run(run()) >= 60


def test_nobody_waits_where_nothing_has_changed(world: World) -> None:
    known = Tokens(world.database)

    async def run(wait: Callable[[int], Awaitable[None]]) -> None:
        await asyncio.wait_for(wait(known.stamp), 0.05)

    asyncio.run(run(known.settled))


def test_a_controller_that_cannot_ask_takes_no_token(
    shared_world: World, others: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Tokens(others[0])
    assert ask(known, shared_world.text)

    class Gone(Exception):
        pass

    def gone(_conn: sa.Connection) -> int:
        raise Gone

    monkeypatch.setattr(store, "epoch", gone)
    known._looked_at = -1000.0
    with pytest.raises(Gone):
        ask(known, shared_world.text)
