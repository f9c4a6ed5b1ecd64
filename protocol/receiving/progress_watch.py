"""Watch for a receiver that hears its sender and gets nothing: its data, or its NACKs, are lost on the way.

Without it, such a receiver would wait for ever, since a sender that is heard isn't silent. Time counts only while the
sender had the opportunity to serve this receiver: it has sent data of which nothing arrived, or repeats FLUSH, which it
sends only when no repair waits. A pause, or a stalled read of the image, doesn't count.
"""

from __future__ import annotations

from typing import Final

from protocol.constants import ANNOUNCE_INTERVAL_S, PROGRESS_TIMEOUT_S
from protocol.receiving.events import NotServed
from protocol.wire.messages import Announce, Flush

_COUNTED_MAX_S: Final = 2.0
"""Most time between two control messages that counts: the rest is silence of the sender."""

_STANDSTILL_S: Final = 0.5 * ANNOUNCE_INTERVAL_S
"""Time after which datagrams that were announced as sent have arrived, or are lost."""


class ProgressWatch:
    """Watch of one receiver's progress; a :class:`NotServed` event comes once."""

    def __init__(self, next_sequence: int, now: float) -> None:
        """Start at the join, with the number of the next datagram."""
        self._announced_sequence = next_sequence
        self._announced_at = now
        self._heard_at = now
        self._frames_received_count = 0
        self._arrived_sequence = next_sequence
        """Number that the sender had reached when the last datagrams arrived."""
        self._useful_count = 0
        self._unserved_s = 0.0
        self._reported = False

    def standstill(self, message: Announce | Flush, now: float) -> bool:
        """Return whether the sender has sent nothing for most of an announcement's interval."""
        sent_nothing = message.next_sequence == self._announced_sequence
        return sent_nothing and now - self._announced_at >= _STANDSTILL_S

    def note(
        self,
        message: Announce | Flush,
        *,
        frames_received_count: int,
        useful_count: int,
        waiting: bool,
        now: float,
    ) -> list[NotServed]:
        """Note an ANNOUNCE or FLUSH; return an event if this receiver has been without progress for too long.

        Args:
            message: the message.
            frames_received_count: datagrams received since the join.
            useful_count: those of them with symbols of needed blocks.
            waiting: needed blocks are missing, and NACKs for them may be sent.
            now: monotonic seconds.
        """
        elapsed_s = min(now - self._heard_at, _COUNTED_MAX_S)
        sent = message.next_sequence != self._announced_sequence
        deaf = sent and frames_received_count == self._frames_received_count
        if useful_count != self._useful_count or not waiting:
            self._unserved_s = 0.0
        elif deaf or isinstance(message, Flush):
            self._unserved_s += elapsed_s
        if frames_received_count != self._frames_received_count:
            self._arrived_sequence = message.next_sequence
        if sent:
            self._announced_sequence = message.next_sequence
            self._announced_at = now
        self._heard_at = now
        self._frames_received_count = frames_received_count
        self._useful_count = useful_count
        if self._unserved_s < PROGRESS_TIMEOUT_S or self._reported:
            return []
        self._reported = True
        return [NotServed(self._unserved_s, no_data=message.next_sequence != self._arrived_sequence)]
