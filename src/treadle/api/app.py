"""The HTTP application: every face on one port."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from treadle.api import classic, consoles, native, openapi
from treadle.api.context import Context, answer
from treadle.api.faults import message_of
from treadle.api.openstack import compute, identity, image, network_v2
from treadle.api.openstack.wire import Faced, Service
from treadle.errors import RetryLater
from treadle.placement import ledger

SERVICES: tuple[Service, ...] = (
    compute.SERVICE, identity.SERVICE, image.SERVICE, network_v2.SERVICE,
)
"""OpenStack's services, by the first part of their paths."""


def make_app(context: Context) -> Faced:
    """The ASGI application over `context`."""

    async def healthz(_request: Request) -> Response:
        try:
            hosts = await context.read(ledger.list_hosts)
        except (DBAPIError, RetryLater) as error:
            return answer({"status": "error", "error": message_of(error)}, 503)
        return answer({"status": "ok", "hosts_up": sum(host.state == "up" for host in hosts),
                       "hosts": len(hosts)})

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        # Not `request.url`: that is made from the Host header too, which may say anything.
        path = str(request.scope["path"])
        status, headers = error.status_code, {}
        if status == 405:
            kind, message = "MethodNotAllowed", f"{path[:100]} does not take {request.method[:20]}"
            headers["Allow"] = ", ".join(methods_of(request))
        else:
            kind = "NotFound"
            message = f"there is no call {path[:100]}: see the list in the README"
        if path.startswith(native.PREFIX):
            return answer({"error": {"type": kind, "message": message}}, status, headers)
        return answer({**shapes.get(path, {"status": 0}), "error": message}, status, headers)

    shapes = {spec.path: spec.failure for spec in classic.CALLS}
    app = Starlette(
        routes=[
            *classic.routes(context), *native.routes(context), *openapi.routes(SERVICES),
            *consoles.routes(context), Route("/healthz", healthz),
        ],
        exception_handlers={404: refused, 405: refused},
    )
    app.router.redirect_slashes = False
    context.roots = frozenset(service.root for service in SERVICES)
    return Faced(context, SERVICES, app, shapes)


def methods_of(request: Request) -> list[str]:
    """What the path of the request takes."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)
