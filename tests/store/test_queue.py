"""The work queue on both databases: who may hold a row, and who may commit it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa

from treadle.controller import queue
from treadle.controller.queue import LeaseLost, Ticket
from treadle.db.clock import now
from treadle.db.engine import Database, PostgresDatabase
from treadle.db.schema import work

LEASE_S = 30.0
PATIENCE_S = 20.0


def put(database: Database, *ids: str, kind: str = "k", lane: int = 0, delay: float = 0.0) -> None:
    def write(conn: sa.Connection) -> None:
        for id in ids:
            queue.enqueue(conn, kind, id, lane=lane, delay=delay)

    database.write(write)


def take(database: Database, limit: int = 100, **options: Any) -> list[Ticket]:
    return database.write(lambda conn: queue.claim(conn, limit, LEASE_S, **options))


def take_one(database: Database) -> Ticket:
    [ticket] = take(database)
    return ticket


def row(database: Database, id: str, kind: str = "k") -> Any:
    """The row, with `due_in`: seconds until it is due, by the database's clock."""
    return database.read(lambda conn: conn.execute(
        sa.select(work, (work.c.due_at - now()).label("due_in"))
        .where(work.c.kind == kind, work.c.id == id)
    ).one_or_none())


def set_row(database: Database, id: str, **values: Any) -> None:
    database.write(
        lambda conn: conn.execute(sa.update(work).where(work.c.id == id).values(values)).rowcount
    )


def lose_lease(database: Database, id: str) -> None:
    """What time does to a lease that nobody renews."""
    set_row(database, id, lease_until=0.0)


# -- claiming


def test_a_new_row_is_due_now_and_starts_from_nothing(database: Database) -> None:
    put(database, "a", lane=7)
    ticket = take_one(database)
    assert (ticket.kind, ticket.id, ticket.lane) == ("k", "a", 7)
    assert (ticket.token, ticket.wake, ticket.tries) == (1, 0, 0)
    assert ticket.key == ("k", "a")
    assert abs(ticket.now - time.time()) < 5
    assert LEASE_S - 5 < ticket.lease.time_left() <= LEASE_S


def test_nothing_is_claimed_before_it_is_due(database: Database) -> None:
    put(database, "later", delay=60.0)
    assert take(database) == []
    assert 55 < row(database, "later").due_in <= 60


def test_the_longest_due_are_claimed_first(database: Database) -> None:
    ids = [f"{n:02}" for n in range(20)]
    put(database, *ids)
    for age, id in enumerate(ids):
        set_row(database, id, due_at=1000.0 + (age * 7) % 20)
    expected = sorted(ids, key=lambda id: (int(id) * 7) % 20)
    claimed = [{t.id for t in take(database, 5)} for _ in range(4)]
    assert claimed == [set(expected[n:n + 5]) for n in range(0, 20, 5)]


def test_a_limit_bounds_what_is_claimed(database: Database) -> None:
    put(database, "a", "b", "c")
    assert len(take(database, 2)) == 2
    assert len(take(database, 2)) == 1
    assert take(database, 2) == []


def test_a_leased_row_is_not_claimed_again_until_its_lease_ends(database: Database) -> None:
    put(database, "a")
    first = take_one(database)
    assert take(database) == []
    lose_lease(database, "a")
    second = take_one(database)
    assert second.token == first.token + 1


