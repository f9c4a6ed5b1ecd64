"""The transmitter thread: takes encoded batches and puts them on the wire at the session's rate."""

from __future__ import annotations

import dataclasses
import errno
import socket
import time

import numpy as np
from numpy.typing import NDArray

from protocol.constants import DATA_HEADER_BYTES
from protocol.pacing import TokenBucket
from protocol.session_records import CastParameters
from sender.batches import BatchQueue
from sender.datagram_output import DatagramOutput, SendMode, typed_send_error
from sender.shared_session import SharedSession

BURST_BYTES = 128 << 10
"""What may leave back to back after a pause: two super-datagrams, which cheap switches can hold."""
_CALL_S = 0.002
"""One call sends at most this much time's worth of data, so that slow casts don't come in bursts of 64 KB."""
_SLEEP_MIN_S = 50e-6
"""Shorter waits than the kernel's timer slack aren't worth a system call; the bucket remembers the debt."""
_FULL_QUEUE_WAIT_S = 0.001


@dataclasses.dataclass(slots=True)
class TransmitterStatistics:
    """Plain counters of the transmitter thread; others read them without a lock."""

    datagrams_sent_count: int = 0
    send_calls_count: int = 0
    full_queue_count: int = 0
    """Sends that found the socket's buffer or the interface's queue full and were repeated."""


class Transmitter:
    """Sends batches until its queue is closed."""

    def __init__(
        self,
        sock: socket.socket,
        parameters: CastParameters,
        shared: SharedSession,
        queue: BatchQueue,
        *,
        mode: SendMode | None = None,
    ) -> None:
        """Find the fastest way to send.

        Args:
            sock: the data socket, connected to the group.
            parameters: the cast's.
            shared: told what is on the wire; says the rate.
            queue: where batches come from.
            mode: use this way of sending and no faster one.
        """
        self.statistics = TransmitterStatistics()
        self._frame_bytes = DATA_HEADER_BYTES + parameters.symbol_bytes
        self._output = DatagramOutput(sock, self._frame_bytes, mode)
        self._shared = shared
        self._queue = queue
        self._destination = f"{parameters.group} port {parameters.port}"

    @property
    def mode(self) -> SendMode:
        """The way of sending in use."""
        return self._output.mode

    def run(self) -> None:
        """The thread's function.

        Raises:
            InterfaceError: the interface no longer sends.
            ConfigurationError: the datagrams are too large for the path.
        """
        with self._shared.look() as (session, now):
            bucket = TokenBucket(session.rate_bytes_per_s, BURST_BYTES, now)
        while (batch := self._queue.get()) is not None:
            self._send_paced(batch.frames, bucket)
            with self._shared.change() as (session, now):
                session.mark_transmitted(batch.plan.next_sequence, batch.frames.nbytes, now)
                bucket.set_rate(session.rate_bytes_per_s, now)

    def _send_paced(self, frames: NDArray[np.uint8], bucket: TokenBucket) -> None:
        row = 0
        while row < frames.shape[0] and not self._queue.closed:
            rows_by_rate = int(bucket.rate_bytes_per_s * _CALL_S) // self._frame_bytes
            step = max(1, min(self._output.frames_per_call, rows_by_rate))
            piece = frames[row : row + step]
            delay_s = bucket.delay_s(piece.nbytes, time.monotonic())
            if delay_s > _SLEEP_MIN_S:
                time.sleep(delay_s)
            self._send_all(piece)
            row += step

    def _send_all(self, frames: NDArray[np.uint8]) -> None:
        while frames.shape[0] and not self._queue.closed:
            try:
                sent_count = self._output.send(frames[: self._output.frames_per_call])
            except InterruptedError:  # a signal of the process that happened to arrive on this thread
                continue
            except BlockingIOError:
                self.statistics.full_queue_count += 1
                continue  # the socket itself has waited
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise typed_send_error(error, self._destination, self._frame_bytes) from error
                self.statistics.full_queue_count += 1
                time.sleep(_FULL_QUEUE_WAIT_S)
                continue
            self.statistics.send_calls_count += 1
            self.statistics.datagrams_sent_count += sent_count
            frames = frames[sent_count:]
