"""A whole cast in simulated time, drawn from one seed: real sessions and frames, a terrible network between them.

The seed decides the image, the receivers, when they join, die, come back, what their disks do, and for every datagram
whether it's lost, doubled, delayed or altered. The same seed gives the same trace, byte by byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from protocol.constants import BLOCK_TAG_BYTES, DATA_HEADER_BYTES
from protocol.errors import JoinRefusedError
from protocol.fec.reed_solomon import decode_in_place
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import build_manifest
from protocol.model.cast_policy import CastPolicy
from protocol.model.cast_state import CastState
from protocol.model.session_records import CastId, CastParameters, CompletionReport, JoinRequest
from protocol.receiving.block_assembly import AssembledBlock
from protocol.receiving.events import (
    BlockAssembled,
    BlockFetchDue,
    CastEnded,
    Dropped,
    ManifestReceived,
    ManifestRejected,
    NotServed,
    RestartSuspected,
)
from protocol.receiving.receiver_session import ReceiverSession
from protocol.sending.sender_session import SenderSession
from protocol.sending.transmission.frame_encoder import FrameEncoder
from protocol.trust.block_cipher import BlockCipher
from protocol.wire.batch import header_view
from protocol.wire.data_tags import DataTagger
from tests.simulation.timeline import Timeline
from tests.support.network.completion_reports import completion

SYMBOL_BYTES = 64
BLOCK_BYTES = 64 * 1024
SIMULATED_S_MAX = 300.0


@dataclasses.dataclass(slots=True)
class Path:
    """Treatment of the datagrams to and from one receiver."""

    loss: float = 0.0
    loss_back: float | None = None
    """Loss of the receiver's datagrams; None: as on the way to it."""
    burst_loss: float = 0.0
    """Probability that a whole batch is lost."""
    duplication: float = 0.0
    corruption: float = 0.0
    delay_s: float = 0.001
    jitter_s: float = 0.0
    loses_data: bool = False
    """No symbol arrives, as behind a switch whose MTU is too small."""
    loses_feedback: Callable[[bytes], bool] = lambda _datagram: False
    """Datagrams of the receiver that never arrive."""


@dataclasses.dataclass(slots=True)
class Scenario:
    """Parameters of one run."""

    seed: int
    block_count: int = 12
    paths: list[Path] = dataclasses.field(default_factory=lambda: [Path()])
    join_at: list[float] = dataclasses.field(default_factory=list)
    die_at: list[float | None] = dataclasses.field(default_factory=list)
    bad_disk: list[float] = dataclasses.field(default_factory=list)
    """Probability that a written block reads back wrong the first time."""
    sender_restarts_at: float | None = None
    rate_bytes_per_s: float | None = 400_000.0
    wait_for: int = 1
    symbols_max: int = 30
    """Source symbols of the largest block."""
    forged_share: float = 0.0
    """Share of the symbols that a member of the group forges, each sent just before the right one."""
    forged_ahead: int = 0
    """Most datagrams and blocks that the member's forgeries claim to be ahead of the sender."""
    forged_block: int | None = None
    """Image block of which the member forges a symbol of every batch."""
    encrypted: bool = False
    pool_block_count: int = 64
    """Receive buffers of each receiver."""
    policy: dict[str, object] = dataclasses.field(default_factory=dict)
    """Options of the operator that differ from the defaults."""

    @classmethod
    def draw(cls, seed: int) -> Scenario:
        """Return a terrible world."""
        rng = random.Random(seed)
        count = rng.randint(1, 4)
        scenario = cls(seed, block_count=rng.randint(1, 20))
        scenario.paths = [
            Path(
                loss=rng.choice([0.0, 0.01, 0.05, 0.2, 0.3]),
                burst_loss=rng.choice([0.0, 0.0, 0.1]),
                duplication=rng.choice([0.0, 0.0, 0.05]),
                corruption=rng.choice([0.0, 0.0, 0.003]),
                delay_s=rng.choice([0.0002, 0.002, 0.05]),
                jitter_s=rng.choice([0.0, 0.001, 0.02]),
            )
            for _ in range(count)
        ]
        scenario.join_at = [0.0] + [rng.choice([0.0, 0.0, rng.uniform(0, 0.5)]) for _ in range(count - 1)]
        scenario.die_at = [None] + [
            rng.uniform(0.05, 1.0) if rng.random() < 0.2 else None for _ in range(count - 1)
        ]
        scenario.bad_disk = [rng.choice([0.0, 0.0, 0.1]) for _ in range(count)]
        scenario.sender_restarts_at = rng.uniform(0.05, 0.6) if rng.random() < 0.15 else None
        scenario.rate_bytes_per_s = rng.choice([None, 150_000.0, 400_000.0])
        scenario.wait_for = rng.randint(1, count)
        scenario.pool_block_count = rng.choice([8, 8, 64])
        return scenario


