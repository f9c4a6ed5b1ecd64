"""The sender's session: every state takes every input, and each ends where the operator would expect."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from protocol.constants import (
    EOT_COUNT,
    FEEDBACK_BURST,
    MANIFEST_WAIT_S,
    RECEIVER_COUNT_MAX,
    REPAIR_SHARE_MAX,
)
from protocol.errors import JoinRefusedError
from protocol.model.bottleneck import Bottleneck, Cause
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.model.session_records import JoinGrant, ReceiverId, ReceiverState
from protocol.sending import events
from protocol.sending.sender_session import SenderSession
from protocol.wire.control_codec import decode_control_untrusted
from protocol.wire.messages import Announce, EndOfTransmission, Flush, Report
from tests.support.network.completion_reports import completion
from tests.unit.protocol.sending.sender_inputs import (
    FRAME_BYTES,
    feedback,
    join_request,
    nack,
    new_session,
    report,
    transmit_all,
)


def _gathering() -> tuple[SenderSession, JoinGrant]:
    session = new_session(wait_for=2)
    return session, session.join(join_request(), 100.0)


def _casting(*, block_count: int = 10) -> tuple[SenderSession, JoinGrant]:
    session = new_session(block_count=block_count)
    grant = session.join(join_request(), 100.0)
    session.control_datagrams(100.1)
    assert session.state == CastState.CASTING
    return session, grant


def _ended() -> tuple[SenderSession, JoinGrant]:
    session, grant = _casting()
    session.end(SessionOutcome.CANCELLED, "by hand", 100.2)
    return session, grant


STATES = {CastState.GATHERING: _gathering, CastState.CASTING: _casting, CastState.ENDED: _ended}

BAD_END = completion(success=False, error="disk on fire")

# Input to (how to give it, state afterwards by state before).
G, C, E = CastState.GATHERING, CastState.CASTING, CastState.ENDED
INPUTS: dict[str, tuple[Callable[[SenderSession, JoinGrant], object], dict[int, int]]] = {
    "report": (lambda s, g: s.receive_feedback_untrusted(report(g, 1), 101.0), {G: G, C: C, E: E}),
    "nack": (
        lambda s, g: s.receive_feedback_untrusted(nack(g, 1, 0, ((0, 10, 3),)), 101.0),
        {G: G, C: C, E: E},
    ),
    "garbage": (lambda s, _: s.receive_feedback_untrusted(b"x" * 40, 101.0), {G: G, C: C, E: E}),
    "empty": (lambda s, _: s.receive_feedback_untrusted(b"", 101.0), {G: G, C: C, E: E}),
    "need": (lambda s, g: s.set_need(g.receiver_id, np.ones(10, np.bool_), 101.0), {G: G, C: C, E: E}),
    "completion": (lambda s, g: s.complete(g.receiver_id, completion(), 101.0), {G: G, C: E, E: E}),
    "failure": (lambda s, g: s.complete(g.receiver_id, BAD_END, 101.0), {G: G, C: E, E: E}),
    "plan": (lambda s, _: transmit_all(s, 101.0), {G: G, C: C, E: E}),
    "timers": (lambda s, _: s.control_datagrams(101.0), {G: G, C: C, E: E}),
    "silence": (lambda s, _: s.control_datagrams(200.0), {G: G, C: E, E: E}),
    "cancel": (lambda s, _: s.end(SessionOutcome.CANCELLED, "", 101.0), {G: E, C: E, E: E}),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", INPUTS)
def test_every_state_takes_every_input(state: int, name: str) -> None:
    session, grant = STATES[state]()
    give, after = INPUTS[name]
    give(session, grant)
    assert session.state == after[state]
    session.control_datagrams(201.0)
    assert session.next_timer(201.0) >= 201.0
    if session.state == CastState.ENDED:
        assert session.next_plan(201.0, 64) is None


@pytest.mark.parametrize("state", STATES)
def test_joining_in_every_state(state: int) -> None:
    session, _ = STATES[state]()
    if state == CastState.ENDED:
        with pytest.raises(JoinRefusedError, match="ended"):
            session.join(join_request("b"), 101.0)
        return
    grant = session.join(join_request("b", has_manifest=False), 101.0)
    assert grant.manifest_by_multicast == (state == CastState.GATHERING)
    assert session.active_count == 2


def test_a_rejoin_takes_the_old_place_with_a_new_key() -> None:
    session, grant = _casting()
    again = session.join(join_request(), 101.0)
    assert again.receiver_id == grant.receiver_id
    assert again.key != grant.key
    session.receive_feedback_untrusted(report(grant, 1), 101.0)
    assert session.rejects == {"bad_mac": 1}
    session.receive_feedback_untrusted(report(again, 1), 101.0)
    assert session.statistics.reports_received_count == 1
    assert [e.rejoined for e in session.next_events() if isinstance(e, events.ReceiverJoined)] == [
        False,
        True,
    ]


def test_a_machine_that_was_started_again_takes_the_place_of_its_lost_self() -> None:
    """Otherwise a reboot in the middle of the cast would leave a lost receiver, and the cast would fail."""
    session, grant = _casting()
    other = session.join(join_request("b"), 100.2)
    session.receive_feedback_untrusted(report(other, 1), 112.0)
    session.control_datagrams(112.0)
    again = session.join(join_request("new run", name="pc-a"), 120.0)
    assert again.receiver_id == grant.receiver_id
    assert session.receivers[grant.receiver_id].state is ReceiverState.RECEIVING
    third = session.join(join_request("third", name="pc-a"), 120.0)
    assert third.receiver_id not in (grant.receiver_id, other.receiver_id), "its namesake is alive"


def test_receivers_that_need_nothing_count_as_present() -> None:
    session = new_session(wait_for=2)
    grants = [session.join(join_request(agent), 100.0) for agent in "ab"]
    for grant in grants:
        session.complete(grant.receiver_id, completion(), 100.1)
    session.control_datagrams(100.2)
    session.control_datagrams(100.4)
    assert session.state == CastState.ENDED
    assert session.outcome == SessionOutcome.COMPLETE


def test_bad_feedback_is_counted_by_reason() -> None:
    session, grant = _casting()
    good = report(grant, 5)
    foreign = good[:4] + b"\xff\xff\xff\xff" + good[8:]
    for datagram in (good, good, b"", b"\0" * 64, foreign, good[:-1] + bytes([good[-1] ^ 1])):
        session.receive_feedback_untrusted(datagram, 101.0)
    unknown = Report(**{f.name: 1 for f in Report.FIELDS})
    session.receive_feedback_untrusted(feedback(grant, 9, unknown, receiver_id=700), 101.0)
    session.receive_feedback_untrusted(good[:2] + b"\1" + good[3:], 101.0)
    assert session.rejects == {
        "replayed": 1, "too_short": 1, "bad_magic": 1, "foreign_cast": 1, "bad_mac": 1, "unknown_receiver": 1,
        "bad_version": 1,
    }  # fmt: skip
    assert session.foreign_version == 1


def test_a_nack_that_a_report_has_overtaken_is_answered() -> None:
    """Otherwise it is lost, and on a path that reorders the block arrives a round trip later each time."""
    session, grant = _casting()
    transmit_all(session, 100.2)
    sequence = session._planner.next_sequence
    session.receive_feedback_untrusted(report(grant, 3, blocks_needed_count=0), 101.0)
    session.receive_feedback_untrusted(nack(grant, 2, sequence, ((0, 10, 1),)), 101.1)
    assert session.image_demand.repair_block_count > 0
    asked_count = session.statistics.nacked_symbol_count
    session.receive_feedback_untrusted(nack(grant, 2, sequence, ((0, 10, 2),)), 101.2)
    assert session.statistics.nacked_symbol_count == asked_count
    assert session.rejects == {"replayed": 1}


def test_a_report_that_a_later_one_has_overtaken_changes_nothing() -> None:
    """Otherwise a machine's progress would go back, and its rate would jump."""
    session, grant = _casting()
    record = session.receivers[grant.receiver_id]
    session.receive_feedback_untrusted(report(grant, 3, blocks_needed_count=2, bytes_written=9000), 101.0)
    session.receive_feedback_untrusted(report(grant, 2, blocks_needed_count=5, bytes_written=4000), 101.1)
    assert (record.needed_count, record.bytes_written) == (2, 9000)
    assert session.rejects == {}
    assert record.heard_at == 101.1


