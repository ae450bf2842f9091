"""What OpenStack's APIs have in common: one table of calls a service, and what carries it.

A service finds the call for a path, learns who asks, checks the rule, the microversion and the
body, runs the handler, and renders what it gives or raises. Handlers know nothing of HTTP but what
`Ask` holds.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode
from uuid import uuid4

import jsonschema_rs
import msgspec
import sqlalchemy as sa
import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from treadle.api.context import Context
from treadle.api.faults import message_of, status_of
from treadle.errors import CallerError, InvalidInput, Overloaded, TooLarge, Unauthorized
from treadle.identity.model import ANYBODY, Caller
from treadle.identity.rules import check_access

log = structlog.get_logger("treadle.api")
T = TypeVar("T")

BODY_MAX = 128 * 1024
EVER = 999
"""No last minor microversion."""
VERSION = re.compile(r"([0-9]+)\.([0-9]+)")
to_json = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
JSON = "application/json"

Handler = Callable[["Ask"], Awaitable["Reply | dict[str, Any] | None"]]
Query = Mapping[str, Sequence[str]]


class BadMethod(CallerError):
    """The path is known, the method is not. `allowed` are those that are."""

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(f"this path takes {', '.join(allowed)} only")
        self.allowed = tuple(allowed)


class NoSuchPath(CallerError):
    """No call has this path, or not in this microversion."""


class BadMediaType(CallerError):
    """The body is of a type that is not taken."""


class NotAcceptable(CallerError):
    """The microversion is out of range."""


class Gone(CallerError):
    """The call was there in older versions."""


class NotSupported(CallerError):
    """The call is known, and this cloud cannot do it."""


STATUS = {
    BadMethod: 405, NoSuchPath: 404, BadMediaType: 415, NotAcceptable: 406, Gone: 410,
    NotSupported: 501,
}


class Schema:
    """JSON Schemas of one body or query, by the microversion from which each holds.

    Each is compiled when it is first asked for: all of them take 20 MB, and few are ever used.
    """

    def __init__(self, *steps: tuple[int, Mapping[str, Any]]) -> None:
        self.steps = [(since, dict(schema)) for since, schema in sorted(steps, key=lambda s: s[0])]
        self._compiled: dict[int, Any] = {}

    def check(self, value: Any, minor: int) -> None:
        """Raise `InvalidInput` for the first fault found in `value`."""
        number = sum(since <= minor for since, _ in self.steps) - 1
        if number < 0:
            return
        validator = self._compiled.get(number)
        if validator is None:
            validator = jsonschema_rs.validator_for(self.steps[number][1])
            self._compiled[number] = validator
        if validator.is_valid(value):
            return
        error = next(iter(validator.iter_errors(value)))
        where = "/".join(str(part) for part in error.instance_path) or "body"
        found: Any = value
        for part in error.instance_path:
            found = found[part]
        raise InvalidInput(f"Invalid input for field/attribute {where}", found, error.message)


ANY_QUERY = Schema((1, {}))
"""For a call that looks at its query itself."""
NO_QUERY = Schema((1, {"type": "object", "additionalProperties": False}))


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a service. `path` is below the service's root; `{name}` takes one segment.

    `rule` is asked before the handler runs; empty: nobody is asked who he is. `since` and `until`
    are the first and last minor microversion that have the call. `raw`: the handler reads the
    body's stream itself. `answer` is the JSON Schema of what a success gives, for the OpenAPI
    document; None: nothing, or what other documents describe.
    """

    method: str
    path: str
    run: Handler
    rule: str
    status: int = 200
    body: Schema | None = None
    query: Schema | None = None
    since: int = 1
    until: int = EVER
    raw: bool = False
    answer: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Reply:
    """An answer that is more than a body. Bytes are sent as they are, and so is a `Response`."""

    body: Any = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    media: str = JSON


