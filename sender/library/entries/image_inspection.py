"""Contents and differences of the library's images, read in the background, one image at a time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from pydantic import TypeAdapter, ValidationError

from protocol.errors import DiskcastError
from sender.blocking_calls import start_blocking_call
from sender.imaging.contents.image_contents import (
    CONTENTS_VERSION,
    ContentsState,
    FoundContents,
    ImageContents,
    read_contents,
)
from sender.imaging.contents.image_diff import ImageDiff, diff_images
from sender.imaging.image_file import ImageFile
from sender.refusals import conflict

if TYPE_CHECKING:
    from sender.store.store import Store

ANSWER_S: Final = 2.0
"""Time that a request waits for contents that are being read."""

READ_S: Final = 120.0
"""Time limit of reading one image: a dead file server must not stop all others."""

_WAITING_MAX: Final = 64
"""Images that wait to be read; a request for another one is answered at once and starts nothing."""

_KEPT_MAX: Final = 1000
"""Contents in memory: some KB each."""

_ADAPTER: Final = TypeAdapter(ImageContents)
_log = structlog.get_logger(__name__)


class ImageInspection:
    """Reader of images. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store | None, path_of: Callable[[str], Path | None]) -> None:
        """Read the files that ``path_of`` returns for image ids, and keep results in ``store``."""
        self._store = store
        self._path_of = path_of
        self._found: dict[str, FoundContents] = {}
        self._waiting: asyncio.Queue[str] = asyncio.Queue(_WAITING_MAX)
        self._pending: dict[str, asyncio.Event] = {}
        self._comparing = asyncio.Semaphore(1)

    async def run(self) -> None:
        """Read the contents of requested images, until cancelled."""
        while True:
            image_id = await self._waiting.get()
            found = await self._read(image_id)
            while len(self._found) >= _KEPT_MAX:
                del self._found[next(iter(self._found))]
            self._found[image_id] = found
            self._pending.pop(image_id).set()

    async def contents(self, image_id: str) -> FoundContents:
        """Return the contents of an image; start to read them if they aren't known."""
        found = self._found.get(image_id)
        if found is not None and (found.state is ContentsState.READY or self._path_of(image_id) is None):
            return found
        if image_id not in self._pending:
            if (stored := await self._stored(image_id)) is not None:
                self._found[image_id] = stored
                return stored
            if self._path_of(image_id) is None:
                return FoundContents(ContentsState.UNAVAILABLE, problem="fetch the image first")
            # Another request may have started the reading while the database was asked.
            if image_id not in self._pending:
                with contextlib.suppress(asyncio.QueueFull):
                    self._waiting.put_nowait(image_id)
                    self._pending[image_id] = asyncio.Event()
        if (pending := self._pending.get(image_id)) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await pending.wait()
        return self._found.get(image_id) or FoundContents(ContentsState.READING)

    async def diff(self, older_id: str, newer_id: str) -> ImageDiff:
        """Compare two images of which this machine has the files.

        Raises:
            RequestRefusedError: a file is missing or can't be read.
        """
        older, newer = self._path_of(older_id), self._path_of(newer_id)
        if older is None or newer is None:
            raise conflict("both images must be on the daemon's disk: fetch them first")
        async with self._comparing:
            call = start_blocking_call(functools.partial(_diff, older, newer), "image comparison")
            try:
                async with asyncio.timeout(READ_S):
                    return await call
            except (DiskcastError, OSError) as error:
                raise conflict(f"the images can't be compared: {error}") from error
            except TimeoutError as error:
                raise conflict("the disk of the images doesn't answer: check it") from error

    async def _read(self, image_id: str) -> FoundContents:
        path = self._path_of(image_id)
        if path is None:
            return FoundContents(ContentsState.UNAVAILABLE, problem="the image's file is gone")
        try:
            async with asyncio.timeout(READ_S):
                contents = await start_blocking_call(functools.partial(_contents, path), "image contents")
        except (DiskcastError, OSError, TimeoutError) as error:
            reason = str(error) or f"its disk didn't answer within {READ_S:g} s"
            _log.warning("image_contents_unreadable", image_id=image_id, reason=reason)
            return FoundContents(ContentsState.UNAVAILABLE, problem=reason)
        if self._store is not None:
            with contextlib.suppress(DiskcastError):  # read again after a restart
                values = _ADAPTER.dump_python(contents, mode="json")
                put = self._store.image_entries.put_contents
                await self._store.run(put, image_id, CONTENTS_VERSION, values)
        return FoundContents(ContentsState.READY, contents)

    async def _stored(self, image_id: str) -> FoundContents | None:
        if self._store is None:
            return None
        with contextlib.suppress(DiskcastError, ValidationError):
            get = self._store.image_entries.contents
            values = await self._store.run(get, image_id, CONTENTS_VERSION)
            if values is not None:
                return FoundContents(ContentsState.READY, _ADAPTER.validate_python(values))
        return None


def _contents(path: Path) -> ImageContents:
    with ImageFile.open(path) as image:
        return read_contents(image)


def _diff(older: Path, newer: Path) -> ImageDiff:
    with ImageFile.open(older) as first, ImageFile.open(newer) as second:
        return diff_images(first.manifest, second.manifest)
