"""Transition tables: a wrong transition would abandon a machine, or wait for it for ever."""

from __future__ import annotations

import random

import pytest

from protocol.model.cast_state import CastState
from protocol.model.session_records import ReceiverState
from protocol.receiving.phases import PHASES, ReceptionPhase
from protocol.sending.roster import Roster
from protocol.sending.transitions import CAST_TRANSITIONS, RECEIVER_TRANSITIONS, ReceiverTrigger
from tests.unit.protocol.sending.sender_inputs import join_request, put_into


def test_every_state_has_its_row() -> None:
    assert set(CAST_TRANSITIONS) == set(CastState)
    assert set(RECEIVER_TRANSITIONS) == set(ReceiverState)
    assert set(PHASES) == set(ReceptionPhase)


def test_a_cast_that_has_ended_stays_so() -> None:
    assert not CAST_TRANSITIONS[CastState.ENDED]


@pytest.mark.parametrize("state", ReceiverState)
@pytest.mark.parametrize("trigger", ReceiverTrigger)
def test_the_roster_takes_the_steps_of_the_table_and_no_others(
    state: ReceiverState, trigger: ReceiverTrigger
) -> None:
    roster = Roster(random.Random(1).randbytes)
    record, _ = roster.admit(join_request("a"), 100.0)
    put_into(roster, record, state)
    after = RECEIVER_TRANSITIONS[state].get(trigger)
    assert roster.advance(record, trigger) == (after is not None)
    assert record.state is (after or state)
    assert roster.active_count == record.state.active


@pytest.mark.parametrize("state", ReceiverState)
def test_every_machine_can_join_again(state: ReceiverState) -> None:
    assert RECEIVER_TRANSITIONS[state][ReceiverTrigger.JOINED] is ReceiverState.JOINED
