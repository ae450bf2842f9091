"""Images of servers within what their project may have of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cloudkit import until
from computekit import CALLERS, Api, named
from test_compute_servers import ask, become, gone

from treadle.db.schema import image


@pytest.fixture
def server(api: Api, image_id: str) -> Iterator[str]:
    id = ask(api, image_id)["id"]
    become(api, id, "ACTIVE")
    yield id
    api.ok("DELETE", f"/servers/{id}", status=204, by="member")
    gone(api, id)


def fill(api: Api, left: int) -> None:
    """Have an image of the project that leaves so many bytes."""
    name, database = named("large"), api.cloud.treadle.database
    size = api.cloud.treadle.context.image_limits.bytes - left
    database.write(lambda conn: conn.execute(image.delete().where(image.c.source == "large")))
    database.write(lambda conn: conn.execute(image.insert().values(
        name=name, source="large", state="active", added_at=0.0, blob_bytes=size,
        project_id=CALLERS["member"].project_id,
    )))


def states(api: Api) -> list[str]:
    def look(conn: Any) -> list[str]:
        found = conn.execute(image.select().where(
            image.c.project_id == CALLERS["member"].project_id, image.c.source != "large",
        ).order_by(image.c.id))
        return [row.state for row in found]

    found: list[str] = api.cloud.treadle.database.read(look)
    return found


def test_an_image_for_which_there_is_no_room_is_refused(api: Api, server: str) -> None:
    path = f"/servers/{server}/action"
    fill(api, 0)
    backup = {"name": "b", "backup_type": "daily", "rotation": 1}
    for action in ({"createImage": {"name": "full"}}, {"createBackup": backup}):
        api.fails("POST", path, action, status=413, by="member", says="bytes in all")
    assert states(api) == []
    fill(api, 5)
    api.ok("POST", path, {"createImage": {"name": "nearly"}}, status=202, by="member", minor=45)
    become(api, server, "ACTIVE")
    until(lambda: "saving" not in states(api), "the end of the image")
    assert states(api) in (["error"], ["killed"], ["deleted"])
    log = api.get(f"/servers/{server}/os-instance-actions", by="admin")["instanceActions"]
    assert "allowed" in next(one for one in log if one["action"] == "createImage")["message"]
    fill(api, 1 << 30)
    api.ok("POST", path, {"createImage": {"name": "fits"}}, status=202, by="member", minor=45)
    become(api, server, "ACTIVE")
    until(lambda: states(api)[-1] == "active", "an image that fits")


def test_a_shelf_is_never_refused(api: Api, server: str) -> None:
    fill(api, 0)
    api.ok("POST", f"/servers/{server}/action", {"shelve": None}, status=202, by="member")
    become(api, server, "SHELVED_OFFLOADED")
