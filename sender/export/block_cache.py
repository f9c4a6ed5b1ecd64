"""Decoded blocks of an image for an event loop: decoded in threads, the last used ones kept."""

from __future__ import annotations

import asyncio
import collections
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from protocol.constants import MIB
from sender.imaging.verified_blocks import VerifiedBlocks

CACHE_BYTES: Final = 64 * MIB
"""Decoded blocks that are kept: a guest or a filesystem reads a few KiB at a time from the same blocks."""


class BlockCache:
    """Blocks of one image; use it in one event loop.

    Requests for a block that is being decoded share the result. A block that failed isn't kept: reading the disk again
    may succeed.
    """

    def __init__(
        self, blocks: VerifiedBlocks, executor: ThreadPoolExecutor, *, limit_bytes: int = CACHE_BYTES
    ) -> None:
        """Args:
        blocks: reader of the image.
        executor: threads that decode.
        limit_bytes: bound of the kept blocks.
        """
        self._blocks = blocks
        self._executor = executor
        self._limit_bytes = limit_bytes
        self._kept: collections.OrderedDict[int, bytes | memoryview] = collections.OrderedDict()
        self._kept_bytes = 0
        self._running: dict[int, asyncio.Future[bytes | memoryview]] = {}

    @property
    def kept_bytes(self) -> int:
        """Bytes of the kept blocks."""
        return self._kept_bytes

    async def read(self, block: int) -> bytes | memoryview:
        """Return the raw bytes of a stored block; errors as :meth:`VerifiedBlocks.read`."""
        raw = self._kept.get(block)
        if raw is not None:
            self._kept.move_to_end(block)
            return raw
        running = self._running.get(block)
        if running is None:
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._executor, self._blocks.read, block)
            self._running[block] = running
            running.add_done_callback(lambda done: self._finish(block, done))
        # Shielded: other requests may wait for the same block when this one is cancelled.
        return await asyncio.shield(running)

    def _finish(self, block: int, done: asyncio.Future[bytes | memoryview]) -> None:
        del self._running[block]
        if done.cancelled() or done.exception() is not None:
            return
        raw = done.result()
        self._kept[block] = raw
        self._kept_bytes += len(raw)
        while self._kept_bytes > self._limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest)
