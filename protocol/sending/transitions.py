"""Transition tables of a cast and of its receivers, as the sender keeps them.

Everything that changes one of these states is in this module: ``TABLE[state][trigger]`` is the next state. A trigger
that a state's row doesn't have is ignored, since it is late: for example a failure report of a dropped receiver, or the
cancellation of a cast that has ended.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from protocol.model.cast_state import CastState
from protocol.model.session_records import ReceiverState


class CastTrigger(enum.Enum):
    """Event in the life of a cast."""

    GATHERED = enum.auto()
    """Enough receivers are ready, or the operator starts with those that are."""
    FINISHED = enum.auto()
    """No receiver is active any more, the operator cancelled the cast, or the sender failed."""


class ReceiverTrigger(enum.Enum):
    """Event in the life of a receiver."""

    JOINED = enum.auto()
    """The agent joined, or joined again: after a lost answer, a restart or a failure."""
    NEED_REPORTED = enum.auto()
    """The receiver holds the manifest and reported the blocks that it needs."""
    TIMED_OUT = enum.auto()
    """The receiver was silent for too long."""
    HEARD_AGAIN = enum.auto()
    """A datagram of a lost receiver arrived."""
    SUCCEEDED = enum.auto()
    """The receiver reported that it verified every byte."""
    FAILED = enum.auto()
    """The receiver reported an error."""
    DROPPED = enum.auto()
    """The receiver was too slow, and the policy is to drop stragglers."""


CAST_TRANSITIONS: Final[Mapping[CastState, Mapping[CastTrigger, CastState]]] = MappingProxyType(
    {
        CastState.GATHERING: {
            CastTrigger.GATHERED: CastState.CASTING,
            CastTrigger.FINISHED: CastState.ENDED,
        },
        CastState.CASTING: {CastTrigger.FINISHED: CastState.ENDED},
        CastState.ENDED: {},
    }
)

_ACTIVE: Final = {
    ReceiverTrigger.JOINED: ReceiverState.JOINED,
    ReceiverTrigger.NEED_REPORTED: ReceiverState.RECEIVING,
    ReceiverTrigger.TIMED_OUT: ReceiverState.LOST,
    ReceiverTrigger.SUCCEEDED: ReceiverState.COMPLETE,
    ReceiverTrigger.FAILED: ReceiverState.FAILED,
    ReceiverTrigger.DROPPED: ReceiverState.DROPPED,
}

RECEIVER_TRANSITIONS: Final[Mapping[ReceiverState, Mapping[ReceiverTrigger, ReceiverState]]] = (
    MappingProxyType(
        {
            ReceiverState.JOINED: _ACTIVE,
            ReceiverState.RECEIVING: _ACTIVE,
            ReceiverState.LOST: {
                ReceiverTrigger.JOINED: ReceiverState.JOINED,
                ReceiverTrigger.HEARD_AGAIN: ReceiverState.JOINED,
                ReceiverTrigger.NEED_REPORTED: ReceiverState.RECEIVING,
                ReceiverTrigger.SUCCEEDED: ReceiverState.COMPLETE,
                ReceiverTrigger.FAILED: ReceiverState.FAILED,
            },
            ReceiverState.COMPLETE: {
                ReceiverTrigger.JOINED: ReceiverState.JOINED,
                ReceiverTrigger.SUCCEEDED: ReceiverState.COMPLETE,
                ReceiverTrigger.FAILED: ReceiverState.FAILED,
            },
            ReceiverState.FAILED: {
                ReceiverTrigger.JOINED: ReceiverState.JOINED,
                ReceiverTrigger.SUCCEEDED: ReceiverState.COMPLETE,
                ReceiverTrigger.FAILED: ReceiverState.FAILED,
            },
            # A dropped receiver keeps its reason: the error that it reports only follows from it.
            ReceiverState.DROPPED: {
                ReceiverTrigger.JOINED: ReceiverState.JOINED,
                ReceiverTrigger.SUCCEEDED: ReceiverState.COMPLETE,
            },
        }
    )
)
