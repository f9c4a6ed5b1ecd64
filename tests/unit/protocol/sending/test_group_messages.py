"""Control messages to the group: each at its time, often enough, and no more often."""

from __future__ import annotations

import itertools
import math

import pytest

from protocol.constants import ANNOUNCE_INTERVAL_S, EOT_COUNT, FLUSH_INTERVAL_MAX_S, STANDING_COUNT
from protocol.model.cast_state import SessionOutcome
from protocol.sending.group_messages import GroupMessages, GroupState, Sweep
from protocol.sending.sender_statistics import SenderStatistics
from protocol.wire.control_codec import ControlMessage, ControlSigner, decode_control_untrusted
from protocol.wire.messages import Announce, EndOfTransmission, Flush, Standing
from tests.simulation.world import Scenario, World

GROUP = GroupState(
    state=1, receiver_count=3, rate_bytes_per_s=1e6, grtt_s=0.001, report_interval_s=0.1, next_sequence=77
)
SWEEP = Sweep(object_index=1, pass_index=300)
SLOW = Standing(b"\1", b"")


class Group:
    """Collect every message when it is due."""

    def __init__(self) -> None:
        self.statistics = SenderStatistics()
        signer = ControlSigner(cast_id=1, tag_key=bytes(32), seed=bytes(32))
        self.messages = GroupMessages(World(Scenario(1)).parameters, signer, self.statistics, 100.0)
        self.heard: list[tuple[float, ControlMessage]] = []

    def listen(self, until: float, sweep: Sweep | None = None) -> None:
        while (now := self.messages.next_at(flush_due=sweep is not None)) < until:
            self.heard += [
                (now, decode_control_untrusted(d)[1]) for d in self.messages.due(now, GROUP, sweep)
            ]

    def times(self, kind: type) -> list[float]:
        return [at for at, message in self.heard if isinstance(message, kind)]


def test_announcements_continue_in_every_state() -> None:
    group = Group()
    group.listen(110.5)
    assert group.times(Announce) == pytest.approx([100.0 + n * ANNOUNCE_INTERVAL_S for n in range(11)])


def test_flush_comes_at_once_and_then_less_and_less_often() -> None:
    """Each one makes the whole room answer; a receiver that hangs must not cost it the network."""
    group = Group()
    group.listen(130.0, SWEEP)
    times = group.times(Flush)
    pauses = [round(later - earlier, 6) for earlier, later in itertools.pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(FLUSH_INTERVAL_MAX_S)
    assert group.statistics.flushes_sent_count == len(times)
    group.messages.note_planned()
    group.messages.note_transmitted(130.0)
    group.listen(130.5, SWEEP)
    assert len(group.times(Flush)) > len(times) + 3, "after new data it is urgent again"
    flush = next(message for _, message in group.heard if isinstance(message, Flush))
    assert (flush.object, flush.pass_index, flush.next_sequence) == (1, 300 & 0xFF, 77)


def test_while_data_flows_there_is_no_flush() -> None:
    group = Group()
    group.listen(103.0)
    assert group.times(Flush) == []


def test_standing_is_sent_a_few_times_on_a_change_and_with_each_announcement() -> None:
    group = Group()
    group.messages.send_standing(Standing(b"", b""), 100.0)
    group.listen(102.5)
    assert group.times(Standing) == [], "nobody is too slow: no news"
    group.messages.send_standing(SLOW, 102.5)
    group.messages.send_standing(SLOW, 102.6)
    group.listen(102.9)
    assert len(group.times(Standing)) == STANDING_COUNT
    group.listen(104.5)
    assert len(group.times(Standing)) == STANDING_COUNT + 2


def test_the_end_is_sent_a_few_times_and_a_long_reason_fits() -> None:
    group = Group()
    group.messages.send_end(SessionOutcome.CANCELLED, "ä" * 400, 100.0)
    assert group.messages.end_left_count == EOT_COUNT
    group.listen(105.0)
    assert len(group.times(EndOfTransmission)) == EOT_COUNT
    assert group.messages.end_left_count == 0
    assert math.isfinite(group.messages.next_at(flush_due=False))
    said = next(message for _, message in group.heard if isinstance(message, EndOfTransmission))
    assert said.reason == "ä" * 250
