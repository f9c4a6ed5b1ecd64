"""Looking at what the target holds while the cast goes on: what it lacks is told to the sender bit by bit."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Final

import numpy as np
import trio
from numpy.typing import NDArray

from protocol.constants import GIB
from protocol.receiving.receiver_session import ReceiverSession
from protocol.shared.block_masks import iter_set_blocks
from receiver.target.image import TargetImage

SCAN_THREADS_MAX: Final = 4
"""Reads in flight: an SSD wants several, and hashing has a processor each."""

TELL_FIRST_S: Final = 0.25
"""What was found is told after this long first: until then the sender waits for this receiver."""

TELL_INTERVAL_MAX_S: Final = 4.0
"""Then at growing intervals up to this: a need-bitmap of a large image has some 100 KiB, times all receivers."""


FRUITLESS_BYTES: Final = GIB
"""After so much of which nothing was right, a few blocks of what follows are tried: where an earlier run was cut short,
the rest of the disk holds nothing of the image, and reading it would only hold up writing."""


class TargetScan:
    """The scan during one run of the sender; :meth:`run` once."""

    def __init__(
        self,
        session: ReceiverSession,
        image: TargetImage,
        *,
        tell_need: Callable[[NDArray[np.bool_]], Awaitable[None]],
        on_news: Callable[[], None],
        untold: NDArray[np.bool_] | None,
    ) -> None:
        """Prepare.

        Args:
            session: is told what is held and what is missing.
            image: what knows the target.
            tell_need: tells the sender, ``bool[block_count]`` of blocks that were found missing since the last time.
            on_news: the image may have become complete, or there are zero blocks to write.
            untold: ``bool[block_count]`` of blocks that are known to be missing, and that the sender wasn't told of.
        """
        self._session = session
        self._image = image
        self._tell_need = tell_need
        self._on_news = on_news
        self._cursor = 0
        self._fruitless_bytes = 0
        self._untold = np.zeros_like(image.unscanned) if untold is None else untold.copy()
        # While the rest is tried nobody begins to read some of it.
        self._choosing = trio.Lock()
        self._over = trio.Event()

    async def run(self) -> None:
        """Read all that wasn't looked at yet, several blocks at once, ascending as passes go.

        Raises:
            StorageError: the target can't be read.
            SessionError: the sender can't be told.
        """
        thread_count = min(SCAN_THREADS_MAX, len(os.sched_getaffinity(0)))
        limiter = trio.CapacityLimiter(thread_count)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_at_intervals)
            async with trio.open_nursery() as readers:
                for _ in range(thread_count):
                    readers.start_soon(self._read, limiter)
            self._over.set()

    async def _read(self, limiter: trio.CapacityLimiter) -> None:
        image = self._image
        while True:
            async with self._choosing:
                if self._fruitless_bytes >= FRUITLESS_BYTES:
                    await self._try_the_rest(limiter)
                blocks = image.next_scan_step(self._cursor)
                if blocks.size == 0:
                    return
                self._cursor = int(blocks[-1]) + 1
            missing = await image.threads.run_sync(image.scan, blocks, limiter=limiter)
            # What came meanwhile is written whatever was there.
            held = np.setdiff1d(blocks, missing, assume_unique=True)
            self._take(held[image.unscanned[held]], missing[image.unscanned[missing]])

    async def _try_the_rest(self, limiter: trio.CapacityLimiter) -> None:
        """Look at a few blocks of what is left; if none is right, all of it is missing."""
        image, start = self._image, self._cursor
        self._fruitless_bytes = 0
        if await image.threads.run_sync(image.seems_empty, image.sample_unscanned(start), limiter=limiter):
            self._cursor = image.unscanned.size
            # What other tasks have begun to read is left to them.
            for rest in iter_set_blocks(image.unscanned, start):
                self._take(rest[:0], rest)

    def _take(self, held: NDArray[np.int64], missing: NDArray[np.int64]) -> None:
        assert self._image.manifest is not None
        scanned_bytes = missing.size * self._image.manifest.block_bytes
        self._fruitless_bytes = 0 if held.size else self._fruitless_bytes + scanned_bytes
        self._session.blocks_held(held)
        self._image.mark_held(held)
        self._image.mark_missing(missing)
        self._untold[missing] = True
        self._on_news()

    async def _tell_at_intervals(self) -> None:
        """Tell what was found; at last even if nothing was, since the sender counts on an answer."""
        interval_s = TELL_FIRST_S
        while True:
            with trio.move_on_after(interval_s):
                await self._over.wait()
            interval_s = min(2 * interval_s, TELL_INTERVAL_MAX_S)
            over = self._over.is_set()
            await self._tell()
            if over:
                return

    async def _tell(self) -> None:
        need, self._untold = self._untold, np.zeros_like(self._untold)
        for missing in iter_set_blocks(need):
            need[missing] = False
            need[self._session.not_arrived(missing)] = True
        await self._tell_need(need)
        for missing in iter_set_blocks(need):
            self._session.blocks_missing(missing)
        self._on_news()
