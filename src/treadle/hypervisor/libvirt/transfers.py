"""The root disk of a guest that is off, carried from one host to another.

The controller stands between: it reads each volume from the source as a stream of libvirt's and
writes it to the target as another, a block at a time, holes as holes. The hosts need no way to each
other. Volumes are carried as they are, so what lies under them must have the same path there.
Both connections are the transfer's own: streams hold up whatever else goes over theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import libvirt

from treadle.hypervisor.base import HostRefused, HostUnreachable, Unsupported
from treadle.hypervisor.libvirt import errors, sharing, storage
from treadle.hypervisor.libvirt.connection import Attempt, Connection, LibvirtOptions, Link

KINDS = ("QEMU", "LXC")
HOLE = -3
"""What libvirt answers in place of bytes where a hole begins."""

Side = tuple[str, LibvirtOptions, Callable[[Link, Attempt], Any]]
"""A host's URI, how to reach it, and what gives its pool, or refuses."""
Piece = bytes | int
"""Bytes, or the length of a hole."""


def send(
    source: Side, target: Side, uuid: str, seconds: float, tell: Callable[[int, int], None]
) -> None:
    """Carry the volumes with the guest's data, in place of what is at the target of it. The time
    for it grows with their size. `tell` gets how many bytes are there, and of how many."""
    source_uri, source_options, here_pool = source
    target_uri, target_options, there_pool = target
    here, there = Connection(source_uri, source_options), Connection(target_uri, target_options)
    slowest = min(source_options.deadlines.copy_mib_s, target_options.deadlines.copy_mib_s)

    def at_target(link: Link, attempt: Attempt) -> None:
        def at_source(home: Link, inner: Attempt) -> None:
            if home.kind != link.kind or link.kind not in KINDS:
                raise Unsupported(f"no disk goes from a {home.kind} host to a {link.kind} host")
            volumes = _volumes(inner, here_pool(home, inner), uuid)
            total = sum(size for _, size in volumes)
            for one in (attempt, inner):
                one.extend(total / storage.MIB / slowest)
            sink = _Sink(link, attempt, there_pool)
            sink.clear(uuid)
            done = 0
            for volume, size in volumes:
                with sink.writing(volume.name(), size) as put:
                    for piece in _pieces(home, inner, volume):
                        put(piece)
                        done += piece if isinstance(piece, int) else len(piece)
                        tell(done, total)
            sink.settle()

        here.run("send_disk", attempt.left(), at_source)

    try:
        there.run("send_disk", seconds, at_target)
    finally:
        here.close()
        there.close()


def _volumes(attempt: Attempt, pool: Any, uuid: str) -> list[tuple[Any, int]]:
    """Those with the guest's data and their files' sizes in bytes. Errors: `HostRefused` where
    there is none."""
    flag = libvirt.VIR_STORAGE_VOL_GET_PHYSICAL
    found = [
        (volume, int(attempt(volume.infoFlags, flag)[2]))
        for volume in attempt(pool.listAllVolumes, 0)
        if volume.name().startswith(uuid) and storage.is_disk(volume.name())
    ]
    if not found:
        raise HostRefused("its disk is gone")
    return found


def _pieces(link: Link, attempt: Attempt, volume: Any) -> Iterator[Piece]:
    """A volume's file from its beginning to its end."""
    stream = attempt(link.conn.newStream, 0)
    ended = False
    try:
        attempt(volume.download, stream, 0, 0, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
        while True:
            found = attempt(
                stream.recvFlags, storage.BLOCK, libvirt.VIR_STREAM_RECV_STOP_AT_HOLE
            )
            if found == HOLE:
                yield int(attempt(stream.recvHole, 0))
            elif found:
                yield found
            else:
                break
        attempt(stream.finish)
        ended = True
    finally:
        if not ended:
            storage.abort_quietly(stream)


class _Sink:
    """The target's side. Its errors are told from those of the source."""

    def __init__(
        self, link: Link, attempt: Attempt, pool_of: Callable[[Link, Attempt], Any]
    ) -> None:
        self._link = link
        self._attempt = attempt
        with self._named():
            self._pool = pool_of(link, attempt)

    def clear(self, uuid: str) -> None:
        """Remove what is there of it."""
        with self._named():
            sharing.clear(self._link, self._attempt, self._pool, uuid)

    @contextmanager
    def writing(self, name: str, size: int) -> Iterator[Callable[[Piece], None]]:
        """A new volume whose file will have `size` bytes, to put pieces into."""
        attempt = self._attempt
        with self._named():
            volume = storage.create_raw(attempt, self._pool, name, size)
            stream = attempt(self._link.conn.newStream, 0)
            flag = libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM
            attempt(volume.upload, stream, 0, size, flag)

        def put(piece: Piece) -> None:
            with self._named():
                if isinstance(piece, int):
                    attempt(stream.sendHole, piece, 0)
                else:
                    storage.send_all(attempt, stream, piece)

        ended = False
        try:
            yield put
            with self._named():
                attempt(stream.finish)
            ended = True
        finally:
            if not ended:
                storage.abort_quietly(stream)

    def settle(self) -> None:
        """They were made as so many bytes: have libvirt see what they are."""
        with self._named():
            storage.refresh(self._attempt, self._pool)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except libvirt.libvirtError as error:
            if errors.is_broken(error) or not self._link.alive():
                raise HostUnreachable(f"the target: {errors.detail(error)}") from error
            pool = getattr(self, "_pool", None)
            if pool is not None:
                storage.refuse_if_full(self._attempt, pool, error)
            raise errors.translate(error, "the target") from error
