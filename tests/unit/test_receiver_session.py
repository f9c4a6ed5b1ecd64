"""The receiver's session: gaps are noticed, asked for once, and never asked for when the repair is on its way."""

from __future__ import annotations

import random

import numpy as np
import pytest

from protocol import events
from protocol.frame_encoder import FrameEncoder
from protocol.receiver_session import ReceiverSession
from protocol.session_records import JoinGrant, ReceiverId
from protocol.wire.codec import decode_feedback_untrusted, encode_control
from protocol.wire.messages import END_CANCELLED, Announce, EndOfTransmission, Flush, Nack, Report
from tests.simulation.world import Scenario, World


class Pair:
    """A sender's session and one receiver's, with the frames between them in the test's hands."""

    def __init__(self, receiver_count: int = 1) -> None:
        self.world = World(Scenario(3, block_count=30))
        self.sender = self.world.sender
        self.parameters = self.world.parameters
        self.encoder = FrameEncoder(self.parameters)
        grant = JoinGrant(self.parameters, ReceiverId(0), bytes(32), True, 0.1, 0.01, receiver_count)
        self.receiver = ReceiverSession(grant, assembly_bytes=4 << 20, rng=random.Random(1), now=100.0)
        manifest = self.world.image.manifest
        self.receiver.set_manifest(manifest, np.asarray(manifest.stored_mask), 100.0)
        self.sender.state = 1
        self.sender.image_demand.want(None)

    def frames(self) -> np.ndarray:
        """The whole pass."""
        parts = []
        while (plan := self.sender.next_plan(100.0, 200)) is not None:
            parts.append(self.encoder.encode(plan, self.world.image.load).copy())
            self.sender.mark_transmitted(plan.next_sequence, 1, 100.0)
        return np.concatenate(parts)

    def nacks(self, now: float) -> list[Nack]:
        messages = [decode_feedback_untrusted(d)[1] for d in self.receiver.datagrams_to_send(now)]
        return [message for message in messages if isinstance(message, Nack)]

    def control(
        self, message: Announce | Flush | EndOfTransmission, now: float, token: int | None = None
    ) -> None:
        token = self.parameters.session_token if token is None else token
        datagram = encode_control(message, cast_id=self.parameters.cast_id, session_token=token)
        self.receiver.receive_datagram_untrusted(datagram, now)

    def flush(self, now: float) -> None:
        self.control(Flush(1, 0, self.receiver.loss.next_sequence, 1, 10_000, 100, 5), now)


def _assembled(pair: Pair) -> list[int]:
    return [e.assembled.block for e in pair.receiver.next_events() if isinstance(e, events.BlockAssembled)]


def test_a_clean_pass_assembles_everything_in_order_and_asks_for_nothing() -> None:
    pair = Pair()
    pair.receiver.receive_frames_untrusted(pair.frames(), 100.1)
    blocks = _assembled(pair)
    assert blocks == np.flatnonzero(pair.world.image.manifest.stored_mask).tolist()
    pair.flush(100.2)
    assert pair.nacks(105.0) == []


def test_a_gap_is_asked_for_after_the_reorder_window() -> None:
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


def test_flush_asks_at_once_and_a_partial_block_names_its_deficit() -> None:
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
        "bad_magic": 1, "bad_version": 1, "bad_type": 1, "foreign_cast": 1, "stale_session": 1, "bad_field": 1,
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


def test_a_rejected_block_is_asked_for_whole() -> None:
    pair = Pair()
    pair.receiver.receive_frames_untrusted(pair.frames(), 100.1)
    assembled = next(e.assembled for e in pair.receiver.next_events())
    pair.receiver.release(assembled)
    pair.receiver.block_rejected(assembled.block, 100.2)
    assert [n.deficits for n in pair.nacks(100.3)] == [((assembled.block, 1, assembled.k),)]


def test_without_buffers_symbols_are_dropped_and_asked_for_when_there_is_room() -> None:
    pair = Pair()
    pair.receiver._pool._free.clear()
    pair.receiver.receive_frames_untrusted(pair.frames(), 100.1)
    assert pair.receiver.pool_drop_count > 0
    pair.flush(100.2)
    assert pair.nacks(100.3) == [], "asking without a buffer would only have it dropped again"
    pair.receiver._pool._free.extend([0, 1])
    assert sum(count for n in pair.nacks(100.6) for _, count, _ in n.deficits) == 2


def test_end_restart_and_silence_are_told() -> None:
    pair = Pair()
    announce = Announce(pair.parameters.incarnation + 1, 0, bytes(32), "x", "u", 64, 1, 1, 1, 1, 100, 1)
    pair.control(announce, 100.1, token=0)
    pair.control(EndOfTransmission(END_CANCELLED, "by hand"), 100.2)
    pair.control(EndOfTransmission(END_CANCELLED, "by hand"), 100.3)
    pair.receiver.datagrams_to_send(104.0)
    told = pair.receiver.next_events()
    assert told == [
        events.SenderRestarted(announce),
        events.CastEnded(END_CANCELLED, "by hand"),
        events.SenderSilent(pytest.approx(3.7)),
    ]


def test_reports_echo_the_senders_clock() -> None:
    pair = Pair()
    pair.flush(100.0)
    messages = [decode_feedback_untrusted(d)[1] for d in pair.receiver.datagrams_to_send(100.05)]
    report = next(m for m in messages if isinstance(m, Report))
    assert (report.echo_us, report.echo_delay_us) == (5, pytest.approx(50_000, abs=2))
    assert pair.receiver.next_timer() <= 100.15 + 1e-6


@pytest.mark.parametrize("late", [False, True])
def test_a_late_joiner_waits_for_its_pass(late: bool) -> None:
    """Blocks from before the join come with the next pass: NACKing them would send them twice."""
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
