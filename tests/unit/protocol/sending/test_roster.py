"""Recognition of machines: a mistaken one hangs the room or is reported as imaged when it isn't."""

from __future__ import annotations

import random

import pytest

from protocol.constants import RECEIVER_COUNT_MAX
from protocol.errors import JoinRefusedError
from protocol.model.session_records import MachineIdentity, ReceiverState
from protocol.sending.roster import Roster
from tests.unit.protocol.sending.sender_inputs import join_request, put_into

GONE = (ReceiverState.LOST, ReceiverState.FAILED, ReceiverState.DROPPED)
THERE = (ReceiverState.JOINED, ReceiverState.RECEIVING, ReceiverState.COMPLETE)


@pytest.fixture
def roster() -> Roster:
    return Roster(random.Random(1).randbytes)


def test_the_same_run_keeps_its_number_and_gets_a_new_key(roster: Roster) -> None:
    """After a lost answer the agent joins again: two records of one machine would never both end."""
    first, rejoined = roster.admit(join_request("a"), 100.0)
    key = first.key
    again, rejoined_again = roster.admit(join_request("a"), 101.0)
    assert again is first
    assert (rejoined, rejoined_again) == (False, True)
    assert again.key != key
    assert len(roster.records) == 1


@pytest.mark.parametrize("state", GONE)
def test_a_machine_that_was_started_again_takes_its_old_place(roster: Roster, state: ReceiverState) -> None:
    record, _ = roster.admit(join_request("first run", name="pc"), 100.0)
    put_into(roster, record, state)
    record.error, record.finished_at = "gone", 105.0
    assert record.replay_window.accept(17)
    record.report_counter, record.bytes_written = 17, 1 << 30
    again, rejoined = roster.admit(join_request("second run", name="pc"), 110.0)
    assert (again, rejoined) == (record, True)
    assert (again.state, again.error, again.finished_at) == (ReceiverState.JOINED, "", None)
    assert (again.report_counter, again.bytes_written) == (0, 0), "its new run counts from zero"
    assert again.replay_window.accept(1)
    assert roster.admit(join_request("second run", name="pc"), 111.0) == (record, True)
    assert roster.active_count == 1, "or the cast would wait for a machine that doesn't exist"


def test_a_returning_machine_updates_its_description(roster: Roster) -> None:
    roster.admit(join_request("a", inventory={"target": "/dev/sda"}), 100.0)
    said = MachineIdentity((), "SN7", "")
    record, _ = roster.admit(join_request("a", inventory={"target": "/dev/sdb"}, identity=said), 101.0)
    assert (record.inventory, record.identity) == ({"target": "/dev/sdb"}, said)


@pytest.mark.parametrize("state", THERE)
def test_a_namesake_that_is_there_keeps_its_place(roster: Roster, state: ReceiverState) -> None:
    """Live systems from one image often share a name: none may take another's record."""
    record, _ = roster.admit(join_request("a", name="live"), 100.0)
    put_into(roster, record, state)
    other, rejoined = roster.admit(join_request("b", name="live"), 101.0)
    assert other is not record
    assert not rejoined
    assert (record.name, other.name) == ("live", "live-2")


HARDWARE = MachineIdentity(("52:54:00:00:00:07",), "SN7", "")


@pytest.mark.parametrize(
    ("identity", "heard_at", "taken_over"),
    [
        (HARDWARE, 100.0, True),
        (HARDWARE, 100.7, False),
        (MachineIdentity(("52:54:00:00:00:08",), "SN8", ""), 100.0, False),
        (MachineIdentity((), "", ""), 100.0, False),
        (None, 100.0, False),
    ],
    ids=["silent", "two agents of one machine", "other hardware", "unreadable hardware", "old agent"],
)
def test_a_restarted_agent_takes_its_place_before_the_old_one_counts_as_lost(
    roster: Roster, identity: MachineIdentity | None, heard_at: float, taken_over: bool
) -> None:
    """A second record would be one machine too many, and the cast would fail for one that never ends."""
    first = HARDWARE if taken_over or identity is None or identity.macs else identity
    record, _ = roster.admit(join_request("first run", name="pc", identity=first), 100.0)
    put_into(roster, record, ReceiverState.RECEIVING)
    record.heard_at = heard_at
    again, rejoined = roster.admit(join_request("second run", name="pc", identity=identity), 101.0)
    assert (again is record, rejoined) == (taken_over, taken_over)
    assert roster.active_count == (1 if taken_over else 2)


def test_a_large_room_reports_rarely(roster: Roster) -> None:
    roster.admit(join_request("first run", name="pc", identity=HARDWARE), 100.0)
    second = join_request("second run", name="pc", identity=HARDWARE)
    assert not roster.admit(second, 110.0, report_interval_s=5.0)[1]


def test_a_machine_of_another_address_takes_no_record(roster: Roster) -> None:
    record, _ = roster.admit(join_request("a", name="live"), 100.0)
    put_into(roster, record, ReceiverState.LOST)
    other, rejoined = roster.admit(join_request("b", name="live", address="10.0.0.10"), 101.0)
    assert (other is record, rejoined) == (False, False)


def test_names_stay_unique_even_beside_one_that_looks_like_a_made_up_one(roster: Roster) -> None:
    """Metrics and messages use names."""
    names = ["pc", "pc-2", "pc", "pc", "pc-2"]
    given = [roster.admit(join_request(str(i), name=name), 100.0)[0].name for i, name in enumerate(names)]
    assert given == ["pc", "pc-2", "pc-3", "pc-4", "pc-2-2"]


def test_a_full_cast_still_takes_back_its_own(roster: Roster) -> None:
    for index in range(RECEIVER_COUNT_MAX):
        roster.admit(join_request(str(index)), 100.0)
    with pytest.raises(JoinRefusedError, match="full"):
        roster.admit(join_request("one more"), 100.0)
    assert roster.admit(join_request("5"), 101.0)[1]
    assert sorted(roster.records) == list(range(RECEIVER_COUNT_MAX))


def test_only_those_that_still_receive_are_active(roster: Roster) -> None:
    for index, state in enumerate(ReceiverState):
        put_into(roster, roster.admit(join_request(str(index)), 100.0)[0], state)
    assert roster.active_count == 2
    assert {record.state for record in roster.active} == {ReceiverState.JOINED, ReceiverState.RECEIVING}
