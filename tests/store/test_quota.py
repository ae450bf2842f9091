"""Quotas on both databases: whose limit holds, what is in use, and exact whoever asks at once."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from treadle.compute import quota, store
from treadle.compute.model import Goal, Phase, State
from treadle.db.engine import Database, PostgresDatabase
from treadle.db.schema import keypair, server_group
from treadle.errors import QuotaExceeded
from treadle.image import store as images

P, U = "project", "user"
ONE = {"instances": 1, "cores": 2, "ram": 512}


def insert(conn: sa.Connection, project: str = P, user: str = U, **changes: Any) -> int:
    image = images.first(conn)
    image_id = image.id if image else images.add(conn, "/tiny.qcow2", "tiny")
    one = str(uuid.uuid4())
    [id] = store.insert(conn, [{
        "uuid": one, "name": "web", "flavor_id": 1, "vcpus": 2, "memory_mib": 512, "disk_gib": 1,
        "image_id": image_id, "mac": "02:00:00:00:00:01", "goal": Goal.RUNNING,
        "state": State.BUILDING, "phase": Phase.QUEUED, "deadline": 0.0, "batch": one,
        "project_id": project, "user_id": user, **changes,
    }])
    return id


def create(conn: sa.Connection, project: str = P, user: str = U) -> int:
    quota.check(conn, project, ONE, user)
    return insert(conn, project, user)


def used(database: Database, project: str = P, user: str | None = None) -> dict[str, int]:
    return database.read(lambda conn: quota.usage(conn, project, user))


def test_without_a_word_the_limits_are_openstacks(database: Database) -> None:
    assert database.read(lambda conn: quota.limits(conn, P)) == quota.DEFAULTS
    assert set(used(database).values()) == {0}


def test_the_nearest_limit_holds(database: Database) -> None:
    def write(conn: sa.Connection) -> None:
        quota.set_class(conn, "default", {"cores": 30, "ram": 31, "instances": 32})
        quota.set_class(conn, "gold", {"cores": 99})
        quota.set_limits(conn, P, {"ram": 41, "instances": 42})
        quota.set_limits(conn, P, {"instances": 9}, U)
        quota.set_limits(conn, P, {"instances": 7}, U)

    database.write(write)
    read = database.read(lambda conn: (
        quota.limits(conn, P), quota.limits(conn, P, U), quota.limits(conn, "other"),
        quota.class_limits(conn, "gold"),
    ))
    names = ("cores", "ram", "instances")
    assert [tuple(one[name] for name in names) for one in read] == [
        (30, 41, 42), (30, 41, 7), (30, 31, 32), (99, 51200, 10),
    ]


def test_clearing_takes_back_what_was_set(database: Database) -> None:
    def write(conn: sa.Connection) -> None:
        quota.set_limits(conn, P, {"ram": 41})
        for user in (U, "second"):
            quota.set_limits(conn, P, {"ram": 9}, user)

    database.write(write)
    database.write(lambda conn: quota.clear(conn, P, U))

    def ram(user: str | None) -> int:
        return database.read(lambda conn: quota.limits(conn, P, user)["ram"])

    assert (ram(U), ram("second"), ram(None)) == (41, 9, 41)
    database.write(lambda conn: quota.clear(conn, P))
    assert (ram(U), ram("second"), ram(None)) == (51200, 51200, 51200)


def test_use_is_what_lives(database: Database) -> None:
    def write(conn: sa.Connection) -> None:
        insert(conn)
        insert(conn, user="second")
        insert(conn, "other")
        insert(conn, state=State.DELETED)
        insert(conn, state=State.ERROR)
        conn.execute(sa.insert(server_group).values(
            uuid="g", project_id=P, user_id=U, name="g", policy="affinity", created_at=0.0,
        ))

    database.write(write)
    whole, mine = used(database), used(database, P, U)
    assert {name: n for name, n in whole.items() if n} == {
        "instances": 3, "cores": 6, "ram": 1536, "server_groups": 1,
    }
    assert {name: n for name, n in mine.items() if n} == {
        "instances": 2, "cores": 4, "ram": 1024, "server_groups": 1,
    }
    assert set(whole) == set(quota.DEFAULTS)


def test_a_refusal_names_every_resource_that_is_over(database: Database) -> None:
    database.write(lambda conn: quota.set_limits(conn, P, {"cores": 4, "instances": 2}))
    for _ in range(2):
        database.write(create)
    with pytest.raises(QuotaExceeded) as refused:
        database.write(create)
    assert str(refused.value) == (
        "Quota exceeded for cores, instances: Requested 2, 1, but already used 4, 2 of 4, 2 "
        "cores, instances"
    )
    assert used(database)["instances"] == 2


def test_what_is_given_back_is_never_refused(database: Database) -> None:
    database.write(lambda conn: quota.set_limits(conn, P, {"cores": 0, "ram": 0}))
    database.write(lambda conn: quota.check(conn, P, {"cores": -1, "ram": 0}))
    with pytest.raises(QuotaExceeded):
        database.write(lambda conn: quota.check(conn, P, {"cores": -1, "ram": 1}))


def test_no_limit_is_no_limit(database: Database) -> None:
    database.write(lambda conn: quota.set_limits(conn, P, dict.fromkeys(quota.COUNTED, -1)))
    many = {"instances": 10_000, "cores": 10**8, "ram": 10**12}
    database.write(lambda conn: quota.check(conn, P, many))


def test_a_users_own_limit_holds_beside_the_projects(database: Database) -> None:
    database.write(lambda conn: quota.set_limits(conn, P, {"instances": 2}))
    database.write(lambda conn: quota.set_limits(conn, P, {"instances": 1}, U))
    database.write(create)
    with pytest.raises(QuotaExceeded, match="1 of 1 instances"):
        database.write(create)
    database.write(lambda conn: create(conn, user="second"))
    with pytest.raises(QuotaExceeded, match="2 of 2 instances"):
        database.write(lambda conn: create(conn, user="third"))


def test_bounds_keep_what_is_used_and_promised(database: Database) -> None:
    def write(conn: sa.Connection) -> None:
        insert(conn)
        insert(conn, user="second")
        quota.set_limits(conn, P, {"instances": 10, "ram": -1})
        quota.set_limits(conn, P, {"instances": 4, "ram": 100}, "second")

    database.write(write)

    def bounds(user: str | None = None) -> dict[str, tuple[int, int]]:
        return database.read(lambda conn: quota.bounds(conn, P, user))

    assert bounds()["instances"] == (4, -1)
    assert bounds()["cores"] == (4, -1)
    assert bounds(U)["instances"] == (1, 6)
    assert bounds("second")["instances"] == (1, 10)
    assert bounds(U)["ram"] == (512, -1)


@pytest.mark.parametrize("limit", [0, 7, 10])
def test_no_race_gets_more_than_the_limit(database: Database, limit: int) -> None:
    database.write(lambda conn: quota.set_limits(conn, P, {"instances": limit}))
    database.write(lambda conn: images.add(conn, "/tiny.qcow2", "tiny"))

    def one(_n: int) -> bool:
        try:
            database.write(create)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        made = sum(pool.map(one, range(24)))
    assert made == limit == used(database)["instances"]


def test_two_controllers_wait_for_each_others_commit(postgres_database: PostgresDatabase) -> None:
    database = postgres_database
    database.write(lambda conn: quota.set_limits(conn, P, {"instances": 1}))
    database.write(lambda conn: images.add(conn, "/tiny.qcow2", "tiny"))
    outcome: list[object] = []

    def second() -> None:
        try:
            outcome.append(database.write(create))
        except QuotaExceeded as refused:
            outcome.append(refused)

    thread = threading.Thread(target=second)
    with database.engine.connect() as first, first.begin():
        create(first)
        thread.start()
        waits = sa.text("SELECT count(*) FROM pg_locks WHERE locktype='advisory' AND NOT granted")
        for _ in range(2000):
            if database.read(lambda conn: conn.execute(waits).scalar_one()):
                break
            thread.join(0.005)
        else:
            pytest.fail("the second did not wait")
        assert outcome == []
    thread.join(20)
    assert isinstance(outcome[0], QuotaExceeded)
    assert used(database)["instances"] == 1


def test_other_projects_do_not_wait(postgres_database: PostgresDatabase) -> None:
    database = postgres_database
    database.write(lambda conn: images.add(conn, "/tiny.qcow2", "tiny"))
    with database.engine.connect() as first, first.begin():
        create(first)
        database.write(lambda conn: create(conn, "other"))
    assert used(database, "other")["instances"] == 1


def test_key_pairs_groups_and_members_have_their_own_sentences(database: Database) -> None:
    def write(conn: sa.Connection) -> int:
        quota.set_limits(conn, P, {"key_pairs": 1, "server_groups": 1, "server_group_members": 1})
        conn.execute(sa.insert(keypair).values(
            user_id=U, name="k", type="ssh", fingerprint="f", public_key="p", created_at=0.0,
        ))
        group = conn.execute(sa.insert(server_group).values(
            uuid="g", project_id=P, user_id=U, name="g", policy="affinity", created_at=0.0,
        ).returning(server_group.c.id)).scalar_one()
        insert(conn, group_id=group)
        return int(group)

    group = database.write(write)
    with pytest.raises(QuotaExceeded, match=r"^Quota exceeded, too many key pairs\.$"):
        database.write(lambda conn: quota.check_key_pairs(conn, P, U))
    with pytest.raises(QuotaExceeded, match=r"^Quota exceeded, too many server groups\.$"):
        database.write(lambda conn: quota.check_groups(conn, P, U))
    with pytest.raises(QuotaExceeded, match=r"^Quota exceeded, too many servers in group$"):
        database.write(lambda conn: quota.check_members(conn, P, U, group))
    database.write(lambda conn: quota.check_key_pairs(conn, P, "second"))
    database.write(lambda conn: quota.check_groups(conn, "other", U))
    database.write(lambda conn: quota.check_members(conn, P, "second", group))


def test_the_sum_reads_the_index_of_living_rows_alone(sqlite_database: Database) -> None:
    """With a million deleted rows beside the living ones it must not get slower."""
    statement = str(quota._USED.statement.compile(sqlite_database.engine)).replace("?", "'x'")
    plan = sqlite_database.read(
        lambda conn: conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}").all()
    )
    assert "USING COVERING INDEX ix_instance_usage" in str(plan)