@dataclass
class Ask:
    """One request, on its way through a handler."""

    context: Context
    call: Call
    request: Request
    path: Mapping[str, str]
    root: str
    request_id: str
    minor: int = 1
    caller: Caller = ANYBODY
    body: Any = None

    @cached_property
    def query(self) -> Query:
        """The query's arguments, each with all its values in order."""
        found: dict[str, list[str]] = {}
        text = self.request.scope["query_string"].decode("latin-1")
        if text:
            try:
                pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=200)
            except ValueError as error:
                raise InvalidInput("query", text[:60], "it is not a query in UTF-8") from error
            for name, value in pairs:
                found.setdefault(name, []).append(value)
        return found

    def one(self, name: str) -> str | None:
        """The last value of a query argument, None where it is not there."""
        values = self.query.get(name)
        return values[-1] if values else None

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """A read on one snapshot."""
        return await self.context.read(work)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """A transaction."""
        return await self.context.write(work)

    def allows(self, rule: str, target: Mapping[str, Any] | None = None) -> bool:
        """Whether the caller may do what `rule` names, to `target`."""
        return self.context.rules.allows(rule, self.caller, target)

    def check(self, rule: str, target: Mapping[str, Any] | None = None) -> None:
        """Errors: `Forbidden` where the caller may not do what `rule` names to `target`."""
        self.context.rules.check(rule, self.caller, target)


@dataclass(slots=True)
class _Node:
    names: dict[str, _Node] = field(default_factory=dict)
    any: _Node | None = None
    calls: dict[str, list[tuple[Call, tuple[str, ...]]]] = field(default_factory=dict)


Faces = Callable[[int, str, Exception], Any]


def keystone_body(status: int, message: str, _error: Exception) -> Any:
    """An error as identity says it; every service says 401 this way."""
    return {"error": {"code": status, "title": TITLES.get(status, "Error"), "message": message}}


TITLES = {
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 409: "Conflict",
    410: "Gone", 413: "Request Entity Too Large", 415: "Unsupported Media Type",
    429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable",
}