def test_a_nack_after_the_end_is_not_taken_up() -> None:
    session, grant = _casting()
    transmit_all(session, 100.2)
    sequence = session._planner.next_sequence
    session.end(SessionOutcome.CANCELLED, "by hand", 100.3)
    session.receive_feedback_untrusted(nack(grant, 1, sequence, ((0, 10, 1),)), 100.4)
    assert session.image_demand.idle


def test_a_full_cast_refuses_with_the_reason() -> None:
    session = new_session()
    for index in range(RECEIVER_COUNT_MAX):
        session.join(join_request(str(index)), 100.0)
    with pytest.raises(JoinRefusedError, match="full"):
        session.join(join_request("one more"), 100.0)


def test_a_need_bitmap_of_another_image_is_refused() -> None:
    session = new_session()
    with pytest.raises(JoinRefusedError, match="bitmap"):
        session.join(join_request(need=np.ones(11, np.bool_)), 100.0)
    assert not session.receivers


def test_two_machines_with_one_name_are_distinguished() -> None:
    session = new_session()
    for agent in "abc":
        session.join(join_request(agent, name="pc"), 100.0)
    assert [r.name for r in session.receivers.values()] == ["pc", "pc-2", "pc-3"]


def test_waiting_for_the_room() -> None:
    session = new_session(wait_for=2, max_wait_s=30.0)
    session.join(join_request("a"), 100.0)
    session.control_datagrams(105.0)
    assert session.state == CastState.GATHERING
    session.join(join_request("b"), 106.0)
    session.control_datagrams(106.0)
    assert session.state == CastState.CASTING


