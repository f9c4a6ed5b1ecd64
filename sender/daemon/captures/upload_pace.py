"""The rate of all uploads together, and the memory of their batches: a batch is read only when there is room for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

_BATCHES_AT_ONCE: Final = 4
"""Batches that are read at the same time, at most 32 MiB: two of an upload fill the link, and one on a connection that
died without a sign doesn't stop another upload."""


class UploadPace:
    """The pace of the uploads of a daemon. Not thread-safe: use it on the event loop."""

    def __init__(self, rate_bytes_per_s: float | None) -> None:
        """Limit all uploads together to a rate; None for no limit."""
        self._rate = rate_bytes_per_s
        self._owed_until = time.monotonic()
        self._reading = asyncio.Semaphore(_BATCHES_AT_ONCE)

    @contextlib.asynccontextmanager
    async def turn(self, count: int) -> AsyncIterator[None]:
        """Wait for the turn of a batch of ``count`` bytes, and hold it while the batch is read."""
        async with self._reading:
            if self._rate is not None:
                now = time.monotonic()
                # Each batch is read when those before it would have left at the rate: no bucket of tokens runs empty
                # for ever by a batch that is larger than it.
                start = max(now, self._owed_until)
                self._owed_until = start + count / self._rate
                await asyncio.sleep(max(0.0, start - now))
            yield