class Image:
    """A small image whose blocks are stored in one symbol to ``symbols_max``, some not at all."""

    def __init__(self, rng: random.Random, block_count: int, symbols_max: int = 30) -> None:
        kinds = rng.choices([BlockKind.DATA, BlockKind.ZERO], [4, 1], k=block_count)
        lengths = [
            rng.randint(1, symbols_max * SYMBOL_BYTES) if kind is BlockKind.DATA else 0 for kind in kinds
        ]
        self.stored = [rng.randbytes(length) for length in lengths]
        hashes = np.frombuffer(b"".join(blake3(s).digest() for s in self.stored), np.uint8)
        data = build_manifest(
            name="simulated",
            raw_bytes=block_count * BLOCK_BYTES,
            block_bytes=BLOCK_BYTES,
            kind=np.array(kinds, np.uint8),
            stored_bytes=np.array(lengths, np.uint32),
            stored_hash=hashes.reshape(-1, 32),
            raw_hash=np.zeros((block_count, 32), np.uint8),
            metadata={},
        )
        self.manifest = Manifest.parse_untrusted(data)

    def load(self, object_index: int, block: int) -> NDArray[np.uint8]:
        """Load a block for the sender."""
        if object_index == 0:
            stored = bytes(self.manifest.data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        else:
            stored = self.stored[block]
        return as_symbols(stored)


def as_symbols(stored: bytes) -> NDArray[np.uint8]:
    """Return bytes as source symbols, padded with zeros."""
    k = -(-len(stored) // SYMBOL_BYTES)
    return np.frombuffer(stored.ljust(k * SYMBOL_BYTES, b"\0"), np.uint8).reshape(k, SYMBOL_BYTES)


class World(Timeline):
    """One run: ``World(scenario).run()``."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__()
        self.scenario = scenario
        self.rng = random.Random(scenario.seed)
        self.image = Image(self.rng, scenario.block_count, scenario.symbols_max)
        self.trace = hashlib.sha256()
        self.symbols_sent = 0
        self.symbols_forged = 0
        self.blocks_poisoned = 0
        self.blocks_served = 0
        self.receivers: list[SimulatedReceiver] = []
        self._start_sender(scenario.wait_for)
        self.receivers = [SimulatedReceiver(self, index, path) for index, path in enumerate(scenario.paths)]
        for index, receiver in enumerate(self.receivers):
            self.at(self.now + _get(scenario.join_at, index, 0.0), receiver.join)
            die_at = _get(scenario.die_at, index, None)
            if die_at is not None:
                self.at(self.now + die_at, receiver.die)
        if scenario.sender_restarts_at is not None:
            self.at(self.now + scenario.sender_restarts_at, self._restart_sender)

    def run(self) -> World:
        """Run until the cast has ended; raise AssertionError with the seed if it takes too long."""
        return self.run_until(lambda: self.sender.finished)

    def run_until(self, reached: Callable[[], bool]) -> World:
        """Run until a condition holds; raise AssertionError with the seed if it takes too long."""
        end = self.now + SIMULATED_S_MAX
        while not reached():
            assert self.step(), f"seed {self.scenario.seed}: nothing happens any more, {self.describe()}"
            assert self.now < end, f"seed {self.scenario.seed}: not finished, {self.describe()}"
        return self

    def run_for(self, seconds: float) -> World:
        """Run for ``seconds`` of simulated time."""
        end = self.now + seconds
        self.at(end, lambda: None)
        return self.run_until(lambda: self.now >= end)

    def describe(self) -> str:
        """Return the state as a text for failures."""
        states = [(r.name, r.state.value, r.needed_count) for r in self.sender.receivers.values()]
        return f"{states} lacking {[r.session and r.session.missing_count for r in self.receivers]}"

    # -- sender -----------------------------------------------------------------------------------------------

    def _start_sender(self, wait_for: int) -> None:
        self.parameters = CastParameters(
            cast_id=CastId(7),
            incarnation=self.rng.getrandbits(32),
            image_id=self.image.manifest.image_id,
            image_name="simulated",
            raw_bytes=self.image.manifest.raw_bytes,
            block_bytes=BLOCK_BYTES,
            manifest_bytes=len(self.image.manifest.data),
            symbol_bytes=SYMBOL_BYTES,
            group="239.255.0.1",
            port=1,
            sender_address="10.0.0.1",
            feedback_port=2,
            control_url="http://10.0.0.1:2",
            encrypted=self.scenario.encrypted,
        )
        policy = CastPolicy(
            wait_for=wait_for,
            max_wait_s=20.0,
            receiver_timeout_s=5.0,
            rate_bytes_per_s=self.scenario.rate_bytes_per_s,
            rate_max_bytes_per_s=2_000_000.0,
        )
        self.sender = SenderSession(
            self.parameters,
            self.image.manifest,
            policy=dataclasses.replace(policy, **self.scenario.policy),
            rng=random.Random(self.rng.getrandbits(32)),
            secrets=self.rng.randbytes,
            now=self.now,
        )
        self._encoder = FrameEncoder(self.parameters)
        self.at(self.now, lambda sender=self.sender: self._transmit(sender))
        self.at(self.now, lambda sender=self.sender: self._control(sender))

    def _restart_sender(self) -> None:
        if self.sender.state != CastState.ENDED:
            # The operator runs the same command again for the remaining receivers.
            self._start_sender(sum(r.alive and not r.complete for r in self.receivers))

    def _transmit(self, sender: SenderSession) -> None:
        if sender is not self.sender or sender.finished:
            return
        plan = sender.next_plan(self.now, self.rng.choice([8, 32, 88]))
        for request in plan.digest_requests if plan is not None else ():
            sender.send_digests(request.answer(self.load))
            self._send_control(sender)
        if plan is None or plan.symbol_count == 0:
            self.at(self.now + 0.002, lambda: self._transmit(sender))
            return
        frames = self._encoder.encode(plan, self.load)
        self.symbols_sent += plan.symbol_count
        self.trace.update(frames.tobytes())
        heard = self._with_forgeries(frames)
        for receiver in self.receivers:
            receiver.send_frames(heard)
        sender.mark_transmitted(plan.next_sequence, frames.size, self.now)
        self.at(self.now + frames.size / sender.rate_bytes_per_s, lambda: self._transmit(sender))

    def load(self, object_index: int, block: int) -> NDArray[np.uint8]:
        """Load a block as the running sender casts it."""
        source = self.image.load(object_index, block)
        cipher = BlockCipher.of(self.parameters, self.sender.keys)
        if cipher is None:
            return source
        data = self.image.manifest.data
        stored = (
            self.image.stored[block] if object_index else bytes(data[block * BLOCK_BYTES :][:BLOCK_BYTES])
        )
        sealed = np.empty(len(stored) + BLOCK_TAG_BYTES, np.uint8)
        cipher.seal_into(object_index, block, memoryview(stored), sealed)
        return as_symbols(sealed.tobytes())

    def _with_forgeries(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the frames with a member's forgeries in front of some of them: copies with other symbols."""
        scenario, rng = self.scenario, self.rng
        headers = header_view(frames)
        forged = np.zeros(frames.shape[0], np.bool_)
        if scenario.forged_share:
            forged |= np.array([rng.random() < scenario.forged_share for _ in range(frames.shape[0])])
        if scenario.forged_block is not None:
            rows = np.flatnonzero((headers["object"] == 1) & (headers["block"] == scenario.forged_block))
            forged[rows[:1]] = True
        if not forged.any():
            return frames
        self.symbols_forged += int(forged.sum())
        copies = frames[forged].copy()
        payloads = copies[:, DATA_HEADER_BYTES:]
        payloads[:] = np.frombuffer(rng.randbytes(payloads.size), np.uint8).reshape(payloads.shape)
        if scenario.forged_ahead:
            self._pretend_ahead(copies)
        return np.insert(frames, np.flatnonzero(forged), copies, axis=0)

    def _pretend_ahead(self, frames: NDArray[np.uint8]) -> None:
        """Give forgeries numbers that the sender will use later, with right tags, and the numbers of later blocks."""
        headers = header_view(frames)
        ahead = np.array([self.rng.randint(1, self.scenario.forged_ahead) for _ in range(frames.shape[0])])
        high = self.sender._planner.next_sequence & ~0xFFFFFFFF
        sequences = (high | headers["sequence"].astype(np.int64)) + ahead
        headers["sequence"] = sequences & 0xFFFFFFFF
        headers["tag"] = DataTagger(self.sender.keys.data_tag).tags(sequences)
        k = self.image.manifest.source_symbols(SYMBOL_BYTES, self.parameters.tag_bytes)
        for header in headers[headers["object"] == 1]:
            block = int(header["block"]) + self.rng.randint(0, 3)
            if block < k.size and k[block]:
                header["block"], header["k"] = block, k[block]

    def _control(self, sender: SenderSession) -> None:
        if sender is not self.sender:
            return
        self._send_control(sender)
        if not sender.finished:
            self.at(max(self.now + 0.001, sender.next_timer(self.now)), lambda: self._control(sender))

    def _send_control(self, sender: SenderSession) -> None:
        for datagram in sender.control_datagrams(self.now):
            for receiver in self.receivers:
                receiver.send_control(datagram)


class SimulatedReceiver:
    """A receiver's shell without a network or a disk: joins, decodes, writes into memory, verifies.

    Attributes:
        lingers: it has something left to do when everything is verified, and doesn't say that it is complete.
        ended: the sender told it that the cast is over.
        dropped: the sender told it that the cast goes on without it.
        not_served: it has ended without progress.
    """

    def __init__(self, world: World, index: int, path: Path) -> None:
        self.world = world
        self.index = index
        self.agent_id = f"agent{index}"
        self.lingers = False
        self.dropped = False
        self.not_served: NotServed | None = None
        self.path = path
        self.alive = True
        self.session: ReceiverSession | None = None
        self.manifest: Manifest | None = None
        self.disk: dict[int, bytes] = {}
        self.ended: CastEnded | None = None
        self.complete = False
        self._read_back_wrong: set[int] = set()

    # -- arrivals from the network----------------------------------------------------------------------------

    def _delay(self) -> float:
        return self.path.delay_s + self.world.rng.random() * self.path.jitter_s

    def send_frames(self, frames: NDArray[np.uint8]) -> None:
        rng, path = self.world.rng, self.path
        if not self.alive or path.loses_data or rng.random() < path.burst_loss:
            return
        keep = [i for i in range(frames.shape[0]) if rng.random() >= path.loss]
        if path.duplication:
            keep += [i for i in keep if rng.random() < path.duplication]
        if not keep:
            return
        if path.jitter_s and rng.random() < 0.3:
            cut = rng.randrange(len(keep))  # part of the batch overtakes the rest
            keep = keep[cut:] + keep[:cut]
        arrived = frames[keep]
        if path.corruption:
            for row in arrived:
                if rng.random() < path.corruption:
                    row[rng.randrange(row.size)] ^= 1 << rng.randrange(8)
        self.world.at(self.world.now + self._delay(), lambda: self._receive(arrived))

    def send_control(self, datagram: bytes) -> None:
        rng = self.world.rng
        if not self.alive or rng.random() < self.path.loss:
            return
        if rng.random() < self.path.corruption:
            datagram = bytes([datagram[0] ^ 1]) + datagram[1:]
        self.world.at(self.world.now + self._delay(), lambda: self._receive_control(datagram))

    def _receive(self, frames: NDArray[np.uint8]) -> None:
        if self.alive and self.session is not None and not self.complete:
            self.session.receive_frames_untrusted(frames, self.world.now)
            self._work()

    def _receive_control(self, datagram: bytes) -> None:
        if self.alive and self.session is not None and not self.complete:
            self.session.receive_datagram_untrusted(datagram, self.world.now)
            self._work()

    # -- the shell --------------------------------------------------------------------------------------------

    def join(self) -> None:
        world = self.world
        if not self.alive or self.complete or world.sender.state == CastState.ENDED:
            return
        need = None if self.manifest is None or self.session is None else self.session.need
        request = JoinRequest(
            self.agent_id, f"pc{self.index}", {}, self.manifest is not None, need, "10.0.0.2"
        )
        grant = world.sender.join(request, world.now)
        self.session = ReceiverSession(
            grant,
            assembly_bytes=world.scenario.pool_block_count * BLOCK_BYTES,
            rng=random.Random(world.rng.getrandbits(32)),
            now=world.now,
        )
        if self.manifest is not None:
            assert need is not None
            self.session.set_manifest(self.manifest, need, world.now)
        elif not grant.manifest_by_multicast:
            self._take_manifest(bytes(world.image.manifest.data))
        self._tick(self.session)

    def die(self) -> None:
        self.alive = False

    def turn_bad(self, block: int) -> None:
        """Change a verified block on the disk."""
        assert self.session is not None
        del self.disk[block]
        self.session.block_rejected(block, self.world.now)

    def _take_manifest(self, data: bytes) -> None:
        assert self.session is not None
        self.manifest = Manifest.parse_untrusted(data)
        need = np.asarray(self.manifest.stored_mask)
        self.session.set_manifest(self.manifest, need, self.world.now)
        if self._known_to(self.world.sender):
            self.world.sender.set_need(self.session.grant.receiver_id, need, self.world.now)

    def _tick(self, session: ReceiverSession) -> None:
        if not self.alive or session is not self.session or self.complete or self.ended:
            return
        for datagram in session.datagrams_to_send(self.world.now):
            path = self.path
            if path.loses_feedback(datagram):
                continue
            if self.world.rng.random() >= (path.loss if path.loss_back is None else path.loss_back):
                self.world.at(
                    self.world.now + self._delay(),
                    lambda d=datagram: self.world.sender.receive_feedback_untrusted(d, self.world.now),
                )
        self._work()
        if not self.complete:
            self.world.at(max(session.next_timer(), self.world.now + 0.0005), lambda: self._tick(session))

    def _work(self) -> None:
        session = self.session
        assert session is not None
        for event in session.next_events():
            if isinstance(event, BlockAssembled):
                self._write(session, event)
            elif isinstance(event, BlockFetchDue):
                self._fetch(session, event)
            elif isinstance(event, ManifestReceived):
                self._take_manifest(bytes(event.data))
            elif isinstance(event, ManifestRejected):
                self._take_manifest(bytes(self.world.image.manifest.data))
            elif isinstance(event, RestartSuspected):
                if self.world.parameters.incarnation != session.parameters.incarnation:
                    self.join()
                    return
            elif isinstance(event, CastEnded):
                self.ended = event
            elif isinstance(event, Dropped):
                self.dropped = True
            elif isinstance(event, NotServed):
                self.not_served = event
                self._report(completion(success=False, error="not served"))
                self.die()
        verified = self.manifest is not None and session is self.session and session.needed_count == 0
        if verified and not self.lingers:
            self._complete(session)

    def _write(self, session: ReceiverSession, event: BlockAssembled) -> None:
        block = event.assembled
        decode_in_place(block.slots, block.slot_esi)
        payload = self._opened(session, block)
        assert self.manifest is not None
        if blake3(payload).digest() != self.manifest.stored_hash[block.block].tobytes():
            assert not block.fetched, "the control API served a wrong block"
            self.world.blocks_poisoned += 1
            session.block_poisoned(block, self.world.now)
            return
        session.release(block)
        self.disk[block.block] = payload
        session.block_written(block.block)
        if block.block not in self._read_back_wrong and self.world.rng.random() < _get(
            self.world.scenario.bad_disk, self.index, 0.0
        ):
            self._read_back_wrong.add(block.block)
            session.block_rejected(block.block, self.world.now)
            return
        session.blocks_verified(np.array([block.block]))

    @staticmethod
    def _opened(session: ReceiverSession, block: AssembledBlock) -> bytes:
        """Return a block's stored bytes, decrypted; none if its tag is wrong."""
        if session.cipher is None:
            return block.payload.tobytes()
        stored = np.empty(block.payload.size - BLOCK_TAG_BYTES, np.uint8)
        right = session.cipher.open_into_untrusted(block.object, block.block, block.payload, stored)
        return stored.tobytes() if right else b""

    def _fetch(self, session: ReceiverSession, event: BlockFetchDue) -> None:
        """Fetch a block from the control API, now or when the sender allows it."""
        world = self.world
        if session is not self.session or not self._known_to(world.sender):
            return
        if not world.sender.allow_fetch(session.grant.receiver_id, event.block, world.now):
            world.at(world.now + 1.0, lambda: self._fetch(session, event))
            return
        world.blocks_served += 1
        cast_bytes = world.load(1, event.block).tobytes()[: event.cast_bytes]
        session.block_fetched(event.block, memoryview(cast_bytes))
        world.at(world.now, self._work)

    def _complete(self, session: ReceiverSession) -> None:
        self.complete = True
        self.world.at(self.world.now + self.path.delay_s, lambda: self._report(completion()))

    def _report(self, report: CompletionReport) -> None:
        if self._known_to(self.world.sender):
            self.world.sender.complete(self.session.grant.receiver_id, report, self.world.now)

    def _known_to(self, sender: SenderSession) -> bool:
        """Return the answer of the control API's check: a restarted sender has no keys."""
        try:
            sender.check_key(self.session.grant.receiver_id, self.session.grant.key)
        except JoinRefusedError:
            return False
        return True

    def holds_image(self) -> bool:
        """Return whether every stored block is on the disk, byte by byte."""
        return all(self.disk.get(b, b"") == stored for b, stored in enumerate(self.world.image.stored))


def _get(values, index, default):
    return values[index] if index < len(values) else default
