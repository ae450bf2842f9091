"""Consoles over WebSocket, on the port of everything else: bytes between a client and a guest.

A token in the query lets a client in, once. Between the two sides there is one chunk each way at
most: who does not read is not written to, and after a while is let go. Pages that connect are
served beside it.
"""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from treadle.api.context import Context
from treadle.api.faults import message_of
from treadle.compute import consoles
from treadle.compute.consoles import Place
from treadle.compute.kinds import KIND
from treadle.errors import Forbidden, RetryLater, TreadleError
from treadle.hypervisor.base import ConsoleKind, ConsoleLine

log = structlog.get_logger("treadle.consoles")
T = TypeVar("T")

PREFIX = "/console"
PROTOCOL = "binary"
CHUNK = 1 << 16
MESSAGE_MAX = 1 << 20
"""Largest message that a client may send, in bytes; the server is told so."""
STALL_S = 30.0
"""How long a side may not take what the other one said."""
LOOK_S = 5.0
CLOSE_S = 5.0
OPENING_MAX = 16
TOKEN_MAX = 200

NORMAL, GOING_AWAY, BROKEN, TRY_LATER = 1000, 1001, 1011, 1013
"""Codes of a close (RFC 6455, section 7.4)."""

#: The page runs only what comes from here, and tells nobody where it is: the token is in its URL.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
ASSET_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "max-age=3600"}
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css"}


class TooManyConsoles(RetryLater):
    """This process has as many consoles open as it may."""


class Consoles:
    """The consoles that are open in this process."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._threads = ThreadPoolExecutor(OPENING_MAX, thread_name_prefix="console-open")
        self.open = 0

    async def serve(self, websocket: WebSocket, kind: ConsoleKind) -> None:
        """One client, from its handshake to its end."""
        limits = self._context.settings.console
        if self.open >= limits.max_open:
            return await _turn_away(websocket, TRY_LATER, TooManyConsoles(
                f"{self.open} consoles are open here: close one, or raise console.max_open"
            ))
        self.open += 1
        try:
            found = await self._let_in(websocket, kind)
            if found is not None:
                await self._carry(websocket, *found, limits.idle_s)
        finally:
            self.open -= 1
        return None

    async def _let_in(
        self, websocket: WebSocket, kind: ConsoleKind
    ) -> tuple[Place, ConsoleLine] | None:
        try:
            self._context.check_not_cross_site(websocket)
        except Forbidden as error:
            log.info("console_refused", kind=str(kind), reason=str(error))
            await websocket.close()
            return None
        token = websocket.query_params.get("token", "")
        place = None
        try:
            if 0 < len(token) <= TOKEN_MAX:
                place = await self._context.write(lambda c: consoles.redeem(c, token, kind))
            if place is None:
                # Without a word: that is what websockify's clients take for a token that is wrong.
                await websocket.close()
                return None
            line = await self._on_thread(consoles.connect, self._context.fleet, place, kind)
        except (TreadleError, DBAPIError) as error:
            log.info("console_refused", kind=str(kind), reason=str(error))
            await _turn_away(websocket, BROKEN, error)
            return None
        return place, line

    async def _carry(
        self, websocket: WebSocket, place: Place, line: ConsoleLine, idle_s: float
    ) -> None:
        talk = _Talk(websocket, line)
        code, reason = BROKEN, "the controller broke it off"
        try:
            await websocket.accept(_protocol(websocket))
            line.socket.setblocking(False)
            code, reason = await _first(
                talk.from_guest(), talk.from_client(), self._watch(place, talk, idle_s)
            )
        except (WebSocketDisconnect, OSError, RuntimeError) as error:
            log.debug("console_client_gone", instance=place.uuid, reason=str(error))
        finally:
            await asyncio.shield(self._on_thread(line.close))
            with suppress(TimeoutError, RuntimeError, WebSocketDisconnect, OSError):
                await asyncio.wait_for(websocket.close(code, reason), CLOSE_S)

    async def _watch(self, place: Place, talk: _Talk, idle_s: float) -> tuple[int, str]:
        """Until the instance is no longer there, or nobody has said anything for `idle_s`."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def hint() -> None:
            loop.call_soon_threadsafe(changed.set)

        undo = self._context.signals.listen((KIND, place.uuid), hint)
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), min(LOOK_S, idle_s))
                changed.clear()
                if loop.time() - talk.heard_at >= idle_s:
                    return NORMAL, f"nothing was said for {idle_s:g} s"
                try:
                    now = await self._context.read(lambda c: consoles.place_of(c, place.uuid))
                except (DBAPIError, RetryLater):
                    continue
                if now != place:
                    return GOING_AWAY, "the instance is gone, or on another host"
        finally:
            undo()

    def _on_thread(self, work: Callable[..., T], *args: Any) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *args)


