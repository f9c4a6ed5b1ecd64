"""Stragglers in the sender's session: one bad machine must not slow the room, nor be forgotten.

The receivers are simulated: each reports ten times a second the figures of a machine at its rate.
"""

from __future__ import annotations

import pytest

from protocol.model.bottleneck import Bottleneck, Cause
from protocol.model.cast_policy import SlowPolicy
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.model.session_records import ReceiverId, ReceiverState
from protocol.sending import events
from protocol.sending.rate.stragglers import SLOW_FOR_A_MOMENT_S
from protocol.wire.bitmap import bitmap_of
from protocol.wire.control_codec import ControlMessage, decode_control_untrusted
from protocol.wire.messages import Announce, Flush, Standing
from tests.support.network.completion_reports import completion
from tests.unit.protocol.sending.sender_inputs import (
    FRAME_BYTES,
    join_request,
    nack,
    new_session,
    report,
    transmit_all,
)

SLOW, FIRST, SECOND = ReceiverId(0), ReceiverId(1), ReceiverId(2)
SLOW_RATE, FAST_RATE = 1e6, 100e6
BAD_END = completion(success=False, error="told to stop")


class Cast:
    """Slow receivers and twice as many fast ones; ``run`` advances the time."""

    def __init__(self, *, slow_count: int = 1, **policy: object) -> None:
        agents = "abcdef"[: 3 * slow_count]
        self.session = new_session(**{"wait_for": len(agents), **policy})
        self.grants = [self.session.join(join_request(agent), 100.0) for agent in agents]
        self._slow_count = slow_count
        self.now = 100.0
        self.events: list[tuple[float, events.SenderEvent]] = []
        self.control: list[tuple[float, ControlMessage]] = []
        self._counters = [0] * len(agents)
        self._received_counts = [0] * len(agents)
        self._advance()
        assert self.session.state == CastState.CASTING

    def run(self, seconds: float, *, slow: bool = True) -> Cast:
        """Let all remaining receivers report, the first ones as slow machines or not."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            for receiver_id, record in self.session.receivers.items():
                if record.state.active:
                    self._report(receiver_id, slow=slow and receiver_id < self._slow_count)
            self._advance()
        return self

    def _report(self, receiver_id: ReceiverId, *, slow: bool) -> None:
        rate = self.session.rate_bytes_per_s
        link = SLOW_RATE if slow else FAST_RATE
        self._received_counts[receiver_id] += int(min(rate, link) * 0.1 / FRAME_BYTES)
        figures = {
            "received_count": self._received_counts[receiver_id],
            "expected_count": self._received_counts[receiver_id],
            "recent_expected_count": 1000,
            "recent_received_count": int(1000 * min(1.0, link / rate)),
            "arriving_bytes_per_s": int(min(rate, link)),
            "queue_delay_us": 50_000 if rate > link else 0,
        }
        self.deliver(report(self.grants[receiver_id], self._count(receiver_id), **figures))

    def _count(self, receiver_id: ReceiverId) -> int:
        self._counters[receiver_id] += 1
        return self._counters[receiver_id]

    def deliver(self, datagram: bytes) -> None:
        """Send a feedback datagram."""
        self.session.receive_feedback_untrusted(datagram, self.now)

    def nack(self, receiver_id: ReceiverId, deficit: int = 1) -> None:
        """Request every block; all of them have been sent."""
        transmit_all(self.session, self.now)
        sequence = self.session._planner.next_sequence
        self.deliver(nack(self.grants[receiver_id], self._count(receiver_id), sequence, ((0, 10, deficit),)))

    def complete(self, *receiver_ids: ReceiverId) -> None:
        """Complete the receivers."""
        for receiver_id in receiver_ids:
            self.session.complete(receiver_id, completion(), self.now)
        self._advance()

    def _advance(self) -> None:
        session = self.session
        for step in range(5):  # as a busy transmitter reports
            at = self.now + step * 0.02
            session.mark_transmitted(session._planner.next_sequence, int(session.rate_bytes_per_s * 0.02), at)
        for datagram in session.control_datagrams(self.now):
            self.control.append((self.now, decode_control_untrusted(datagram)[1]))
        self.events += [(self.now, event) for event in session.next_events()]

    def events_of(self, *kinds: type) -> list[events.SenderEvent]:
        """Return the events of these kinds."""
        return [event for _, event in self.events if isinstance(event, kinds)]

    def standings(self) -> list[Standing]:
        """Return the STANDING messages."""
        return [message for _, message in self.control if isinstance(message, Standing)]


VERDICTS = (events.ReceiverSlow, events.ReceiverRecovered, events.ReceiverDemoted, events.ReceiverDropped)


def test_the_room_continues_at_its_own_rate_at_once() -> None:
    cast = Cast().run(6.0)
    (slow,) = cast.events_of(*VERDICTS)
    assert isinstance(slow, events.ReceiverSlow)
    assert slow.receiver_id == SLOW
    assert slow.cause == "network"
    assert slow.rate_bytes_per_s < 0.3 * slow.group_rate_bytes_per_s
    assert cast.session.rate_bytes_per_s > 50e6
    record = cast.session.receivers[SLOW]
    assert record.slow_since is not None
    assert record.sustainable_bytes_per_s == pytest.approx(SLOW_RATE, rel=0.1)
    assert not record.demoted


def test_demoted_after_its_time_and_completed_in_the_tail() -> None:
    cast = Cast(slow_for_s=10.0).run(20.0)
    times = {type(event): at for at, event in cast.events if isinstance(event, VERDICTS)}
    assert times.keys() == {events.ReceiverSlow, events.ReceiverDemoted}
    assert times[events.ReceiverDemoted] - times[events.ReceiverSlow] == pytest.approx(
        10.0 - SLOW_FOR_A_MOMENT_S, abs=0.2
    )
    assert cast.session.receivers[SLOW].deferred

    cast.complete(FIRST, SECOND)
    assert cast.events_of(events.MainGroupFinished) == [
        events.MainGroupFinished(2, 1, pytest.approx(20.0))  # type: ignore[arg-type]
    ]
    assert cast.session.statistics.main_finished_at == cast.now
    record = cast.session.receivers[SLOW]
    assert (record.demoted, record.deferred) == (True, False)
    cast.run(3.0)
    assert cast.session.rate_bytes_per_s == pytest.approx(SLOW_RATE, rel=0.5), "now it sets the rate"
    assert cast.session.state == CastState.CASTING
    cast.complete(SLOW)
    assert cast.events_of(events.CastFinished) == [
        events.CastFinished(SessionOutcome.COMPLETE, "every receiver has ended")
    ]
    assert len(cast.events_of(events.MainGroupFinished)) == 1


def test_several_stragglers_share_the_tail() -> None:
    """One after the other they would take as many times as long."""
    cast = Cast(slow_count=2, slow_for_s=3.0).run(8.0)
    assert len(cast.events_of(events.ReceiverDemoted)) == 2
    cast.complete(*map(ReceiverId, range(2, 6)))
    cast.run(15.0)
    assert len(cast.events_of(events.ReceiverDemoted)) == 2, "in the tail they are the group"
    assert cast.session.rate_bytes_per_s == pytest.approx(SLOW_RATE, rel=0.5)
    for straggler in (SLOW, FIRST):
        assert cast.session.receivers[straggler].slow_since is None
        cast.nack(straggler)
        assert cast.session.image_demand.repair_block_count > 0
    cast.complete(FIRST, SLOW)
    assert cast.session.state == CastState.ENDED


def test_a_stragglers_questions_wait_and_the_others_do_not() -> None:
    """At a tenth of the rate it misses nine blocks of ten: the room would receive all of them again."""
    cast = Cast().run(6.0)
    cast.nack(SLOW)
    assert cast.session.image_demand.idle
    cast.nack(FIRST)
    assert cast.session.image_demand.repair_block_count > 0
    cast.run(10.0)
    cast.nack(SLOW)
    assert cast.session.image_demand.idle, "demoted"
    cast.complete(FIRST, SECOND)
    cast.nack(SLOW)
    assert cast.session.image_demand.repair_block_count > 0, "its turn"


def test_it_is_notified_to_wait_and_again_when_its_turn_comes() -> None:
    """Otherwise it would fill the sender's socket with NACKs, or wait for ever."""
    cast = Cast().run(6.0)
    assert set(cast.standings()) == {Standing(bitmap_of([SLOW]), b"")}
    slow_at = next(at for at, event in cast.events if isinstance(event, events.ReceiverSlow))
    first_at = next(at for at, message in cast.control if isinstance(message, Standing))
    assert 0.0 <= first_at - slow_at < 0.3
    assert slow_at >= 103.0, "a moment's trouble isn't worth it"
    cast.run(8.0)
    announced = [at for at, message in cast.control if isinstance(message, Announce) and at > first_at + 0.5]
    repeated = [at for at, message in cast.control if isinstance(message, Standing)]
    assert set(announced) <= set(repeated), (
        "a receiver that has missed it hears it with the next announcement"
    )
    cast.complete(FIRST, SECOND)
    cast.run(0.4)
    assert cast.standings()[-3:] == [Standing(b"", b"")] * 3
    cast.run(3.0)
    assert len(cast.standings()) < 20, "and then no more"


