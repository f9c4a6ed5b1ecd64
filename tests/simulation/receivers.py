"""Receiver of the simulated cast: the real session behind a link, with a disk that writes at its own pace.

It is driven as by the agent: while data flows it polls the socket every few milliseconds; otherwise the next arrival
or timer wakes it. Its clock differs from the sender's.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections import deque
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.constants import ASSEMBLY_BYTES_DEFAULT
from protocol.fec.reed_solomon import decode_in_place
from protocol.image.manifest import Manifest
from protocol.model.session_records import CompletionReport, JoinGrant
from protocol.receiving.block_assembly import AssembledBlock
from protocol.receiving.events import (
    BlockAssembled,
    CastEnded,
    Dropped,
    ManifestReceived,
    ManifestRejected,
)
from protocol.receiving.receiver_session import ReceiverSession
from receiver.reception.bottleneck_watch import BottleneckWatch, ReceiverLoad
from receiver.reception.cast_connection import IDLE_MIN_S, POLL_BYTES
from receiver.reception.datagram_intake import BATCHES_PER_POLL_MAX
from receiver.reception.network.data_socket import POLL_INTERVAL_MAX_S, POLL_INTERVAL_MIN_S
from receiver.reception.network.recvmmsg import SINGLE_MESSAGES
from tests.simulation.links import Link, Passage, Port
from tests.simulation.processor import Processor
from tests.simulation.timeline import Timeline

_HAND_OVER_S = 0.005
"""Time from an assembled block to a worker thread that has decoded it."""
_CLOCK_OFFSET_S_MAX = 10_000.0
_LATE_SHARE = 0.1
_POLL_LATE = 1.1
"""Timers are a little late, so that no two machines stay in step."""
_POLL_FRAMES_MAX = BATCHES_PER_POLL_MAX * SINGLE_MESSAGES


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverModel:
    """One receiver of a scenario.

    Attributes:
        port: its link.
        disk_bytes_per_s: raw bytes that its disk writes.
        processor_bytes_per_s: bytes of frames that its processor takes from the socket if it does nothing else.
        decoder_bytes_per_s: bytes of blocks that the same processor decodes if it does nothing else.
        paces: ``(seconds from the start, share of the processor's speed)``, ascending; the last one above 0.
        socket_bytes: the socket's buffer; what arrives beyond it is dropped.
        late_s: longest delay of one poll in ten, while another program has the processor.
        assembly_bytes: its buffers.
        feedback_delay_s: on the way to the sender.
    """

    port: Port
    disk_bytes_per_s: float = math.inf
    processor_bytes_per_s: float = math.inf
    decoder_bytes_per_s: float = math.inf
    paces: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    socket_bytes: float = math.inf
    late_s: float = 0.0
    assembly_bytes: int = ASSEMBLY_BYTES_DEFAULT
    feedback_delay_s: float = 0.0002


class SenderSide(Protocol):
    """Parts of the simulated cast that a receiver uses."""

    timeline: Timeline
    manifest: Manifest

    def source(self, object_index: int, block: int) -> NDArray[np.uint8]:
        """Return the symbols that a block must decode to, ``uint8[k, symbol_bytes]``."""

    def receive_feedback(self, datagram: bytes) -> None:
        """Receive a datagram at the feedback port."""

    def set_need(self, grant: JoinGrant) -> None:
        """Note that a receiver has the manifest and needs every block."""

    def complete(self, grant: JoinGrant, report: CompletionReport) -> None:
        """Note that a receiver has ended."""


@dataclasses.dataclass(slots=True)
class _Arrivals:
    """Datagrams of one call on their way to the receiver's socket, or one control datagram."""

    frames: NDArray[np.uint8] | None
    control: bytes
    count: int
    first_at: float
    last_at: float
    taken_count: int = 0

    def arrived_count(self, now: float) -> int:
        if now >= self.last_at:
            return self.count
        if now < self.first_at:
            return 0
        return 1 + int((now - self.first_at) / (self.last_at - self.first_at) * (self.count - 1))


@dataclasses.dataclass(slots=True)
class _Queued:
    """Datagrams in the socket's queue, or one control datagram."""

    frames: NDArray[np.uint8] | None
    control: bytes
    arrived_at: float


class CastReceiver:
    """A receiver of the simulated cast.

    Attributes:
        finished_at: time at which it completed or gave up; None before.
        dropped: the cast has dropped it.
    """

    def __init__(self, sender: SenderSide, model: ReceiverModel, index: int, rng: random.Random) -> None:
        self.index = index
        self.model = model
        self.session: ReceiverSession | None = None
        self.finished_at: float | None = None
        self.complete = False
        self.dropped = False
        self.link = Link(model.port, sender.timeline.now, random.Random(rng.getrandbits(64)))
        self._sender = sender
        self._timeline = sender.timeline
        self._rng = rng
        self._clock_offset_s = rng.random() * _CLOCK_OFFSET_S_MAX
        self._inbox: deque[_Arrivals] = deque()
        self._turn_at = math.inf
        self._pause_s = POLL_INTERVAL_MIN_S
        self._pausing = False
        self._disk_free_at = 0.0
        self._write_s = 0.0
        self._in_flight_count = 0
        self._socket: deque[_Queued] = deque()
        self._socket_used_bytes = 0
        self._bottleneck_watch = BottleneckWatch()
        self._processor = Processor(
            sender.timeline,
            take_bytes_per_s=model.processor_bytes_per_s,
            decode_bytes_per_s=model.decoder_bytes_per_s,
            paces=model.paces,
        )

    @property
    def verified_count(self) -> int:
        """Number of blocks on its disk."""
        return 0 if self.session is None else self.session.statistics.blocks_verified_count

    @property
    def assembled_count(self) -> int:
        """Number of blocks that it received whole."""
        return 0 if self.session is None else self.session.statistics.blocks_assembled_count

    # -- the network ------------------------------------------------------------------------------------------

    def send_frames(self, frames: NDArray[np.uint8]) -> None:
        """Pass a call of frames to the link; they must not be changed afterwards."""
        passage = self.link.send(self._timeline.now, frames.shape[0], frames.shape[1])
        if passage is not None and self.finished_at is None:
            rows = passage.rows
            whole = isinstance(rows, slice) and passage.count == frames.shape[0]
            self._expect(frames if whole else frames[rows], b"", passage)

    def send_control(self, datagram: bytes) -> None:
        """Pass a control datagram to the link."""
        passage = self.link.send(self._timeline.now, 1, len(datagram))
        if passage is not None and self.finished_at is None:
            self._expect(None, datagram, passage)

    def _expect(self, frames: NDArray[np.uint8] | None, control: bytes, passage: Passage) -> None:
        self._inbox.append(_Arrivals(frames, control, passage.count, passage.first_at, passage.last_at))
        if self.session is not None:
            self._wake_at(passage.first_at)

    # -- the agent's loop -------------------------------------------------------------------------------------

    def join(self, grant: JoinGrant) -> None:
        """Start with the sender's grant."""
        self.session = ReceiverSession(
            grant,
            assembly_bytes=self.model.assembly_bytes,
            rng=random.Random(self._rng.getrandbits(64)),
            now=self._clock(),
        )
        if not grant.manifest_by_multicast:
            self._place_manifest()
        self._wake_at(self._timeline.now)

    def _clock(self) -> float:
        return self._timeline.now + self._clock_offset_s

    def _wake_at(self, time: float) -> None:
        """Schedule a turn at ``time`` unless one is nearer; a pause between two polls is kept."""
        if time < self._turn_at and not self._pausing:
            self._set_turn(time)

    def _set_turn(self, time: float) -> None:
        self._turn_at = time
        self._timeline.at(time, lambda: self._turn(time))

    def _turn(self, time: float) -> None:
        if time != self._turn_at or self.finished_at is not None:
            return  # replaced by an earlier one
        session = self.session
        assert session is not None
        taken_bytes = self._take_arrivals(session)
        clock = self._clock()
        if clock >= session.next_timer():
            self._update_statistics(session)
            for datagram in session.datagrams_to_send(clock):
                self._send_feedback(datagram)
        self._handle_events(session)
        if self.finished_at is not None:
            return
        now = self._timeline.now
        self._pausing = taken_bytes is not None
        if taken_bytes is not None:
            pause_s = self._pause_s * POLL_BYTES / max(taken_bytes, 1)
            self._pause_s = min(max(pause_s, POLL_INTERVAL_MIN_S), POLL_INTERVAL_MAX_S)
            processing_s = self._processor.take(taken_bytes)
            pause_s = max(self._pause_s * self._rng.uniform(1.0, _POLL_LATE), processing_s)
            if self.model.late_s and self._rng.random() < _LATE_SHARE:
                pause_s += self._rng.uniform(0.0, self.model.late_s)
            self._set_turn(now + pause_s)
        else:
            self._pause_s = POLL_INTERVAL_MIN_S
            wake_at = max(session.next_timer() - self._clock_offset_s, now + IDLE_MIN_S)
            if self._inbox:
                wake_at = min(wake_at, max(now, self._inbox[0].first_at))
            self._set_turn(wake_at)

    def _fill_socket(self, session: ReceiverSession) -> None:
        """Move arrivals to the socket's queue; those that find it full are dropped."""
        now = self._timeline.now
        while self._inbox and self._inbox[0].first_at <= now:
            arrivals = self._inbox[0]
            if arrivals.frames is None:
                self._inbox.popleft()
                if self._socket_used_bytes < self.model.socket_bytes:
                    self._socket.append(_Queued(None, arrivals.control, arrivals.first_at))
                continue
            arrived_count = arrivals.arrived_count(now)
            if arrived_count > arrivals.taken_count:
                piece = arrivals.frames[arrivals.taken_count : arrived_count]
                arrivals.taken_count = arrived_count
                room_bytes = self.model.socket_bytes - self._socket_used_bytes
                if piece.size > room_bytes:
                    kept_count = int(room_bytes // piece.shape[1])
                    session.statistics.socket_drop_count += piece.shape[0] - kept_count
                    piece = piece[:kept_count]
                if piece.size:
                    self._socket.append(_Queued(piece, b"", min(now, arrivals.last_at)))
                    self._socket_used_bytes += piece.size
            if arrived_count < arrivals.count:
                break
            self._inbox.popleft()

    def _take_arrivals(self, session: ReceiverSession) -> int | None:
        """Pass the socket's queue to the session; return the bytes of data, or None if nothing has arrived."""
        self._fill_socket(session)
        session.statistics.socket_fill = self._socket_used_bytes / self.model.socket_bytes
        taken_bytes: int | None = None
        pieces: list[NDArray[np.uint8]] = []
        arrived_at = self._timeline.now
        left_count = _POLL_FRAMES_MAX if self._processor.limited else sys.maxsize
        while self._socket and left_count:
            queued = self._socket[0]
            if queued.frames is None:
                self._socket.popleft()
                self._pass_frames(session, pieces, arrived_at)
                pieces = []
                session.receive_datagram_untrusted(queued.control, self._clock())
                taken_bytes = taken_bytes or 0
                continue
            piece, queued.frames = queued.frames[:left_count], queued.frames[left_count:]
            if not queued.frames.size:
                self._socket.popleft()
            pieces.append(piece)
            arrived_at = queued.arrived_at
            left_count -= piece.shape[0]
            taken_bytes = (taken_bytes or 0) + piece.size
            self._socket_used_bytes -= piece.size
        self._pass_frames(session, pieces, arrived_at)
        return taken_bytes

    def _pass_frames(
        self, session: ReceiverSession, pieces: list[NDArray[np.uint8]], arrived_at: float
    ) -> None:
        if pieces:
            frames = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
            session.receive_frames_untrusted(
                frames, self._clock(), arrived_at=arrived_at + self._clock_offset_s
            )

    def _update_statistics(self, session: ReceiverSession) -> None:
        statistics = session.statistics
        if statistics.first_data_at is None:
            return
        load = ReceiverLoad(
            held_share=session.backlog,
            pool_drop_count=session.pool_drop_count,
            queue_share=statistics.socket_fill,
            socket_drop_count=statistics.socket_drop_count,
            decode_s=self._processor.decode_s,
            write_s=self._write_s,
            all_received=session.needed_count == self._in_flight_count,
        )
        self._bottleneck_watch.update(self._clock(), load)
        statistics.bottleneck = self._bottleneck_watch.cause

    def _send_feedback(self, datagram: bytes) -> None:
        self._timeline.at(
            self._timeline.now + self.model.feedback_delay_s, lambda: self._sender.receive_feedback(datagram)
        )

    # -- the agent's pipeline ---------------------------------------------------------------------------------

    def _handle_events(self, session: ReceiverSession) -> None:
        for event in session.next_events():
            match event:
                case BlockAssembled(assembled):
                    self._write(session, assembled)
                case ManifestReceived(data):
                    assert data == self._sender.manifest.data
                    self._place_manifest()
                case ManifestRejected():
                    raise AssertionError("the manifest arrived damaged")
                case Dropped():
                    self.dropped = True
                    self._end(session, "too slow")
                case CastEnded(_, reason):
                    self._end(session, f"the cast ended: {reason}")

    def _place_manifest(self) -> None:
        assert self.session is not None
        manifest = self._sender.manifest
        self.session.set_manifest(manifest, manifest.stored_mask.copy(), self._clock())
        grant = self.session.grant
        self._timeline.at(
            self._timeline.now + self.model.feedback_delay_s, lambda: self._sender.set_need(grant)
        )

    def _write(self, session: ReceiverSession, assembled: AssembledBlock) -> None:
        """Decode and compare a block; release its buffer when the disk has written it."""
        decode_in_place(assembled.slots, assembled.slot_esi)
        source = self._sender.source(assembled.object, assembled.block)
        assert np.array_equal(assembled.slots, source), f"block {assembled.block} was decoded wrongly"
        self._in_flight_count += 1
        decodable_at = self._timeline.now + _HAND_OVER_S
        if not self._processor.decodes:
            self._write_decoded(session, assembled, decodable_at)
            return
        self._processor.decode(
            session.parameters.block_bytes,
            lambda: self._write_decoded(session, assembled, self._timeline.now),
            decodable_at,
        )

    def _write_decoded(self, session: ReceiverSession, assembled: AssembledBlock, at: float) -> None:
        write_s = session.parameters.block_bytes / self.model.disk_bytes_per_s
        self._disk_free_at = max(self._disk_free_at, at) + write_s
        self._write_s += write_s
        self._timeline.at(self._disk_free_at, lambda: self._written(session, assembled))

    def _written(self, session: ReceiverSession, assembled: AssembledBlock) -> None:
        self._in_flight_count -= 1
        session.release(assembled)
        session.block_written(assembled.block)
        session.statistics.bytes_written += session.parameters.block_bytes
        session.blocks_verified(np.array([assembled.block]))
        if session.needed_count == 0 and self.finished_at is None:
            self.complete = True
            self._end(session, "")

    def _end(self, session: ReceiverSession, error: str) -> None:
        self.finished_at = self._timeline.now
        self._inbox.clear()
        statistics = session.statistics
        report = CompletionReport(
            success=not error,
            error=error,
            exit_code=1 if error else 0,
            unsigned_allowed=False,
            raw_bytes_verified=statistics.blocks_verified_count * session.parameters.block_bytes,
            raw_bytes_kept=0,
            blocks_rewritten=0,
            bytes_received=statistics.bytes_received,
            bytes_written=statistics.bytes_written,
            datagrams_expected=session.loss.expected_count,
            datagrams_received=session.loss.received_count,
            socket_drops=statistics.socket_drop_count,
            blocks_repaired_by_parity=statistics.blocks_repaired_by_parity_count,
            blocks_repaired_by_nack=statistics.blocks_repaired_by_nack_count,
            nacks_sent=statistics.nacks_sent_count,
            seconds_receiving=0.0,
            seconds_total=0.0,
        )
        grant = session.grant
        self._timeline.at(
            self._timeline.now + self.model.feedback_delay_s, lambda: self._sender.complete(grant, report)
        )