def test_the_room_starts_with_those_present_when_time_is_up() -> None:
    session = new_session(wait_for=9, max_wait_s=5.0)
    session.join(join_request("a"), 100.0)
    session.control_datagrams(105.0)
    assert session.state == CastState.CASTING


def test_no_receiver_joined() -> None:
    session = new_session(wait_for=1, max_wait_s=5.0)
    session.control_datagrams(105.0)
    assert session.state == CastState.ENDED
    assert any(isinstance(e, events.GatheringTimedOut) for e in session.next_events())


def test_a_slow_manifest_holds_the_start_for_a_bounded_time() -> None:
    session = new_session()
    session.join(join_request("a", has_manifest=False), 100.0)
    session.control_datagrams(100.1)
    assert session.state == CastState.GATHERING
    assert transmit_all(session, 100.1) > 0, "the manifest is cast while the room gathers"
    session.control_datagrams(100.1 + MANIFEST_WAIT_S)
    assert session.state == CastState.CASTING


def test_flush_follows_the_last_symbol_on_the_wire_and_not_before() -> None:
    session, _ = _casting()
    plan = session.next_plan(100.2, 10_000)
    assert plan is not None
    kinds = [type(decode_control_untrusted(d)[1]) for d in session.control_datagrams(100.3)]
    assert Flush not in kinds, "the plan is still in the transmit queue"
    session.mark_transmitted(plan.next_sequence, 1000, 100.4)
    flush = [decode_control_untrusted(d)[1] for d in session.control_datagrams(100.4)][-1]
    assert isinstance(flush, Flush)
    assert flush.next_sequence == plan.next_sequence


def test_the_end_is_sent_several_times_and_then_the_session_is_finished() -> None:
    session, grant = _casting()
    session.complete(grant.receiver_id, completion(), 101.0)
    assert session.outcome == SessionOutcome.COMPLETE
    told = []
    now = 101.0
    while not session.finished:
        told += [decode_control_untrusted(d)[1] for d in session.control_datagrams(now)]
        now = max(now + 0.01, session.next_timer(now))
    assert sum(isinstance(message, EndOfTransmission) for message in told) == EOT_COUNT


def test_announcements_name_the_cast_but_not_its_secret() -> None:
    session, grant = _casting()
    datagram = session.control_datagrams(105.0)[0]
    prefix, message = decode_control_untrusted(datagram)
    assert isinstance(message, Announce)
    assert prefix.cast_id == session.parameters.cast_id
    assert grant.run_secret not in datagram
    assert grant.run_secret.hex() not in repr(grant)


