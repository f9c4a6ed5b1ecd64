"""Periodic scans of a remote location: one image, or all images of a prefix."""

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
from sender.library.remote_errors import RemoteError
from sender.library.remote_files import RemoteFiles
from sender.library.remote_reader import RemoteStatus
from sender.store.records.problems import Problem, ProblemKind

_log = structlog.get_logger(__name__)

INTERVAL_S: Final = 60.0
"""Interval between scans. Each costs a request per image; a cast scans again when it needs an image."""

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL.

    Attributes:
        version: version of the file when it was read.
        found: the image when it was last readable; None if it never was.
        problem: reason for which the file is unreadable now; empty if it is readable.
        damaged: the file isn't a complete image, and must be replaced at its source.
        transient: the problem may go away without a change of the file.
    """

    location: Location
    version: str
    found: FoundImage | None
    problem: str
    damaged: bool = False
    transient: bool = False

    @property
    def image_id(self) -> str:
        """Id of the image, or a substitute."""
        return self.found.image_id if self.found is not None else key_of("url", self.location.url)


class RemoteWatch:
    """A scanner of one location. Not thread-safe: use it on the event loop.

    Attributes:
        location: the location.
        name: name of the image until it is readable.
        files: files of the location, by URL.
        problem: reason for which the location can't be listed, or None.
        scanned: set after the first scan.
    """

    def __init__(
        self, files: RemoteFiles, location: Location, *, name: str, on_change: Callable[[], None]
    ) -> None:
        """Watch ``location``, and call ``on_change`` after every change."""
        self.location = location
        self.name = name
        self.files: dict[str, RemoteFile] = {}
        self.problem: Problem | None = None
        self.scanned = asyncio.Event()
        self._remote = files
        self._on_change = on_change
        self._lock = asyncio.Lock()

    @property
    def image_id(self) -> str:
        """Id of the image, for a location that isn't a prefix."""
        file = self.files.get(self.location.url) or RemoteFile(self.location, "", None, "")
        return file.image_id

    async def watch(self, interval_s: float) -> None:
        """Scan every ``interval_s``, until cancelled."""
        while True:
            await self.scan()
            await asyncio.sleep(interval_s)

    async def scan(self) -> None:
        """Scan the location once; raise nothing. Unreadable files keep their last state, with the reason."""
        async with self._lock:
            try:
                await self._scan()
            finally:
                self.scanned.set()

    async def _scan(self) -> None:
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
                functools.partial(_read, self._remote, location, self.files.get(location.url))
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


def _read(remote: RemoteFiles, location: Location, known: RemoteFile | None) -> RemoteFile:
    """Return the current state of a file, from ``known`` if it is unchanged. Blocks."""
    found = known.found if known is not None else None
    version = known.version if known is not None else ""
    try:
        status: RemoteStatus = remote.status(location)
        if known is not None and known.version == status.version and (known.damaged or not known.problem):
            return known
        version = status.version
        return RemoteFile(location, version, remote.describe(location, status), "")
    except (ImageDamagedError, ImageFormatError) as error:
        return RemoteFile(location, version, None, f"{error}; replace it by a complete image", damaged=True)
    except ImageError as error:
        transient = not isinstance(error, RemoteError) or error.transient
        return RemoteFile(location, version, found, str(error), transient=transient)
