"""The remote locations, each scanned by a task: those of the configuration, and images that were added by URL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from protocol.errors import ConfigurationError
from sender.library.location import Location, parse_location
from sender.library.remote_files import RemoteFiles
from sender.library.remote_watch import RemoteWatch
from sender.refusals import conflict, invalid

ADDED_MAX: Final = 1000
"""Images that were added by URL; each costs a request per minute."""

_log = structlog.get_logger(__name__)


class RemoteRegistry:
    """The remote locations. Not thread-safe: use it on the event loop.

    Attributes:
        watches: watches of all locations, by URL.
        added: URLs of added images, which aren't in the configuration.
    """

    def __init__(self, files: RemoteFiles, interval_s: float, *, on_change: Callable[[], None]) -> None:
        """Scan every ``interval_s`` with ``files``, and call ``on_change`` after every change."""
        self.watches: dict[str, RemoteWatch] = {}
        self.added: set[str] = set()
        self._files = files
        self._interval_s = interval_s
        self._on_change = on_change
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def configure(self, url: str) -> None:
        """Register a location of the configuration.

        Raises:
            ConfigurationError: the URL is invalid.
        """
        location = parse_location(url)
        self.watches[location.url] = self._new_watch(location, "")

    def restore(self, url: str, name: str) -> None:
        """Register an image that was added in an earlier run."""
        try:
            location = parse_location(url)
        except ConfigurationError as error:
            _log.warning("remote_image_ignored", reason=str(error))
            return
        if location.url not in self.watches:
            self.added.add(location.url)
            self.watches[location.url] = self._new_watch(location, name)

    def start(self) -> None:
        """Start all scans."""
        for watch in self.watches.values():
            self._start(watch)

    def stop(self) -> None:
        """Stop all scans."""
        for task in self._tasks.values():
            task.cancel()

    @property
    def scanned(self) -> bool:
        """True after the first scan of every location."""
        return all(watch.scanned.is_set() for watch in self.watches.values())

    async def probe(self, url: str, name: str) -> RemoteWatch:
        """Scan an image before it is added; return the existing watch of a known one.

        Args:
            url: URL of one image.
            name: name of the image until it is readable.

        Raises:
            RequestRefusedError: the URL is invalid, or the file there isn't an image.
        """
        location = _single_image_location(url)
        if location.url in self.watches:
            return self.watches[location.url]
        if len(self.added) >= ADDED_MAX:
            raise conflict(f"{ADDED_MAX} images were added by URL: remove some, or configure their prefix")
        watch = self._new_watch(location, name)
        await watch.scan()
        file = watch.files[location.url]
        if file.problem and not file.transient:
            raise invalid(file.problem)
        return watch

    def add(self, watch: RemoteWatch) -> None:
        """Register a watch from :meth:`probe`, unless its URL has been registered in the meantime."""
        url = watch.location.url
        if url not in self.watches:
            self.added.add(url)
            self.watches[url] = watch
            self._start(watch)

    def added_of(self, image_id: str) -> list[RemoteWatch]:
        """Return the watches of added URLs of an image."""
        watches = [self.watches[url] for url in self.added]
        return [watch for watch in watches if watch.image_id == image_id]

    def remove(self, url: str) -> None:
        """Unregister an added image."""
        self.added.discard(url)
        self.watches.pop(url, None)
        if (task := self._tasks.pop(url, None)) is not None:
            task.cancel()

    def _new_watch(self, location: Location, name: str) -> RemoteWatch:
        return RemoteWatch(self._files, location, name=name, on_change=self._on_change)

    def _start(self, watch: RemoteWatch) -> None:
        if watch.location.url not in self._tasks:  # an image can be added before start() is called
            self._tasks[watch.location.url] = asyncio.create_task(watch.watch(self._interval_s))


def _single_image_location(url: str) -> Location:
    """Check the URL of an image to add.

    Raises:
        RequestRefusedError: the URL is invalid, has credentials, or is a prefix.
    """
    try:
        location = parse_location(url)
    except ConfigurationError as error:
        raise invalid(error) from error
    if "@" in location.url.partition("://")[2].partition("/")[0]:
        raise invalid(
            f"{location.shown}: remove user and password: they belong in ~/.netrc of the daemon's user"
        )
    if location.is_prefix:
        raise invalid(
            f"{location.shown} stands for many images: add it to library.remotes of the configuration"
        )
    return location
