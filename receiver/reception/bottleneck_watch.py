"""This receiver's bottleneck: the network, its processor or its disk, and the time spent in each.

Blocks on their way to the disk hold buffers. While these are few, the receiver keeps up. When they pile up, the worker
threads are the bottleneck: either writing, or decoding before it. Symbols that find no buffer are then dropped by the
assembly, not at the socket, since the receive loop continues. The socket's queue overflows only when the receive loop
itself doesn't get enough processor time.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from protocol.model.bottleneck import Cause
from protocol.wire.messages import BOTTLENECKS

BACKLOG_SHARE: Final = 0.35
"""Share of the assembly buffers held by blocks on their way to the disk at which these become the bottleneck.
Busy worker threads hold about a fifth of the default buffers; the sender lowers its rate at half of the buffers."""

BACKLOG_OVER_SHARE: Final = 0.2
"""Share below which a backlog is over. The same share makes a backlog when the buffers have run out: incomplete blocks
hold the rest."""

QUEUE_SHARE: Final = 0.5
"""Share of the socket's buffer above which the receive loop is too slow: normally it is read far earlier."""

WORK_WINDOW_S: Final = 0.5
"""Time constant of the moving average of the threads' work."""

DOMINANT_SHARE: Final = 0.6
"""Share of the threads' time that the other kind of work must reach to become the bottleneck."""

HOLD_S: Final = 2.0
"""Time for which a bottleneck is kept after its last sign: a sender that slowed down tries again within this time."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverLoad:
    """The load of a receiver at one moment."""

    held_share: float
    """Share of the assembly buffers held by blocks on their way to the disk."""
    pool_drop_count: int
    """Symbols dropped so far because no buffer was free."""
    queue_share: float
    """Share of the socket's buffer in use before it was read."""
    socket_drop_count: int
    """Messages dropped at the socket so far."""
    decode_s: float
    """Thread-seconds spent on repairing, checking and decompressing blocks so far."""
    write_s: float
    """Thread-seconds spent in writing blocks so far."""
    all_received: bool
    """True once every block has arrived."""


class BottleneckWatch:
    """Detection of a receiver's bottleneck from its load. Pure: the time is an argument.

    Attributes:
        cause: the current bottleneck: ``NETWORK``, ``SOCKET``, ``DECODE`` or ``DISK``.
        seconds: the time that each has been the bottleneck.
    """

    def __init__(self) -> None:
        self.cause = Cause.NETWORK
        # All keys from the start: a thread reads the metrics, and the dictionary mustn't grow under it.
        self.seconds: dict[Cause, float] = dict.fromkeys(BOTTLENECKS, 0.0)
        self._at: float | None = None
        self._last: ReceiverLoad | None = None
        self._decode_s = 0.0
        self._write_s = 0.0
        self._backlog = False
        self._sign_at = -math.inf

    def pause(self) -> None:
        """Don't count the time until the next :meth:`update`, because nothing is being received."""
        self._at = None

    def update(self, now: float, load: ReceiverLoad) -> None:
        """Update the bottleneck; the time since the last update counts for the bottleneck found.

        Args:
            now: monotonic seconds.
            load: the receiver's load; its counters restart at zero when the sender restarts.
        """
        last = self._last or load
        elapsed_s = 0.0 if self._at is None else now - self._at
        self._at, self._last = now, load
        kept = math.exp(-elapsed_s / WORK_WINDOW_S)
        self._decode_s = self._decode_s * kept + max(0.0, load.decode_s - last.decode_s)
        self._write_s = self._write_s * kept + max(0.0, load.write_s - last.write_s)

        found = self._find(load, last)
        if found is not None:
            self.cause, self._sign_at = found, now
        elif now >= self._sign_at + HOLD_S:
            self.cause = Cause.NETWORK
        self.seconds[self.cause] += elapsed_s

    def _find(self, load: ReceiverLoad, last: ReceiverLoad) -> Cause | None:
        """Return the bottleneck that the load shows; None if this receiver keeps up."""
        pool_ran_out = load.pool_drop_count > last.pool_drop_count
        threshold = BACKLOG_OVER_SHARE if self._backlog or pool_ran_out else BACKLOG_SHARE
        self._backlog = load.held_share >= threshold
        if self._backlog:
            return self._dominant_work()
        if load.all_received:
            return Cause.DISK if load.held_share == 0.0 else self._dominant_work()
        if load.socket_drop_count > last.socket_drop_count or load.queue_share > QUEUE_SHARE:
            return Cause.SOCKET
        return None

    def _dominant_work(self) -> Cause:
        # Hysteresis: the current bottleneck stays until the other kind of work clearly dominates.
        needed_share = {Cause.DECODE: DOMINANT_SHARE, Cause.DISK: 1.0 - DOMINANT_SHARE}.get(self.cause, 0.5)
        return Cause.DISK if self._write_s > needed_share * (self._write_s + self._decode_s) else Cause.DECODE
