"""Ending in an orderly way when a signal comes: what runs is cancelled, and says goodbye to whom it talks."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import trio

_Result = TypeVar("_Result")


async def unless_interrupted(work: Callable[[], Awaitable[_Result]]) -> _Result | None:
    """The result of ``work``; None when SIGINT or SIGTERM came first, which cancels it.

    Raises:
        DiskcastError: as ``work`` raises, and not a group of them.
    """
    import trio

    from receiver.nursery_errors import single_error

    result: _Result | None = None

    async def cancel_on_signal(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, nursery.cancel_scope)
            result = await work()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise single_error(group) from group
    return result
