"""One pass over an image, and what becomes of a wish that comes while it is made."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from treadle.controller import queue
from treadle.controller.queue import LeaseLost, Ticket
from treadle.db.engine import Database
from treadle.db.schema import work
from treadle.image import handler, store
from treadle.image.actions import KIND, Limits
from treadle.image.blobs import FolderBlobs
from treadle.image.contents import Contents
from treadle.image.fetch import FetchLimits
from treadle.image.handler import ImageHandler
from treadle.image.store import Image, ImageStatus


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_image(tmp_path / "tiny.qcow2", "1M")


def make_image(path: Path, size: str) -> Path:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True, timeout=30
    )
    return path


def add(database: Database, source: Path) -> int:
    def write(conn: sa.Connection) -> int:
        id = store.add(conn, str(source), "tiny")
        queue.enqueue(conn, KIND, str(id))
        return id

    return database.write(write)


def make_handler(database: Database, folder: Path) -> ImageHandler:
    contents = Contents(FolderBlobs(folder), folder, FetchLimits(1 << 30, 20.0))
    return ImageHandler(database, contents, Limits(10, 1 << 30))


def take(database: Database) -> list[Ticket]:
    return database.write(lambda conn: queue.claim(conn, 10, 30.0))


def run_all(database: Database, folder: Path) -> int:
    """Make passes until nothing is due; how many there were."""
    count = 0
    while tickets := take(database):
        for ticket in tickets:
            make_handler(database, folder).run(ticket)
            count += 1
    return count


def the(database: Database, id: int) -> Image:
    found = database.read(lambda conn: store.get(conn, id))
    assert found is not None
    return found


def open_work(database: Database) -> int:
    return database.read(
        lambda conn: conn.execute(sa.select(sa.func.count()).select_from(work)).scalar_one()
    )


def during_the_fetch(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Have something happen once, after the content was read and before it is recorded."""
    real = handler.inspect
    done: list[bool] = []

    def inspect(path: Path) -> Any:
        facts = real(path)
        if not done:
            done.append(True)
            act()
        return facts

    monkeypatch.setattr(handler, "inspect", inspect)


def test_an_image_is_read_once_and_then_there_is_nothing_left_to_do(
    database: Database, source: Path, tmp_path: Path
) -> None:
    id = add(database, source)
    assert run_all(database, tmp_path) == 1
    found = the(database, id)
    assert (found.state, found.format, found.virtual_bytes) == (
        ImageStatus.ACTIVE, "qcow2", 1 << 20
    )
    assert open_work(database) == 0


def test_a_wish_that_comes_while_it_is_read_is_followed_by_another_reading(
    database: Database, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = add(database, source)

    def replaced() -> None:
        make_image(source, "2M")
        add(database, source)

    during_the_fetch(monkeypatch, replaced)
    assert run_all(database, tmp_path) == 2
    assert the(database, id).virtual_bytes == 2 << 20
    assert open_work(database) == 0


def test_an_image_that_was_missing_and_is_named_again_is_read(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "late.qcow2"
    id = add(database, path)
    real = handler.fetch
    calls: list[int] = []

    def fetch(*args: Any, **options: Any) -> Any:
        calls.append(1)
        try:
            return real(*args, **options)
        finally:
            if len(calls) == 1:
                make_image(path, "1M")
                add(database, path)

    monkeypatch.setattr(handler, "fetch", fetch)
    run_all(database, tmp_path)
    assert the(database, id).state is ImageStatus.ACTIVE
    assert open_work(database) == 0


def test_a_wish_that_comes_as_a_needless_pass_ends_is_not_lost(
    database: Database, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = add(database, source)
    run_all(database, tmp_path)
    database.write(lambda conn: queue.enqueue(conn, KIND, str(id)))
    [ticket] = take(database)
    made = make_handler(database, tmp_path)
    read = type(database).read

    def read_then_wish(self: Database, ask: Any) -> Any:
        found = read(self, ask)
        monkeypatch.undo()
        add(database, source)
        return found

    monkeypatch.setattr(type(database), "read", read_then_wish)
    made.run(ticket)
    assert the(database, id).state is ImageStatus.NEW
    run_all(database, tmp_path)
    assert the(database, id).state is ImageStatus.ACTIVE


def test_a_reading_whose_lease_was_lost_records_nothing(
    database: Database, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = add(database, source)
    [ticket] = take(database)

    def taken_over() -> None:
        free = sa.update(work).values(lease_until=0.0)
        database.write(lambda conn: conn.execute(free).rowcount)
        assert len(take(database)) == 1

    during_the_fetch(monkeypatch, taken_over)
    with pytest.raises(LeaseLost):
        make_handler(database, tmp_path).run(ticket)
    assert the(database, id).state is ImageStatus.NEW


def test_what_may_come_right_is_tried_again_and_then_given_up(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path
) -> None:
    from treadle.image.fetch import FetchFailed

    def fail(*_: Any, **__: Any) -> Any:
        raise FetchFailed("no route to it")

    monkeypatch.setattr(handler, "fetch", fail)
    id = add(database, source)
    due = sa.update(work).values(due_at=0.0)
    for tries in range(handler.TRIES):
        assert the(database, id).state is ImageStatus.NEW
        [ticket] = take(database)
        assert ticket.tries == tries
        make_handler(database, tmp_path).run(ticket)
        assert the(database, id).error == "no route to it"
        database.write(lambda conn: conn.execute(due).rowcount)
    assert the(database, id).state is ImageStatus.ERROR
    assert open_work(database) == 0


def test_an_image_that_is_gone_from_the_table_leaves_no_work(
    database: Database, tmp_path: Path
) -> None:
    database.write(lambda conn: queue.enqueue(conn, KIND, "77"))
    assert run_all(database, tmp_path) == 1
    assert open_work(database) == 0
