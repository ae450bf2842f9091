"""How compute says that something went wrong."""

from __future__ import annotations

from typing import Any

KEYS = {
    400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound",
    405: "badMethod", 409: "conflictingRequest", 413: "overLimit", 415: "badMediaType",
    429: "overLimit", 501: "notImplemented", 503: "serviceUnavailable",
}


def fault_body(status: int, message: str, _error: Exception) -> Any:
    """An error's body: one key that names its kind."""
    return {KEYS.get(status, "computeFault"): {"code": status, "message": message}}
