"""The receiver's session: losses are noticed and NACKed once, and not while the repair is on its way."""

from __future__ import annotations

import random

import numpy as np
import pytest

from protocol.constants import REORDER_DATAGRAM_COUNT
from protocol.image.manifest_object import manifest_source_symbols
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.model.session_records import JoinGrant, ReceiverId
from protocol.receiving import events
from protocol.receiving.receiver_session import ReceiverSession
from protocol.sending.transmission.frame_encoder import FrameEncoder
from protocol.shared.feedback_timing import sent_at_ticks
from protocol.wire.batch import header_view
from protocol.wire.bitmap import bitmap_of
from protocol.wire.feedback_codec import decode_feedback_untrusted
from protocol.wire.messages import Announce, EndOfTransmission, Flush, Nack, Report, Standing
from tests.simulation.world import Scenario, World
from tests.support.wire import announcement, forged, run_secrets


class Pair:
    """A sender's session and one receiver's, with the frames between them under the test's control."""

    def __init__(self, receiver_count: int = 1, seed: int = 1) -> None:
        self.world = World(Scenario(3, block_count=30))
        self.sender = self.world.sender
        self.parameters = self.world.parameters
        self.encoder = FrameEncoder(self.parameters)
        grant = JoinGrant(
            self.parameters,
            ReceiverId(0),
            bytes(32),
            **run_secrets(self.sender),
            manifest_by_multicast=True,
            report_interval_s=0.1,
            grtt_s=0.01,
            receiver_count=receiver_count,
        )
        self.receiver = ReceiverSession(grant, assembly_bytes=4 << 20, rng=random.Random(seed), now=100.0)
        manifest = self.world.image.manifest
        self.receiver.set_manifest(manifest, np.asarray(manifest.stored_mask), 100.0)
        self.sender.state = CastState.CASTING
        self.sender.image_demand.want(None)

    def frames(self) -> np.ndarray:
        """Return the frames of the whole pass."""
        parts = []
        while (plan := self.sender.next_plan(100.0, 200)) is not None:
            parts.append(self.encoder.encode(plan, self.world.image.load).copy())
            self.sender.mark_transmitted(plan.next_sequence, 1, 100.0)
        return np.concatenate(parts)

    def nacks(self, now: float) -> list[Nack]:
        messages = [decode_feedback_untrusted(d)[1] for d in self.receiver.datagrams_to_send(now)]
        return [message for message in messages if isinstance(message, Nack)]

    def control(
        self,
        message: Announce | Flush | EndOfTransmission | Standing,
        now: float,
        *,
        by_outsider: bool = False,
    ) -> None:
        signer = self.sender._run.signer
        datagram = forged(message, cast_id=self.parameters.cast_id) if by_outsider else signer.encode(message)
        self.receiver.receive_datagram_untrusted(datagram, now)

    def reports(self, now: float) -> list[Report]:
        messages = [decode_feedback_untrusted(d)[1] for d in self.receiver.datagrams_to_send(now)]
        return [message for message in messages if isinstance(message, Report)]

    def standing(self, now: float, *, demoted: tuple[int, ...] = (), dropped: tuple[int, ...] = ()) -> None:
        self.control(Standing(bitmap_of(demoted), bitmap_of(dropped)), now)

    def stream(self, frames: np.ndarray, now: float, *, delay_s: float = 0.0) -> float:
        """Send four frames every 5 ms, each ``delay_s`` in a queue; return the arrival of the last."""
        for start in range(0, frames.shape[0], 4):
            now += 0.005
            batch = frames[start : start + 4]
            header_view(batch)["sent_at"] = sent_at_ticks(now)
            self.receiver.receive_frames_untrusted(batch, now + delay_s, arrived_at=now + delay_s)
        return now + delay_s

    def flush(self, now: float) -> None:
        self.control(Flush(1, 0, self.receiver.loss.next_sequence, 1, 10_000, 100, 5), now)


def _assembled(pair: Pair) -> list[int]:
    return [e.assembled.block for e in pair.receiver.next_events() if isinstance(e, events.BlockAssembled)]


