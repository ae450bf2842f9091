"""The HTTP application: every face on one port."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from treadle.api import classic, native
from treadle.api.context import Context, answer
from treadle.placement import ledger


def make_app(context: Context) -> Starlette:
    """The ASGI application over `context`."""

    async def healthz(_request: Request) -> Response:
        hosts = await context.read(ledger.list_hosts)
        return answer({"status": "ok", "hosts_up": sum(host.state == "up" for host in hosts),
                       "hosts": len(hosts)})

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path[:100]
        if error.status_code == 405:
            message = f"{path} does not take {request.method}"
        else:
            message = f"there is no call {path}: see the list in the README"
        if path.startswith(native.PREFIX):
            return answer({"error": {"type": "NotFound", "message": message}}, error.status_code)
        return answer({"status": 0, "error": message}, error.status_code)

    return Starlette(
        routes=[*classic.routes(context), *native.routes(context), Route("/healthz", healthz)],
        exception_handlers={404: refused, 405: refused},
    )
