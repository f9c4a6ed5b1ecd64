"""What a nursery's error group comes down to: the one error that a program ends with."""

from __future__ import annotations

import trio

from protocol.errors import DiskcastError, leaf_errors


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
