"""Blocking calls in threads that the program can end without: a read from a dead file server never returns.

A :class:`~concurrent.futures.ThreadPoolExecutor` can't be used for such calls: the interpreter joins its threads before
it ends, and so Ctrl-C would wait for the file server. Threads of this module die with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def start_blocking_call(function: Callable[[], _Result], name: str) -> asyncio.Future[_Result]:
    """Run ``function`` in a daemon thread of its own; call it from a running event loop.

    Returns:
        Its result or exception. Cancelling the future doesn't end the call, it leaves the thread behind.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def finish(result: _Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # what function returned

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001  whoever awaits the future gets it
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended without this thread
            loop.call_soon_threadsafe(finish, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
