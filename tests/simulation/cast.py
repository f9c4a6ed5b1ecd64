"""Simulation of a whole cast over modelled links: real sessions, frames and FEC, and a model of the sender's threads.

:mod:`tests.simulation.world` looks for errors; this module measures speed: real symbol sizes, bottleneck queues, the
sender's batches and pacing, the receivers' polling.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.constants import BLOCK_BYTES_DEFAULT, DATA_HEADER_BYTES, MIB, PLAN_SYMBOLS_MAX
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import build_manifest
from protocol.model.cast_policy import CastPolicy
from protocol.model.cast_state import CastState
from protocol.model.session_records import CastId, CastParameters, CompletionReport, JoinGrant, JoinRequest
from protocol.sending.events import (
    SenderEvent,
)
from protocol.sending.sender_session import SenderSession
from protocol.sending.transmission.frame_encoder import FrameEncoder
from protocol.sending.transmission.pacing import Pacer
from protocol.sending.transmission.send_plan import SendPlan
from protocol.shared.feedback_timing import sent_at_ticks
from protocol.wire.batch import header_view
from sender.cast.transmission.encoder_thread import BATCH_S
from tests.simulation.links import WIRE_OVERHEAD_BYTES, Link, Port
from tests.simulation.receivers import CastReceiver, ReceiverModel
from tests.simulation.tcp_flow import TcpFlow
from tests.simulation.timeline import Timeline

SYMBOL_BYTES = 1440
_CALL_FRAMES_MAX = 44
_BATCH_SYMBOLS_MIN = 4
_BATCHES_AHEAD = 3
"""Two in the queue and one in the encoder, beside the one that is being sent."""
_SLEEP_MIN_S = 50e-6
_JOIN_SPREAD_S = 0.05
_DEFAULT_POLICY = CastPolicy()
_CLEAN_UPLINK = Port(delay_s=0.0)

SessionCall = Callable[[SenderSession, float], object]
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, slots=True)
class TcpModel:
    """A competing TCP flow through the port of a receiver, starting after ``start_s``."""

    receiver_index: int = 0
    start_s: float = 0.0
    back_delay_s: float = 0.0002


@dataclasses.dataclass(frozen=True, slots=True)
class CastModel:
    """The image, receivers and links of a cast.

    Attributes:
        image_bytes: stored bytes, incompressible.
        receivers: receivers of the cast.
        policy: the operator's options; ``wait_for`` is set to the number of receivers.
        uplink: the sender's link; its losses reach every receiver.
        tcp: competing flows.
        seed: seed of all randomness.
        limit_s: simulated seconds after which the cast counts as hung.
    """

    receivers: tuple[ReceiverModel, ...]
    image_bytes: int = 512 * MIB
    policy: CastPolicy = _DEFAULT_POLICY
    uplink: Port = _CLEAN_UPLINK
    tcp: tuple[TcpModel, ...] = ()
    symbol_bytes: int = SYMBOL_BYTES
    block_bytes: int = BLOCK_BYTES_DEFAULT
    seed: int = 1
    limit_s: float = 600.0


class RepeatingImage:
    """Incompressible blocks cut from one random buffer at shifting offsets: any size, little memory, all different."""

    _SHIFTS = 61

    def __init__(self, image_bytes: int, block_bytes: int, symbol_bytes: int, seed: int) -> None:
        self._symbol_bytes = symbol_bytes
        self._block_bytes = block_bytes
        block_count = -(-image_bytes // block_bytes)
        k = -(-block_bytes // symbol_bytes)
        generator = np.random.default_rng(seed)
        self._rows = generator.integers(0, 256, (k + self._SHIFTS, symbol_bytes), np.uint8)
        self._k = k
        data = build_manifest(
            name="simulated",
            raw_bytes=block_count * block_bytes,
            block_bytes=block_bytes,
            kind=np.full(block_count, BlockKind.RAW, np.uint8),
            stored_bytes=np.full(block_count, block_bytes, np.uint32),
            stored_hash=np.zeros((block_count, 32), np.uint8),
            raw_hash=np.zeros((block_count, 32), np.uint8),
            metadata={},
        )
        self.manifest = Manifest.parse_untrusted(data)
        self.stored_bytes = block_count * block_bytes
        self.source_symbols_count = block_count * k

    def load(self, object_index: int, block: int) -> NDArray[np.uint8]:
        """Load a block for the sender."""
        if object_index == 0:
            piece = bytes(self.manifest.data[block * self._block_bytes : (block + 1) * self._block_bytes])
            k = -(-len(piece) // self._symbol_bytes)
            padded = piece.ljust(k * self._symbol_bytes, b"\0")
            return np.frombuffer(padded, np.uint8).reshape(k, self._symbol_bytes)
        shift = block % self._SHIFTS
        return self._rows[shift : shift + self._k]


class SimulatedCast:
    """One run: ``SimulatedCast(model).run()``.

    Attributes:
        events: events of the sender's session, with their times.
        feedback_bytes: bytes of NACKs and REPORTs in Ethernet frames since image data started.
        data_bytes: bytes of SYMBOLs in Ethernet frames since then.
        log: times and inputs (feedback datagrams or calls) of the sender's session, if kept.
    """

    def __init__(self, model: CastModel, *, keep_log: bool = False) -> None:
        self.model = model
        self.timeline = Timeline()
        self.start = self.timeline.now
        self.image = RepeatingImage(model.image_bytes, model.block_bytes, model.symbol_bytes, model.seed)
        self.manifest = self.image.manifest
        self.events: list[tuple[float, SenderEvent]] = []
        self.feedback_bytes = 0
        self.data_bytes = 0
        self.symbols_sent_count = 0
        self.log: list[tuple[float, bytes | SessionCall]] | None = [] if keep_log else None
        self._rng = random.Random(model.seed)
        self.session = self.make_session()
        self._encoder = FrameEncoder(self.session.parameters)
        self._pacer = Pacer(self.session.rate_bytes_per_s, self.timeline.now)
        self._batches: deque[tuple[SendPlan, NDArray[np.uint8]]] = deque()
        self._sending = False
        self._armed_at = math.inf
        self.uplink = Link(model.uplink, self.start, random.Random(self._rng.getrandbits(64)))
        self.receivers = [
            CastReceiver(self, receiver, index, random.Random(self._rng.getrandbits(64)))
            for index, receiver in enumerate(model.receivers)
        ]
        for receiver in self.receivers:
            join_at = self.start + self._rng.random() * _JOIN_SPREAD_S
            self.timeline.at(join_at, functools.partial(self._join, receiver))
        self.tcp_flows = [
            TcpFlow(
                self.timeline,
                self.receivers[tcp.receiver_index].link,
                start_at=self.start + tcp.start_s,
                back_delay_s=tcp.back_delay_s,
            )
            for tcp in model.tcp
        ]
        self._change()

    def make_session(self, now: float | None = None) -> SenderSession:
        """Return a new session of the sender, the same every time; by another clock if ``now`` is given."""
        model = self.model
        rng = random.Random(model.seed)
        parameters = CastParameters(
            cast_id=CastId(7),
            incarnation=rng.getrandbits(32),
            image_id=self.manifest.image_id,
            image_name="simulated",
            raw_bytes=self.manifest.raw_bytes,
            block_bytes=model.block_bytes,
            manifest_bytes=len(self.manifest.data),
            symbol_bytes=model.symbol_bytes,
            group="239.255.0.1",
            port=1,
            sender_address="10.0.0.1",
            feedback_port=2,
            control_url="http://10.0.0.1:2",
        )
        return SenderSession(
            parameters,
            self.manifest,
            policy=dataclasses.replace(model.policy, wait_for=len(model.receivers)),
            rng=random.Random(rng.getrandbits(32)),
            secrets=rng.randbytes,
            now=self.start if now is None else now,
        )

    # -- running ----------------------------------------------------------------------------------------------

    def run(self, *, sample_s: float = 0.02, sample: Callable[[], None] | None = None) -> SimulatedCast:
        """Run until the sender and every receiver have ended; call ``sample`` every ``sample_s``.

        Raises:
            AssertionError: the cast isn't over after the model's limit.
        """
        timeline = self.timeline
        sample_at = timeline.now
        while not self.over and timeline.step():
            while sample is not None and timeline.now >= sample_at:
                sample()
                sample_at += sample_s
            assert timeline.now < self.start + self.model.limit_s, f"not finished: {self.describe()}"
        for flow in self.tcp_flows:
            flow.stop()
        assert self.over, f"nothing happens any more: {self.describe()}"
        return self

    @property
    def over(self) -> bool:
        """Return whether the sender and all receivers have ended."""
        return self.session.state == CastState.ENDED and all(
            r.finished_at is not None for r in self.receivers
        )

    def describe(self) -> str:
        """Return the state as a text for failures."""
        states = [(r.name, r.state.value, r.needed_count) for r in self.session.receivers.values()]
        return f"seed {self.model.seed}, {self.timeline.now - self.start:.1f} s: {states[:20]}"

    # -- receivers --------------------------------------------------------------------------------------------

    def source(self, object_index: int, block: int) -> NDArray[np.uint8]:
        """Return the symbols that a block must decode to."""
        return self.image.load(object_index, block)

    def receive_feedback(self, datagram: bytes) -> None:
        """Receive a datagram at the feedback port."""
        if self.session.state == CastState.CASTING:
            self.feedback_bytes += len(datagram) + WIRE_OVERHEAD_BYTES
        if self.log is not None:
            self.log.append((self.timeline.now, datagram))
        self.session.receive_feedback_untrusted(datagram, self.timeline.now)
        self._change()

    def set_need(self, grant: JoinGrant) -> None:
        """Note that a receiver has the manifest and needs every block."""
        self._call(lambda session, now: session.set_need(grant.receiver_id, None, now))
        self._change()

    def complete(self, grant: JoinGrant, report: CompletionReport) -> None:
        """Note that a receiver has ended."""
        self._call(lambda session, now: session.complete(grant.receiver_id, report, now))
        self._change()

    def _call(self, call: Callable[[SenderSession, float], _Result]) -> _Result:
        if self.log is not None:
            self.log.append((self.timeline.now, call))
        return call(self.session, self.timeline.now)

    def _join(self, receiver: CastReceiver) -> None:
        name = f"pc{receiver.index}"
        request = JoinRequest(name, name, {}, False, None, "10.0.0.2")
        receiver.join(self._call(lambda session, now: session.join(request, now)))
        self._change()

    # -- the sender's threads ---------------------------------------------------------------------------------

    def _change(self) -> None:
        """Follow a change of the session: timers may be due earlier, and there may be data to send."""
        now = self.timeline.now
        self.events.extend((now, event) for event in self.session.next_events())
        self._plan_ahead()
        next_at = self.session.next_timer(now)
        if next_at < self._armed_at:
            self._armed_at = next_at
            self.timeline.at(next_at, lambda: self._run_timers(next_at))

    def _run_timers(self, due_at: float) -> None:
        if due_at != self._armed_at:
            return  # replaced by an earlier timer
        self._armed_at = math.inf
        for datagram in self._call(lambda session, now: session.control_datagrams(now)):
            passage = self.uplink.send(self.timeline.now, 1, len(datagram))
            if passage is not None:
                self._at_switch(passage.last_at, functools.partial(self._copy_control, datagram))
        self._change()

    def _plan_ahead(self) -> None:
        """Encode as many batches ahead as the encoder thread's queue holds."""
        while len(self._batches) < _BATCHES_AHEAD:
            symbols_max = self._symbols_max()
            plan = self._call(lambda session, now, most=symbols_max: session.next_plan(now, most))
            if plan is None:
                break
            self._batches.append((plan, self._encoder.encode(plan, self.image.load).copy()))
        if self._batches and not self._sending:
            self._sending = True
            self._send_batch()

    def _symbols_max(self) -> int:
        symbols = self.session.rate_bytes_per_s * BATCH_S / (DATA_HEADER_BYTES + self.model.symbol_bytes)
        unit = _CALL_FRAMES_MAX if symbols >= _CALL_FRAMES_MAX else _BATCH_SYMBOLS_MIN
        return max(unit, min(round(symbols / unit) * unit, PLAN_SYMBOLS_MAX // unit * unit))

    def _send_batch(self) -> None:
        plan, frames = self._batches.popleft()
        self._send_next_call(plan, frames, 0)
        self._plan_ahead()

    def _send_next_call(self, plan: SendPlan, frames: NDArray[np.uint8], row: int) -> None:
        """Send paced bursts, as the transmitter thread does."""
        now = self.timeline.now
        if row >= frames.shape[0]:
            next_sequence, byte_count = plan.next_sequence, frames.nbytes
            self._call(lambda session, now: session.mark_transmitted(next_sequence, byte_count, now))
            self._pacer.set_rate(self.session.rate_bytes_per_s, now)
            self._sending = False
            self._change()
            return
        by_rate = self._pacer.burst_bytes // frames.shape[1]
        piece = frames[row : row + max(1, min(_CALL_FRAMES_MAX, by_rate))]
        wait_s = self._pacer.wait_s(now)
        send = functools.partial(self._send_call, plan, frames, row, piece)
        if wait_s > _SLEEP_MIN_S:
            self.timeline.at(now + wait_s, send)
        else:
            send()

    def _send_call(
        self, plan: SendPlan, frames: NDArray[np.uint8], row: int, piece: NDArray[np.uint8]
    ) -> None:
        now = self.timeline.now
        self._pacer.sent(piece.nbytes, now)
        header_view(piece)["sent_at"] = sent_at_ticks(now)
        self.symbols_sent_count += piece.shape[0]
        if self.session.state == CastState.CASTING:
            self.data_bytes += piece.shape[0] * (piece.shape[1] + WIRE_OVERHEAD_BYTES)
        passage = self.uplink.send(now, piece.shape[0], piece.shape[1])
        if passage is not None:
            whole = isinstance(passage.rows, slice) and passage.count == piece.shape[0]
            passed = piece if whole else piece[passage.rows]
            self._at_switch(passage.last_at, functools.partial(self._copy_frames, passed))
        self._send_next_call(plan, frames, row + piece.shape[0])

    # -- the switch -------------------------------------------------------------------------------------------

    def _at_switch(self, time: float, copy: Callable[[], None]) -> None:
        if time > self.timeline.now:
            self.timeline.at(time, copy)
        else:
            copy()

    def _copy_frames(self, frames: NDArray[np.uint8]) -> None:
        for receiver in self.receivers:
            receiver.send_frames(frames)

    def _copy_control(self, datagram: bytes) -> None:
        for receiver in self.receivers:
            receiver.send_control(datagram)
