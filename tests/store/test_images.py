"""The rows of images: how they come to be, who may know of them, and how their content arrives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from treadle.compute import creating
from treadle.compute import store as instances
from treadle.db.engine import Database
from treadle.db.schema import image_member, meta
from treadle.errors import Conflict, InvalidInput
from treadle.image import store
from treadle.image.store import Content, Image, ImageStatus, NewImage

CONTENT = Content(
    blob="b-1", blob_bytes=10, checksum="c" * 32, sha512="d" * 128, path="/images/b-1",
    sha256="a" * 64, format="raw", size_bytes=512, virtual_bytes=512,
)


def made(database: Database, **values: object) -> Image:
    new = replace(NewImage("mine", "p1"), **values)  # type: ignore[arg-type]
    return database.write(lambda conn: store.create(conn, new))


def the(database: Database, one: Image) -> Image:
    found = database.read(lambda conn: store.get(conn, one.id))
    assert found is not None
    return found


def test_what_is_said_of_an_image_is_kept(database: Database) -> None:
    uuid = "00000000-1111-2222-3333-444455556666"
    one = made(
        database, uuid=uuid, properties={"os_distro": "debian"}, tags=("a", "b", "a"),
        min_disk_gib=3, min_memory_mib=64, container_format="bare", disk_format="qcow2",
    )
    assert the(database, one) == one
    assert (one.uuid, one.properties, one.state) == (
        uuid, {"os_distro": "debian"}, ImageStatus.QUEUED
    )
    assert one.updated_at == pytest.approx(one.added_at, abs=1.0)
    with pytest.raises(Conflict, match="already exists"):
        made(database, uuid=uuid)


def test_operator_images_belong_to_the_admin_project(database: Database) -> None:
    first = database.write(lambda conn: store.add(conn, "/a", "a"))
    database.write(lambda conn: conn.execute(
        sa.insert(meta).values(key="admin_project", value="adm")
    ).rowcount)
    second = database.write(lambda conn: store.add(conn, "/b", "b"))
    found = database.read(store.list_images)
    assert [(one.id, one.project_id, one.visibility) for one in found] == [
        (first, "", "public"), (second, "adm", "public"),
    ]
    assert len({one.uuid for one in found}) == 2


def test_the_first_image_is_never_one_that_was_uploaded(database: Database) -> None:
    made(database)
    assert database.read(store.first) is None
    id = database.write(lambda conn: store.add(conn, "/a", "a"))
    found = database.read(store.first)
    assert found is not None
    assert found.id == id


@pytest.mark.parametrize(("visibility", "owner", "member", "stranger", "admin"), [
    ("private", True, False, False, True),
    ("shared", True, True, False, True),
    ("public", True, True, True, True),
    ("community", True, True, True, True),
])
def test_who_may_know_of_an_image(
    database: Database, visibility: str, owner: bool, member: bool, stranger: bool, admin: bool,
) -> None:
    one = made(database, visibility=visibility)
    database.write(lambda conn: conn.execute(sa.insert(image_member).values(
        image_id=one.id, project_id="p2", created_at=1.0, updated_at=1.0,
    )).rowcount)

    def sees(project: str | None, is_admin: bool = False) -> bool:
        found = database.read(lambda conn: store.visible(conn, one.uuid, project, is_admin))
        assert found is None or found.id == one.id
        return found is not None

    assert (sees("p1"), sees("p2"), sees("p3"), sees("p3", True)) == (
        owner, member, stranger, admin
    )
    assert sees(None) is stranger
    database.write(lambda conn: store.update(conn, one.id, deleted_at=1.0))
    assert not sees("p1")
    assert not sees("p3", True)
    assert database.read(lambda conn: store.by_uuid(conn, one.uuid)) is not None


def test_nobodys_image_is_not_the_image_of_a_caller_without_a_project(database: Database) -> None:
    one = made(database, project_id="", visibility="private")
    assert database.read(lambda conn: store.visible(conn, one.uuid, "", False)) is None
    assert database.read(lambda conn: store.visible(conn, one.uuid, None, False)) is None


def test_a_snapshot_is_saved_and_then_active(database: Database) -> None:
    one = database.write(lambda conn: store.begin(conn, NewImage("snap", "p1")))
    assert one.state is ImageStatus.SAVING
    assert database.write(lambda conn: store.complete(conn, one.id, CONTENT))
    found = the(database, one)
    assert (found.state, found.bytes, found.sha256, found.checksum) == (
        ImageStatus.ACTIVE, 10, "a" * 64, "c" * 32
    )
    assert not database.write(lambda conn: store.complete(conn, one.id, CONTENT))


def test_a_snapshot_that_was_deleted_meanwhile_does_not_come_back(database: Database) -> None:
    one = database.write(lambda conn: store.begin(conn, NewImage("snap", "p1")))
    database.write(lambda conn: store.update(
        conn, one.id, state=ImageStatus.DELETED, deleted_at=1.0
    ))
    assert not database.write(lambda conn: store.complete(conn, one.id, CONTENT))
    assert the(database, one).state is ImageStatus.DELETED


def test_a_snapshot_that_failed_says_why(database: Database) -> None:
    one = database.write(lambda conn: store.begin(conn, NewImage("snap", "p1")))
    database.write(lambda conn: store.fail(conn, one.id, "the host is gone"))
    found = the(database, one)
    assert (found.state, found.error) == (ImageStatus.ERROR, "the host is gone")


def test_an_upload_that_was_overtaken_by_another_one_keeps_nothing(database: Database) -> None:
    one = made(database)
    database.write(lambda conn: store.update(
        conn, one.id, state=ImageStatus.SAVING, blob="second"
    ))
    first = replace(CONTENT, blob="first")
    assert not database.write(lambda conn: store.complete(conn, one.id, first, blob="first"))
    second = replace(CONTENT, blob="second")
    assert database.write(lambda conn: store.complete(conn, one.id, second, blob="second"))
    assert the(database, one).blob == "second"


def boot(database: Database, image_id: int) -> None:
    database.write(lambda conn: creating.create(
        conn, creating.Wish("vm", 1, image_id), request_id="r", build_deadline_s=10.0
    ))


def test_an_instance_needs_an_active_image_and_room_for_it(database: Database) -> None:
    flavor = instances.Flavor(1, 1, 512, 1)
    database.write(lambda conn: instances.put_flavor(conn, flavor))
    one = database.write(lambda conn: store.begin(conn, NewImage("snap", "p1")))
    with pytest.raises(Conflict, match="cannot be used: it is saving"):
        boot(database, one.id)
    database.write(lambda conn: store.complete(conn, one.id, CONTENT))
    short = {"min_disk_gib": "1 GiB of disk", "min_memory_mib": "512 MiB of memory"}
    for column, says in short.items():
        database.write(lambda conn, c=column: store.update(conn, one.id, **{c: 513}))
        with pytest.raises(InvalidInput, match=says):
            boot(database, one.id)
        database.write(lambda conn, c=column: store.update(conn, one.id, **{c: 0}))
    boot(database, one.id)
    assert database.read(lambda conn: store.in_use(conn, one.id))
