"""Transfer of datagrams from the data socket to the session, with the counters of those that never arrive there."""

from __future__ import annotations

from typing import Final

import trio

from protocol.receiving.receiver_session import ReceiverSession
from receiver.reception.cast_link import DataPort
from receiver.reception.loss_injection import LossInjector

BATCHES_PER_POLL_MAX: Final = 8
"""Batches taken from the socket before other tasks run: a few milliseconds of work."""


class DatagramIntake:
    """The data socket of one session."""

    def __init__(self, session: ReceiverSession, data: DataPort, loss_injector: LossInjector | None) -> None:
        """Args:
        session: gets the datagrams.
        data: the joined socket.
        loss_injector: drops datagrams on purpose; None for no injected loss.
        """
        self._session = session
        self._data = data
        self._loss_injector = loss_injector
        # The socket may have served an earlier session.
        memory = data.memory()
        self._drops_at_start = memory.drop_count
        self._discarded_at_start = data.counters.oversize_count, data.counters.surplus_count
        session.statistics.socket_buffer_bytes = memory.buffer_bytes

    @property
    def poll_interval_max_s(self) -> float:
        """Return the longest interval between polls that the socket's buffer allows."""
        return self._data.poll_interval_max_s

    def take_batches(self, now: float) -> int | None:
        """Pass waiting batches to the session; return the bytes of data, None if the queue was empty."""
        session, loss = self._session, self._loss_injector
        memory = self._data.memory()
        session.statistics.socket_fill = min(1.0, memory.queued_bytes / memory.buffer_bytes)
        taken_bytes: int | None = None
        for _ in range(BATCHES_PER_POLL_MAX):
            batch = self._data.receive_batch()
            if batch is None:
                break
            taken_bytes = (taken_bytes or 0) + batch.frames.size
            frames, datagrams, aged_row = batch.frames, batch.datagrams, batch.aged_row
            arrived_at = None if batch.age_s is None else trio.current_time() - batch.age_s
            if loss is not None:
                frames, datagrams = loss.filter_frames(frames), loss.filter_datagrams(datagrams)
                arrived_at, aged_row = None, -1  # the row with the time stamp may have been dropped
            session.receive_frames_untrusted(frames, now, arrived_at=arrived_at, arrived_row=aged_row)
            for datagram in datagrams:
                session.receive_datagram_untrusted(datagram, now)
            if batch.drained:
                break
        return taken_bytes

    def update_statistics(self) -> None:
        """Set the session's counters of datagrams that it never got."""
        session = self._session
        session.statistics.socket_drop_count = self._data.memory().drop_count - self._drops_at_start
        oversize_at_start, surplus_at_start = self._discarded_at_start
        counters = self._data.counters
        session.rejects["too_long"] = counters.oversize_count - oversize_at_start
        session.rejects["surplus"] = counters.surplus_count - surplus_at_start

    async def wait_readable(self) -> None:
        """Wait until a datagram is in the queue."""
        await self._data.wait_readable()

    def accept_any_source(self) -> None:
        """Stop filtering by the sender's address."""
        self._data.accept_any_source()
