"""The remote locations: those of the configuration, and images that were added one by one; each watched by a task."""

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
"""Remote images that were added one by one; each costs a request a minute."""

_log = structlog.get_logger(__name__)


class Remotes:
    """See the module's docstring. It belongs to the event loop.

    Attributes:
        watches: by URL.
        added: URLs that aren't in the configuration.
    """

    def __init__(self, files: RemoteFiles, interval_s: float, *, on_change: Callable[[], None]) -> None:
        """Look every ``interval_s`` by way of ``files``."""
        self.watches: dict[str, RemoteWatch] = {}
        self.added: set[str] = set()
        self._files = files
        self._interval_s = interval_s
        self._on_change = on_change
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def configure(self, url: str) -> None:
        """Take a location of the configuration.

        Raises:
            ConfigurationError: it can't be used.
        """
        location = parse_location(url)
        self.watches[location.url] = self._new_watch(location, "")

    def restore(self, url: str, name: str) -> None:
        """Take an image that was added before this start."""
        try:
            location = parse_location(url)
        except ConfigurationError as error:
            _log.warning("remote_image_ignored", reason=str(error))
            return
        if location.url not in self.watches:
            self.added.add(location.url)
            self.watches[location.url] = self._new_watch(location, name)

    def start(self) -> None:
        """Begin to look."""
        for watch in self.watches.values():
            self._start(watch)

    def stop(self) -> None:
        """End all looking."""
        for task in self._tasks.values():
            task.cancel()

    @property
    def looked(self) -> bool:
        """Whether each was looked at."""
        return all(watch.looked.is_set() for watch in self.watches.values())

    async def look_at(self, url: str, name: str) -> RemoteWatch:
        """Look at an image that is to be added; one that is known already isn't looked at again.

        Args:
            url: of one image.
            name: what it is called until it could be read.

        Raises:
            RequestRefusedError: the URL can't be used, or what is there isn't an image.
        """
        location = _of_one_image(url)
        if location.url in self.watches:
            return self.watches[location.url]
        if len(self.added) >= ADDED_MAX:
            raise conflict(f"{ADDED_MAX} images were added by URL: forget some, or configure their prefix")
        watch = self._new_watch(location, name)
        await watch.look()
        file = watch.files[location.url]
        if file.problem and not file.passing:
            raise invalid(file.problem)
        return watch

    def add(self, watch: RemoteWatch) -> None:
        """Keep what :meth:`look_at` has found, unless somebody else was faster."""
        url = watch.location.url
        if url not in self.watches:
            self.added.add(url)
            self.watches[url] = watch
            self._start(watch)

    def added_of(self, image_id: str) -> list[RemoteWatch]:
        """Those that were added for an image."""
        watches = [self.watches[url] for url in self.added]
        return [watch for watch in watches if watch.image_id == image_id]

    def remove(self, url: str) -> None:
        """Forget one that was added."""
        self.added.discard(url)
        self.watches.pop(url, None)
        if (task := self._tasks.pop(url, None)) is not None:
            task.cancel()

    def _new_watch(self, location: Location, name: str) -> RemoteWatch:
        return RemoteWatch(self._files, location, name=name, on_change=self._on_change)

    def _start(self, watch: RemoteWatch) -> None:
        if watch.location.url not in self._tasks:  # it may have been added before the others are begun
            self._tasks[watch.location.url] = asyncio.create_task(watch.watch(self._interval_s))


def _of_one_image(url: str) -> Location:
    """Where an image is that an operator wants to add.

    Raises:
        RequestRefusedError: the URL can't be used.
    """
    try:
        location = parse_location(url)
    except ConfigurationError as error:
        raise invalid(error) from error
    if "@" in location.url.partition("://")[2].partition("/")[0]:
        raise invalid(
            f"{location.shown}: leave user and password out: they belong into ~/.netrc of the daemon's user"
        )
    if location.is_prefix:
        raise invalid(
            f"{location.shown} stands for many images: add it to library.remotes of the configuration"
        )
    return location
