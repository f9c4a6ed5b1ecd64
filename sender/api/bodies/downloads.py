"""Downloads: files, and disks of images that are sent while they are read."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sender.actors import Actor
from sender.blocking_calls import start_blocking_call
from sender.daemon.context import Services
from sender.daemon.exports.disk_stream import DiskStream, StreamFormat
from sender.imaging.image_file import ImageFile
from sender.refusals import RequestRefusedError, conflict

STREAMS_MAX: Final = 4
"""Disks that are sent at once: each holds a manifest of up to 128 MiB and a block."""

_BINARY: Final = "application/octet-stream"
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def file_response(path: Path, name: str) -> Response:
    """Return a file for a download called ``name``."""
    headers = {"Cache-Control": "no-store"}
    return FileResponse(path, media_type=_BINARY, filename=name, headers=headers)


async def note_download(services: Services, actor: Actor, image_id: str, name: str, format_name: str) -> None:
    """Record in the audit that an image leaves the daemon."""
    detail: dict[str, object] = {"name": name, "format": format_name}
    add = services.store.audit.add
    await services.store.run(add, actor.name, "image.download", f"image {image_id}", detail, actor.request_id)


class _DiskResponse(StreamingResponse):
    """A range of the disk of an open image, which is closed however the response ends."""

    def __init__(
        self,
        image: ImageFile,
        pieces: Iterator[bytes | memoryview],
        status: HTTPStatus,
        headers: dict[str, str],
    ) -> None:
        super().__init__(_in_threads(pieces), status, headers, media_type=_BINARY)
        self._image = image

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["app"].state
        state.disk_stream_count += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            state.disk_stream_count -= 1
            self._image.close()


async def _in_threads(pieces: Iterator[bytes | memoryview]) -> AsyncIterator[bytes | memoryview]:
    while (piece := await start_blocking_call(lambda: next(pieces, None), "download")) is not None:
        yield piece


async def disk_response(request: Request, path: Path, kind: StreamFormat, name: str) -> Response:
    """Return the disk of an image, or the range of it that the client wants.

    A range that can't be understood is ignored, as RFC 9110, 14.2 allows; so is one of another version of the file.

    Raises:
        RequestRefusedError: too many disks are being sent (409), or the range is beyond the end (416).
        DiskcastError: the image can't be read.
    """
    if request.app.state.disk_stream_count >= STREAMS_MAX:
        raise conflict(f"{STREAMS_MAX} disks are being sent already: wait for one")
    image: ImageFile = await start_blocking_call(lambda: ImageFile.open(path), "download")
    try:
        stream = await start_blocking_call(lambda: DiskStream(image, kind), "download")
        total_bytes = stream.total_bytes
        tag = f'"{image.manifest.image_id.hex()}.{kind}"'
        wanted = None
        if request.headers.get("if-range", tag) == tag:
            wanted = byte_range_untrusted(request.headers.get("range", ""), total_bytes)
        start, stop = wanted or (0, total_bytes)
        if start >= stop:
            raise RequestRefusedError(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the file has {total_bytes} bytes"
            )
    except BaseException:
        image.close()
        raise
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-store",
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(name, safe='')}",
        "Content-Length": str(stop - start),
        "ETag": tag,
    }
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total_bytes}"
    status = HTTPStatus.OK if wanted is None else HTTPStatus.PARTIAL_CONTENT
    return _DiskResponse(image, stream.read(start, stop), status, headers)


def byte_range_untrusted(header: str, total_bytes: int) -> tuple[int, int] | None:
    """Return the half-open range that a header ``Range`` names; None to send everything.

    A range beyond the end is empty. Several ranges count as none.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        return max(0, total_bytes - int(last)), total_bytes
    start, stop = int(first), min(total_bytes, int(last) + 1 if last else total_bytes)
    if last and int(last) < start:
        return None
    return min(start, total_bytes), max(stop, min(start, total_bytes))