def test_a_new_run_has_new_keys_for_everything() -> None:
    """Otherwise a receiver that was put out of the cast could follow it, or forge for it."""
    draw = random.Random(3).randbytes
    first = new_session(secrets=draw)
    before = first.join(join_request(), 100.0)
    session = new_session(secrets=draw, incarnation=first.parameters.incarnation ^ 1)
    after = session.join(join_request(), 101.0)
    assert after.parameters.incarnation != before.parameters.incarnation
    assert not {before.run_secret, before.control_key, before.key} & {
        after.run_secret,
        after.control_key,
        after.key,
    }
    announce = decode_control_untrusted(session.control_datagrams(101.0)[0])[1]
    assert isinstance(announce, Announce)
    assert announce.incarnation == after.parameters.incarnation
    plan = session.next_plan(101.1, 10)
    assert plan is not None
    assert plan.keys.secret == after.run_secret


def test_a_lost_receiver_is_named_and_may_return() -> None:
    session, grant = _casting()
    other = session.join(join_request("b"), 100.2)
    session.receive_feedback_untrusted(report(other, 1), 112.0)
    session.control_datagrams(112.0)
    assert session.receivers[grant.receiver_id].state is ReceiverState.LOST
    assert session.state == CastState.CASTING
    session.receive_feedback_untrusted(report(grant, 1), 113.0)
    assert session.receivers[grant.receiver_id].state is ReceiverState.RECEIVING
    kinds = [type(e) for e in session.next_events()]
    assert kinds.index(events.ReceiverLost) < kinds.index(events.ReceiverReturned)


def test_round_trip_time_and_progress_come_from_reports() -> None:
    session, grant = _casting()
    assert session.control_datagrams(101.9)
    session.receive_feedback_untrusted(
        report(grant, 1, echo_us=101_900_000, echo_delay_us=20_000, blocks_needed_count=8), 102.0
    )
    record = session.receivers[grant.receiver_id]
    assert record.rtt_s == pytest.approx(0.08)
    assert session.grtt_s == pytest.approx(0.08)
    session.receive_feedback_untrusted(report(grant, 2, blocks_needed_count=2), 102.1)
    assert record.progress == pytest.approx(0.75)


def test_an_echo_that_was_never_sent_or_comes_from_the_future_measures_nothing() -> None:
    """One false echo set the timing of the whole room to five seconds."""
    session, grant = _casting()
    assert session.control_datagrams(101.9)
    before_s = session.grtt_s
    for counter, echo in enumerate(((97_000_000, 0), (101_900_000, 500_000)), 1):
        false = report(grant, counter, echo_us=echo[0], echo_delay_us=echo[1])
        session.receive_feedback_untrusted(false, 102.0)
    assert session.receivers[grant.receiver_id].rtt_s == 0.0
    assert session.grtt_s == before_s


def test_more_feedback_than_a_receiver_can_have_is_dropped() -> None:
    """A hostile member would occupy the sender with valid datagrams."""
    session, grant = _casting()
    for counter in range(1, 1001):
        session.receive_feedback_untrusted(report(grant, counter), 101.0)
    assert session.rejects == {"too_many": 1000 - FEEDBACK_BURST}
    session.receive_feedback_untrusted(report(grant, 1001), 101.1)
    assert session.statistics.reports_received_count == FEEDBACK_BURST + 1


def test_forged_and_replayed_feedback_doesn_t_use_up_a_receivers_allowance() -> None:
    """Otherwise anybody could silence a machine, which then counts as lost."""
    session, grant = _casting()
    good = report(grant, 1)
    session.receive_feedback_untrusted(good, 101.0)
    for _ in range(1000):
        session.receive_feedback_untrusted(good[:-1] + bytes([good[-1] ^ 1]), 101.0)
        session.receive_feedback_untrusted(good, 101.0)
    session.receive_feedback_untrusted(report(grant, 2), 101.0)
    assert session.statistics.reports_received_count == 2


def test_a_member_that_requests_everything_gets_its_share() -> None:
    """The room keeps three quarters of the rate."""
    session, grant = _casting(block_count=4000)
    session.join(join_request("b"), 100.0)
    rate = 0.1 * session.rate_bytes_per_s  # as of a slow interface
    now, counter = 100.2, 0
    while session.image_demand.wanted_count:
        counter += 1
        hostile = nack(grant, counter, session._planner.next_sequence, ((0, 4000, 200),))
        session.receive_feedback_untrusted(hostile, now)
        plan = session.next_plan(now, 64)
        assert plan is not None
        now += plan.symbol_count * FRAME_BYTES / rate
        session.mark_transmitted(plan.next_sequence, plan.symbol_count * FRAME_BYTES, now)
    sent_s = now - 100.2
    share_s = session.image_demand.sent_repair_count * FRAME_BYTES / rate
    assert sent_s > 2.0
    assert share_s <= REPAIR_SHARE_MAX * (sent_s + 1.1)


