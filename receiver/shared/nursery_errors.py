"""Nursery helpers: the deliberate error inside an exception group, and work that an event cancels."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from protocol.errors import DiskcastError, leaf_errors

_Result = TypeVar("_Result")


def single_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the deliberate error inside ``group``, or the cancellation; ``group`` itself if any error in it is a bug.

    Several stages can fail for the same cause, such as a dying disk; the first error names it.
    """
    errors = [error for error in leaf_errors(group) if not isinstance(error, trio.Cancelled)]
    if not errors:
        return next(leaf_errors(group))
    if all(isinstance(error, DiskcastError) for error in errors):
        return errors[0]
    return group


async def run_until(
    event: Callable[[], Awaitable[object]], work: Callable[[], Awaitable[_Result]]
) -> _Result | None:
    """Run ``work`` and return its result, or cancel it and return None as soon as ``event`` returns.

    Raises:
        DiskcastError: raised by either of them, never inside a group.
    """
    result: _Result | None = None

    async def cancel_on_event(scope: trio.CancelScope) -> None:
        await event()
        scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_event, nursery.cancel_scope)
            result = await work()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise single_error(group) from group
    return result
