"""Pass batches of frames from the encoder thread to the transmitter thread."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

from protocol.sending.transmission.send_plan import SendPlan

QUEUE_BATCHES = 2
"""One batch to send next and one in reserve. More would only delay answers to NACKs. The frame encoder's ring of four
buffers holds these two, the batch being sent and the batch being encoded."""


@dataclasses.dataclass(frozen=True, slots=True)
class FrameBatch:
    """The frames of one encoded plan.

    Attributes:
        plan: the symbols in it.
        frames: ``uint8[plan.symbol_count, frame_bytes]``.
        read_s: time spent reading the image file for it.
    """

    plan: SendPlan
    frames: NDArray[np.uint8]
    read_s: float


class BatchQueue:
    """A bounded queue between two threads; either can close it. A full queue makes the encoder wait."""

    def __init__(self, batches_max: int = QUEUE_BATCHES) -> None:
        self._batches: deque[FrameBatch] = deque()
        self._batches_max = batches_max
        self._closed = False
        self._changed = threading.Condition()

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._closed

    def put(self, batch: FrameBatch) -> bool:
        """Wait for space and append; return False if the queue is closed and the batch was dropped."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._batches) < self._batches_max)
            if self._closed:
                return False
            self._batches.append(batch)
            self._changed.notify_all()
            return True

    def get(self) -> FrameBatch | None:
        """Wait for the oldest batch and take it; return None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._batches))
            if self._closed:
                return None
            batch = self._batches.popleft()
            self._changed.notify_all()
            return batch

    def close(self) -> None:
        """Drop all batches and make both threads return."""
        with self._changed:
            self._closed = True
            self._batches.clear()
            self._changed.notify_all()
