"""libvirt's event loop: one daemon thread for the process, running before the first connection.

Keepalive needs it, and so do events. Its callbacks only hand over; a call to libvirt from one of
them would wait for itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import libvirt

Stopped = Callable[[str, int, int], None]
"""Called with a domain's UUID, the lifecycle event and its detail."""

LEAVES_THE_DEFINITION = frozenset({
    libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STOPPED,
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_CRASHED,
})
"""After these another guest may run, or none; what is stored is as it was."""
STORES_A_DEFINITION = frozenset({
    (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_DEFINED_ADDED),
    (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_DEFINED_UPDATED),
})
"""Events, with their details, that a verb of ours brings about as well."""
CHANGES_NOTHING_READ = frozenset({
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED),
    (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED),
})
"""Events, with their details, after which only the state is another one."""

_started = threading.Lock()
_thread: threading.Thread | None = None


def ensure_loop() -> None:
    """Start the loop unless it runs. Call it before anything is opened."""
    global _thread
    with _started:
        if _thread is not None:
            return
        libvirt.registerErrorHandler(_quiet, None)
        libvirt.virEventRegisterDefaultImpl()
        _thread = threading.Thread(target=_run, name="libvirt-events", daemon=True)
        _thread.start()


def _run() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            continue


def _quiet(_context: object, _error: object) -> None:
    """libvirt prints every error otherwise."""


def listen(
    conn: Any, changed: Stopped, lost: Callable[[], None]
) -> tuple[Callable[[], None], bool]:
    """Have `changed` and `lost` called, from the loop's thread. Returns what undoes it, and
    whether `changed` will be called at all: some drivers tell of nothing.

    What undoes it may block for as long as keepalive lets it: call it from a spare thread.
    """

    def on_lifecycle(_conn: Any, domain: Any, event: int, reason: int, _opaque: object) -> None:
        changed(domain.UUIDString(), event, reason)

    def on_close(_conn: Any, reason: int, _opaque: object) -> None:
        if reason != libvirt.VIR_CONNECT_CLOSE_REASON_CLIENT:
            lost()

    number: int | None = None
    closing = False
    try:
        number = conn.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_lifecycle, None
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
    try:
        conn.registerCloseCallback(on_close, None)
        closing = True
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise

    def undo() -> None:
        try:
            if closing:
                conn.unregisterCloseCallback()
            if number is not None:
                conn.domainEventDeregisterAny(number)
        except libvirt.libvirtError:
            return

    return undo, number is not None
