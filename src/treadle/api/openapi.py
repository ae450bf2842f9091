"""OpenAPI 3.1 documents, made from the tables of calls that the faces route by.

`GET /docs/openapi.json` lists them; each is at `/docs/openapi/FACE.json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from treadle.api import classic, native
from treadle.api.context import answer
from treadle.api.openstack.wire import TITLES, Call, Schema, Service, keystone_body, shape_of
from treadle.errors import NotFound

Body = dict[str, Any]

LIST = "/docs/openapi.json"
PLACE = "/docs/openapi/{face}.json"
NAME = re.compile(r"\{([^}]+)\}")
JSON = "application/json"
CHANGING = ("POST", "PUT", "PATCH", "DELETE")
TOKEN: Body = {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}}
BEARER: Body = {"operator": {"type": "http", "scheme": "bearer"}}
REFUSED = (400, 401, 403, 404, 409, 413, 429)
"""What a call that asks who calls may be answered with when it does not succeed."""


def documents(services: Iterable[Service]) -> dict[str, Body]:
    """Every face's document by its name: those of OpenStack, `native` and `classic`."""
    made = {service.root.strip("/"): of_service(service) for service in services}
    return {**made, "native": of_native(), "classic": of_classic()}


def routes(services: Iterable[Service]) -> list[Route]:
    """The routes under which the documents are."""
    made: dict[str, Body] = {}
    all_services = tuple(services)

    def known() -> dict[str, Body]:
        if not made:
            made.update(documents(all_services))
        return made

    async def listing(_request: Request) -> Response:
        return answer({"documents": [PLACE.format(face=face) for face in known()]})

    async def document(request: Request) -> Response:
        found = known().get(request.path_params["face"])
        if found is None:
            return answer({"error": f"there are documents of {', '.join(known())}"}, 404)
        return answer(found)

    return [Route(LIST, listing), Route(PLACE, document)]


# -- OpenStack's services


def of_service(service: Service) -> Body:
    """What one of OpenStack's services takes in its highest microversion."""
    highest = service.microversions[1] if service.microversions else 999
    paths: dict[str, Body] = {}
    for call in sorted(service.calls, key=lambda call: call.since):
        # Of several under one path, the one of the highest microversion stays.
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(service, call, highest)
    statuses = {
        int(status) for path in paths.values() for one in path.values()
        for status in one["responses"]
    }
    faults = {
        f"fault_{status}": shape_of(
            keystone_body(status, "", NotFound("")) if status == 401
            else service.fault(status, "", NotFound(""))
        )
        for status in sorted(statuses) if status >= 400
    }
    return _document(service.root.strip("/"), service.root, paths, TOKEN, faults)


def _operation(service: Service, call: Call, highest: int) -> Body:
    made = _described(call.method, call.path, call.run)
    made["parameters"] = _in_path(call.path)
    statuses = set(REFUSED) if call.rule else {400, 404}
    if call.rule:
        made["security"] = [{"token": []}]
        made["x-rule"] = call.rule
    if service.microversions:
        made["x-microversions"] = f"2.{call.since} to 2.{min(call.until, highest)}"
        made["parameters"].append({
            "name": "OpenStack-API-Version", "in": "header",
            "schema": {"type": "string", "const": f"{service.root.strip('/')} 2.{highest}"},
        })
        statuses.add(406)
    if call.query is not None:
        made["parameters"] += _in_query(_newest(call.query, highest))
    if call.method in CHANGING:
        statuses |= {400, 413, 415}
    if call.body is not None:
        made["requestBody"] = {"required": True, **_content(_newest(call.body, highest))}
    elif call.raw:
        made["requestBody"] = {"content": {"application/octet-stream": {}}}
    if not call.rule and call.method == "POST":
        statuses |= {401, 403, 429}
    succeeds: Body = {"description": "As asked."}
    if call.answer is not None:
        succeeds |= _content(dict(call.answer))
    made["responses"] = {str(call.status): succeeds} | {
        str(status): {
            "description": TITLES[status],
            **_content({"$ref": f"#/components/schemas/fault_{status}"}),
        }
        for status in sorted(statuses)
    }
    return made


def _newest(schema: Schema, highest: int) -> Body:
    """What holds in the highest microversion."""
    return [step for since, step in schema.steps if since <= highest][-1]


def _in_query(schema: Body) -> list[Body]:
    """The properties of a query's schema, each of which is a list of values there."""
    return [
        {"name": name, "in": "query", "schema": one.get("items", one)}
        for name, one in schema.get("properties", {}).items()
    ]


# -- our own


def of_native() -> Body:
    """The native API."""
    paths: dict[str, Body] = {}
    kinds = {kind for kind in native.BODIES.values()}
    _, components = msgspec.json.schema_components(
        sorted(kinds, key=lambda kind: kind.__name__),
        ref_template="#/components/schemas/{name}",
    )
    components["fault"] = shape_of({"error": {"type": "", "message": ""}})
    for method, path, run, status in native.ROUTES:
        made = _described(method, path, run)
        made["parameters"] = _in_path(path)
        made["security"] = [{"operator": []}]
        kind = native.BODIES.get((method, path))
        if kind is not None:
            reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
            made["requestBody"] = {"required": True, **_content(reference)}
        made["responses"] = {str(status): {"description": "As asked."}} | {
            str(one): {
                "description": TITLES[one], **_content({"$ref": "#/components/schemas/fault"}),
            }
            for one in (400, 403, 404, 409, 503)
        }
        paths.setdefault(path, {})[method.lower()] = made
    return _document("native", native.PREFIX, paths, BEARER, components)


def of_classic() -> Body:
    """The classic API: GET, and POST with a form where the call changes something."""
    paths: dict[str, Body] = {}
    for call in classic.CALLS:
        failure: Body = {"error": {"type": "string", "minLength": 1}}
        if call.key:
            failure[call.key] = {"const": call.zero}
        refused = {
            "type": "object", "properties": failure, "required": sorted(failure),
            "additionalProperties": False,
        }
        made = _described("GET", call.path, call.run)
        made["parameters"] = [
            {"name": name, "in": "query", "schema": {"type": "string"}}
            for name in sorted(call.arguments)
        ]
        made["responses"] = {"200": {"description": "As asked.", **_content({"type": "object"})}}
        made["responses"] |= {
            str(status): {"description": TITLES[status], **_content(refused)}
            for status in (400, 403, 404, 409, 503)
        }
        paths[call.path] = {"get": made}
    return _document("classic", "", paths, {}, {})


# -- parts


def _document(
    name: str, root: str, paths: Body, security: Body, schemas: Mapping[str, Any]
) -> Body:
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Treadle: {name}", "version": version("treadle")},
        "servers": [{"url": root or "/"}],
        "paths": paths,
        "components": {"securitySchemes": security, "schemas": dict(schemas)},
    }


def _described(method: str, path: str, run: Callable[..., Any]) -> Body:
    words = re.sub(r"[^A-Za-z0-9]+", "_", path).strip("_")
    said = (run.__doc__ or "").strip().splitlines()
    return {"operationId": f"{method.lower()}_{words}", "summary": said[0] if said else ""}


def _in_path(path: str) -> list[Body]:
    return [
        {"name": name, "in": "path", "required": True,
         "schema": {"type": "string", "minLength": 1}}
        for name in NAME.findall(path)
    ]


def _content(schema: Mapping[str, Any]) -> Body:
    return {"content": {JSON: {"schema": dict(schema)}}}
