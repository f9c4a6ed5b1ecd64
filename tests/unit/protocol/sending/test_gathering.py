"""The start of image data: not before the room has gathered, and not never."""

from __future__ import annotations

import random

import pytest

from protocol.constants import EXPECTED_WAIT_S, MANIFEST_WAIT_S
from protocol.model.cast_policy import CastPolicy
from protocol.model.session_records import ReceiverState
from protocol.sending.gathering import Attendance, Gathering
from protocol.sending.roster import Roster
from tests.unit.protocol.sending.sender_inputs import join_request, put_into


class Room:
    def __init__(self, **policy: object) -> None:
        self.roster = Roster(random.Random(1).randbytes)
        self.gathering = Gathering(CastPolicy(**policy), self.roster, 100.0)  # type: ignore[arg-type]

    def join(self, agent: str, *, ready: bool = True) -> None:
        self.roster.admit(join_request(agent), 100.0)[0].ready = ready


def test_the_cast_waits_again_for_a_receiver_that_leaves_before_the_start() -> None:
    """Otherwise the time of a much later manifest would be up at once."""
    room = Room(wait_for=1)
    room.join("a", ready=False)
    assert room.gathering.check(101.0) is Attendance.WAITING
    put_into(room.roster, room.roster.records[0], ReceiverState.LOST)
    assert room.gathering.check(200.0) is Attendance.WAITING
    room.join("b", ready=False)
    assert room.gathering.check(201.0) is Attendance.WAITING
    assert room.gathering.check(201.0 + MANIFEST_WAIT_S) is Attendance.GATHERED


@pytest.mark.parametrize(("by_hand", "attendance"), [(False, Attendance.NOBODY), (True, Attendance.WAITING)])
def test_no_receiver_joins_in_time(by_hand: bool, attendance: Attendance) -> None:
    """A cast that waits for the operator has no time limit."""
    room = Room(max_wait_s=30.0, by_hand=by_hand)
    assert room.gathering.check(129.0) is Attendance.WAITING
    assert room.gathering.check(130.0) is attendance


def test_machines_that_wont_join_count_as_present_but_not_alone() -> None:
    room = Room(wait_for=2)
    room.gathering.stop_waiting_for(2)
    assert room.gathering.check(101.0) is Attendance.WAITING
    room.join("a")
    assert room.gathering.check(101.0) is Attendance.GATHERED


def test_machines_that_boot_are_awaited_within_the_time_limit() -> None:
    """Otherwise the first machine of a room that boots over the network starts the cast without the others."""
    room = Room(wait_for=1, max_wait_s=30.0)
    room.gathering.expect_more(2)
    room.join("a")
    assert room.gathering.check(101.0) is Attendance.WAITING
    room.gathering.expect_more(0)
    assert room.gathering.check(102.0) is Attendance.GATHERED
    room.gathering.expect_more(1)
    assert room.gathering.check(130.0) is Attendance.GATHERED, "the others join late"


def test_a_cast_doesnt_fail_while_its_first_machines_boot() -> None:
    room = Room(wait_for=1, max_wait_s=30.0)
    room.gathering.expect_more(1)
    assert room.gathering.check(130.0) is Attendance.WAITING
    assert room.gathering.check(130.0 + EXPECTED_WAIT_S) is Attendance.NOBODY, (
        "a machine that restarts forever"
    )