def test_a_clean_pass_assembles_everything_in_order_without_nacks() -> None:
    pair = Pair()
    pair.receiver.receive_frames_untrusted(pair.frames(), 100.1)
    blocks = _assembled(pair)
    assert blocks == np.flatnonzero(pair.world.image.manifest.stored_mask).tolist()
    pair.flush(100.2)
    assert pair.nacks(105.0) == []


def test_a_gap_is_nacked_after_the_reorder_window() -> None:
    pair = Pair()
    frames = pair.frames()
    stored = np.flatnonzero(pair.world.image.manifest.stored_mask)
    lost = int(stored[1])
    blocks = frames[:, 24:28].copy().view(">u4").reshape(-1)
    k = int(np.count_nonzero(blocks == lost))
    keep = blocks != lost
    first = np.flatnonzero(blocks > lost)[0] + 20
    pair.receiver.receive_frames_untrusted(frames[:first][keep[:first]], 100.1)
    assert pair.nacks(100.15) == [], "it may only be late"
    pair.receiver.receive_frames_untrusted(frames[first:], 100.2)
    assert [n.deficits for n in pair.nacks(100.3)] == [((lost, 1, k),)]
    assert pair.nacks(100.31) == [], "asked once, not again at once"
    assert [n.deficits for n in pair.nacks(100.5)] == [((lost, 1, k),)], "asked again when no repair came"


def test_a_flush_is_answered_at_once_with_the_deficits() -> None:
    pair = Pair()
    frames = pair.frames()
    pair.receiver.receive_frames_untrusted(frames[:-3], 100.1)
    last = int(np.flatnonzero(pair.world.image.manifest.stored_mask)[-1])
    k = int(pair.world.image.manifest.source_symbols(64)[last])
    pair.flush(100.2)
    assert [n.deficits for n in pair.nacks(100.21)] == [((last, 1, min(3, k)),)]


def test_repair_that_arrives_during_the_back_off_silences_it() -> None:
    pair = Pair(receiver_count=500)
    frames = pair.frames()
    pair.receiver.receive_frames_untrusted(frames[:-1], 100.1)
    pair.control(Flush(1, 0, pair.receiver.loss.next_sequence, 500, 4_000_000, 2500, 5), 100.2)
    pair.receiver.receive_frames_untrusted(frames[-1:], 100.2001)
    assert pair.nacks(110.0) == []


class Joining:
    """Return a receiver that collects the manifest, and the frames of a room that continues without it."""

    def __init__(self) -> None:
        self.world = World(Scenario(3, block_count=300))
        sender, parameters = self.world.sender, self.world.parameters
        grant = JoinGrant(
            parameters,
            ReceiverId(0),
            bytes(32),
            **run_secrets(self.world.sender),
            manifest_by_multicast=True,
            report_interval_s=0.1,
            grtt_s=0.01,
            receiver_count=1,
        )
        self.receiver = ReceiverSession(grant, assembly_bytes=4 << 20, rng=random.Random(1), now=100.0)
        encoder = FrameEncoder(parameters)
        sender.manifest_demand.want(None)
        self.manifest = self._next_frames(encoder, 10_000)
        sender.image_demand.want(None)
        sender.state = CastState.CASTING
        self.image = self._next_frames(encoder, 200)
        assert self.image.shape[0] > REORDER_DATAGRAM_COUNT + 1

    def _next_frames(self, encoder: FrameEncoder, count: int) -> np.ndarray:
        plan = self.world.sender.next_plan(100.0, min(count, 700))
        assert plan is not None
        return encoder.encode(plan, self.world.image.load).copy()

    def deficits(self, now: float) -> list[tuple[int, tuple[tuple[int, int, int], ...]]]:
        messages = [decode_feedback_untrusted(d)[1] for d in self.receiver.datagrams_to_send(now)]
        return [(m.object, m.deficits) for m in messages if isinstance(m, Nack)]


