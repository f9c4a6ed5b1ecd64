"""Why a machine wasn't imaged, in a few words that alerts and dashboards can count by."""

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
    """The mend differs from one to the next; what exactly went wrong is in the cast's account and in the log."""

    VERIFICATION = "verification"
    """What its disk reads back isn't the image, however often it is written."""
    STORAGE = "storage"
    """Its disk failed, or didn't answer, while it was written or read back."""
    TARGET = "target"
    """Its disk was refused before anything was written: too small, in use, the wrong one. Or fitting it failed."""
    SESSION = "session"
    """The cast as a conversation went wrong: the sender was lost, or refused it."""
    LOST = "lost"
    """It went silent: switched off, unplugged, its agent killed."""
    DROPPED = "dropped"
    """It was given up for being too slow, as the operator wished."""
    CANCELLED = "cancelled"
    """The operator cancelled the cast."""
    OTHER = "other"


_OF_STATE = {ReceiverState.LOST: FailureCause.LOST, ReceiverState.DROPPED: FailureCause.DROPPED}
_TENS = {
    TargetError.exit_code // 10: FailureCause.TARGET,
    SessionError.exit_code // 10: FailureCause.SESSION,
    StorageError.exit_code // 10: FailureCause.STORAGE,
}
"""Exit codes of a family of errors share their tens."""
_OF_EXIT_CODE = {
    VerificationError.exit_code: FailureCause.VERIFICATION,
    CastCancelledError.exit_code: FailureCause.CANCELLED,
    DroppedError.exit_code: FailureCause.DROPPED,
}


def failure_cause(record: ReceiverRecord) -> FailureCause | None:
    """Why a receiver has ended without all of the image; None if it hasn't."""
    if record.state in _OF_STATE:
        return _OF_STATE[record.state]
    if record.state is not ReceiverState.FAILED:
        return None
    return cause_of_exit_code(record.completion.exit_code if record.completion else None)


def cause_of_exit_code(exit_code: int | None) -> FailureCause:
    """What an agent's exit code other than 0 says; None if it said none."""
    if exit_code is None:
        return FailureCause.OTHER
    return _OF_EXIT_CODE.get(exit_code) or _TENS.get(exit_code // 10, FailureCause.OTHER)