def test_a_receiver_alone_gets_all_its_repairs_at_once() -> None:
    session, grant = _casting(block_count=4000)
    transmit_all(session, 100.2)
    session.receive_feedback_untrusted(nack(grant, 1, session._planner.next_sequence, ((0, 4000, 4),)), 100.3)
    assert session.image_demand.repair_block_count > 3000


def test_a_report_from_before_the_manifest_does_not_show_a_machine_as_done() -> None:
    """It can't report its need yet; a machine stuck at 100 % would alert no operator."""
    session, grant = _casting()
    record = session.receivers[grant.receiver_id]
    session.receive_feedback_untrusted(report(grant, 1, blocks_needed_count=0), 101.0)
    assert record.progress == 0.0
    session.receive_feedback_untrusted(report(grant, 2, blocks_needed_count=8), 101.1)
    session.receive_feedback_untrusted(report(grant, 3, blocks_needed_count=0), 101.2)
    assert record.progress == 1.0


def test_a_read_that_does_not_return_limits_the_cast_and_not_the_receivers() -> None:
    """Nothing is transmitted during the read, and the earlier figures would blame the network for hours."""
    session, _grant = _casting()
    plan = session.next_plan(100.2, 64)
    assert plan is not None
    session.mark_transmitted(plan.next_sequence, 10**6, 100.21)
    assert session.next_plan(100.3, 64) is not None
    session.note_read(0.1)
    assert session.bottleneck.cause is not Cause.SOURCE
    assert session.achieved_bytes_per_s > 0
    session.note_read(3.0)
    assert session.bottleneck == Bottleneck(Cause.SOURCE)
    assert session.achieved_bytes_per_s == 0
    session.control_datagrams(103.3)
    assert session.bottleneck_seconds[Bottleneck(Cause.SOURCE)] > 3
    session.note_read(0.0)
    assert session.bottleneck.cause is not Cause.SOURCE


def test_keys_are_checked() -> None:
    session, grant = _casting()
    session.check_key(grant.receiver_id, grant.key)
    for receiver_id, key in ((grant.receiver_id, bytes(32)), (ReceiverId(9), grant.key)):
        with pytest.raises(JoinRefusedError):
            session.check_key(receiver_id, key)


def _serve_for(session: SenderSession, grant: JoinGrant, seconds: float, now: float, **figures: int) -> float:
    """Let a receiver report the same figures once a second; return the time afterwards."""
    for _ in range(round(seconds)):
        now += 1.0
        session.receive_feedback_untrusted(report(grant, int(now * 10), **figures), now)
        session.control_datagrams(now)
    return now


def test_a_machine_that_is_heard_and_makes_no_progress_is_given_up() -> None:
    """An agent that waits for ever would hold the daemon's cast, and the room's next one."""
    session, grant = _casting()
    record = session.receivers[grant.receiver_id]
    now = _serve_for(session, grant, 500, 101.0, received_count=5)
    now = _serve_for(session, grant, 500, now, received_count=6)
    assert record.state is ReceiverState.RECEIVING, "data has arrived in between"
    _serve_for(session, grant, 101, now, received_count=6)
    assert record.state is ReceiverState.FAILED
    assert "no progress for 10 min, although it is heard" in record.error
    assert session.state is CastState.ENDED, "the room doesn't wait for it"
    assert [type(event) for event in session.next_events()][-2:] == [
        events.ReceiverFailed,
        events.CastFinished,
    ]


@pytest.mark.parametrize("reason", ["paused", "stalled source", "full buffers", "comparing"])
def test_a_machine_that_the_cast_does_not_serve_is_not_given_up(reason: str) -> None:
    session, grant = _casting()
    figures = {"fill_permille": 10} if reason == "full buffers" else {}
    if reason == "paused":
        session.pause()
    elif reason == "stalled source":
        session.note_read(3.0)
    elif reason == "comparing":
        grant = session.join(join_request("b", has_manifest=False), 101.0)
    _serve_for(session, grant, 700, 101.0, received_count=5, **figures)
    assert session.receivers[grant.receiver_id].state.active
