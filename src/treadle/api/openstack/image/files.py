"""The content of images: in by a stream of any length, out by ranges, a block at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, StreamingResponse

from treadle.api.openstack.image.common import seek, seek_own
from treadle.api.openstack.wire import Ask, BadMediaType, Call, Reply
from treadle.errors import Conflict, Forbidden, InvalidInput, RetryLater, TooLarge
from treadle.image import actions, formats, store
from treadle.image.contents import Part
from treadle.image.inspect import ImageRefused
from treadle.image.store import Image, ImageStatus

T = TypeVar("T")
log = structlog.get_logger("treadle.images")

BLOCK = 1 << 20
OCTETS = "application/octet-stream"
SILENCE_S = 60.0
"""How long a client may take for each MiB."""
BEAT_S = 20.0
CONVERT_S = 20.0
"""How long an upload waits for its conversion before it is answered."""
POLL_S = 0.1

_threads = ThreadPoolExecutor(4, thread_name_prefix="image-io")


async def _off_loop(work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *arguments)


class ImageFile(FileResponse):
    """A file in blocks of 1 MiB: a fifth of the time that smaller ones take."""

    chunk_size = BLOCK


# -- in


async def upload(ask: Ask) -> None:
    """Take the content; when this is answered the image can be used."""
    image, key, room = await _begin(ask, "image:upload_image")
    part = None
    try:
        part = await _off_loop(ask.context.contents.part, room)
        await _receive(ask, image, part)
        if formats.STRUCTURED.get(image.disk_format or "") in (None, "qcow2"):
            await _finish(ask, image, key, part)
        else:
            await _store(ask, image, key, part, ImageStatus.SAVING)
            await _converted(ask, image)
    except Exception as error:
        await _undo(ask, image, key, error)
        if isinstance(error, ImageRefused):
            raise InvalidInput("image", image.uuid, str(error)) from error
        raise
    finally:
        if part is not None:
            await _off_loop(part.close)


async def stage(ask: Ask) -> None:
    """Take the content and leave it as it is until it is imported."""
    image, key, room = await _begin(ask, "image:stage_image")
    part = None
    try:
        part = await _off_loop(ask.context.contents.part, room)
        await _receive(ask, image, part)
        await _store(ask, image, key, part, ImageStatus.STAGED)
    except Exception as error:
        await _undo(ask, image, key, error)
        raise
    finally:
        if part is not None:
            await _off_loop(part.close)


async def _begin(ask: Ask, rule: str) -> tuple[Image, str, int]:
    """The image, the key of what is about to come, and how many bytes there is room for."""
    kind = ask.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != OCTETS:
        raise BadMediaType(f"Unsupported Content-Type: use {OCTETS}")
    size = _size(ask)
    largest = ask.context.contents.limits.max_bytes
    if size is not None and size > largest:
        raise TooLarge(f"an image may have {largest} bytes: this one has {size}")

    def write(conn: Any) -> tuple[Image, str, int]:
        found, limits = seek_own(ask, conn, rule), ask.context.image_limits
        key = actions.begin_upload(conn, found, limits, size)
        return found, key, actions.check_room(conn, found.project_id, limits, 0)

    return await ask.write(write)


def _size(ask: Ask) -> int | None:
    """How many bytes the client says that it will send. Errors: `InvalidInput`."""
    sizes = []
    for name in ("content-length", "x-openstack-image-size"):
        text = ask.request.headers.get(name)
        if text is not None:
            if not (text.isascii() and text.isdecimal()) or len(text) > 18:
                raise InvalidInput(name, text, "a number of bytes is expected")
            sizes.append(int(text))
    if len(set(sizes)) > 1:
        raise InvalidInput("x-openstack-image-size", sizes[1], "it is not the Content-Length")
    return sizes[0] if sizes else None


async def _receive(ask: Ask, image: Image, part: Part) -> None:
    """Write the request's body to the file, in blocks, until it ends."""
    loop = asyncio.get_running_loop()
    end = loop.time() + ask.context.contents.limits.seconds
    beat = loop.time() + BEAT_S
    block = bytearray()
    written: asyncio.Future[None] | None = None
    try:
        async with asyncio.timeout(SILENCE_S) as patience:
            async for chunk in ask.request.stream():
                block += chunk
                if len(block) < BLOCK:
                    continue
                # One block is written and hashed while the next one arrives.
                if written is not None:
                    await written
                written = loop.run_in_executor(_threads, part.write, block)
                block = bytearray()
                now = loop.time()
                if now > beat:
                    beat = now + BEAT_S
                    await ask.write(lambda conn: actions.still_uploading(conn, image.id))
                patience.reschedule(min(now + SILENCE_S, max(now, end)))
    except TimeoutError as error:
        raise InvalidInput("body", part.size, "the content came too slowly") from error
    finally:
        if written is not None:
            await asyncio.wait([written])
    if written is not None:
        written.result()
    if block:
        await _off_loop(part.write, block)
    wanted = _size(ask)
    if wanted is not None and wanted != part.size:
        raise InvalidInput("body", part.size, f"{wanted} bytes were announced")


