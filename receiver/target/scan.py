"""Scan of the target during a cast: missing blocks are reported to the sender in portions."""

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
"""Reads in flight: an SSD needs several, and each hashes on a processor of its own."""

REPORT_FIRST_S: Final = 0.25
"""Delay of the first report: until then the sender waits for this receiver."""

REPORT_INTERVAL_MAX_S: Final = 4.0
"""Limit of the growing interval between reports: a large image's need bitmap has some 100 KiB, times all receivers."""

UNMATCHED_BYTES_MAX: Final = GIB
"""Consecutive missing data after which a sample of the rest is read: after an interrupted run the rest of the disk
holds nothing of the image, and reading it would only delay writing."""


class TargetScan:
    """The scan during one run of the sender; call :meth:`run` once."""

    def __init__(
        self,
        session: ReceiverSession,
        image: TargetImage,
        *,
        report_need: Callable[[NDArray[np.bool_]], Awaitable[None]],
        on_change: Callable[[], None],
        unreported: NDArray[np.bool_] | None,
    ) -> None:
        """Prepare the scan.

        Args:
            session: receives the held and the missing blocks.
            image: the image on the target.
            report_need: reports blocks to the sender, as ``bool[block_count]``, that were found missing since the last
                report.
            on_change: called when the image may have become complete or there are zero blocks to write.
            unreported: ``bool[block_count]`` of blocks that are known to be missing and not yet reported.
        """
        self._session = session
        self._image = image
        self._report_need = report_need
        self._on_change = on_change
        self._cursor = 0
        self._unmatched_bytes = 0
        self._unreported = np.zeros_like(image.unscanned) if unreported is None else unreported.copy()
        # No reader takes blocks while the remainder is sampled.
        self._choosing = trio.Lock()
        self._finished = trio.Event()

    async def run(self) -> None:
        """Scan all unscanned blocks, several at once, in ascending order as passes do.

        Raises:
            StorageError: the target can't be read.
            SessionError: the report doesn't reach the sender.
        """
        thread_count = min(SCAN_THREADS_MAX, len(os.sched_getaffinity(0)))
        limiter = trio.CapacityLimiter(thread_count)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_at_intervals)
            async with trio.open_nursery() as readers:
                for _ in range(thread_count):
                    readers.start_soon(self._read, limiter)
            self._finished.set()

    async def _read(self, limiter: trio.CapacityLimiter) -> None:
        image = self._image
        while True:
            async with self._choosing:
                if self._unmatched_bytes >= UNMATCHED_BYTES_MAX:
                    await self._sample_remainder(limiter)
                blocks = image.next_scan_step(self._cursor)
                if blocks.size == 0:
                    return
                self._cursor = int(blocks[-1]) + 1
            missing = await image.threads.run_sync(image.scan, blocks, limiter=limiter)
            # Blocks that arrived during the read are written anyway.
            held = np.setdiff1d(blocks, missing, assume_unique=True)
            self._take(held[image.unscanned[held]], missing[image.unscanned[missing]])

    async def _sample_remainder(self, limiter: trio.CapacityLimiter) -> None:
        """Read a sample of the remaining blocks; if none is right, take all of them as missing."""
        image, start = self._image, self._cursor
        self._unmatched_bytes = 0
        if await image.threads.run_sync(image.seems_empty, image.sample_unscanned(start), limiter=limiter):
            self._cursor = image.unscanned.size
            # Blocks that other tasks are reading are left to them.
            for rest in iter_set_blocks(image.unscanned, start):
                self._take(rest[:0], rest)

    def _take(self, held: NDArray[np.int64], missing: NDArray[np.int64]) -> None:
        assert self._image.manifest is not None
        scanned_bytes = missing.size * self._image.manifest.block_bytes
        self._unmatched_bytes = 0 if held.size else self._unmatched_bytes + scanned_bytes
        self._session.blocks_held(held)
        self._image.mark_held(held)
        self._image.mark_missing(missing)
        self._unreported[missing] = True
        self._on_change()

    async def _report_at_intervals(self) -> None:
        """Report missing blocks; the last report is sent even if empty, since the sender waits for it."""
        interval_s = REPORT_FIRST_S
        while True:
            with trio.move_on_after(interval_s):
                await self._finished.wait()
            interval_s = min(2 * interval_s, REPORT_INTERVAL_MAX_S)
            over = self._finished.is_set()
            await self._report()
            if over:
                return

    async def _report(self) -> None:
        need, self._unreported = self._unreported, np.zeros_like(self._unreported)
        for missing in iter_set_blocks(need):
            need[missing] = False
            need[self._session.not_arrived(missing)] = True
        await self._report_need(need)
        for missing in iter_set_blocks(need):
            self._session.blocks_missing(missing)
        self._on_change()
