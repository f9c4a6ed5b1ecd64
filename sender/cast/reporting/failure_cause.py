"""Classify failures of receivers by cause, for alerts and dashboards."""

from __future__ import annotations

import enum

from protocol.errors import (
    CastCancelledError,
    DroppedError,
    SessionError,
    StorageError,
    TargetError,
    VerificationError,
)
from protocol.model.session_records import ReceiverState
from protocol.sending.receiver_record import ReceiverRecord


class FailureCause(enum.StrEnum):
    """The cause of a failure: each needs a different fix. Details are in the summary of the cast and in the log."""

    VERIFICATION = "verification"
    """The disk reads back wrong data, even after rewrites."""
    STORAGE = "storage"
    """The disk failed, or didn't answer, while it was written or read back."""
    TARGET = "target"
    """The disk was refused before the first write (too small, in use, the wrong one), or fitting it failed."""
    SESSION = "session"
    """The session failed: the sender was lost, or refused the receiver."""
    LOST = "lost"
    """The receiver went silent: switched off, unplugged, or its agent was killed."""
    DROPPED = "dropped"
    """The receiver was too slow and was dropped by the operator's policy."""
    CANCELLED = "cancelled"
    """The operator cancelled the cast."""
    OTHER = "other"


_OF_STATE = {ReceiverState.LOST: FailureCause.LOST, ReceiverState.DROPPED: FailureCause.DROPPED}
_TENS = {
    TargetError.exit_code // 10: FailureCause.TARGET,
    SessionError.exit_code // 10: FailureCause.SESSION,
    StorageError.exit_code // 10: FailureCause.STORAGE,
}
"""Causes by the tens of the exit code, which a family of errors shares."""
_OF_EXIT_CODE = {
    VerificationError.exit_code: FailureCause.VERIFICATION,
    CastCancelledError.exit_code: FailureCause.CANCELLED,
    DroppedError.exit_code: FailureCause.DROPPED,
}


def failure_cause(record: ReceiverRecord) -> FailureCause | None:
    """Return the cause for which a receiver ended without the whole image; None if it has the image."""
    if record.state in _OF_STATE:
        return _OF_STATE[record.state]
    if record.state is not ReceiverState.FAILED:
        return None
    return cause_of_exit_code(record.completion.exit_code if record.completion else None)


def cause_of_exit_code(exit_code: int | None) -> FailureCause:
    """Return the cause for an agent's exit code other than 0, or OTHER if it sent none."""
    if exit_code is None:
        return FailureCause.OTHER
    return _OF_EXIT_CODE.get(exit_code) or _TENS.get(exit_code // 10, FailureCause.OTHER)