def test_a_bad_moment_is_over_when_it_is_over() -> None:
    cast = Cast().run(6.0)
    cast.run(SLOW_FOR_A_MOMENT_S + 2.0, slow=False)
    assert [type(event) for event in cast.events_of(*VERDICTS)] == [
        events.ReceiverSlow,
        events.ReceiverRecovered,
    ]
    assert cast.session.receivers[SLOW].slow_since is None
    assert cast.standings()[-1] == Standing(b"", b"")
    cast.nack(SLOW)
    assert cast.session.image_demand.repair_block_count > 0


def test_waiting_keeps_all_together_and_names_the_receiver_that_holds_it() -> None:
    cast = Cast(slow_policy=SlowPolicy.WAIT).run(20.0)
    assert cast.events_of(*VERDICTS) == []
    assert cast.standings() == []
    assert cast.session.rate_bytes_per_s < 1.5 * SLOW_RATE
    seconds = cast.session.bottleneck_seconds
    assert seconds[Bottleneck(Cause.NETWORK, SLOW)] > 15.0
    assert sum(seconds.values()) == pytest.approx(20.0, abs=0.3)
    cast.nack(SLOW)
    assert cast.session.image_demand.repair_block_count > 0
    cast.complete(FIRST, SECOND)
    assert cast.events_of(events.MainGroupFinished) == []
    cast.complete(SLOW)
    assert cast.session.state == CastState.ENDED