class Service:
    """An ASGI application for everything below one root such as /compute."""

    def __init__(
        self, root: str, calls: Iterable[Call], *, fault: Faces = keystone_body,
        microversions: tuple[int, int] | None = None, header: str = "", strict: int = 1000,
    ) -> None:
        """`fault` renders errors. `microversions` is the range of minors (compute alone has one),
        `header` the service's name in OpenStack-API-Version. From the minor `strict` on, a GET
        whose call has no schema of a query takes none."""
        self.root = root
        self.calls = tuple(calls)
        self.fault = fault
        self.microversions = microversions
        self._header = header
        self._strict = strict
        self._tree = _Node()
        for call in self.calls:
            self._add(call)

    def _add(self, call: Call) -> None:
        node, names = self._tree, []
        for part in _parts(call.path):
            if part.startswith("{"):
                names.append(part[1:-1])
                node.any = node.any or _Node()
                node = node.any
            else:
                node = node.names.setdefault(part, _Node())
        node.calls.setdefault(call.method, []).append((call, tuple(names)))

    def find(self, method: str, path: str, minor: int) -> tuple[Call, Mapping[str, str]]:
        """The call for a path. Errors: `NoSuchPath`, `BadMethod`."""
        if "%00" in path:  # nothing has a NUL in its name, and PostgreSQL takes none
            raise NoSuchPath("The resource could not be found.")
        node, values = self._tree, []
        for part in _parts(path):
            following = node.names.get(part)
            if following is None:
                following = node.any
                values.append(part)
            if following is None:
                raise NoSuchPath("The resource could not be found.")
            node = following
        if not node.calls:
            raise NoSuchPath("The resource could not be found.")
        known = node.calls.get(method)
        if known is None and method == "HEAD":
            known = node.calls.get("GET")
        # A slash at the end: the client has lost the id of what it means. Not so of versions.
        lost = len(path) > 1 and path.endswith("/")
        if known is None and not lost:
            raise BadMethod(sorted(node.calls))
        for call, names in known or ():
            if call.since <= minor <= call.until and not (lost and call.rule):
                return call, dict(zip(names, map(unquote, values), strict=True))
        raise NoSuchPath("The resource could not be found.")

    async def respond(self, context: Context, request: Request) -> Response:
        """The answer to one request; whatever goes wrong, it is an answer."""
        request_id = f"req-{uuid4()}"
        # Not the decoded path: a name may have a slash, or a percent sign, of its own.
        path = request.scope["raw_path"].decode("latin-1")[len(self.root):]
        minor: int | None = 1 if self.microversions else EVER
        status, body, media, extra = 500, None, JSON, {}
        try:
            if self.microversions:
                minor = None
                minor = self._minor(request.headers)
            call, values = self.find(request.method, path, minor or 1)
            ask = Ask(
                context, call, request, values, context.base(request) + self.root, request_id,
                minor or 1,
            )
            if call.rule:
                ask.caller = await self._caller(context, request)
                check_access(ask.caller, self.root.strip("/"), request.method, path)
                context.rules.check(call.rule, ask.caller, None)
            if call.query is not None:
                call.query.check(ask.query, ask.minor)
            elif ask.minor >= self._strict and call.method == "GET" and call.rule:
                NO_QUERY.check(ask.query, ask.minor)
            if not call.raw and request.method in ("POST", "PUT", "PATCH", "DELETE"):
                ask.body = await self._body(request, call, ask.minor)
            made = await call.run(ask)
            status = call.status
            if isinstance(made, Reply):
                status = made.status or status
                body, media, extra = made.body, made.media, made.headers
            else:
                body = made
        except ClientDisconnect:
            status, body = 400, None
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
            status, body, extra = self._refusal(context, request, error)
            media = JSON
        headers = {"x-openstack-request-id": request_id, **extra}
        if self.microversions:
            headers |= self._version_headers(request_id, minor)
        if body is None:
            return _Answer(b"", status, headers, None)
        if isinstance(body, Response):
            body.headers.update(headers)
            return body
        content = body if isinstance(body, bytes) else to_json(body)
        return _Answer(content, status, headers, media)

    def _version_headers(self, request_id: str, minor: int | None) -> dict[str, str]:
        names = "OpenStack-API-Version, X-OpenStack-Nova-API-Version"
        headers = {"x-compute-request-id": request_id, "Vary": names}
        if minor is not None:
            headers["OpenStack-API-Version"] = f"{self._header} 2.{minor}"
            headers["X-OpenStack-Nova-API-Version"] = f"2.{minor}"
        return headers

    def _minor(self, headers: Headers) -> int:
        """The minor microversion asked for. Errors: `InvalidInput`, `NotAcceptable`."""
        assert self.microversions is not None
        asked = None
        for name, _, value in (
            one.strip().partition(" ") for one in
            headers.get("openstack-api-version", "").split(",")
        ):
            if name.lower() == self._header:
                asked = value.strip()
        if asked is None:
            asked = headers.get("x-openstack-nova-api-version")
        if asked is None:
            return self.microversions[0]
        if asked.lower() == "latest":
            return self.microversions[1]
        matched = VERSION.fullmatch(asked)
        if matched is None:
            raise InvalidInput("API Version String", asked, "is of invalid format: use MAJOR.MINOR")
        low, high = self.microversions
        if int(matched[1]) != 2 or not low <= int(matched[2]) <= high:
            raise NotAcceptable(
                f"Version {asked} is not supported by the API. Minimum is 2.{low} and maximum is "
                f"2.{high}."
            )
        return int(matched[2])

    async def _caller(self, context: Context, request: Request) -> Caller:
        token = request.headers.get("x-auth-token")
        if not token:
            raise Unauthorized("The request you have made requires authentication.")
        return await context.tokens.check(token)

    async def _body(self, request: Request, call: Call, minor: int) -> Any:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > BODY_MAX:
                raise TooLarge(f"Request is too large: at most {BODY_MAX} bytes are taken.")
        body = None
        if content:
            kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
            if kind != JSON and not kind.endswith(("+json", "-json-patch")):
                raise BadMediaType(f"Unsupported Content-Type {kind[:80]}: use {JSON}")
            try:
                body = _decode(bytes(content))
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
                raise InvalidInput("body", bytes(content[:60]).decode("latin-1"),
                                   "malformed request body: it is not JSON") from error
        if call.body is not None:
            if not isinstance(body, dict | list):
                raise InvalidInput("body", body, "malformed request body: a JSON object is wanted")
            call.body.check(body, minor)
        return body

    def _refusal(
        self, context: Context, request: Request, error: Exception
    ) -> tuple[int, Any, dict[str, str]]:
        status = STATUS.get(type(error)) or status_of(error)
        message, headers = message_of(error), {}
        if isinstance(error, CallerError):
            message = str(error)
        if status == 500:
            log.exception("request_failed", path=str(request.scope["path"])[:200])
        if isinstance(error, BadMethod):
            headers["Allow"] = ", ".join(error.allowed)
        if isinstance(error, Overloaded):
            headers["Retry-After"] = str(error.retry_after)
        if status == 401:
            headers["WWW-Authenticate"] = f'Keystone uri="{context.base(request)}/identity"'
            return status, keystone_body(status, message, error), headers
        return status, self.fault(status, message, error), headers


