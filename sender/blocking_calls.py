"""Blocking calls in threads that don't keep the program from exiting: a read from a dead server never returns.

A :class:`~concurrent.futures.ThreadPoolExecutor` can't be used: the interpreter joins its threads before it exits, and
so Ctrl-C would wait for the file server. Threads of this module die with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def start_blocking_call(function: Callable[[], _Result], name: str) -> asyncio.Future[_Result]:
    """Run ``function`` in a daemon thread. Call this from a running event loop.

    Returns:
        A future of its result or exception. Cancelling the future abandons the thread, the call continues.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def finish(result: _Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # the result of function

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001  the future's awaiter gets it
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has stopped in the meantime
            loop.call_soon_threadsafe(finish, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