def test_dropped_after_its_time_with_the_grounds_and_the_mend() -> None:
    cast = Cast(slow_policy=SlowPolicy.DROP, slow_for_s=3.0).run(8.0)
    assert [type(event) for event in cast.events_of(*VERDICTS)] == [
        events.ReceiverSlow,
        events.ReceiverDropped,
    ]
    record = cast.session.receivers[SLOW]
    assert record.state is ReceiverState.DROPPED
    assert record.finished_at is not None
    assert "network" in record.error
    assert "--slow demote" in record.error
    assert cast.session.active_count == 2
    assert cast.standings()[-1] == Standing(b"", bitmap_of([SLOW]))
    cast.complete(FIRST, SECOND)
    assert cast.session.state == CastState.ENDED
    assert cast.session.outcome == SessionOutcome.COMPLETE


def test_why_it_was_dropped_outlives_its_own_last_words() -> None:
    """Its report that the cast continues without it would explain nothing to the operator."""
    cast = Cast(slow_policy=SlowPolicy.DROP, slow_for_s=3.0).run(8.0)
    cast.session.complete(SLOW, BAD_END, cast.now)
    record = cast.session.receivers[SLOW]
    assert record.state is ReceiverState.DROPPED
    assert record.error.startswith("dropped: it sustains")
    assert cast.events_of(events.ReceiverFailed) == []


def test_a_dropped_machine_that_made_it_after_all_is_complete() -> None:
    cast = Cast(slow_policy=SlowPolicy.DROP, slow_for_s=3.0).run(8.0)
    cast.complete(SLOW)
    record = cast.session.receivers[SLOW]
    assert (record.state, record.error) == (ReceiverState.COMPLETE, "")


def test_with_drop_the_room_does_not_wait_for_the_rest_of_its_time() -> None:
    """All others have ended: the cast ends now, not in ten minutes."""
    cast = Cast(slow_policy=SlowPolicy.DROP, slow_for_s=600.0).run(5.0)
    cast.complete(FIRST, SECOND)
    assert cast.session.receivers[SLOW].state is ReceiverState.DROPPED
    assert cast.session.state == CastState.ENDED
    assert len(cast.events_of(events.MainGroupFinished)) == 1


