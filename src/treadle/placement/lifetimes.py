"""How long instances live: what a predictor learns of the database, and when those that are there
are expected to end. Only for schedulers whose policy goes by a predictor.

Every controller learns of every end: of those that it has brought about itself at once, of others'
when the board is read whole, and at its start of the newest that there are. So what predictors know
differs by no more than that.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
import structlog

from treadle.db.engine import Database
from treadle.db.prepared import Prepared
from treadle.db.schema import allocation, decision, instance
from treadle.scheduler.engine import Scheduler
from treadle.scheduler.model import PlacementRequest
from treadle.scheduler.plugin import PluginError

log = structlog.get_logger("treadle.placement")

ENDED = "ended"
"""What `note` tells of: the small numbers of instances that have been deleted."""
MOST = 10_000
"""How many of those that ended are learnt of at the start, the newest; and how many that are there
already come to have an expected end."""
OVERLAP_S = 60.0
"""How much older than the newest that is known an end may be that was committed after it."""


class Lifetimes:
    """Feeds one scheduler's predictor. For one thread at a time."""

    def __init__(self, database: Database, scheduler: Scheduler) -> None:
        self._db = database
        self._scheduler = scheduler
        self._newest: float | None = None
        self._known: dict[int, float] = {}

    def learn(self, ended: Collection[int] | None) -> None:
        """Learn of the instances that have ended, by their small numbers; None: of all that are not
        known. The first time, those that are there get an end that is expected."""
        first = self._newest is None
        found = self._db.read(lambda conn: self._ended(conn, None if first else ended))
        for row in found:
            self._known[row.id] = row.deleted_at
            self._tell(row)
        if first:
            self._db.write(self._expect_all)
        self._newest = max(self._known.values(), default=self._newest or 0.0)
        if len(self._known) > 2 * MOST or ended is None:
            since = self._newest - 2 * OVERLAP_S
            self._known = {id: at for id, at in self._known.items() if at >= since}

    def expects(self, request: PlacementRequest) -> float | None:
        """When the instance is expected to end, seconds since 1970; None where that is not known,
        or the predictor is broken: then the scheduler has counted it."""
        try:
            lifetime = self._scheduler.expects(request)
        except PluginError:
            return None
        return None if lifetime is None else request.asked_at + lifetime

    def _ended(self, conn: sa.Connection, ended: Collection[int] | None) -> list[Any]:
        """Those that have ended and are not known, oldest first."""
        if ended is None:
            since = -1.0 if self._newest is None else self._newest - OVERLAP_S
            newest = list(_ENDED_SINCE(conn, {"since": since, "most": MOST}))
            ended = [row.id for row in newest if self._known.get(row.id) != row.deleted_at]
        found = [row for id in set(ended) - self._known.keys() for row in _ENDED(conn, {"i": id})]
        return sorted(found, key=lambda row: (row.deleted_at, row.id))

    def _tell(self, row: Any) -> None:
        try:
            self._scheduler.ended(_request(row), max(row.deleted_at - row.created_at, 0.0))
        except PluginError as error:
            log.warning("lifetime_not_learnt", instance=row.uuid, reason=str(error))

    def _expect_all(self, conn: sa.Connection) -> None:
        """Those that were placed while nobody asked for it."""
        for row in _UNEXPECTED(conn, {"most": MOST}).all():
            ends_at = self.expects(_request(row))
            if ends_at is not None:
                _EXPECT(conn, {"i": row.id, "at": ends_at})


def _request(row: Any) -> PlacementRequest:
    """What it was first placed by, or as much of it as its row says."""
    if row.record is not None:
        return PlacementRequest.from_dict(json.loads(row.record)["request"])
    return PlacementRequest(
        row.uuid, row.vcpus, row.memory_mib, row.disk_gib * 1024, tenant=row.project_id or None,
        batch=row.batch, asked_at=row.created_at,
    )


_FIRST = (
    sa.select(decision.c.record).where(decision.c.instance_id == instance.c.id)
    .order_by(decision.c.id).limit(1).scalar_subquery()
)
_ROW = (
    instance.c.id, instance.c.uuid, instance.c.created_at, instance.c.deleted_at, instance.c.vcpus,
    instance.c.memory_mib, instance.c.disk_gib, instance.c.project_id, instance.c.batch,
    _FIRST.label("record"),
)
_LIVED = sa.and_(instance.c.deleted_at.is_not(None), instance.c.launched_at.is_not(None))
_ENDED_SINCE = Prepared(
    sa.select(instance.c.id, instance.c.deleted_at)
    .where(_LIVED, instance.c.deleted_at > sa.bindparam("since", type_=sa.Float))
    .order_by(instance.c.deleted_at.desc(), instance.c.id.desc())
    .limit(sa.bindparam("most", type_=sa.Integer))
)
_ENDED = Prepared(sa.select(*_ROW).where(
    _LIVED, instance.c.id == sa.bindparam("i", type_=sa.BigInteger)
))
_UNEXPECTED = Prepared(
    sa.select(*_ROW).join(allocation, allocation.c.instance_id == instance.c.id)
    .where(allocation.c.ends_at.is_(None)).order_by(instance.c.id)
    .limit(sa.bindparam("most", type_=sa.Integer))
)
_EXPECT = Prepared(
    sa.update(allocation).where(
        allocation.c.instance_id == sa.bindparam("i", type_=sa.BigInteger),
        allocation.c.ends_at.is_(None),
    ).values(ends_at=sa.bindparam("at", type_=sa.Float))
)
