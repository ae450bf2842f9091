"""What an error of libvirt means to us: one table by code and domain, never by message text."""

from __future__ import annotations

import errno
import re

import libvirt

from treadle.errors import TreadleError
from treadle.hypervisor.base import (
    HostFull,
    HostRefused,
    HostUnreachable,
    Unsupported,
    VerbTimeout,
)

#: Layers whose errors are about the way to the host, not about the host.
TRANSPORT = frozenset(
    {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_SSH, libvirt.VIR_FROM_LIBSSH}
)

#: `virReportSystemError` puts the errno into int1 of these.
WITH_ERRNO = frozenset({libvirt.VIR_ERR_SYSTEM_ERROR})
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG})

BY_CODE: dict[int, type[TreadleError]] = {
    libvirt.VIR_ERR_NO_SUPPORT: Unsupported,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: Unsupported,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: Unsupported,
    libvirt.VIR_ERR_NO_MEMORY: HostFull,
    libvirt.VIR_ERR_INVALID_CONN: HostUnreachable,
    libvirt.VIR_ERR_NO_CONNECT: HostUnreachable,
    libvirt.VIR_ERR_RPC: HostUnreachable,
    libvirt.VIR_ERR_GNUTLS_ERROR: HostUnreachable,
    libvirt.VIR_ERR_SSH: HostUnreachable,
    libvirt.VIR_ERR_AUTH_FAILED: HostUnreachable,
    libvirt.VIR_ERR_AUTH_CANCELLED: HostUnreachable,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: HostUnreachable,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: VerbTimeout,
    libvirt.VIR_ERR_RESOURCE_BUSY: VerbTimeout,
}

#: Opening fails for good only where the URI itself cannot work.
HOPELESS_AT_OPEN = frozenset(
    {libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONFIG_UNSUPPORTED}
)

MAX_DETAIL = 300
_FRAMES = re.compile(r"([^\w\s])\1{3,}|(?<=\s)@\s|\s@(?=\s)")


def code_of(error: libvirt.libvirtError) -> int:
    """libvirt's error number, -1 where there is none."""
    code: int | None = error.get_error_code()
    return -1 if code is None else code


def detail(error: libvirt.libvirtError) -> str:
    """libvirt's message on one line, at most 300 characters, without the frames that ssh draws."""
    text = " ".join(_FRAMES.sub(" ", str(error)).split())
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 3] + "..."


def is_broken(error: libvirt.libvirtError) -> bool:
    """Whether the error is about the connection: it must be opened again."""
    if error.get_error_domain() in TRANSPORT and code_of(error) in (
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_RPC,
    ):
        return True
    return BY_CODE.get(code_of(error)) is HostUnreachable


def family(error: libvirt.libvirtError) -> type[TreadleError]:
    """The type of ours that an error of libvirt is, once the connection is open."""
    if is_broken(error):
        return HostUnreachable
    if code_of(error) in WITH_ERRNO and error.get_int1() in NO_ROOM:
        return HostFull
    return BY_CODE.get(code_of(error), HostRefused)


def translate(error: libvirt.libvirtError, verb: str) -> TreadleError:
    """The error of ours for one of libvirt's in `verb`."""
    return family(error)(f"{verb}: {detail(error)}")


def translate_open(error: libvirt.libvirtError) -> TreadleError:
    """The error of ours where the connection could not be opened."""
    kind = HostRefused if code_of(error) in HOPELESS_AT_OPEN else HostUnreachable
    return kind(f"cannot connect: {detail(error)}")
