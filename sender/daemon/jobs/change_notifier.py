"""Wake every task that waits for a change, without keeping a list of them."""

from __future__ import annotations

import asyncio


class ChangeNotifier:
    """A notifier that wakes any number of waiting tasks at once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake every waiting task. Call it from the event loop."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the next change; return False if there was none in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True