async def _finish(ask: Ask, image: Image, key: str, part: Part) -> None:
    contents = ask.context.contents
    named = (image.disk_format or "raw", image.container_format or "bare")
    content = await _off_loop(contents.keep, key, part.path, part.digests(), *named)
    await ask.write(lambda conn: actions.finish(
        conn, image, key, content, ask.context.image_limits
    ))
    log.info("image_uploaded", image=image.uuid, sha256=content.sha256[:12], bytes=part.size)


async def _store(
    ask: Ask, image: Image, key: str, part: Part, state: ImageStatus
) -> None:
    digests = part.digests()
    await _off_loop(ask.context.contents.put, key, part.path)
    await ask.write(lambda conn: actions.arrived(
        conn, image, key, digests, ask.context.image_limits, state=state
    ))


async def _converted(ask: Ask, image: Image) -> None:
    """Wait a while for the pass that converts it. Errors: `ImageRefused`, `Conflict`."""
    end = asyncio.get_running_loop().time() + CONVERT_S
    while asyncio.get_running_loop().time() < end:
        found = await ask.read(lambda conn: store.get(conn, image.id))
        if found is None or found.state is ImageStatus.DELETED:
            raise Conflict("the image was deleted meanwhile")
        if found.state is ImageStatus.QUEUED:
            raise ImageRefused(found.error or "it cannot be used")
        if found.state is not ImageStatus.SAVING:
            return
        await asyncio.sleep(POLL_S)


async def _undo(ask: Ask, image: Image, key: str, error: Exception) -> None:
    """The image is as it was before the upload, which can be tried again."""
    reason = "the client went away" if isinstance(error, ClientDisconnect) else str(error)
    log.info("image_upload_failed", image=image.uuid, reason=reason)
    await ask.write(lambda conn: actions.give_back(conn, image.id, key, reason))
    try:
        await _off_loop(ask.context.contents.remove, key)
    except (RetryLater, OSError):
        log.warning("image_left_over", key=key)


# -- out


async def download(ask: Ask) -> Reply:
    """Give the bytes that were uploaded."""
    image = await ask.read(lambda conn: seek(ask, conn))
    if image.state is ImageStatus.INACTIVE and not ask.caller.is_admin:
        raise Forbidden("The requested image has been deactivated. Image data download is "
                        "forbidden.")
    if image.state not in (ImageStatus.ACTIVE, ImageStatus.INACTIVE):
        return Reply(status=204)
    ask.check("image:download_image", None)
    headers = {"Content-MD5": image.checksum} if image.checksum else {}
    blobs = ask.context.contents.blobs
    path = Path(image.path or "") if image.blob is None else blobs.local(image.blob)
    if path is not None:
        try:
            facts = await _off_loop(os.stat, path)
        except OSError as error:
            raise RetryLater("the content is not there at this moment") from error
        return Reply(ImageFile(path, 200, headers, OCTETS, stat_result=facts))
    assert image.blob is not None
    assert image.bytes is not None
    return Reply(_streamed(ask, image.blob, image.bytes, headers))


def _streamed(ask: Ask, key: str, size: int, headers: dict[str, str]) -> StreamingResponse:
    """A blob that lies elsewhere, or one range of it."""
    start, stop, status = 0, size, 200
    asked = ask.request.headers.get("range")
    if asked is not None:
        start, stop = _range(asked, size)
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers |= {"Content-Length": str(stop - start), "Accept-Ranges": "bytes"}
    blocks = ask.context.contents.blobs.read(key, start, stop)

    async def blocks_of() -> AsyncIterator[bytes]:
        while (block := await _off_loop(next, blocks, b"")) != b"":
            yield block

    return StreamingResponse(blocks_of(), status, headers, OCTETS)


def _range(text: str, size: int) -> tuple[int, int]:
    """Where a range begins and ends (RFC 9110, section 14.1.2). Errors: `InvalidInput`."""
    unit, _, span = text.partition("=")
    first, separator, last = span.strip().partition("-")
    digits = [one for one in (first, last) if one]
    if unit.strip().lower() != "bytes" or not separator or not digits or any(
        not (one.isascii() and one.isdecimal()) or len(one) > 18 for one in digits
    ):
        raise InvalidInput("Range", text, "one range of bytes is expected")
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
    if start >= stop:
        raise InvalidInput("Range", text, f"the image has {size} bytes")
    return start, stop


_FILE = "/v2/images/{image_id}/file"
CALLS = [
    Call("PUT", _FILE, upload, "image:upload_image", status=204, raw=True),
    Call("GET", _FILE, download, "image:download_image"),
    Call("PUT", "/v2/images/{image_id}/stage", stage, "image:stage_image", status=204, raw=True),
]
