"""The schedule of the sender's control messages: ANNOUNCE, STANDING, FLUSH and the end of transmission."""

from __future__ import annotations

import dataclasses
import math

from protocol.constants import (
    ANNOUNCE_INTERVAL_S,
    EOT_COUNT,
    EOT_INTERVAL_S,
    FLUSH_INTERVAL_MAX_S,
    FLUSH_INTERVAL_MIN_S,
    STANDING_COUNT,
    STANDING_INTERVAL_S,
)
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.model.session_records import CastParameters
from protocol.sending.feedback.grtt import Echoes
from protocol.sending.sender_statistics import SenderStatistics
from protocol.wire.control_codec import ControlMessage, ControlSigner
from protocol.wire.messages import Announce, BlockDigests, CastObject, EndOfTransmission, Flush, Standing

_FLUSH_GROWTH = 1.5
_NOBODY = Standing(b"", b"")
_REASON_BYTES_MAX = 500


@dataclasses.dataclass(frozen=True, slots=True)
class GroupState:
    """State of the cast for ANNOUNCE and FLUSH."""

    state: CastState
    receiver_count: int
    rate_bytes_per_s: float
    grtt_s: float
    report_interval_s: float
    next_sequence: int


@dataclasses.dataclass(frozen=True, slots=True)
class Sweep:
    """Content of a FLUSH: an object and its pass that was sent."""

    object_index: CastObject
    pass_index: int


class GroupMessages:
    """Schedule of the control messages; each is repeated, since any datagram can get lost.

    Attributes:
        echoes: time stamps of the latest messages.
    """

    def __init__(
        self, parameters: CastParameters, signer: ControlSigner, statistics: SenderStatistics, now: float
    ) -> None:
        """Announce at once, signed by ``signer``; count in ``statistics``."""
        self.echoes = Echoes()
        self._parameters = parameters
        self._signer = signer
        self._statistics = statistics
        self._announce_at = now
        self._standing: Standing | None = None
        """Latest STANDING; None before the first."""
        self._standing_at = math.inf
        self._standing_left = 0
        self._flush_at = now
        self._flush_interval_s = FLUSH_INTERVAL_MIN_S
        self._digests: list[BlockDigests] = []
        self._end: EndOfTransmission | None = None
        self._end_at = math.inf
        self._end_left = 0

    # -- notifications ----------------------------------------------------------------------------------------

    def announce_now(self, now: float) -> None:
        """Send the next ANNOUNCE at once, since its content has changed."""
        self._announce_at = now

    def note_planned(self) -> None:
        """Note that data was planned: the FLUSH after it is urgent."""
        self._flush_interval_s = FLUSH_INTERVAL_MIN_S

    def note_transmitted(self, now: float) -> None:
        """Note that data is on the wire: a FLUSH may follow at once if no more is planned."""
        self._flush_at = now

    def send_standing(self, standing: Standing, now: float) -> None:
        """Send the slow receivers, if they have changed."""
        if standing != (self._standing or _NOBODY):
            self._standing = standing
            self._standing_left = STANDING_COUNT
            self._standing_at = now

    def send_digests(self, digests: BlockDigests) -> None:
        """Send a block's digests once, at once; receivers request lost ones again."""
        self._digests.append(digests)

    def send_end(self, outcome: SessionOutcome, reason: str, now: float) -> None:
        """Send the end of the cast."""
        self._end = EndOfTransmission(outcome, reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore"))
        self._end_at = now
        self._end_left = EOT_COUNT

    @property
    def end_left_count(self) -> int:
        """Return the number of ends of transmission still to send."""
        return self._end_left

    # -- schedule ---------------------------------------------------------------------------------------------

    def due(self, now: float, group: GroupState, sweep: Sweep | None) -> list[bytes]:
        """Return the datagrams that are due, in sending order.

        Args:
            now: monotonic seconds.
            group: current state of the cast.
            sweep: the last pass if all demand is on the wire and receivers may miss some of it; None otherwise.
        """
        datagrams = []
        if now >= self._announce_at:
            self._announce_at = now + ANNOUNCE_INTERVAL_S
            datagrams.append(self._encode(self._announce(now, group)))
            if self._standing is not None:  # an empty STANDING can get lost, too
                self._standing_at = min(self._standing_at, now)
        if now >= self._standing_at:
            self._standing_left = max(0, self._standing_left - 1)
            self._standing_at = now + STANDING_INTERVAL_S if self._standing_left else math.inf
            assert self._standing is not None
            datagrams.append(self._encode(self._standing))
        datagrams += [self._encode(digests) for digests in self._digests]
        self._digests.clear()
        if sweep is not None and now >= self._flush_at:
            self._flush_at = now + max(self._flush_interval_s, 2 * group.grtt_s)
            self._flush_interval_s = min(self._flush_interval_s * _FLUSH_GROWTH, FLUSH_INTERVAL_MAX_S)
            self._statistics.flushes_sent_count += 1
            datagrams.append(self._encode(self._flush(now, group, sweep)))
        if self._end is not None and self._end_left and now >= self._end_at:
            self._end_at = now + EOT_INTERVAL_S
            self._end_left -= 1
            datagrams.append(self._encode(self._end))
        return datagrams

    def next_at(self, *, flush_due: bool) -> float:
        """Return the time of the next call of :meth:`due`, absolute monotonic seconds.

        Args:
            flush_due: whether a FLUSH waits for its time.
        """
        if self._digests:
            return -math.inf
        at = min(self._announce_at, self._standing_at)
        if flush_due:
            at = min(at, self._flush_at)
        return min(at, self._end_at) if self._end_left else at

    # -- inside -----------------------------------------------------------------------------------------------

    def _stamp_us(self, now: float) -> int:
        """Return the time stamp of a message that leaves now, whose echo measures the round-trip time."""
        sent_at_us = int(now * 1e6)
        self.echoes.add(sent_at_us)
        return sent_at_us

    def _announce(self, now: float, group: GroupState) -> Announce:
        parameters = self._parameters
        return Announce(
            incarnation=parameters.incarnation,
            state=group.state,
            image_id=parameters.image_id,
            image_name=parameters.image_name,
            control_url=parameters.control_url,
            symbol_bytes=parameters.symbol_bytes,
            raw_bytes=parameters.raw_bytes,
            receiver_count=group.receiver_count,
            rate_bytes_per_s=int(group.rate_bytes_per_s),
            next_sequence=group.next_sequence,
            grtt_us=int(group.grtt_s * 1e6),
            report_interval_ms=int(group.report_interval_s * 1e3),
            sent_at_us=self._stamp_us(now),
        )

    def _encode(self, message: ControlMessage) -> bytes:
        return self._signer.encode(message)

    def _flush(self, now: float, group: GroupState, sweep: Sweep) -> Flush:
        return Flush(
            object=sweep.object_index,
            pass_index=sweep.pass_index & 0xFF,
            next_sequence=group.next_sequence,
            receiver_count=group.receiver_count,
            grtt_us=int(group.grtt_s * 1e6),
            report_interval_ms=int(group.report_interval_s * 1e3),
            sent_at_us=self._stamp_us(now),
        )
