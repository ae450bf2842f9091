"""Content on its way: uploads that die, imports, quotas under a race, contents kept elsewhere."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from obstore.store import MemoryStore

from treadle.controller import queue
from treadle.db.engine import Database
from treadle.db.schema import work
from treadle.errors import Conflict, QuotaExceeded, TooLarge
from treadle.image import actions, store
from treadle.image.actions import KIND, LANE, Limits
from treadle.image.blobs import BlobGone, Blobs, FolderBlobs, ObjectBlobs, open_blobs
from treadle.image.contents import Contents, digests_of
from treadle.image.fetch import FetchLimits
from treadle.image.guard import Guard
from treadle.image.handler import ImageHandler
from treadle.image.store import Image, ImageStatus, NewImage

LIMITS = Limits(100, 1 << 20)
HERE = Guard((ip_network("127.0.0.0/8"),), ())


@pytest.fixture(params=["folder", "objects"])
def contents(request: pytest.FixtureRequest, tmp_path: Path) -> Contents:
    folder = tmp_path / "images"
    folder.mkdir()
    blobs: Blobs = FolderBlobs(folder)
    if request.param == "objects":
        blobs = ObjectBlobs(MemoryStore(), "some/prefix/")
    return Contents(blobs, folder, FetchLimits(1 << 30, 20.0))


def made(database: Database, **values: Any) -> Image:
    new = NewImage(**{
        "name": "one", "project_id": "p1", "container_format": "bare", "disk_format": "raw",
        **values,
    })
    return database.write(lambda conn: actions.create(conn, new, LIMITS))


def the(database: Database, one: Image) -> Image:
    found = database.read(lambda conn: store.get(conn, one.id))
    assert found is not None
    return found


def begun(database: Database, one: Image, size: int | None = None) -> str:
    return database.write(lambda conn: actions.begin_upload(conn, one, LIMITS, size))


def passes(database: Database, contents: Contents, guard: Guard = HERE) -> None:
    """Make passes until nothing is due."""
    handler = ImageHandler(database, contents, LIMITS, guard=guard)
    for _ in range(20):
        tickets = database.write(lambda conn: queue.claim(conn, 10, 30.0))
        if not tickets:
            return
        for ticket in tickets:
            assert (ticket.kind, ticket.lane) == (KIND, LANE)
            handler.run(ticket)
    raise AssertionError("there is no end of it")


def make_due(database: Database) -> None:
    database.write(lambda conn: conn.execute(sa.update(work).values(due_at=0.0)).rowcount)


def staged(database: Database, contents: Contents, one: Image, content: bytes) -> None:
    key = begun(database, one)
    part = contents.part()
    try:
        part.write(content)
        contents.put(key, part.path)
        digests = part.digests()
    finally:
        part.close()
    database.write(lambda conn: actions.arrived(
        conn, one, key, digests, LIMITS, state=ImageStatus.STAGED
    ))


def imported(database: Database, one: Image, **method: str) -> None:
    database.write(lambda conn: actions.begin_import(
        conn, store.get(conn, one.id) or one, LIMITS, {"method": method}, request_id="req-1",
        user_id="u1",
    ))


# -- uploads


def test_an_upload_whose_process_died_can_be_made_again(
    database: Database, contents: Contents
) -> None:
    one = made(database)
    key = begun(database, one)
    passes(database, contents)
    assert the(database, one).state is ImageStatus.SAVING
    with pytest.raises(Conflict):
        begun(database, the(database, one))
    make_due(database)
    passes(database, contents)
    found = the(database, one)
    assert (found.state, found.error, found.blob) == (
        ImageStatus.QUEUED, "the upload was cut off", None
    )
    again = begun(database, found)
    assert again != key
    # What the first one does when it wakes up counts no more.
    part = contents.part()
    part.write(b"late")
    content = contents.keep(key, part.path, part.digests(), "raw", "bare")
    part.close()
    with pytest.raises(Conflict):
        database.write(lambda conn: actions.finish(conn, one, key, content, LIMITS))
    assert not database.write(lambda conn: actions.give_back(conn, one.id, key, "late"))
    assert the(database, one).blob == again


def test_an_upload_that_goes_on_is_left_alone(database: Database, contents: Contents) -> None:
    one = made(database)
    begun(database, one)
    make_due(database)
    database.write(lambda conn: actions.still_uploading(conn, one.id))
    passes(database, contents)
    assert the(database, one).state is ImageStatus.SAVING


def test_an_image_that_is_deleted_while_it_arrives_stays_deleted(
    database: Database, contents: Contents
) -> None:
    one = made(database)
    key = begun(database, one)
    database.write(lambda conn: actions.delete(conn, one))
    part = contents.part()
    part.write(b"x")
    content = contents.keep(key, part.path, part.digests(), "raw", "bare")
    part.close()
    with pytest.raises(Conflict):
        database.write(lambda conn: actions.finish(conn, one, key, content, LIMITS))
    passes(database, contents)
    assert the(database, one).state is ImageStatus.DELETED
    assert list(contents.folder.iterdir()) == []


def test_a_project_has_so_many_images_and_no_more(database: Database) -> None:
    limits = Limits(1, 1)
    new = NewImage("one", "p1")
    database.write(lambda conn: actions.create(conn, new, limits))
    with pytest.raises(QuotaExceeded, match="1 images"):
        database.write(lambda conn: actions.create(conn, new, limits))
    database.write(lambda conn: actions.create(conn, NewImage("one", "p2"), limits))


def test_the_last_room_of_a_project_is_given_once(
    database: Database, contents: Contents
) -> None:
    size = LIMITS.bytes // 2 + 1
    ones = [made(database) for _ in range(4)]
    with pytest.raises(TooLarge, match="in all"):
        begun(database, ones[0], LIMITS.bytes + 1)
    done = []
    for one in ones:
        key = begun(database, one)
        part = contents.part()
        part.write(bytes(size))
        done.append((one, key, contents.keep(key, part.path, part.digests(), "raw", "bare")))
        part.close()

    def finish(number: int) -> bool:
        one, key, content = done[number]
        try:
            database.write(lambda conn: actions.finish(conn, one, key, content, LIMITS))
        except TooLarge:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(finish, range(4))) == [False, False, False, True]


# -- content that is imported


def qcow2(folder: Path) -> bytes:
    path = folder / "some.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "2M"], check=True, timeout=30)
    return path.read_bytes()


def test_a_staged_image_is_imported_once(
    database: Database, contents: Contents, tmp_path: Path
) -> None:
    one, content = made(database, disk_format="qcow2"), qcow2(tmp_path)
    staged(database, contents, one, content)
    assert the(database, one).state is ImageStatus.STAGED
    imported(database, one, name="glance-direct")
    with pytest.raises(Conflict):
        imported(database, one, name="glance-direct")
    passes(database, contents)
    found = the(database, one)
    assert (found.state, found.format, found.virtual_bytes, found.bytes) == (
        ImageStatus.ACTIVE, "qcow2", 2 << 20, len(content)
    )
    assert found.task is not None
    assert found.task["status"] == "success"
    assert found.path is not None
    with contents.at_hand(Path(found.path)) as file:
        assert file.read_bytes() == content
    assert Path(found.path).exists() == (contents.blobs.kind == "file")
    assert found.blob is not None
    assert b"".join(contents.blobs.read(found.blob, 4, 10)) == content[4:10]
    database.write(lambda conn: actions.delete(conn, found))
    passes(database, contents)
    assert list(contents.folder.iterdir()) == []
    with pytest.raises(BlobGone):
        list(contents.blobs.read(found.blob, 0, 1))


def test_what_is_converted_is_kept_twice(
    database: Database, contents: Contents, tmp_path: Path
) -> None:
    (tmp_path / "some.qcow2").write_bytes(qcow2(tmp_path))
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "vmdk", tmp_path / "some.qcow2",
         tmp_path / "some.vmdk"], check=True, timeout=30,
    )
    one, content = made(database, disk_format="vmdk"), (tmp_path / "some.vmdk").read_bytes()
    staged(database, contents, one, content)
    imported(database, one, name="glance-direct")
    passes(database, contents)
    found = the(database, one)
    assert (found.state, found.format) == (ImageStatus.ACTIVE, "qcow2")
    assert found.path is not None
    with contents.at_hand(Path(found.path)) as file, contents.at_hand(Path(found.path)) as same:
        assert file == same
        assert digests_of(file, 10.0).sha256 == found.sha256
    assert found.blob is not None
    assert b"".join(contents.blobs.read(found.blob, 0, len(content))) == content


@contextmanager
def web(answers: dict[str, Any]) -> Iterator[str]:
    """A web server that answers with bytes, a status, or (text) a redirect; its address."""
    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path, 404)
            if isinstance(found, bytes):
                self.send_response(200)
                self.send_header("Content-Length", str(len(found)))
                self.end_headers()
                self.wfile.write(found)
                return
            self.send_response(302 if isinstance(found, str) else found)
            if isinstance(found, str):
                self.send_header("Location", found)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answering))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_image_comes_from_the_web(database: Database, contents: Contents) -> None:
    content = os.urandom(70_000)
    with web({"/a": "/b", "/b": content}) as url:
        one = made(database)
        imported(database, one, name="web-download", uri=f"{url}/a")
        passes(database, contents)
    found = the(database, one)
    assert (found.state, found.bytes) == (ImageStatus.ACTIVE, len(content))
    assert found.blob is not None
    assert b"".join(contents.blobs.read(found.blob, 0, len(content))) == content


@pytest.mark.parametrize(("answer", "guard", "says"), [
    (404, HERE, "not there"),
    (b"", HERE, "empty"),
    (b"<html>hello</html>", HERE, "web page"),
    ("http://10.9.8.7/x", HERE, "does not pass filtering"),
    ("http://[::1]/x", HERE, "does not pass filtering"),
    ("file:///etc/passwd", HERE, "redirected to no"),
    (b"x", Guard((), ()), "does not pass filtering"),
    (b"x", Guard(HERE.networks, (80,)), "may not be fetched from"),
    (b"x" * (LIMITS.bytes + 1), HERE, "in all"),
])
def test_an_import_that_cannot_be_is_given_up(
    database: Database, contents: Contents, answer: Any, guard: Guard, says: str
) -> None:
    with web({"/a": answer}) as url:
        one = made(database)
        imported(database, one, name="web-download", uri=f"{url}/a")
        passes(database, contents, guard)
    found = the(database, one)
    assert found.state is ImageStatus.QUEUED
    assert found.task is not None
    assert found.task["status"] == "failure"
    assert says in found.task["message"]
    assert str(contents.folder) not in found.task["message"]
    assert list(contents.folder.iterdir()) == []
    # It can be tried again, by whatever way.
    begun(database, found)


def test_an_import_is_tried_a_few_times(database: Database, contents: Contents) -> None:
    one = made(database)
    with web({"/a": 503}) as url:
        imported(database, one, name="web-download", uri=f"{url}/a")
        for _ in range(3):
            assert the(database, one).state is ImageStatus.FETCHING
            passes(database, contents)
            make_due(database)
    found = the(database, one)
    assert found.state is ImageStatus.QUEUED
    assert "503" in (found.error or "")


def test_a_snapshot_is_left_to_who_makes_it(database: Database, contents: Contents) -> None:
    one = database.write(lambda conn: store.begin(conn, NewImage("snap", "p1")))
    database.write(lambda conn: queue.enqueue(conn, KIND, str(one.id), lane=LANE))
    passes(database, contents)
    assert the(database, one).state is ImageStatus.SAVING


# -- stores


def test_a_key_is_no_path(contents: Contents) -> None:
    for key in ("../x", "a/b", "", ".x", "x" * 65):
        with pytest.raises(ValueError, match="no key"):
            list(contents.blobs.read(key, 0, 1))
        with pytest.raises(ValueError, match="no key"):
            contents.blobs.remove(key)


def test_what_is_gone_is_said_to_be_gone(contents: Contents) -> None:
    contents.blobs.remove("never-there")
    with pytest.raises(BlobGone):
        list(contents.blobs.read("never-there", 0, 1))
    with pytest.raises((BlobGone, FileNotFoundError)), \
            contents.at_hand(contents.folder / "never-there") as file:
        file.read_bytes()


def test_an_operators_file_is_never_removed(
    database: Database, contents: Contents, tmp_path: Path
) -> None:
    own = tmp_path / "own.qcow2"
    own.write_bytes(qcow2(tmp_path))

    def add(conn: sa.Connection) -> int:
        id = store.add(conn, str(own), "own")
        queue.enqueue(conn, KIND, str(id), lane=LANE)
        return id

    id = database.write(add)
    passes(database, contents)
    found = database.read(lambda conn: store.get(conn, id))
    assert found is not None
    assert found.state is ImageStatus.ACTIVE
    assert found.checksum == digests_of(own, 10.0).md5
    database.write(lambda conn: actions.delete(conn, found))
    passes(database, contents)
    assert own.exists()
    assert database.write(add) == id
    passes(database, contents)
    back = database.read(lambda conn: store.get(conn, id))
    assert back is not None
    assert (back.state, back.deleted_at) == (ImageStatus.ACTIVE, None)


def test_left_over_parts_are_swept_when_they_are_old(contents: Contents) -> None:
    young, old = contents.part(), contents.part()
    os.utime(old.path, (1.0, 1.0))
    contents.sweep()
    assert (young.path.exists(), old.path.exists()) == (True, False)
    young.close()
    old.close()


def test_an_object_store_is_named_by_the_settings(tmp_path: Path) -> None:
    made = open_blobs(
        "s3://bucket/some/prefix", tmp_path, endpoint="http://127.0.0.1:1", access_key="a",
        secret_key="b",
    )
    assert made.kind == "s3"
    assert open_blobs("", tmp_path).kind == "file"
