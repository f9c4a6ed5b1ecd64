"""Nurseries: the one error that an error group comes down to, and work that ends when something happens first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from protocol.errors import DiskcastError, leaf_errors

_Result = TypeVar("_Result")


def single_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The deliberate error inside ``group``, or the cancellation; ``group`` itself when anything in it is a bug.

    Several stages can fail of the same cause, a dying disk for one; the first one names it.
    """
    errors = [error for error in leaf_errors(group) if not isinstance(error, trio.Cancelled)]
    if not errors:
        return next(leaf_errors(group))
    if all(isinstance(error, DiskcastError) for error in errors):
        return errors[0]
    return group


async def unless(
    happens: Callable[[], Awaitable[object]], work: Callable[[], Awaitable[_Result]]
) -> _Result | None:
    """The result of ``work``; None when ``happens`` returned first, which cancels it.

    Raises:
        DiskcastError: as either raises, and not a group of them.
    """
    result: _Result | None = None

    async def cancel_when_it_happens(scope: trio.CancelScope) -> None:
        await happens()
        scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_it_happens, nursery.cancel_scope)
            result = await work()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise single_error(group) from group
    return result
