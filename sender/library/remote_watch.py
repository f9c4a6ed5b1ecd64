"""A remote location that is looked at again and again: one image, or all images of a prefix."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

import structlog

from protocol.errors import ImageDamagedError, ImageError, ImageFormatError
from sender.blocking_calls import start_blocking_call
from sender.library.image_probe import FoundImage, key_of
from sender.library.location import Location
from sender.library.remote_files import RemoteError, RemoteFiles, RemoteStatus
from sender.store.records.problems import Problem, ProblemKind

_log = structlog.get_logger(__name__)

INTERVAL_S: Final = 60.0
"""Between two looks. Each costs a request for every image; a cast looks again when it needs one."""

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL.

    Attributes:
        version: what the server said of it when it was read.
        found: what it was when it could be read last; None if it never could.
        problem: why it can't be read now; empty if it could.
        damaged: it isn't a whole image, and only whoever put it there can mend that.
        passing: the problem may pass by itself.
    """

    location: Location
    version: str
    found: FoundImage | None
    problem: str
    damaged: bool = False
    passing: bool = False

    @property
    def image_id(self) -> str:
        """Of the image, or what stands for it."""
        return self.found.image_id if self.found is not None else key_of("url", self.location.url)


class RemoteWatch:
    """Looks at one location; call from the event loop.

    Attributes:
        files: by URL.
        problem: why the location can't be listed.
        looked: set after the first look.
    """

    def __init__(
        self, files: RemoteFiles, location: Location, *, name: str, on_change: Callable[[], None]
    ) -> None:
        """Watch ``location``; ``name`` is what its image is called until it could be read."""
        self.location = location
        self.name = name
        self.files: dict[str, RemoteFile] = {}
        self.problem: Problem | None = None
        self.looked = asyncio.Event()
        self._remote = files
        self._on_change = on_change
        self._lock = asyncio.Lock()

    @property
    def image_id(self) -> str:
        """Of the image of a location that is no prefix."""
        file = self.files.get(self.location.url) or RemoteFile(self.location, "", None, "")
        return file.image_id

    async def watch(self, interval_s: float) -> None:
        """Look every ``interval_s``, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(interval_s)

    async def look(self) -> None:
        """One look; raises nothing. What can't be read now stays as it was, with the reason."""
        async with self._lock:
            try:
                await self._look()
            finally:
                self.looked.set()

    async def _look(self) -> None:
        locations = [self.location]
        if self.location.is_prefix:
            try:
                locations = await self._call(functools.partial(self._remote.list_images, self.location))
            except ImageError as error:
                self._set_problem(str(error))
                return
            self._set_problem("")
        listed = {location.url for location in locations}
        kept = {url: file for url, file in self.files.items() if url in listed}
        if kept != self.files:
            self._publish(kept)
        for location in locations:
            file = await self._call(
                functools.partial(_look_at, self._remote, location, self.files.get(location.url))
            )
            if file != self.files.get(location.url):
                if file.problem:
                    _log.warning("remote_image_unreadable", location=location.shown, reason=file.problem)
                self._publish(self.files | {location.url: file})

    async def _call(self, function: Callable[[], _Result]) -> _Result:
        call = start_blocking_call(function, "library remote")
        try:
            await asyncio.wait({call})
        finally:
            call.cancel()
        return call.result()

    def _publish(self, files: dict[str, RemoteFile]) -> None:
        self.files = files
        self._on_change()

    def _set_problem(self, text: str) -> None:
        if text == (self.problem.text if self.problem is not None else ""):
            return
        self.problem = Problem(ProblemKind.LIBRARY, text, datetime.now(UTC)) if text else None
        if text:
            _log.warning("remote_location_unreadable", location=self.location.shown, reason=text)
        self._on_change()


def _look_at(remote: RemoteFiles, location: Location, known: RemoteFile | None) -> RemoteFile:
    """What a file is now; blocks."""
    found = known.found if known is not None else None
    version = known.version if known is not None else ""
    try:
        status: RemoteStatus = remote.status(location)
        if known is not None and known.version == status.version and (known.damaged or not known.problem):
            return known
        version = status.version
        return RemoteFile(location, version, remote.describe(location, status), "")
    except (ImageDamagedError, ImageFormatError) as error:
        return RemoteFile(location, version, None, f"{error}; put a whole image there", damaged=True)
    except ImageError as error:
        passing = not isinstance(error, RemoteError) or error.passing
        return RemoteFile(location, version, found, str(error), passing=passing)
