"""Backups: images of an instance of which the newest few of a kind stay."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from treadle.compute.model import Instance
from treadle.image import actions, catalog
from treadle.image.catalog import Wanted
from treadle.image.store import Image, ImageStatus

ROTATION = "backup_rotation"
MOST = 1000


def properties(kind: str, rotation: int) -> Mapping[str, str]:
    """What marks the image of a backup; it says itself how many of its kind stay."""
    return {"image_type": "backup", "backup_type": kind, ROTATION: str(rotation)}


def made(conn: sa.Connection, instance: Instance, image: Image) -> None:
    """Let those go that the image replaces, if it is a backup."""
    said = image.properties
    rotation = said.get(ROTATION, "")
    if said.get("image_type") == "backup" and rotation.isascii() and rotation.isdecimal():
        kind = said.get("backup_type", "")
        rotate(conn, image.project_id, instance.uuid, kind, int(rotation))


def rotate(conn: sa.Connection, project_id: str, uuid: str, kind: str, keep: int) -> None:
    """Delete the instance's backups of this kind but the newest `keep`; protected ones stay."""
    found = catalog.find(conn, Wanted(
        project_id, False,
        equal={"owner": [project_id], "status": [ImageStatus.ACTIVE]},
        properties={"image_type": "backup", "backup_type": kind, "instance_uuid": uuid},
    ), (("created_at", True), ("id", True)), marker=None, limit=MOST)
    for one in found[keep:]:
        if not one.protected:
            actions.retire(conn, one.id)
