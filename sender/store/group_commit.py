"""Group commit: concurrent requests share a transaction.

Switching on a room then costs a few disk syncs, not two per machine.

Requests that arrive while a transaction is being written share the next one, so no request waits for others to arrive.
Each is answered when its transaction is on the disk. If a shared transaction fails and one of its requests may be the
cause, each request is retried in a transaction of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from sender.store.database.errors import fails_every_call

if TYPE_CHECKING:
    from sender.store.store import Store

WAITING_MAX: Final = 4096
"""Waiting requests: four rooms of the largest size, switched on at once. More are refused."""
BATCH_MAX: Final = 128
"""Requests of a transaction. It takes some tens of milliseconds, and other writers wait that long."""

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting(Generic[_Request, _Answer]):
    request: _Request
    answer: asyncio.Future[_Answer]

    def succeed(self, answer: _Answer) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):  # the caller was cancelled
            self.answer.set_result(answer)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):
            self.answer.set_exception(error)


class GroupCommit(Generic[_Request, _Answer]):
    """A queue for requests of one kind. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, function: Callable[[list[_Request]], Sequence[_Answer]]) -> None:
        """Create a queue.

        Args:
            store: runs ``function`` in its threads.
            function: carries out several requests in one transaction of the store, all or none of them, and returns
                their answers. Requests that failed together are retried one by one.
        """
        self._store = store
        self._function = function
        self._waiting: deque[_Waiting[_Request, _Answer]] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def submit(self, request: _Request) -> _Answer:
        """Carry out a request together with other waiting ones.

        Raises the exceptions of the function, and ``DatabaseUnavailableError`` as :meth:`Store.run` does.
        """
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        async with self._store.limited_wait(len(self._waiting), WAITING_MAX):
            self._waiting.append(_Waiting(request, answer))
            if self._writer is None or self._writer.done():
                self._writer = asyncio.create_task(self._write(), name="group commit")
            return await answer

    async def _write(self) -> None:
        batch: list[_Waiting[_Request, _Answer]] = []
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_MAX))]
                await self._write_together([waiting for waiting in batch if not waiting.answer.done()])
        except BaseException as error:
            for waiting in (*batch, *self._waiting):  # no request may wait for a dead writer
                waiting.fail(error)
            self._waiting.clear()
            if not isinstance(error, Exception):
                raise

    async def _write_together(self, batch: list[_Waiting[_Request, _Answer]]) -> None:
        if not batch:
            return
        try:
            answers = await self._store.run(self._function, [waiting.request for waiting in batch])
        except Exception as error:  # noqa: BLE001  every waiting request must get an answer
            if len(batch) > 1 and not fails_every_call(error):
                await asyncio.gather(*(self._write_together([waiting]) for waiting in batch))
                return
            for waiting in batch:
                waiting.fail(error)
        else:
            # The list makes zip fail before the first answer if the function returned the wrong number.
            for waiting, answer in list(zip(batch, answers, strict=True)):
                waiting.succeed(answer)
