"""What limits this receiver: the way to it, its processor or its disk; and for how long each of them did.

Blocks on their way to the disk hold buffers. While these are few, the receiver keeps up with whatever comes. When they
pile up, what the worker threads spend their time on is the limit: writing, or what comes before it. Symbols that find
no buffer are then dropped by the assembly, not by the socket, since the conversation goes on. Only when the
conversation itself doesn't get the processor does the socket's queue overflow.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from protocol.model.bottleneck import Cause

BACKLOG_SHARE: Final = 0.35
"""Share of the assembly buffers that hold blocks on their way to the disk from which on these are the limit: the sender
climbs no further then. Busy worker threads have about a fifth of the default buffers in their hands."""

BACKLOG_OVER_SHARE: Final = 0.2
"""Share at which that ends. It is enough, too, when buffers have run out, the rest being half-received blocks."""

QUEUE_SHARE: Final = 0.5
"""Share of the socket's buffer that may be in use: it is read as soon as it holds a small part of that."""

WORK_WINDOW_S: Final = 0.5
"""What the threads did is forgotten with this time constant."""

DOMINANT_SHARE: Final = 0.6
"""Share of the threads' time that one kind of work must reach to be named instead of the other."""

HOLD_S: Final = 2.0
"""A limit is named for so long after its last sign: a sender that slowed down for it tries again within this time."""


SLOW_PART: Final = {
    Cause.NETWORK: "its network connection",
    Cause.SOCKET: "its processor, which doesn't take in all that arrives",
    Cause.DECODE: "its processor, which doesn't decode as fast",
    Cause.DISK: "its disk",
}
"""What to call a machine's limit when it is told of itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What the receiver is busy with at one moment."""

    held_share: float
    """Share of the assembly buffers that hold blocks on their way to the disk."""
    pool_drop_count: int
    """Symbols dropped for want of a buffer so far."""
    queue_share: float
    """Share of the socket's buffer in use before it was read."""
    socket_drop_count: int
    """Messages dropped at the socket so far."""
    decode_s: float
    """Thread-seconds spent on repairing, checking and decompressing blocks so far."""
    write_s: float
    """Thread-seconds spent in writing blocks so far."""
    all_here: bool
    """Whether nothing is awaited from the network any more."""


class BottleneckWatch:
    """Follows the load of a receiver. Pure: it is told the time.

    Attributes:
        cause: what limits the receiver now: ``NETWORK``, ``SOCKET``, ``DECODE`` or ``DISK``.
        seconds: how long each of these has been it.
    """

    def __init__(self) -> None:
        self.cause = Cause.NETWORK
        # All of them from the beginning: metrics are read by a thread, which mustn't see a dictionary grow.
        self.seconds = dict.fromkeys(SLOW_PART, 0.0)
        self._at: float | None = None
        self._last: Load | None = None
        self._decode_s = 0.0
        self._write_s = 0.0
        self._backlog = False
        self._sign_at = -math.inf

    def pause(self) -> None:
        """Nothing is being received: the time until the next :meth:`update` isn't counted."""
        self._at = None

    def update(self, now: float, load: Load) -> None:
        """Look at the load again; the time since the last look counts for what is found.

        Args:
            now: monotonic seconds.
            load: the receiver's; its counters may begin anew, as they do with a sender that was started again.
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

    def _find(self, load: Load, last: Load) -> Cause | None:
        """What there is a sign of; None for none of this receiver's own limits."""
        ran_out = load.pool_drop_count > last.pool_drop_count
        enough = BACKLOG_OVER_SHARE if self._backlog or ran_out else BACKLOG_SHARE
        self._backlog = load.held_share >= enough
        if self._backlog:
            return self._dominant_work()
        if load.all_here:
            return Cause.DISK if load.held_share == 0.0 else self._dominant_work()
        if load.socket_drop_count > last.socket_drop_count or load.queue_share > QUEUE_SHARE:
            return Cause.SOCKET
        return None

    def _dominant_work(self) -> Cause:
        # Whoever was named already is named until the other clearly dominates.
        needed_share = {Cause.DECODE: DOMINANT_SHARE, Cause.DISK: 1.0 - DOMINANT_SHARE}.get(self.cause, 0.5)
        return Cause.DISK if self._write_s > needed_share * (self._write_s + self._decode_s) else Cause.DECODE
