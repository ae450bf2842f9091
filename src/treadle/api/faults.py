"""The one table: which error becomes which HTTP status, on every face."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from treadle.errors import (
    CannotPlace,
    Conflict,
    Forbidden,
    InvalidInput,
    NotAvailable,
    NotFound,
    Overloaded,
    Permanent,
    RetryLater,
    TooLarge,
    Unauthorized,
)

STATUS: tuple[tuple[type[Exception], int], ...] = (
    (InvalidInput, 400),
    (Unauthorized, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (TooLarge, 413),
    (Overloaded, 429),
    (NotAvailable, 503),
    (CannotPlace, 503),
    (RetryLater, 503),
    (Permanent, 503),
    (DBAPIError, 503),
)


def status_of(error: Exception) -> int:
    """The status for an error; 500 for one that nobody raised on purpose."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def message_of(error: Exception) -> str:
    """What the caller is told. Of an error that is not ours, nothing of its text."""
    if isinstance(error, DBAPIError):
        return "the database does not answer: try again in a moment"
    if status_of(error) == 500:
        return "something went wrong inside; it has been logged"
    return str(error)
