"""Orderly shutdown on a signal: running work is cancelled and can still notify its peers."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

_Result = TypeVar("_Result")


async def run_until_signal(work: Callable[[], Awaitable[_Result]]) -> _Result | None:
    """Run ``work`` and return its result, or cancel it and return None on SIGINT or SIGTERM.

    Raises:
        DiskcastError: raised by ``work``, never inside a group.
    """
    import trio

    from receiver.shared.nursery_errors import run_until

    async def interrupted() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                return

    return await run_until(interrupted, work)
