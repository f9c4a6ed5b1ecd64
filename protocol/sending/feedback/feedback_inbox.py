"""The sender's inbox of feedback datagrams: only authentic ones, each once, and no more than a receiver may send."""

from __future__ import annotations

from protocol.errors import WireError
from protocol.model.session_records import ReceiverId
from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.roster import Roster
from protocol.wire.codec import foreign_version_untrusted
from protocol.wire.feedback_codec import (
    FeedbackMessage,
    check_feedback_mac,
    feedback_body_untrusted,
    feedback_source_untrusted,
)
from protocol.wire.messages import Report


class FeedbackInbox:
    """Checks of feedback, cheapest first.

    Attributes:
        rejects: rejected datagrams by reason.
        foreign_version: wire version of feedback of another version than this program's; None for none.
    """

    def __init__(self, cast_id: int, roster: Roster) -> None:
        self.rejects: dict[str, int] = {}
        self.foreign_version: int | None = None
        self._cast_id = cast_id
        self._roster = roster

    def open_untrusted(
        self, datagram: bytes, now: float
    ) -> tuple[ReceiverRecord, FeedbackMessage | None] | None:
        """Return the receiver that sent a datagram, and its message; count a bad one, and return None.

        The message is None if it is a REPORT that a later one has overtaken.
        """
        try:
            return self._open_untrusted(datagram, now)
        except WireError as error:
            self.rejects[error.reason] = self.rejects.get(error.reason, 0) + 1
            if error.reason == "bad_version":
                self.foreign_version = foreign_version_untrusted(datagram)
            return None

    def _open_untrusted(self, datagram: bytes, now: float) -> tuple[ReceiverRecord, FeedbackMessage | None]:
        source = feedback_source_untrusted(datagram)
        if source.cast_id != self._cast_id:
            raise WireError("foreign_cast")
        record = self._roster.records.get(ReceiverId(source.receiver_id))
        if record is None:
            raise WireError("unknown_receiver")
        check_feedback_mac(datagram, record.key)
        if not record.replay_window.accept(source.counter):
            raise WireError("replayed")
        if not record.feedback_allowance.take(now):
            raise WireError("too_many")
        message = feedback_body_untrusted(source, datagram)
        record.heard_at = now
        if isinstance(message, Report):
            if source.counter <= record.report_counter:
                return record, None
            record.report_counter = source.counter
        return record, message