@pytest.mark.parametrize("arrived_share", [0.0, 0.6, 1.0])
def test_missing_manifest_symbols_are_nacked_when_image_data_starts(
    arrived_share: float,
) -> None:
    """No FLUSH for the manifest follows, and the receiver would wait for one until the cast ends."""
    joining = Joining()
    count = int((joining.manifest.shape[0] - 2) * arrived_share)
    joining.receiver.receive_frames_untrusted(joining.manifest[:count], 100.1)
    joining.receiver.receive_frames_untrusted(joining.image[:1], 100.2)
    assert joining.deficits(100.25) == [], "it may only be late"
    joining.receiver.receive_frames_untrusted(joining.image[1:], 100.3)
    (asked,) = joining.deficits(100.4)
    k = manifest_source_symbols(joining.world.parameters)
    assert asked == (0, ((0, 1, int(k[0]) - min(count, int(k[0]))),))


def test_the_images_flush_is_the_manifests_as_well() -> None:
    """Without other receivers nothing else arrives."""
    joining = Joining()
    joining.receiver.receive_frames_untrusted(joining.manifest[:-1], 100.1)
    flush = Flush(1, 0, joining.world.sender._planner.next_sequence, 1, 10_000, 100, 5)
    joining.receiver.receive_datagram_untrusted(joining.world.sender._run.signer.encode(flush), 100.2)
    assert joining.deficits(100.3) == [(0, ((0, 1, 1),))]


def test_frames_of_others_are_counted_by_reason_and_dropped() -> None:
    pair = Pair()
    frames = pair.frames()[:6]
    frames[0, 0] ^= 1
    frames[1, 2] ^= 1
    frames[2, 3] ^= 0x80
    frames[3, 5] ^= 1
    frames[4, 9] ^= 1
    frames[5, 28] = 225
    pair.receiver.receive_frames_untrusted(frames, 100.1)
    assert pair.receiver.rejects == {
        "bad_magic": 1, "bad_version": 1, "bad_type": 1, "foreign_cast": 1, "bad_tag": 1, "bad_field": 1,
    }  # fmt: skip
    assert pair.receiver.statistics.frames_received_count == 0


def test_a_block_number_beyond_the_image_is_refused() -> None:
    pair = Pair()
    frames = pair.frames()[:2]
    frames[0, 24:28] = 0x0F
    frames[1, 28] ^= 1  # another k than the manifest's
    pair.receiver.receive_frames_untrusted(frames, 100.1)
    assert pair.receiver.rejects == {"bad_field": 2}
    assert _assembled(pair) == []


def test_a_rejected_block_is_nacked_whole() -> None:
    pair = Pair()
    pair.receiver.receive_frames_untrusted(pair.frames(), 100.1)
    assembled = next(e.assembled for e in pair.receiver.next_events() if isinstance(e, events.BlockAssembled))
    pair.receiver.release(assembled)
    pair.receiver.block_rejected(assembled.block, 100.2)
    assert [n.deficits for n in pair.nacks(100.3)] == [((assembled.block, 1, assembled.k),)]


def test_without_buffers_symbols_are_dropped_and_nacked_later() -> None:
    pair = Pair()
    pair.receiver._pool._free.clear()
    pair.receiver.receive_frames_untrusted(pair.frames(), 100.1)
    assert pair.receiver.pool_drop_count > 0
    pair.flush(100.2)
    assert pair.nacks(100.3) == [], "asking without a buffer would only have it dropped again"
    pair.receiver._pool._free.extend([0, 1])
    assert sum(count for n in pair.nacks(100.6) for _, count, _ in n.deficits) == 2


def test_end_restart_and_silence_are_events() -> None:
    pair = Pair()
    for now in (100.1, 100.2, 101.0):
        pair.control(announcement(incarnation=pair.parameters.incarnation + 1), now, by_outsider=True)
    pair.control(EndOfTransmission(SessionOutcome.CANCELLED, "by hand"), 100.2)
    pair.control(EndOfTransmission(SessionOutcome.CANCELLED, "by hand"), 100.3)
    pair.receiver.datagrams_to_send(104.0)
    told = pair.receiver.next_events()
    assert told == [
        events.RestartSuspected(),
        events.CastEnded(SessionOutcome.CANCELLED, "by hand"),
        events.SenderSilent(pytest.approx(3.7)),  # type: ignore[arg-type]
    ]


