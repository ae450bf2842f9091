"""`POST /servers/{id}/action`: one key of the body names what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from treadle.api.openstack.compute import (
    server_changes,
    server_cold,
    server_consoles,
    server_moves,
)
from treadle.api.openstack.compute.action_base import NULL, Action, changing
from treadle.api.openstack.compute.common import inside, one_of
from treadle.api.openstack.compute.servers import asker, find, is_own_group
from treadle.api.openstack.wire import Ask, Call, Reply, Schema
from treadle.compute import actions
from treadle.compute.listing import Row
from treadle.errors import InvalidInput, NotFound


def _act(action: str, patience: str) -> Callable[[sa.Connection, Ask, Row, Any], None]:
    def work(conn: sa.Connection, ask: Ask, row: Row, value: Any) -> None:
        hard = action == "reboot" and value["type"].upper() == "HARD"
        limits = ask.context.settings.controller
        actions.act(
            conn, row.instance.id, action, request_id=ask.request_id,
            deadline_s=getattr(limits, "build_deadline_s" if hard else patience), hard=hard,
            strict=True, by=asker(ask),
        )

    return work


def _simple(name: str, action: str, *, stops: bool = False) -> Action:
    patience = "stop_deadline_s" if stops else "build_deadline_s"
    return Action(
        changing(name)(_act(action, patience)), f"compute:servers:{name}", NULL,
    )


@changing("lock")
def lock(conn: sa.Connection, ask: Ask, row: Row, value: Any) -> None:
    """Only administrators change it from now on."""
    reason = value.get("locked_reason") if isinstance(value, dict) else None
    actions.lock(conn, row.instance.id, request_id=ask.request_id, reason=reason, by=asker(ask))


@changing("unlock")
def unlock(conn: sa.Connection, ask: Ask, row: Row, _value: Any) -> None:
    """Everybody changes it again."""
    ask.check("compute:servers:unlock", {"project_id": row.columns.project_id})
    actions.unlock(conn, row.instance.id, request_id=ask.request_id, by=asker(ask))


@changing("restore")
def restore(conn: sa.Connection, ask: Ask, row: Row, _value: Any) -> None:
    """Take a soft delete back."""
    actions.restore(
        conn, row.instance.id, request_id=ask.request_id,
        deadline_s=ask.context.settings.controller.build_deadline_s, by=asker(ask),
    )


@changing("forceDelete")
def force_delete(conn: sa.Connection, ask: Ask, row: Row, _value: Any) -> None:
    """End it now, whatever a soft delete would keep."""
    actions.delete(conn, row.instance.id, request_id=ask.request_id, by=asker(ask))


@changing("resetState")
def reset_state(conn: sa.Connection, ask: Ask, row: Row, value: Any) -> None:
    """An administrator says what it is."""
    actions.reset_state(
        conn, row.instance.id, value["state"], request_id=ask.request_id, by=asker(ask)
    )


async def no_group(ask: Ask, value: Any) -> Reply | None:
    """Security groups are not to be had yet: every server is in the one there is."""
    def look(conn: sa.Connection) -> bool:
        return is_own_group(conn, value.get("name"), find(conn, ask).project_id)

    if not await ask.read(look):
        raise NotFound(f"Security group {value.get('name')} not found")
    return None


async def no_dump(ask: Ask, _value: Any) -> None:
    """No host sends its guests the signal for it."""
    key = await ask.read(lambda conn: find(conn, ask))
    raise InvalidInput("action", "trigger_crash_dump",
                       f"the hypervisor of instance {key.uuid} injects no NMI")


REBOOT = Schema((1, inside("type", one_of("HARD", "Hard", "hard", "SOFT", "Soft", "soft"))))
LOCK = Schema((1, {}), (73, {"oneOf": [
    {"type": "null"},
    inside("locked_reason", {"type": "string", "minLength": 1, "maxLength": 255}),
]}))
STATE = Schema((1, inside("state", one_of("active", "error"))))
GROUP = Schema((1, inside("name", {"type": "string", "minLength": 1})))

ACTIONS: dict[str, Action] = {
    "os-start": _simple("start", "start"),
    "os-stop": _simple("stop", "stop", stops=True),
    "pause": _simple("pause", "pause"),
    "unpause": _simple("unpause", "unpause"),
    "suspend": _simple("suspend", "suspend"),
    "resume": _simple("resume", "resume"),
    "reboot": Action(changing("reboot")(_act("reboot", "stop_deadline_s")),
                     "compute:servers:reboot", REBOOT),
    "lock": Action(lock, "compute:servers:lock", LOCK),
    "unlock": Action(unlock, "compute:servers:unlock", NULL),
    "restore": Action(restore, "compute:servers:restore", NULL),
    "forceDelete": Action(force_delete, "compute:servers:force_delete", NULL),
    "os-resetState": Action(reset_state, "compute:servers:reset_state", STATE),
    "os-getConsoleOutput": Action(
        server_consoles.console_output, "compute:servers:console_output", server_consoles.OUTPUT,
        200,
    ),
    "os-getVNCConsole": Action(
        server_consoles.getter("vnc"), "compute:servers:remote_consoles", server_consoles.VNC,
        200, until=5,
    ),
    "os-getSerialConsole": Action(
        server_consoles.getter("serial"), "compute:servers:remote_consoles",
        server_consoles.SERIAL, 200, until=5,
    ),
    **server_changes.ACTIONS,
    **server_moves.ACTIONS,
    **server_cold.ACTIONS,
    "trigger_crash_dump": Action(no_dump, "compute:servers:reboot", NULL, since=17),
    "addSecurityGroup": Action(no_group, "compute:servers:update", GROUP),
    "removeSecurityGroup": Action(no_group, "compute:servers:update", GROUP),
}


async def act(ask: Ask) -> Reply:
    """Carry out the one action that the body names."""
    body = ask.body
    if len(body) != 1:
        raise InvalidInput("body", sorted(body)[:5], "There is one action to a request")
    name, value = next(iter(body.items()))
    action = ACTIONS.get(name)
    if action is None or not action.since <= ask.minor <= action.until:
        raise InvalidInput("action", name, f"There is no such action: {name[:80]}")
    ask.check(action.rule)
    action.body.check(value, ask.minor)
    reply = await action.run(ask, value) or Reply()
    reply.status = reply.status or action.status
    return reply


BODY = Schema((1, {"type": "object", "minProperties": 1}))
CALLS = [
    Call("POST", "/v2.1/servers/{server_id}/action", act, "compute:servers:show", 202, BODY),
]
