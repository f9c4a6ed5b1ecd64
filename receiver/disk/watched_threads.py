"""Disk work in threads that cancellation waits for, unless a call to the disk hangs for good.

A block is written whole or not at all, so an agent that is stopped waits for its threads. Those of a disk that no
longer answers would be waited for for ever: then they are left behind, and end with the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

from protocol.errors import StorageError
from receiver.disk.hang_watchdog import TICK_S, StallWatch

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class WatchedThreads:
    """Runs functions that call the disk inside ``watch``; in the trio thread only."""

    def __init__(self, watch: StallWatch) -> None:
        """``watch`` is ticked by :meth:`watch_until_cancelled`, which has to run beside the work."""
        self._watch = watch
        self._running: set[trio.CancelScope] = set()
        self._stall: StorageError | None = None

    async def run_sync(
        self,
        function: Callable[[*_Arguments], _Result],
        *arguments: *_Arguments,
        limiter: trio.CapacityLimiter | None = None,
    ) -> _Result:
        """Run ``function`` in a thread, to its end whatever is cancelled meanwhile.

        Raises:
            StorageError: a call to the disk hangs, this function's or another's.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True) as scope:
            if self._stall is not None:
                raise self._stall
            self._running.add(scope)
            try:
                return await trio.to_thread.run_sync(
                    function, *arguments, limiter=limiter, abandon_on_cancel=True
                )
            finally:
                self._running.discard(scope)
        assert self._stall is not None  # nobody else cancels the scope
        raise self._stall

    async def watch_until_cancelled(self) -> None:
        """Look after the calls.

        Raises:
            StorageError: one hangs; every :meth:`run_sync` has been let go.
        """
        while True:
            await trio.sleep(TICK_S)
            self._watch.tick()
            try:
                self._watch.check()
            except StorageError as error:
                self._stall = error
                for scope in self._running:
                    scope.cancel()
                raise
