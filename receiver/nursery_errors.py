"""What a nursery's error group comes down to: the one error that a program ends with."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from protocol.errors import DiskcastError


def single_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The deliberate error inside ``group``, or the cancellation; ``group`` itself when anything in it is a bug.

    Several stages can fail of the same cause, a dying disk for one; the first one names it.
    """
    errors = [error for error in _leaves(group) if not isinstance(error, trio.Cancelled)]
    if not errors:
        return next(_leaves(group))
    if all(isinstance(error, DiskcastError) for error in errors):
        return errors[0]
    return group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
