"""Answers held to what the services' own tables say of them."""

from __future__ import annotations

from typing import Any

import jsonschema_rs

from treadle.api.openstack.wire import Service

_known: dict[int, Any] = {}


def hold(service: Service, method: str, path: str, body: Any, minor: int = 999) -> None:
    """Fail where a success is not as the call's schema says. `path` is below the service's root."""
    call, _ = service.find(method, path.partition("?")[0], minor)
    if call.answer is None or body is None:
        return
    validator = _known.get(id(call))
    if validator is None:
        validator = _known[id(call)] = jsonschema_rs.validator_for(dict(call.answer))
    for error in validator.iter_errors(body):
        raise AssertionError((method, path, error.message, list(error.instance_path)))
