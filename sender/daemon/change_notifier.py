"""Waking everybody who waits for something to change, without keeping a list of them."""

from __future__ import annotations

import asyncio


class Changes:
    """Many tasks wait, one call wakes them all."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Something has changed; from the event loop."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the next change; False if there was none in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True