def test_a_lease_ends_by_the_databases_clock(database: Database) -> None:
    put(database, "a")
    [ticket] = database.write(lambda conn: queue.claim(conn, 1, 0.2))
    deadline = time.monotonic() + PATIENCE_S
    while not (again := take(database)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The holder's own idea of its lease ends no later than the database's.
    assert ticket.lease.time_left() <= 0
    assert again[0].token == ticket.token + 1


def test_full_lanes_are_passed_over(database: Database) -> None:
    put(database, "a", lane=1)
    put(database, "b", lane=2)
    put(database, "c", lane=3)
    assert {t.id for t in take(database, busy_lanes=[3, 1])} == {"b"}
    assert {t.id for t in take(database, busy_lanes=[])} == {"a", "c"}


def test_full_lanes_do_not_use_the_limit_up(database: Database) -> None:
    put(database, *(f"old-{n}" for n in range(10)), lane=1)
    put(database, "young", lane=2)
    assert [t.id for t in take(database, 1, busy_lanes=[1])] == ["young"]


def test_only_the_kinds_that_are_asked_for_are_claimed(database: Database) -> None:
    put(database, "a", kind="image")
    put(database, "a", kind="host")
    put(database, "a", kind="instance")
    assert {t.kind for t in take(database, kinds=["image", "host"])} == {"image", "host"}
    assert take(database, kinds=[]) == []
    assert {t.kind for t in take(database, kinds=None)} == {"instance"}


# -- the end of a pass


def test_a_pass_that_ends_lets_the_row_go_until_it_is_due_again(database: Database) -> None:
    put(database, "a")
    ticket = take_one(database)
    database.write(lambda conn: queue.finish(conn, ticket, delay=60.0))
    assert take(database) == []
    found = row(database, "a")
    assert 55 < found.due_in <= 60
    assert (found.lease_until, found.tries, found.last_error) == (0, 0, None)


def test_failures_are_counted_and_a_success_starts_anew(database: Database) -> None:
    put(database, "a")
    for tries in (1, 2, 3):
        ticket = take_one(database)
        assert ticket.tries == tries - 1
        database.write(
            lambda conn, t=ticket, n=tries: queue.finish(conn, t, delay=0.0, error=f"no {n}")
        )
        assert (row(database, "a").tries, row(database, "a").last_error) == (tries, f"no {tries}")
    ticket = take_one(database)
    database.write(lambda conn: queue.finish(conn, ticket, delay=0.0))
    assert (row(database, "a").tries, row(database, "a").last_error) == (0, None)


def test_an_error_is_kept_whatever_it_says(database: Database) -> None:
    put(database, "a")
    said = "it's \"bad\"; DROP TABLE work; -- %s :x {0} ключ \U0001f9f5\n" * 50
    ticket = take_one(database)
    database.write(lambda conn: queue.finish(conn, ticket, delay=1.0, error=said))
    assert row(database, "a").last_error == said


def test_a_pass_may_end_on_another_lane(database: Database) -> None:
    put(database, "a", lane=4)
    ticket = take_one(database)
    database.write(lambda conn: queue.finish(conn, ticket, delay=0.0))
    assert take_one(database).lane == 4
    lose_lease(database, "a")
    ticket = take_one(database)
    database.write(lambda conn: queue.finish(conn, ticket, delay=0.0, lane=0))
    assert take_one(database).lane == 0


def test_a_wake_up_during_a_pass_makes_the_row_due_at_once_after_it(database: Database) -> None:
    put(database, "a")
    ticket = take_one(database)
    assert database.write(lambda conn: queue.wake(conn, "k", ["a"])) == 1
    assert take(database) == []  # a wake-up never breaks a lease
    database.write(lambda conn: queue.finish(conn, ticket, delay=3600.0))
    again = take_one(database)
    assert again.wake == ticket.wake + 1
    database.write(lambda conn: queue.finish(conn, again, delay=3600.0))
    assert take(database) == []


def test_a_wake_up_beats_the_backoff_of_a_failed_pass(database: Database) -> None:
    put(database, "a")
    ticket = take_one(database)
    database.write(lambda conn: queue.wake(conn, "k", ["a"]))
    database.write(lambda conn: queue.finish(conn, ticket, delay=30.0, error="no"))
    assert take_one(database).tries == 1


def test_a_wake_up_before_the_claim_is_no_reason_for_another_pass(database: Database) -> None:
    put(database, "a", delay=60.0)
    database.write(lambda conn: queue.wake(conn, "k", ["a"]))
    ticket = take_one(database)
    assert ticket.wake == 1
    database.write(lambda conn: queue.finish(conn, ticket, delay=60.0))
    assert take(database) == []


def test_a_wake_up_between_two_carried_passes_is_seen_by_the_second(database: Database) -> None:
    put(database, "a")
    ticket = take_one(database)
    database.write(lambda conn: queue.wake(conn, "k", ["a"]))
    following = database.write(lambda conn: queue.carry(conn, ticket, LEASE_S, lane=3))
    assert (following.wake, following.lane, following.token) == (1, 3, ticket.token)
    database.write(lambda conn: queue.finish(conn, following, delay=60.0))
    assert take(database) == []  # the second pass began after the wake-up
    assert row(database, "a").lane == 3


def test_carrying_on_lengthens_the_lease_and_forgets_failures(database: Database) -> None:
    put(database, "a")
    ticket = take_one(database)
    database.write(lambda conn: queue.finish(conn, ticket, delay=0.0, error="no"))
    [ticket] = database.write(lambda conn: queue.claim(conn, 1, 5.0))
    assert ticket.tries == 1
    following = database.write(lambda conn: queue.carry(conn, ticket, 600.0, lane=0))
    assert following.tries == 0
    assert following.lease.time_left() > 500
    assert row(database, "a").lease_until > time.time() + 500


def test_removing_ends_the_row(database: Database) -> None:
    put(database, "a", "b")
    ticket = next(t for t in take(database) if t.id == "a")
    database.write(lambda conn: queue.remove(conn, ticket))
    assert row(database, "a") is None
    assert row(database, "b") is not None


# -- the fence


@pytest.mark.parametrize("way", ["finish", "carry", "remove"])
def test_whoever_lost_the_lease_commits_nothing(database: Database, way: str) -> None:
    put(database, "a")
    stale = take_one(database)
    lose_lease(database, "a")
    fresh = take_one(database)
    before = row(database, "a")._asdict()

    def late(conn: sa.Connection) -> None:
        conn.execute(sa.insert(work).values(kind="side", id="effect", due_at=0.0))
        if way == "finish":
            queue.finish(conn, stale, delay=0.0)
        elif way == "carry":
            queue.carry(conn, stale, LEASE_S, lane=9)
        else:
            queue.remove(conn, stale)

    with pytest.raises(LeaseLost, match="k a was taken over"):
        database.write(late)
    after = row(database, "a")._asdict()
    before.pop("due_in"), after.pop("due_in")
    assert after == before
    assert row(database, "effect", kind="side") is None
    database.write(lambda conn: queue.finish(conn, fresh, delay=60.0))


@pytest.mark.parametrize("way", ["finish", "carry", "remove"])
def test_a_row_that_is_gone_is_a_lost_lease(database: Database, way: str) -> None:
    put(database, "a")
    ticket = take_one(database)
    database.write(lambda conn: queue.remove(conn, ticket))
    acts = {
        "finish": lambda conn: queue.finish(conn, ticket, delay=0.0),
        "carry": lambda conn: queue.carry(conn, ticket, LEASE_S, lane=0),
        "remove": lambda conn: queue.remove(conn, ticket),
    }
    with pytest.raises(LeaseLost):
        database.write(acts[way])


def test_a_late_holder_may_still_commit_where_nobody_took_over(database: Database) -> None:
    """The token is the fence, not the time."""
    put(database, "a")
    ticket = take_one(database)
    lose_lease(database, "a")
    database.write(lambda conn: queue.finish(conn, ticket, delay=60.0))
    assert row(database, "a").due_in > 0


def test_only_leases_that_are_still_ours_are_renewed(database: Database) -> None:
    put(database, "lost", "kept", "gone")
    tickets = {t.id: t for t in database.write(lambda conn: queue.claim(conn, 10, 5.0))}
    lose_lease(database, "lost")
    assert [t.id for t in take(database)] == ["lost"]
    database.write(lambda conn: queue.remove(conn, tickets["gone"]))
    kept = database.write(lambda conn: queue.renew(conn, tickets.values(), 600.0))
    assert kept == {("k", "kept")}
    assert row(database, "kept").lease_until > time.time() + 500
    assert row(database, "lost").lease_until < time.time() + 500
    # The tickets are the caller's to move, once this is durable.
    assert tickets["kept"].lease.time_left() < 10


# -- waking


def test_putting_a_row_that_is_there_wakes_it(database: Database) -> None:
    put(database, "a", lane=2, delay=600.0)
    put(database, "a", lane=5, delay=600.0)
    ticket = take_one(database)
    assert (ticket.wake, ticket.lane) == (1, 2)


def test_waking_says_how_many_there_are(database: Database) -> None:
    put(database, "a", "b", "c", delay=600.0)
    assert database.write(lambda conn: queue.wake(conn, "k", ["a", "b", "nobody"])) == 2
    assert database.write(lambda conn: queue.wake(conn, "other", ["a"])) == 0
    assert database.write(lambda conn: queue.wake(conn, "k", [])) == 0
    assert {t.id for t in take(database)} == {"a", "b"}


def test_a_wake_up_that_is_rolled_back_wakes_nobody(database: Database) -> None:
    put(database, "a", delay=600.0)

    def fail(conn: sa.Connection) -> None:
        queue.wake(conn, "k", ["a"])
        raise KeyError("rolled back")

    with pytest.raises(KeyError):
        database.write(fail)
    assert take(database) == []


def test_many_new_rows_are_due_at_once(database: Database) -> None:
    ids = [f"{n}" for n in range(100)]
    database.write(lambda conn: queue.enqueue_new(conn, "k", ids))
    assert {t.id for t in take(database, 200)} == set(ids)


def test_ids_of_every_shape_are_told_apart(database: Database) -> None:
    ids = ["a'b", 'a"b', "a%b", "a_b", "a\\b", "a b", "A", "a", ":a", "ü", "x" * 100, "", " "]
    put(database, *ids)
    tickets = {t.id: t for t in take(database)}
    assert set(tickets) == set(ids)
    for ticket in tickets.values():
        database.write(lambda conn, t=ticket: queue.finish(conn, t, delay=60.0))
    assert database.write(lambda conn: queue.wake(conn, "k", ["a"])) == 1
    assert take_one(database).id == "a"


# -- when to look again


def test_next_due_says_how_long_to_wait(database: Database) -> None:
    assert database.read(queue.next_due) is None
    put(database, "later", delay=60.0)
    wait = database.read(queue.next_due)
    assert wait is not None
    assert 55 < wait <= 60
    put(database, "now")
    wait = database.read(queue.next_due)
    assert wait is not None
    assert wait <= 0


def test_next_due_leaves_out_what_is_leased(database: Database) -> None:
    put(database, "a")
    take_one(database)
    assert database.read(queue.next_due) is None


def test_a_wake_up_is_heard_by_other_controllers(postgres_database: PostgresDatabase) -> None:
    import psycopg

    url = postgres_database.engine.url.set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as listener:
        listener.execute(f"LISTEN {queue.CHANNEL}")
        put(postgres_database, "a", delay=60.0)
        assert len(list(listener.notifies(timeout=PATIENCE_S, stop_after=1))) == 1
        postgres_database.write(lambda conn: queue.wake(conn, "k", ["a"]))
        assert len(list(listener.notifies(timeout=PATIENCE_S, stop_after=1))) == 1


# -- many at once

THREADS, ROWS = 4, 400


def drain(database: Database) -> list[str]:
    """Claim and commit until nothing is left; the ids in the order they came."""
    mine: list[str] = []
    while tickets := take(database, 16):
        mine += [ticket.id for ticket in tickets]

        def commit(conn: sa.Connection, tickets: list[Ticket] = tickets) -> None:
            for ticket in tickets:
                queue.remove(conn, ticket)

        database.write(commit)
    return mine


def test_threads_claim_each_row_exactly_once(database: Database) -> None:
    ids = [f"{n:04}" for n in range(THREADS * ROWS)]
    database.write(lambda conn: queue.enqueue_new(conn, "k", ids))
    claimed: list[list[str]] = []
    start = threading.Barrier(THREADS)

    def run() -> None:
        start.wait(PATIENCE_S)
        claimed.append(drain(database))

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    counts = Counter(id for one in claimed for id in one)
    assert len(claimed) == THREADS
    assert counts == Counter(ids)


WORKER = """
import json, sys
from pathlib import Path
from treadle.controller import queue
from treadle.db.engine import open_database
database = open_database(sys.argv[1], Path("/nonexistent"))
mine = []
print("ready", flush=True)
sys.stdin.readline()
while True:
    tickets = database.write(lambda conn: queue.claim(conn, 16, 30.0))
    if not tickets:
        break
    mine += [ticket.id for ticket in tickets]
    database.write(lambda conn: [queue.remove(conn, ticket) for ticket in tickets])
database.close()
print(json.dumps(mine))
"""


def test_processes_claim_each_row_exactly_once(database: Database) -> None:
    ids = [f"{n:04}" for n in range(THREADS * ROWS)]
    database.write(lambda conn: queue.enqueue_new(conn, "k", ids))
    url = database.engine.url
    address = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=False)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(THREADS)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        said = [worker.communicate(timeout=PATIENCE_S)[0] for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.communicate()
    assert Counter(id for text in said for id in json.loads(text)) == Counter(ids)


def test_rows_that_another_claims_are_passed_over_not_waited_for(
    postgres_database: PostgresDatabase,
) -> None:
    put(postgres_database, "a", "b", "c")
    entered, let_go = threading.Event(), threading.Event()

    def slowly(conn: sa.Connection) -> list[str]:
        found = [t.id for t in queue.claim(conn, 2, LEASE_S)]
        entered.set()
        assert let_go.wait(PATIENCE_S)
        return found

    slow = postgres_database.submit(slowly)
    assert entered.wait(PATIENCE_S)
    quick = [t.id for t in take(postgres_database)]
    let_go.set()
    assert len(quick) == 1
    assert sorted(quick + slow.result(PATIENCE_S)) == ["a", "b", "c"]


def test_one_row_woken_by_many_while_it_is_worked_on_is_lost_by_none(database: Database) -> None:
    """Whatever the interleaving, the last wake-up is followed by a pass that begins after it."""
    put(database, "a")
    stop = threading.Event()
    woken = 0

    def waker() -> None:
        nonlocal woken
        for _ in range(30):
            database.write(lambda conn: queue.wake(conn, "k", ["a"]))
            woken += 1
        stop.set()

    thread = threading.Thread(target=waker)
    thread.start()
    seen = -1
    while True:
        over = stop.is_set()
        tickets = take(database)
        for ticket in tickets:
            seen = ticket.wake
            database.write(lambda conn, t=ticket: queue.finish(conn, t, delay=3600.0))
        if over and not tickets:
            break
    thread.join(PATIENCE_S)
    assert seen == woken == 30
