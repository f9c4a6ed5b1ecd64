"""Cached copies of remote images at run time: complete ones, running fetches, and pins."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Final

import structlog

from protocol.errors import DiskcastError, ImageDamagedError, StorageError
from sender.blocking_calls import start_blocking_call
from sender.library.cache import Cache, Copy
from sender.library.fetch import BACK_OFF_S, Fetch, FetchStoppedError
from sender.library.remote_files import RemoteFiles
from sender.library.remote_watch import RemoteFile

_log = structlog.get_logger(__name__)

FETCHES_MAX: Final = 2
"""Concurrent fetches; others wait. More would share the same network link, and verify with the same CPUs."""

PROGRESS_S: Final = 0.5
"""Interval between updates of a fetch's progress."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Failure of the last fetch of an image.

    Attributes:
        text: the error.
        damaged: the file at its source isn't a complete image, as long as it has this version.
        version: version of the file.
    """

    text: str
    damaged: bool
    version: str


@dataclasses.dataclass(slots=True)
class _Running:
    """A running fetch.

    Attributes:
        waiters: number of casts that wait for it.
        unconditional: it was started by :meth:`CachedCopies.start`, and continues without waiters.
        has_space: the cache has reserved space for all of it.
        done_bytes: fetched bytes.
    """

    fetch: Fetch
    task: asyncio.Task[Copy]
    waiters: int = 0
    unconditional: bool = False
    has_space: bool = False
    done_bytes: int = 0


class CachedCopies:
    """The copies of remote images. Not thread-safe: use it on the event loop.

    Attributes:
        complete: complete copies, by image id.
        failures: failures of the last fetches, by image id.
        problem: reason for which the cache is unusable; empty if it is usable.
    """

    def __init__(
        self,
        cache: Cache,
        files: RemoteFiles,
        *,
        on_change: Callable[[], None],
        back_off_s: float = BACK_OFF_S,
    ) -> None:
        """Use ``cache``; call ``on_change`` after every change of the attributes or of a fetch's progress."""
        self.complete: dict[str, Copy] = {}
        self.failures: dict[str, Failure] = {}
        self.problem = ""
        self._cache = cache
        self._files = files
        self._on_change = on_change
        self._back_off_s = back_off_s
        self._running: dict[str, _Running] = {}
        self._pins: collections.Counter[str] = collections.Counter()
        self._pins_lock = threading.Lock()  # the cache evicts in a thread
        self._eviction_lock = asyncio.Lock()
        self._slots = asyncio.Semaphore(FETCHES_MAX)

    async def load(self) -> None:
        """Load the copies of earlier runs; report an error as :attr:`problem`."""
        try:
            self.complete = await start_blocking_call(self._cache.load, "library cache")
        except StorageError as error:
            self.problem = str(error)
            _log.warning("cache_unusable", reason=self.problem)
        self._on_change()

    def fetched_bytes(self, image_id: str) -> int | None:
        """Return the count of bytes that a running fetch has; None without a fetch."""
        running = self._running.get(image_id)
        return running.done_bytes if running is not None else None

    def pin(self, image_id: str) -> None:
        """Protect the present or future copy of an image from eviction until :meth:`unpin`."""
        with self._pins_lock:
            self._pins[image_id] += 1

    def unpin(self, image_id: str) -> None:
        """Allow eviction again."""
        with self._pins_lock:
            self._pins[image_id] -= 1
            if not self._pins[image_id]:
                del self._pins[image_id]

    def touch(self, image_id: str) -> None:
        """Record a use of a copy, if it exists."""
        if image_id in self.complete:
            self._cache.touch(image_id)

    async def wait_for(self, file: RemoteFile) -> Copy:
        """Return a complete copy of an image that the caller has pinned; fetch it if necessary.

        A fetch stops without waiters, unless :meth:`start` has started it. Fetched data is kept.

        Raises:
            ImageError: the image is unavailable, or doesn't fit.
            StorageError: the cache's disk failed.
        """
        assert file.found is not None
        image_id = file.found.image_id
        if (copy := self.complete.get(image_id)) is not None:
            return copy
        running = self._start(file)
        running.waiters += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.waiters -= 1
            if not running.waiters and not running.unconditional:
                running.fetch.stopped.set()

    def start(self, file: RemoteFile) -> None:
        """Start to fetch an image, with or without waiters."""
        assert file.found is not None
        if file.found.image_id not in self.complete:
            self._start(file).unconditional = True

    async def drop(self, image_id: str) -> None:
        """Stop the fetch of an image that isn't pinned, and remove its copy."""
        if (running := self._running.get(image_id)) is not None:
            running.fetch.stopped.set()
            await asyncio.wait({running.task})
        self.complete.pop(image_id, None)
        self.failures.pop(image_id, None)
        await start_blocking_call(functools.partial(self._cache.remove, image_id), "library cache")
        self._on_change()

    async def stop(self) -> None:
        """Stop all fetches, keeping fetched data; their threads exit soon after."""
        for running in list(self._running.values()):
            running.fetch.stopped.set()
            running.task.cancel()
        if self._running:
            await asyncio.wait({running.task for running in self._running.values()})

    def _start(self, file: RemoteFile) -> _Running:
        assert file.found is not None
        image_id = file.found.image_id
        running = self._running.get(image_id)
        if running is not None and not running.fetch.stopped.is_set():
            return running
        loop = asyncio.get_running_loop()
        shown_at = -PROGRESS_S

        def on_progress(done_bytes: int) -> None:  # in the fetch's thread
            nonlocal shown_at
            if loop.time() - shown_at >= PROGRESS_S:
                shown_at = loop.time()
                loop.call_soon_threadsafe(self._show_progress, image_id, done_bytes)

        fetch = Fetch(
            self._files, self._cache, file.location, file.found, on_progress, back_off_s=self._back_off_s
        )
        before = running.task if running is not None else None
        task = asyncio.create_task(self._fetch(fetch, file.version, before))
        task.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # failures has the exception
        self._running[image_id] = running = _Running(fetch, task)
        self._on_change()
        return running

    def _show_progress(self, image_id: str, done_bytes: int) -> None:
        if (running := self._running.get(image_id)) is not None:
            running.done_bytes = done_bytes
            self._on_change()

    async def _fetch(self, fetch: Fetch, version: str, before: asyncio.Task[Copy] | None) -> Copy:
        image_id = fetch.found.image_id
        try:
            if before is not None:
                await asyncio.wait({before})
            async with self._slots:
                if fetch.stopped.is_set():
                    raise FetchStoppedError(f"the fetch of {fetch.found.name} was stopped")
                self.failures.pop(image_id, None)
                async with self._eviction_lock:
                    await self._make_room(fetch)
                copy = await start_blocking_call(fetch.run, "library fetch")
            self.complete[image_id] = copy
        except FetchStoppedError:
            raise
        except DiskcastError as error:
            self.failures[image_id] = Failure(str(error), isinstance(error, ImageDamagedError), version)
            _log.warning("fetch_failed", image_id=image_id, location=fetch.location.shown, reason=str(error))
            raise
        finally:
            fetch.stopped.set()  # if this task was cancelled, its thread exits soon
            running = self._running.get(image_id)
            if running is not None and running.fetch is fetch:
                del self._running[image_id]
            self._on_change()
        return copy

    async def _make_room(self, fetch: Fetch) -> None:
        others = [running for running in self._running.values() if running.has_space]
        promised = sum(max(0, other.fetch.found.stored_bytes - other.done_bytes) for other in others)
        make = functools.partial(
            self._cache.make_room, fetch.found, promised_bytes=promised, may_evict=self._may_evict
        )
        await start_blocking_call(make, "library cache")
        if (running := self._running.get(fetch.found.image_id)) is not None:
            running.has_space = True

    def _may_evict(self, image_id: str) -> bool:
        with self._pins_lock:
            if image_id in self._pins or image_id in self._running:
                return False
            self.complete.pop(image_id, None)
            return True
