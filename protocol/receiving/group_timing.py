"""The group as its sender describes it, in the latest ANNOUNCE or FLUSH and at join."""

from __future__ import annotations

import dataclasses

from protocol.constants import ANNOUNCE_INTERVAL_S, NACK_RETRY_GRTT_COUNT, NACK_RETRY_MIN_S
from protocol.model.session_records import JoinGrant
from protocol.wire.messages import Announce, Flush

_ECHO_DELAY_US_MAX = (1 << 32) - 1


@dataclasses.dataclass(slots=True)
class GroupTiming:
    """Timing of the group, and the time stamp to echo.

    Attributes:
        grtt_s: round-trip time of the group.
        receiver_count: receivers that the cast serves.
        echo_us: the sender's latest time stamp.
        standstill: the sender announces that it sends nothing, perhaps because of a pause.
    """

    grtt_s: float
    receiver_count: int
    echo_us: int
    _echo_heard_at: float
    standstill: bool = False

    @classmethod
    def at_join(cls, grant: JoinGrant, now: float) -> GroupTiming:
        """Return the timing that the sender granted."""
        return cls(grant.grtt_s, grant.receiver_count, 0, now)

    @property
    def retry_s(self) -> float:
        """Return the time to wait for the answer to a request."""
        retry_s = max(NACK_RETRY_MIN_S, NACK_RETRY_GRTT_COUNT * self.grtt_s)
        return max(ANNOUNCE_INTERVAL_S, retry_s) if self.standstill else retry_s

    def take(self, message: Announce | Flush, now: float) -> None:
        """Follow the sender's message."""
        self.echo_us = message.sent_at_us
        self._echo_heard_at = now
        self.grtt_s = message.grtt_us / 1e6
        self.receiver_count = message.receiver_count

    def echo_delay_us(self, now: float) -> int:
        """Return the age of the time stamp."""
        return min(int((now - self._echo_heard_at) * 1e6), _ECHO_DELAY_US_MAX)
