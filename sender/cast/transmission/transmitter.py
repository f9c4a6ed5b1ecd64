"""Run the transmitter thread: send encoded batches at the session's rate."""

from __future__ import annotations

import bisect
import dataclasses
import errno
import socket
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import DATA_HEADER_BYTES
from protocol.model.session_records import CastParameters
from protocol.sending.transmission.pacing import Pacer
from protocol.shared.feedback_timing import sent_at_ticks
from protocol.wire.batch import header_view
from sender.cast.network.datagram_output import DatagramOutput, SendMode, typed_send_error
from sender.cast.network.rejected_sends import RejectedSends
from sender.cast.network.sockets import limit_pacing_rate
from sender.cast.session.locked_session import LockedSession
from sender.cast.transmission.batches import BatchQueue

LATENESS_BOUNDS_S: Final = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3)
"""Bounds from the kernel's timer slack to the end of the pacer's credit: a delay above 20 ms costs rate."""
_SLEEP_MIN_S = 50e-6
"""Waits shorter than the kernel's timer slack aren't worth a system call; the pacer keeps the debt."""
_FULL_QUEUE_WAIT_S = 0.001


@dataclasses.dataclass(slots=True)
class BurstLateness:
    """The lateness of bursts that waited for their turn: the transmitter's jitter."""

    sum_s: float = 0.0
    bucket_counts: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(LATENESS_BOUNDS_S) + 1))
    """Bursts between each bound of LATENESS_BOUNDS_S and the bound before it; the last bucket has no bound."""

    @property
    def count(self) -> int:
        """Bursts in all buckets."""
        return sum(self.bucket_counts)

    def add(self, late_s: float) -> None:
        """Count a burst that was sent ``late_s`` after its time."""
        self.bucket_counts[bisect.bisect_left(LATENESS_BOUNDS_S, late_s)] += 1
        self.sum_s += late_s


@dataclasses.dataclass(slots=True)
class TransmitterStatistics:
    """Counters of the transmitter thread; other threads read them without a lock."""

    datagrams_sent_count: int = 0
    send_calls_count: int = 0
    full_queue_count: int = 0
    """Sends that were repeated because the socket's buffer or the interface's queue was full."""
    burst_lateness: BurstLateness = dataclasses.field(default_factory=BurstLateness)


class Transmitter:
    """The transmitter of one cast; runs until its queue is closed."""

    def __init__(
        self,
        sock: socket.socket,
        parameters: CastParameters,
        locked_session: LockedSession,
        queue: BatchQueue,
        *,
        mode: SendMode | None = None,
    ) -> None:
        """Find the fastest method of sending.

        Args:
            sock: the data socket, connected to the group.
            parameters: the parameters of the cast.
            locked_session: the session; gives the rate and is updated after each batch.
            queue: source of the batches.
            mode: use this method of sending and no faster one.
        """
        self.statistics = TransmitterStatistics()
        self._frame_bytes = DATA_HEADER_BYTES + parameters.symbol_bytes
        self._socket = sock
        self._output = DatagramOutput(sock, self._frame_bytes, mode)
        self._locked_session = locked_session
        self._queue = queue
        self._destination = f"{parameters.group} port {parameters.port}"
        self._rejected = RejectedSends(parameters.sender_address, self._destination, self._frame_bytes)

    @property
    def mode(self) -> SendMode:
        """The current method of sending."""
        return self._output.mode

    def run(self) -> None:
        """Send until closed; the function of the thread.

        Raises:
            InterfaceError: the interface no longer sends, or rejects all datagrams of the cast's size.
            ConfigurationError: the datagrams are too large for the path.
        """
        with self._locked_session.read() as (session, now):
            pacer = Pacer(session.rate_bytes_per_s, now)
            ceiling = session.policy.rate_bytes_per_s or session.policy.rate_max_bytes_per_s
        if ceiling is not None:
            limit_pacing_rate(self._socket, ceiling)
        while (batch := self._queue.get()) is not None:
            self._send_paced(batch.frames, pacer)
            with self._locked_session.update() as (session, now):
                session.mark_transmitted(
                    batch.plan.next_sequence, batch.frames.nbytes, now, read_s=batch.read_s
                )
                pacer.set_rate(session.rate_bytes_per_s, now)

    def _send_paced(self, frames: NDArray[np.uint8], pacer: Pacer) -> None:
        step = max(1, min(self._output.frames_per_call, pacer.burst_bytes // self._frame_bytes))
        sent_at = header_view(frames)["sent_at"]
        for row in range(0, frames.shape[0], step):
            if self._queue.closed:
                break
            burst = frames[row : row + step]
            now = self._wait_for_turn(pacer)
            sent_at[row : row + step] = sent_at_ticks(now)
            pacer.sent(burst.nbytes, now)
            self._send_all(burst)

    def _wait_for_turn(self, pacer: Pacer) -> float:
        now = time.monotonic()
        wait_s = pacer.wait_s(now)
        if wait_s > _SLEEP_MIN_S:
            due_at = now + wait_s
            time.sleep(wait_s)
            now = time.monotonic()
            self.statistics.burst_lateness.add(max(0.0, now - due_at))
        return now

    def _send_all(self, frames: NDArray[np.uint8]) -> None:
        while frames.shape[0] and not self._queue.closed:
            try:
                sent_count = self._output.send(frames[: self._output.frames_per_call])
            except InterruptedError:  # a signal to the process that arrived on this thread
                continue
            except BlockingIOError:
                self.statistics.full_queue_count += 1
                continue  # the send itself has waited
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise typed_send_error(error, self._destination, self._frame_bytes) from error
                self.statistics.full_queue_count += 1
                self._rejected.reject(time.monotonic())
                time.sleep(_FULL_QUEUE_WAIT_S)
                continue
            self._rejected.accept()
            self.statistics.send_calls_count += 1
            self.statistics.datagrams_sent_count += sent_count
            frames = frames[sent_count:]
