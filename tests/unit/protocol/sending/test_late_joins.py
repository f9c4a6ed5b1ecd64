"""A cast that is nearly over waits for receivers that are about to join.

Lost if these fail: a machine that comes while the last of the others ends is told that the cast is over, though it was
assigned to it, and somebody has to cast again for it.
"""

from __future__ import annotations

from protocol.constants import EXPECTED_WAIT_S
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.model.session_records import JoinGrant
from protocol.sending.sender_session import SenderSession
from tests.support.network.completion_reports import completion
from tests.unit.protocol.sending.sender_inputs import join_request, new_session


def casting_to_one() -> tuple[SenderSession, JoinGrant]:
    session = new_session()
    grant = session.join(join_request(), 100.0)
    session.control_datagrams(100.1)
    assert session.state is CastState.CASTING
    return session, grant


def test_a_cast_ends_with_its_last_receiver_if_no_other_is_about_to_join() -> None:
    session, grant = casting_to_one()
    session.complete(grant.receiver_id, completion(), 101.0)
    assert session.state is CastState.ENDED


def test_a_receiver_that_was_assigned_before_the_last_one_ended_is_served() -> None:
    session, grant = casting_to_one()
    session.gathering.expect_late(1)
    session.complete(grant.receiver_id, completion(), 101.0)
    session.control_datagrams(110.0)
    late = session.join(join_request("b"), 111.0)
    session.gathering.expect_late(0)
    session.control_datagrams(112.0)
    assert session.state is CastState.CASTING
    assert session.next_plan(112.1, 10) is not None
    session.complete(late.receiver_id, completion(), 113.0)
    assert (session.state, session.outcome) == (CastState.ENDED, SessionOutcome.COMPLETE)


def test_a_cast_ends_when_the_receiver_that_was_about_to_join_has_given_up() -> None:
    session, grant = casting_to_one()
    session.gathering.expect_late(1)
    session.complete(grant.receiver_id, completion(), 101.0)
    session.gathering.expect_late(0)
    session.control_datagrams(110.0)
    assert session.state is CastState.ENDED


def test_a_cast_doesnt_wait_forever_for_a_receiver_that_never_joins() -> None:
    session, grant = casting_to_one()
    session.gathering.expect_late(1)
    session.complete(grant.receiver_id, completion(), 101.0)
    session.control_datagrams(101.0 + EXPECTED_WAIT_S - 1.0)
    assert session.state is CastState.CASTING
    session.control_datagrams(101.0 + EXPECTED_WAIT_S + 1.0)
    assert session.state is CastState.ENDED
