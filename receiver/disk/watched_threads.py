"""Disk work in threads that cancellation waits for, unless a disk call hangs.

A block is written whole or not at all, so a stopping agent waits for its threads. Threads that wait for a hanging disk
would never return: they are abandoned and end with the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

from protocol.errors import StorageError
from receiver.disk.hang_watchdog import TICK_S, HangWatchdog

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class WatchedThreads:
    """A runner for functions that register their disk calls with ``watch``; use it in the trio thread only."""

    def __init__(self, watch: HangWatchdog) -> None:
        """Watch the calls registered with ``watch``; :meth:`watch_until_cancelled` must run beside the work."""
        self._watch = watch
        self._running: set[trio.CancelScope] = set()
        self._hang_error: StorageError | None = None

    async def run_sync(
        self,
        function: Callable[[*_Arguments], _Result],
        *arguments: *_Arguments,
        limiter: trio.CapacityLimiter | None = None,
    ) -> _Result:
        """Run ``function`` in a thread, to its end even if cancelled.

        Raises:
            StorageError: a disk call hangs, in this function or another.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True) as scope:
            if self._hang_error is not None:
                raise self._hang_error
            self._running.add(scope)
            try:
                return await trio.to_thread.run_sync(
                    function, *arguments, limiter=limiter, abandon_on_cancel=True
                )
            finally:
                self._running.discard(scope)
        assert self._hang_error is not None  # nothing else cancels the scope
        raise self._hang_error

    async def watch_until_cancelled(self) -> None:
        """Watch the disk calls.

        Raises:
            StorageError: a call hangs; every :meth:`run_sync` has been abandoned.
        """
        while True:
            await trio.sleep(TICK_S)
            self._watch.tick()
            try:
                self._watch.check()
            except StorageError as error:
                self._hang_error = error
                for scope in self._running:
                    scope.cancel()
                raise