def test_reports_echo_the_senders_clock() -> None:
    pair = Pair()
    pair.flush(100.0)
    messages = [decode_feedback_untrusted(d)[1] for d in pair.receiver.datagrams_to_send(100.05)]
    report = next(m for m in messages if isinstance(m, Report))
    assert report.echo_us == 5
    assert report.echo_delay_us == pytest.approx(50_000, abs=2)
    assert pair.receiver.next_timer() <= 100.15 + 1e-6


@pytest.mark.parametrize("late", [False, True])
def test_a_late_joiner_waits_for_its_pass(late: bool) -> None:
    """Blocks from before the join are sent in the next pass: NACKing them would send them twice."""
    pair = Pair()
    frames = pair.frames()
    image = pair.receiver._image
    assert image is not None
    image._joined_before_start = not late
    start = 153
    assert frames[start, 29] > 0, "it comes in the middle of a block"
    pair.receiver.receive_frames_untrusted(frames[start : start + 40], 100.1)
    pair.receiver.receive_frames_untrusted(frames[start + 40 :], 100.2)
    assert (len(pair.nacks(100.3)) == 0) == late


# -- standing ------------------------------------------------------------------------------------------------------


def test_a_demoted_receiver_sends_no_nacks_until_the_tail() -> None:
    """Its repairs would delay the room; without any NACK they would hang the cast."""
    pair = Pair()
    frames = pair.frames()
    pair.receiver.receive_frames_untrusted(frames[:-3], 100.1)
    pair.flush(100.15)
    pair.standing(100.15, demoted=(0, 7))  # it is about to ask
    pair.flush(100.2)
    assert pair.nacks(110.0) == []
    pair.standing(110.1, demoted=(7,))
    assert len(pair.nacks(110.2)) == 1
    told = [e for e in pair.receiver.next_events() if isinstance(e, events.Demoted | events.Reinstated)]
    assert told == [events.Demoted(), events.Reinstated()]


def test_repeated_or_foreign_standing_is_no_event() -> None:
    pair = Pair()
    pair.standing(100.1, demoted=(3,), dropped=(5,))
    assert pair.receiver.next_events() == []
    for _ in range(3):
        pair.standing(100.2, demoted=(0,), dropped=(5,))
    assert pair.receiver.next_events() == [events.Demoted()]
    for _ in range(3):
        pair.standing(100.3, dropped=(0,))
    assert pair.receiver.next_events() == [events.Reinstated(), events.Dropped()]


def test_an_outsider_can_demote_or_drop_no_receiver() -> None:
    """One forged datagram would silence the room."""
    pair = Pair()
    whole_group = bitmap_of(range(1024))
    pair.control(Standing(whole_group, whole_group), 100.1, by_outsider=True)
    assert pair.receiver.next_events() == []
    assert not pair.receiver.demoted
    assert pair.receiver.rejects == {"bad_tag": 1}


# -- reports -------------------------------------------------------------------------------------------------------


def test_a_standing_queue_is_reported_at_once_and_once() -> None:
    """At a gigabit, a tenth of a second later is 12 MB too much for the switch."""
    pair = Pair()
    frames = pair.frames()
    now = pair.stream(frames[:80], 100.0)
    pair.reports(now)
    now = pair.stream(frames[80:140], now, delay_s=0.01)
    due_at = pair.receiver.next_timer()
    assert due_at < now + 0.021
    (report,) = pair.reports(due_at)
    assert report.queue_delay_us == pytest.approx(10_000, abs=500)
    now = pair.stream(frames[140:180], due_at, delay_s=0.01)
    assert pair.receiver.next_timer() == pytest.approx(due_at + 0.1), "no news any more"


def test_news_that_everybody_has_is_spread_over_time() -> None:
    """A thousand simultaneous reports of a full common link would overload the sender."""
    due = []
    for seed in range(40):
        pair = Pair(receiver_count=1000, seed=seed)
        frames = pair.frames()
        now = pair.stream(frames[:80], 100.0)
        pair.control(Flush(1, 0, pair.receiver.loss.next_sequence, 1000, 10_000, 5000, 5), now)
        pair.reports(now)
        now = pair.stream(frames[80:140], now, delay_s=0.01)
        due.append(pair.receiver._reports.due_at - now)
    assert max(due) - min(due) > 0.5
    assert max(due) < 2.0, "but not for the five seconds until its turn"


