"""What many ask of the store at the same moment is written in one transaction: a room that is switched on costs a few
syncs of the disk, not two for each machine.

While one transaction is being written the next requests gather, so nobody waits for company: one that comes alone is
written alone. Each is answered when its transaction is on the disk, never before. If a transaction fails and one of its
requests may be at fault, each of them has one of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from sender.store.database.errors import stops_everybody

if TYPE_CHECKING:
    from sender.store.store import Store

WAITING_MAX: Final = 4096
"""Requests that may wait: four rooms of the largest size, switched on at once. More are refused."""
BATCH_MAX: Final = 128
"""Requests of a transaction, some tens of milliseconds, for which others who write must wait."""

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting(Generic[_Request, _Answer]):
    request: _Request
    answer: asyncio.Future[_Answer]

    def succeed(self, answer: _Answer) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):  # who asked has gone meanwhile
            self.answer.set_result(answer)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):
            self.answer.set_exception(error)


class GroupCommit(Generic[_Request, _Answer]):
    """Requests of one kind. It belongs to the event loop."""

    def __init__(self, store: Store, function: Callable[[list[_Request]], Sequence[_Answer]]) -> None:
        """Gather what is asked of ``function``.

        Args:
            store: in whose threads it runs.
            function: carries out several requests in one transaction of the store, all or none of them, and returns
                their answers. Requests that failed together are asked for again, one by one.
        """
        self._store = store
        self._function = function
        self._waiting: deque[_Waiting[_Request, _Answer]] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def ask(self, request: _Request) -> _Answer:
        """Have a request carried out, with those that wait at the same time.

        Raises what the function raises, and ``DatabaseUnavailableError`` as :meth:`Store.run` does.
        """
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        async with self._store.patience(len(self._waiting), WAITING_MAX):
            self._waiting.append(_Waiting(request, answer))
            if self._writer is None or self._writer.done():
                self._writer = asyncio.create_task(self._write(), name="joint calls")
            return await answer

    async def _write(self) -> None:
        batch: list[_Waiting[_Request, _Answer]] = []
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_MAX))]
                await self._write_together([waiting for waiting in batch if not waiting.answer.done()])
        except BaseException as error:
            for waiting in (*batch, *self._waiting):  # nobody waits for a writer that is no more
                waiting.fail(error)
            self._waiting.clear()
            if not isinstance(error, Exception):
                raise

    async def _write_together(self, batch: list[_Waiting[_Request, _Answer]]) -> None:
        if not batch:
            return
        try:
            answers = await self._store.run(self._function, [waiting.request for waiting in batch])
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must be told
            if len(batch) > 1 and not stops_everybody(error):
                await asyncio.gather(*(self._write_together([waiting]) for waiting in batch))
                return
            for waiting in batch:
                waiting.fail(error)
        else:
            # Each has its own answer or, by a mistake of the function's, nobody has one.
            for waiting, answer in list(zip(batch, answers, strict=True)):
                waiting.succeed(answer)