class _Answer(Response):
    """A response whose headers are known beforehand; an empty one has no type."""

    def __init__(
        self, content: bytes, status: int, headers: Mapping[str, str], media: str | None
    ) -> None:
        self.status_code, self.body, self.background = status, content, None
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        if status not in (204, 304):
            raw.append((b"content-length", str(len(content)).encode()))
        if media is not None:
            raw.append((b"content-type", media.encode("latin-1")))
        self.raw_headers = raw


class Faced:
    """Sends a request to the service whose root its path has, or to the rest."""

    def __init__(
        self, context: Context, services: Iterable[Service], rest: Starlette,
        rests: Container[str] = (),
    ) -> None:
        """`rests` are paths of the rest that begin like a service's root."""
        self._context = context
        self._rests = rests
        self._services = {service.root.strip("/"): service for service in services}
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "http":
            service = self._services.get(scope["path"][1:].partition("/")[0])
            if service is not None and scope["path"] not in self._rests:
                request = Request(scope, receive, send)
                response = await service.respond(self._context, request)
                await response(scope, receive, send)
                return
        await self._rest(scope, receive, send)

    @property
    def routes(self) -> Iterable[BaseRoute]:
        """Every route of the rest."""
        return tuple(self._rest.routes)

    @property
    def calls(self) -> Iterable[tuple[Service, Call]]:
        """Every call of every service."""
        return ((service, call) for service in self._services.values() for call in service.calls)


def _parts(path: str) -> list[str]:
    return path.strip("/").split("/") if path.strip("/") else []


def shape_of(example: Any, *, whole: bool = True) -> dict[str, Any]:
    """The JSON Schema of what has the keys and types of `example`, and no others.

    Not `whole`: the keys of the outermost object need not all be there. None and the empty list
    stand for anything.
    """
    if isinstance(example, dict):
        return {
            "type": "object", "properties": {key: shape_of(one) for key, one in example.items()},
            "additionalProperties": False, **({"required": sorted(example)} if whole else {}),
        }
    if isinstance(example, list):
        return {"type": "array", **({"items": shape_of(example[0])} if example else {})}
    kinds: tuple[tuple[type, str], ...] = (
        (str, "string"), (bool, "boolean"), (int, "integer"), (float, "number"),
    )
    return next(({"type": name} for kind, name in kinds if isinstance(example, kind)), {})


# -- what pages have in common


@dataclass(frozen=True, slots=True)
class Page:
    """What of a list is asked for. `limit` is what will be given, `asked` what the caller said."""

    limit: int
    asked: int | None
    marker: str | None
    sort: tuple[tuple[str, bool], ...]
    """Pairs of a key and whether it is descending."""


def page_of(
    ask: Ask, *, most: int = 1000, keys: Mapping[str, str] | None = None,
    default: tuple[tuple[str, bool], ...] = (("created_at", True), ("id", True)),
) -> Page:
    """Read limit, marker and the sort keys. `keys` maps the caller's words to ours.

    Errors: `InvalidInput`.
    """
    asked = None
    text = ask.one("limit")
    if text is not None:
        if not (text.isascii() and text.isdecimal()) or len(text) > 9:
            raise InvalidInput("limit", text, "it must be a whole number from 0 up")
        asked = int(text)
    sort: list[tuple[str, bool]] = []
    known = keys or {}
    directions = ask.query.get("sort_dir", ())
    for number, key in enumerate(ask.query.get("sort_key", ())):
        if key not in known:
            raise InvalidInput("sort_key", key, f"it must be one of {', '.join(sorted(known))}")
        way = directions[min(number, len(directions) - 1)] if directions else "desc"
        if way not in ("asc", "desc"):
            raise InvalidInput("sort_dir", way, "it must be asc or desc")
        sort.append((known[key], way == "desc"))
    chosen = tuple(sort) or default
    if sort and chosen[-1][0] != "id":
        chosen = (*chosen, ("id", chosen[-1][1]))
    return Page(most if asked is None else min(most, asked), asked, ask.one("marker"), chosen)


def next_link(ask: Ask, path: str, marker: str) -> str:
    """The address of the following page: the caller's own query with another marker."""
    pairs = [(n, v) for n, values in ask.query.items() if n != "marker" for v in values]
    return f"{ask.root}{path}?{urlencode([*pairs, ('marker', marker)])}"
