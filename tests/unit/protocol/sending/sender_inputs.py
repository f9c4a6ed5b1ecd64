"""A small cast's sender session and the messages of its receivers, for tests that play the receivers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from protocol.model.cast_policy import CastPolicy
from protocol.model.session_records import JoinGrant, JoinRequest, ReceiverState
from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.roster import Roster
from protocol.sending.sender_session import SenderSession
from protocol.sending.transitions import ReceiverTrigger
from protocol.wire.feedback_codec import encode_feedback
from protocol.wire.messages import CastObject, Nack, Report
from tests.simulation.world import SYMBOL_BYTES, Scenario, World

FRAME_BYTES = 32 + SYMBOL_BYTES


def new_session(
    *,
    block_count: int = 10,
    secrets: Callable[[int], bytes] | None = None,
    incarnation: int | None = None,
    **policy: object,
) -> SenderSession:
    """Return the session of a small world, at time 100, without receivers."""
    world = World(Scenario(1, block_count=block_count))
    parameters = world.parameters
    if incarnation is not None:
        parameters = dataclasses.replace(parameters, incarnation=incarnation)
    return SenderSession(
        parameters,
        world.image.manifest,
        policy=CastPolicy(**policy),  # type: ignore[arg-type]
        rng=random.Random(1),
        secrets=secrets or random.Random(2).randbytes,
        now=100.0,
    )


STEPS_TO = {
    ReceiverState.JOINED: (),
    ReceiverState.RECEIVING: (ReceiverTrigger.NEED_REPORTED,),
    ReceiverState.COMPLETE: (ReceiverTrigger.SUCCEEDED,),
    ReceiverState.FAILED: (ReceiverTrigger.FAILED,),
    ReceiverState.LOST: (ReceiverTrigger.TIMED_OUT,),
    ReceiverState.DROPPED: (ReceiverTrigger.DROPPED,),
}
"""Triggers that take a receiver that has just joined to each state."""


def put_into(roster: Roster, record: ReceiverRecord, state: ReceiverState) -> None:
    """Take a receiver that has just joined to ``state``."""
    for trigger in STEPS_TO[state]:
        assert roster.advance(record, trigger)


def join_request(agent: str = "a", **changes: object) -> JoinRequest:
    """Return the request of a machine that holds the manifest and needs every block."""
    fields = {
        "agent_id": agent, "name": f"pc-{agent}", "inventory": {}, "has_manifest": True, "need": None,
        "address": "10.0.0.9",
    }  # fmt: skip
    return JoinRequest(**(fields | changes))  # type: ignore[arg-type]


def report(grant: JoinGrant, counter: int, **changes: int) -> bytes:
    """Return a REPORT of zeros with five needed blocks, changed by ``changes``."""
    fields = {field.name: 0 for field in Report.FIELDS}
    fields |= {"blocks_needed_count": 5}
    return feedback(grant, counter, Report(**(fields | changes)))


def nack(grant: JoinGrant, counter: int, sequence: int, rows: tuple[tuple[int, int, int], ...]) -> bytes:
    """Return a NACK for runs of image blocks."""
    return feedback(grant, counter, Nack(CastObject.IMAGE, sequence & 0xFFFFFFFF, rows))


def feedback(
    grant: JoinGrant, counter: int, message: Nack | Report, *, receiver_id: int | None = None
) -> bytes:
    """Return the message with that receiver's tag, in the name of ``receiver_id`` if given."""
    return encode_feedback(
        message,
        cast_id=grant.parameters.cast_id,
        receiver_id=grant.receiver_id if receiver_id is None else receiver_id,
        counter=counter,
        key=grant.key,
    )


def transmit_all(session: SenderSession, now: float) -> int:
    """Transmit everything that is planned; return the number of symbols."""
    count = 0
    while (plan := session.next_plan(now, 64)) is not None:
        count += plan.symbol_count
        session.mark_transmitted(plan.next_sequence, plan.symbol_count * FRAME_BYTES, now)
    return count