class _Talk:
    """Two directions between one client and one guest."""

    def __init__(self, websocket: WebSocket, line: ConsoleLine) -> None:
        self._websocket = websocket
        self._socket = line.socket
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()

    async def from_guest(self) -> tuple[int, str]:
        """Carry until the guest's side ends, or the client does not read."""
        while True:
            data = await self._loop.sock_recv(self._socket, CHUNK)
            if not data:
                return NORMAL, "the guest's console has ended"
            self.heard_at = self._loop.time()
            try:
                await asyncio.wait_for(self._websocket.send_bytes(data), STALL_S)
            except TimeoutError:
                return GOING_AWAY, "the client does not read"

    async def from_client(self) -> tuple[int, str]:
        """Carry until the client goes, or the guest does not read."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return NORMAL, "the client went"
            data = message.get("bytes") or (message.get("text") or "").encode()
            self.heard_at = self._loop.time()
            try:
                await asyncio.wait_for(self._loop.sock_sendall(self._socket, data), STALL_S)
            except TimeoutError:
                return GOING_AWAY, "the guest does not read"


async def _first(*works: Coroutine[Any, Any, tuple[int, str]]) -> tuple[int, str]:
    """What the first of them gives or raises; the others are ended."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _turn_away(websocket: WebSocket, code: int, error: Exception) -> None:
    """Say why: a browser tells its page nothing of a handshake that fails, but a close's reason."""
    await websocket.accept(_protocol(websocket))
    await websocket.close(code, reason_of(message_of(error)))


def reason_of(text: str) -> str:
    """A sentence as a close frame can carry it: at most 123 bytes (RFC 6455, section 5.5)."""
    return text.encode()[:123].decode("utf-8", "ignore")


def _protocol(websocket: WebSocket) -> str | None:
    offered: Sequence[str] = websocket.scope.get("subprotocols", ())
    return PROTOCOL if PROTOCOL in offered else None


# -- pages


def _asset(path: str) -> Traversable | None:
    """A file that came with the package; None where there is no such one."""
    place: Traversable = files("treadle.web")
    for part in path.split("/"):
        if part in ("", ".", "..") or part.startswith("."):
            return None
        place = place / part
    return place if place.is_file() else None


async def _page(request: Request) -> Response:
    kind = request.path_params["kind"]
    page = _asset(f"{kind}.html")
    if kind not in list(ConsoleKind) or page is None:
        return PlainTextResponse("there is no such console\n", 404)
    return Response(page.read_bytes(), media_type="text/html", headers=PAGE_HEADERS)


async def _file(request: Request) -> Response:
    path = request.path_params["path"]
    found = _asset(path)
    if found is None or path.endswith((".html", ".py")):
        return PlainTextResponse("there is no such file\n", 404)
    suffix = found.name[found.name.rfind("."):]
    kind = TYPES.get(suffix) or mimetypes.guess_type(found.name)[0] or "application/octet-stream"
    return Response(found.read_bytes(), media_type=kind, headers=ASSET_HEADERS)


def routes(context: Context) -> list[BaseRoute]:
    """Its WebSockets and its pages."""
    open_here = Consoles(context)

    def endpoint(kind: ConsoleKind) -> Callable[[WebSocket], Awaitable[None]]:
        async def serve(websocket: WebSocket) -> None:
            await open_here.serve(websocket, kind)

        return serve

    return [
        *(WebSocketRoute(f"{PREFIX}/{kind}", endpoint(kind)) for kind in ConsoleKind),
        Route(f"{PREFIX}/{{kind}}.html", _page),
        Route(f"{PREFIX}/assets/{{path:path}}", _file),
    ]
