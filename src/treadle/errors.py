"""Every error that Treadle raises on purpose, in four families.

The family decides what happens next, once, for every caller:

* `CallerError`: the request is wrong; tell the caller what to change.
* `RetryLater`: nothing is wrong with the request; the same act may succeed later.
* `CannotPlace`: no host can take it now; the message says what is short.
* `Permanent`: it will not work by trying again at the same place.
"""

from __future__ import annotations


class TreadleError(Exception):
    """Base of all of them. `str(error)` is one sentence for people."""


class CallerError(TreadleError):
    """The request itself is wrong."""


class InvalidInput(CallerError):
    """A field has a value that cannot be taken.

    `field` names it, `value` is what came, `mend` says what would be taken.
    """

    def __init__(self, field: str, value: object, mend: str) -> None:
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{field} is {shown}: {mend}")
        self.field = field
        self.value = value
        self.mend = mend


class Unauthorized(CallerError):
    """It is not known who calls: no token, or one that is not valid (any more)."""


class TooLarge(CallerError):
    """The body is larger than what is taken."""


class Overloaded(CallerError):
    """The caller asks too often: again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotFound(CallerError):
    """There is no such thing, or not for this caller."""


class Conflict(CallerError):
    """The thing exists, but its state does not allow this."""


class InvalidState(Conflict):
    """An instance is in a state in which `action` cannot be asked for.

    `attribute` is "vm_state" or "task_state", `state` its value, both in OpenStack's words.
    """

    def __init__(self, message: str, action: str, attribute: str, state: str) -> None:
        super().__init__(message)
        self.action = action
        self.attribute = attribute
        self.state = state


class Locked(Conflict):
    """An instance is locked: only an administrator, or who may unlock it, can change it."""


class Forbidden(CallerError):
    """This caller may not do this."""


class QuotaExceeded(Forbidden):
    """It would be more than the project's quota allows."""


class NotAvailable(CallerError):
    """The call exists, but what it needs is not part of this installation."""


class RetryLater(TreadleError):
    """Nothing is wrong with the request; it did not work now."""


class CannotPlace(TreadleError):
    """No host can take the instance. `reasons` maps a host's name to what it lacks."""

    def __init__(self, message: str, reasons: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = reasons or {}


class Permanent(TreadleError):
    """It will not work by trying again at the same place."""