def test_a_straggler_that_was_never_overdue_gets_its_tail_too() -> None:
    cast = Cast(slow_for_s=600.0).run(5.0)
    cast.complete(FIRST, SECOND)
    assert len(cast.events_of(events.MainGroupFinished)) == 1
    assert cast.session.receivers[SLOW].demoted
    cast.nack(SLOW)
    assert cast.session.image_demand.repair_block_count > 0


def test_a_dropped_machine_that_was_started_again_has_another_chance_and_no_more_than_that() -> None:
    cast = Cast(slow_policy=SlowPolicy.DROP, slow_for_s=3.0).run(8.0)
    cast.grants[SLOW] = cast.session.join(join_request("another run", name="pc-a"), cast.now)
    cast._counters[SLOW] = 0
    assert cast.grants[SLOW].receiver_id == SLOW
    cast.run(1.0)
    assert cast.session.receivers[SLOW].state is ReceiverState.RECEIVING
    assert cast.standings()[-1] == Standing(b"", b"")
    cast.run(7.0)
    assert cast.session.receivers[SLOW].state is ReceiverState.DROPPED
    assert len(cast.events_of(events.ReceiverDropped)) == 2


def test_a_straggler_that_dies_in_the_tail_ends_the_cast() -> None:
    cast = Cast(slow_for_s=3.0, receiver_timeout_s=5.0).run(8.0)
    cast.complete(FIRST, SECOND)
    cast.session.control_datagrams(cast.now + 6.0)
    assert cast.session.receivers[SLOW].state is ReceiverState.LOST
    assert cast.session.state == CastState.ENDED


def test_a_receiver_that_joins_during_the_tail_is_served() -> None:
    cast = Cast(slow_for_s=3.0).run(8.0)
    cast.complete(FIRST, SECOND)
    cast.grants.append(cast.session.join(join_request("late"), cast.now))
    cast._counters.append(0)
    cast._received_counts.append(0)
    cast.run(5.0)
    assert cast.session.state == CastState.CASTING
    assert cast.session.rate_bytes_per_s > 10 * SLOW_RATE, "it needn't go at the straggler's pace"
    cast.complete(ReceiverId(3), SLOW)
    assert cast.session.state == CastState.ENDED
    assert len(cast.events_of(events.MainGroupFinished)) == 1


# -- bottleneck and feedback ------------------------------------------------------------------------------------------


def test_time_is_accounted_for_by_bottleneck() -> None:
    """These seconds answer "why was it slow, and which machine was the bottleneck?"."""
    cast = Cast(rate_bytes_per_s=5e6).run(10.0, slow=False)
    assert cast.session.bottleneck_seconds[Bottleneck(Cause.CEILING)] > 9.0
    assert sum(cast.session.bottleneck_seconds.values()) == pytest.approx(10.0, abs=0.3)


def test_a_slow_source_is_distinguished_from_a_busy_sender() -> None:
    """A faster disk fixes the one, a faster machine the other."""
    for read_share, cause in ((0.9, Cause.SOURCE), (0.1, Cause.SENDER)):
        session = new_session(rate_bytes_per_s=5e6)
        session.join(join_request(), 100.0)
        session.control_datagrams(100.0)
        plan = session.next_plan(100.0, 64)
        assert plan is not None
        for step in range(1, 100):
            now = 100.0 + step * 0.05
            session.mark_transmitted(plan.next_sequence, 50_000, now, read_s=read_share * 0.05)
        assert session.bottleneck == Bottleneck(cause)


def test_a_large_group_reports_more_rarely() -> None:
    def interval_ms(receiver_count: int) -> int:
        session = new_session(rate_bytes_per_s=25e6)
        for index in range(receiver_count):
            session.join(join_request(str(index)), 100.0)
        messages = [decode_control_untrusted(datagram)[1] for datagram in session.control_datagrams(100.0)]
        (announce,) = [message for message in messages if isinstance(message, Announce | Flush)]
        return announce.report_interval_ms

    assert interval_ms(3) == 100
    assert interval_ms(1000) >= 2000
