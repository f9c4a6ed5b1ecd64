"""Ending in an orderly way when a signal comes: what runs is cancelled, and says goodbye to whom it talks."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

_Result = TypeVar("_Result")


async def unless_interrupted(work: Callable[[], Awaitable[_Result]]) -> _Result | None:
    """The result of ``work``; None when SIGINT or SIGTERM came first, which cancels it.

    Raises:
        DiskcastError: as ``work`` raises, and not a group of them.
    """
    import trio

    from receiver.shared.nursery_errors import unless

    async def interrupted() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                return

    return await unless(interrupted, work)
