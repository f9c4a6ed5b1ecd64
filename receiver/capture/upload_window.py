"""Batches on the way to the daemon: several at once, so that the link never waits for an answer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from protocol.control.capture_messages import BATCHES_ON_THE_WAY, BlockRows, SpanAnswer
from receiver.capture.batch_builder import Batch, no_rows

SendBatch = Callable[[int, BlockRows, Sequence[bytes]], SpanAnswer]
"""A function that sends a batch of a sequence number, and blocks until the daemon has answered."""


class UploadWindow:
    """The batches of one upload, in order; use it in one thread.

    A batch goes with the stored bytes of the one that left :data:`BATCHES_ON_THE_WAY` before: until it can go, its
    caller waits for the answer that names them.

    Attributes:
        sequence: number of the next batch.
    """

    def __init__(self, send: SendBatch, on_sent: Callable[[int, int], None]) -> None:
        """Args:
        send: called in threads, of several batches at once.
        on_sent: called with the first block that isn't sent yet and the stored bytes of each batch that was answered.
        """
        self.sequence: int = 0
        self._send = send
        self._on_sent = on_sent
        self._waiting: Final = deque[_Sent]()

    def add(self, batch: Batch) -> None:
        """Send a batch once the answer before the last one is there.

        Raises:
            Exception: the error of an earlier batch.
        """
        first_block = (self._waiting[0].batch if self._waiting else batch).rows.first_block
        payload: list[bytes] = []
        if len(self._waiting) == BATCHES_ON_THE_WAY:
            oldest = self._waiting.popleft()
            answer = oldest.answer.result()
            self._on_sent(oldest.sent_block, oldest.sent_bytes)
            first_block = oldest.batch.rows.first_block + len(oldest.batch.rows.kind)
            payload = oldest.batch.wanted_payload(answer.mask_untrusted(len(oldest.batch.payload)))
        self._waiting.append(_Sent(batch, self._send, self.sequence, payload, first_block))
        self.sequence += 1

    def finish(self) -> None:
        """Send the stored bytes of the last batches, and wait for all answers.

        Raises:
            Exception: the error of a batch.
        """
        if not self._waiting:
            return
        rows = self._waiting[-1].batch.rows
        for _ in range(BATCHES_ON_THE_WAY):
            self.add(Batch(no_rows(rows.first_block + len(rows.kind)), []))
        while self._waiting:
            last = self._waiting.popleft()
            last.answer.result()
            self._on_sent(last.sent_block, last.sent_bytes)


class _Sent:
    """A batch on its way, in a thread of its own: one that hangs in the network doesn't keep the agent from exiting."""

    def __init__(
        self, batch: Batch, send: SendBatch, sequence: int, payload: Sequence[bytes], sent_block: int
    ) -> None:
        self.batch = batch
        self.answer: Future[SpanAnswer] = Future()
        self.sent_block = sent_block
        self.sent_bytes = sum(map(len, payload))
        thread = threading.Thread(
            target=self._run, args=(send, sequence, payload), name="upload", daemon=True
        )
        thread.start()

    def _run(self, send: SendBatch, sequence: int, payload: Sequence[bytes]) -> None:
        try:
            answer = send(sequence, self.batch.rows, payload)
        except BaseException as error:  # noqa: BLE001  raised where the answer is needed
            self.answer.set_exception(error)
        else:
            self.answer.set_result(answer)