def test_buffers_that_fill_are_reported_before_they_overflow() -> None:
    pair = Pair()
    frames = pair.frames()
    pair.receiver.receive_frames_untrusted(frames[:4], 100.0)
    pair.reports(100.0)
    pair.receiver.statistics.socket_fill = 0.6
    pair.receiver.statistics.socket_buffer_bytes = 8 << 20
    pair.receiver.receive_frames_untrusted(frames[4:8], 100.03)
    (report,) = pair.reports(100.03)
    assert (report.fill_permille, report.buffer_bytes) == (600, 8 << 20)


def test_blocks_that_wait_for_the_sender_are_no_sign_of_a_slow_machine() -> None:
    """The sender would slow down, and the blocks would wait even longer."""
    pair = Pair()
    frames = pair.frames()
    esi = header_view(frames)["esi"]
    pair.receiver.receive_frames_untrusted(frames[esi != 0], 100.0)
    assert pair.receiver._pool.fill > 0.0
    (report,) = pair.reports(100.1)
    assert report.fill_permille == 0


def test_the_senders_wish_how_often_to_report_is_followed() -> None:
    """The interval grows with the group: a thousand receivers at ten reports a second would be the load."""
    pair = Pair()
    pair.control(Flush(1, 0, 0, 900, 10_000, 4500, 5), 100.0)
    assert len(pair.reports(100.0)) == 1
    assert pair.reports(104.4) == []
    assert len(pair.reports(104.6)) == 1


def test_a_report_counts_arrivals_and_loss_bursts() -> None:
    """Rate, parity and interleaving depend on these figures."""
    pair = Pair()
    frames = pair.frames()
    keep = np.ones(frames.shape[0], np.bool_)
    keep[20:64] = keep[100] = False
    now = pair.stream(frames[keep], 100.0)
    (report,) = pair.reports(now)
    assert report.expected_count - report.received_count == 45
    assert report.loss_event_count == 2
    assert report.arriving_bytes_per_s == pytest.approx(4 * frames.shape[1] / 0.005, rel=0.05)
    assert report.recent_received_count == report.recent_expected_count > 0, "long ago"


def test_numbers_that_leap_end_no_receiver() -> None:
    """A counter that exceeded its field ended the agent with an internal error."""
    pair = Pair()
    frames = pair.frames()
    pair.receiver.receive_frames_untrusted(frames[:4], 100.0)
    for _ in range(4):
        pair.receiver.loss.advance((pair.receiver.loss.next_sequence + (1 << 31) - 1) % (1 << 32))
    pair.receiver.receive_frames_untrusted(frames[4:8], 100.05)
    (report,) = pair.reports(100.2)
    assert report.recent_expected_count == (1 << 32) - 1
    assert report.expected_count > 1 << 32


def _flush_for(pair: Pair, seconds: int, now: float) -> float:
    """Let the sender repeat its FLUSH once a second; return the time afterwards."""
    for _ in range(seconds):
        now += 1.0
        pair.flush(now)
        pair.receiver.datagrams_to_send(now)
    return now


def test_a_machine_whose_disk_hangs_does_not_blame_the_network() -> None:
    """The disk has five minutes for a call, and meanwhile its blocks may hold all buffers."""
    pair = Pair()
    frames = pair.frames()
    pair.receiver.receive_frames_untrusted(frames[: frames.shape[0] // 2], 100.0)
    assembled = [e.assembled for e in pair.receiver.next_events() if isinstance(e, events.BlockAssembled)]
    now = _flush_for(pair, 200, 100.0)
    assert not any(isinstance(event, events.NotServed) for event in pair.receiver.next_events())
    for block in assembled:
        pair.receiver.release(block)
        pair.receiver.block_written(block.block)
    _flush_for(pair, 32, now)
    assert any(isinstance(event, events.NotServed) for event in pair.receiver.next_events())
