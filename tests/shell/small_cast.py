"""A cast in memory under trio's clock: a real sender session, real frames, a fake socket and a fake control API.

Everything between the receiver and the sender is simulated here, and tests can drop, stop and restart it; the disk is a
real file. Calls in place replace threads, which makes each test deterministic.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from protocol.constants import BLOCK_TAG_BYTES, DATA_HEADER_BYTES
from protocol.control.control_messages import COMPLETION, CastDescription, cast_description
from protocol.image.block_codec import BlockEncoder, block_hash
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import build_manifest
from protocol.model.bottleneck import Cause
from protocol.model.cast_policy import CastPolicy
from protocol.model.session_records import CastId, CastParameters, CompletionReport, JoinGrant, JoinRequest
from protocol.patch.machine_patch import MachinePatch
from protocol.patch.patch_set import SignedPatchSet
from protocol.receiving.manifest_reception import ManifestStore
from protocol.sending.sender_session import SenderSession
from protocol.sending.transmission.frame_encoder import FrameEncoder
from protocol.sending.transmission.send_plan import LoadBlock
from protocol.trust.block_cipher import BlockCipher
from protocol.trust.image_policy import AcceptedImage
from protocol.wire.control_codec import ControlMessage
from protocol.wire.feedback_codec import decode_feedback_untrusted
from protocol.wire.messages import CastObject, Nack
from receiver.disk.target import Target
from receiver.reception.cast_link import CastLink
from receiver.reception.cast_receiver import CastReceiver
from receiver.reception.network.data_socket import SocketMemory
from receiver.reception.network.http_client import Unreachable
from receiver.reception.network.recvmmsg import DatagramBatch, SlabCounters
from receiver.reception.options import CastReceiverOptions
from receiver.reception.patch_gate import PatchGate
from receiver.reception.reporting.status import Reception, ReceptionStatus
from receiver.shared.nursery_errors import single_error
from receiver.target.image import TargetImage
from receiver.target.open_target import open_target
from tests.support.signing import KEYS, NOW

BLOCK_BYTES = 64 * 1024
SYMBOL_BYTES = 1440
RATE_BYTES_PER_S = 4_000_000.0
PLAN_SYMBOLS = 88


class SmallImage:
    """Raw content and its packed image: compressible, incompressible and zero blocks, the last one short."""

    def __init__(self, seed: int = 1, block_count: int = 48, *, zeros_only: bool = False) -> None:
        rng = random.Random(seed)
        encoder = BlockEncoder(3, BLOCK_BYTES)
        self.stored: list[bytes] = []
        raws, kinds = [], []
        for block in range(block_count):
            length = BLOCK_BYTES if block < block_count - 1 else 10_000
            choice = 2 if zeros_only else rng.randrange(3) if block else 0
            raw = [rng.randbytes(length), (b"text %d " % block * length)[:length], bytes(length)][choice]
            kind, stored = (BlockKind.ZERO, b"") if choice == 2 else encoder.encode(memoryview(raw))
            raws.append(raw)
            kinds.append(kind)
            self.stored.append(bytes(stored))
        self.raw = b"".join(raws)
        stored_hashes = b"".join(block_hash(stored) for stored in self.stored)
        raw_hashes = b"".join(block_hash(raw) for raw in raws)
        data = build_manifest(
            name="small",
            raw_bytes=len(self.raw),
            block_bytes=BLOCK_BYTES,
            kind=np.array(kinds, np.uint8),
            stored_bytes=np.array([len(stored) for stored in self.stored], np.uint32),
            stored_hash=np.frombuffer(stored_hashes, np.uint8).reshape(-1, 32),
            raw_hash=np.frombuffer(raw_hashes, np.uint8).reshape(-1, 32),
            metadata={},
        )
        self.manifest = Manifest.parse_untrusted(data)

    def load(self, symbol_bytes: int, object_index: int, block: int) -> NDArray[np.uint8]:
        """Return the stored bytes of a block as symbols."""
        stored = (
            bytes(self.manifest.data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
            if object_index == 0
            else self.stored[block]
        )
        k = -(-len(stored) // symbol_bytes)
        return np.frombuffer(stored.ljust(k * symbol_bytes, b"\0"), np.uint8).reshape(k, symbol_bytes)

    def load_sealed(
        self, cipher: BlockCipher, symbol_bytes: int, object_index: int, block: int
    ) -> NDArray[np.uint8]:
        """Return the encrypted stored bytes of a block as symbols."""
        stored = (
            bytes(self.manifest.data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
            if object_index == 0
            else self.stored[block]
        )
        sealed = np.zeros(-(-(len(stored) + BLOCK_TAG_BYTES) // symbol_bytes) * symbol_bytes, np.uint8)
        cipher.seal_into(object_index, block, memoryview(stored), sealed[: len(stored) + BLOCK_TAG_BYTES])
        return sealed.reshape(-1, symbol_bytes)


class FakeDataSocket:
    """A data socket whose queue the test fills."""

    poll_interval_max_s = 0.008

    def __init__(self) -> None:
        self.queue: deque[DatagramBatch] = deque()
        self.counters = SlabCounters()
        self.any_source = False
        self.closed = False
        self._arrived = trio.Event()

    def put(self, frames: NDArray[np.uint8], datagrams: list[bytes]) -> None:
        """Put datagrams into the queue."""
        self.queue.append(DatagramBatch(frames, datagrams, drained=False))
        self._arrived.set()

    def receive_batch(self) -> DatagramBatch | None:
        return self.queue.popleft() if self.queue else None

    async def wait_readable(self) -> None:
        if not self.queue:
            self._arrived = trio.Event()
            await self._arrived.wait()

    def memory(self) -> SocketMemory:
        return SocketMemory(0, 1 << 20, 0)

    def require_mtu(self) -> None:
        """A simulated interface carries datagrams of any size."""

    def accept_any_source(self) -> None:
        self.any_source = True

    def close(self) -> None:
        self.closed = True


class Recorder:
    """An observer that records its calls."""

    def __init__(self) -> None:
        self.interval_s = 1.0
        self.demotions: list[Cause | None] = []
        self.joins: list[bool] = []
        self.accepted_images: list[AcceptedImage] = []
        self.silences: list[float] = []
        self.statuses: list[ReceptionStatus] = []
        self.on_progress: Callable[[ReceptionStatus], None] = lambda _status: None

    def accepted(self, image: AcceptedImage) -> None:
        self.accepted_images.append(image)

    def joined(self, parameters: CastParameters, *, rejoined: bool) -> None:
        assert parameters.image_name == "small"
        self.joins.append(rejoined)

    def silent(self, silent_s: float) -> None:
        self.silences.append(silent_s)

    def demoted(self, cause: Cause) -> None:
        self.demotions.append(cause)

    def reinstated(self) -> None:
        self.demotions.append(None)

    def progress(self, status: ReceptionStatus) -> None:
        self.statuses.append(status)
        self.on_progress(status)


class SmallCast:
    """A sender, and the network between it and one receiver.

    Attributes:
        sender: the running session; None while the sender is down.
        unreachable: True while the control API doesn't answer.
        muted: True while nothing from the sender arrives.
        loses_nacks: True while NACKs don't arrive at the sender.
        encrypted: whether the next start of the sender encrypts.
        completions: reports that the control API took.
        place: the sender's place; None for everywhere.
        image_symbols_sent: data symbols sent since the sender's last start.
        alter: changes the data on its way to the receiver.
        passes: whether a control datagram reaches the receiver.
        serve_block: changes a block that the control API serves.
        fetched_manifest_count: times that the control API served the manifest.
        needs: need-bitmaps that the receiver reported.
        nacked_blocks: blocks that the receiver requested.
        machine_patch: the patch that the sender grants; None for the image alone.
        served_patch: bytes that are served instead of the right ones; empty for these.
        fetched_blocks: blocks that the control API served.
    """

    def __init__(self, image: SmallImage, directory: Path) -> None:
        self.image = image
        self.path = directory / "target.img"
        self.sender: SenderSession | None = None
        self.unreachable = False
        self.question_count = 0
        self.muted = False
        self.loses_nacks = False
        self.encrypted = False
        self.completions: list[CompletionReport] = []
        self.joins: list[JoinRequest] = []
        self.image_symbols_sent = 0
        self.sockets: list[FakeDataSocket] = []
        self.observer = Recorder()
        self.on_symbols: Callable[[int], None] = lambda _count: None
        self.alter: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = lambda frames: frames
        self.passes: Callable[[bytes], bool] = lambda _datagram: True
        self.serve_block: Callable[[memoryview], memoryview] = lambda cast_bytes: cast_bytes
        self.needs: list[NDArray[np.bool_]] = []
        self.nacked_blocks: set[int] = set()
        self.machine_patch: MachinePatch | None = None
        self.served_patch = b""
        self.fetched_blocks: list[int] = []
        self.fetched_manifest_count = 0
        self.place: Place | None = None
        self._starts = 0

    # -- the sender -------------------------------------------------------------------------------------------

    def start_sender(self, *, image: SmallImage | None = None, symbol_bytes: int = SYMBOL_BYTES) -> None:
        """Start the sender, or restart it after :meth:`stop_sender`."""
        self._starts += 1
        source = image or self.image
        self.image_symbols_sent = 0
        parameters = CastParameters(
            cast_id=CastId(7),
            incarnation=self._starts,
            image_id=source.manifest.image_id,
            image_name="small",
            raw_bytes=source.manifest.raw_bytes,
            block_bytes=BLOCK_BYTES,
            manifest_bytes=len(source.manifest.data),
            symbol_bytes=symbol_bytes,
            group="239.255.0.1",
            port=1,
            sender_address="127.0.0.1",
            feedback_port=2,
            control_url="http://127.0.0.1:2",
            encrypted=self.encrypted,
        )
        self.sender = SenderSession(
            parameters,
            source.manifest,
            policy=CastPolicy(
                wait_for=1,
                max_wait_s=None,
                receiver_timeout_s=10.0,
                rate_bytes_per_s=RATE_BYTES_PER_S,
                rate_max_bytes_per_s=RATE_BYTES_PER_S,
            ),
            rng=random.Random(self._starts),
            secrets=random.Random(self._starts).randbytes,
            now=trio.current_time(),
        )
        self._encoder = FrameEncoder(parameters)

    def stop_sender(self) -> None:
        """Kill the sender."""
        self.sender = None

    async def run_sender(self) -> None:
        """Send the running session's datagrams, for ever."""
        while True:
            sender = self.sender
            pause_s = 0.005
            if sender is not None:
                now = trio.current_time()
                for datagram in filter(self.passes, sender.control_datagrams(now)):
                    self._deliver(np.empty((0, 32 + sender.parameters.symbol_bytes), np.uint8), [datagram])
                plan = sender.next_plan(now, PLAN_SYMBOLS)
                for request in plan.digest_requests if plan is not None else ():
                    sender.send_digests(request.answer(self._load(sender)))
                if plan is not None and plan.symbol_count:
                    frames = self._encoder.encode(plan, self._load(sender)).copy()
                    self._deliver(self.alter(frames), [])
                    sender.mark_transmitted(plan.next_sequence, frames.nbytes, now)
                    self.image_symbols_sent += int(plan.segments["count"][plan.segments["object"] == 1].sum())
                    pause_s = frames.nbytes / RATE_BYTES_PER_S
                    self.on_symbols(self.image_symbols_sent)
            await trio.sleep(pause_s)

    def _load(self, sender: SenderSession) -> LoadBlock:
        cipher = BlockCipher.of(sender.parameters, sender.keys)
        read = functools.partial(self.image.load_sealed, cipher) if cipher else self.image.load
        return functools.partial(read, sender.parameters.symbol_bytes)

    def inject(self, message: ControlMessage) -> None:
        """Deliver a control message of the running sender, in addition to its own."""
        assert self.sender is not None
        parameters = self.sender.parameters
        datagram = self.sender._run.signer.encode(message)
        self._deliver(np.empty((0, DATA_HEADER_BYTES + parameters.symbol_bytes), np.uint8), [datagram])

    def _deliver(self, frames: NDArray[np.uint8], datagrams: list[bytes]) -> None:
        socket = self.sockets[-1] if self.sockets else None
        if socket is not None and not self.muted and (self.place is None or socket is self.place.socket):
            socket.put(frames, datagrams)

    # -- the control API --------------------------------------------------------------------------------------

    async def cast(self, cast_id: CastId) -> CastDescription:
        self.question_count += 1
        sender = await self._session()
        return cast_description(sender.parameters, state=sender.state, receiver_count=0)

    async def join(self, cast_id: CastId, request: JoinRequest) -> JoinGrant:
        sender = await self._session()
        assert cast_id == 7
        self.joins.append(request)
        grant = sender.join(request, trio.current_time())
        return dataclasses.replace(
            grant, patch_id=None if self.machine_patch is None else self.machine_patch.patch_id
        )

    async def patch(self, grant: JoinGrant) -> bytes:
        await self._session()
        assert self.machine_patch is not None
        return self.served_patch or self.machine_patch.data

    async def patch_set(self, grant: JoinGrant) -> bytes:
        await self._session()
        return b""

    async def set_need(self, grant: JoinGrant, need: NDArray[np.bool_], heard_sequence: int | None) -> None:
        sender = await self._session()
        sender.check_key(grant.receiver_id, grant.key)
        self.needs.append(need)
        sender.set_need(grant.receiver_id, need, trio.current_time(), heard_sequence)

    async def block(self, grant: JoinGrant, block: int, cast_bytes: int) -> memoryview:
        sender = await self._session()
        sender.check_key(grant.receiver_id, grant.key)
        if not sender.allow_fetch(grant.receiver_id, block, trio.current_time()):
            raise Unreachable("enough blocks are being fetched")
        self.fetched_blocks.append(block)
        return self.serve_block(memoryview(self._load(sender)(1, block).tobytes()[:cast_bytes]))

    async def manifest(self, cast_id: CastId, into: ManifestStore) -> None:
        await self._session()
        self.fetched_manifest_count += 1
        into.write(0, memoryview(self.image.manifest.data[:]))

    async def complete(self, grant: JoinGrant, report: CompletionReport) -> None:
        sender = await self._session()
        sender.check_key(grant.receiver_id, grant.key)
        self.completions.append(COMPLETION.decode_untrusted("completion", COMPLETION.encode(report)))
        sender.complete(grant.receiver_id, report, trio.current_time())

    async def _session(self) -> SenderSession:
        await trio.sleep(0.001)
        if self.sender is None or self.unreachable:
            raise Unreachable("connection refused")
        return self.sender

    # -- the receiver -------------------------------------------------------------------------------------------

    def open_data(self, frame_bytes: int) -> FakeDataSocket:
        """Open a data socket for the receiver."""
        self.sockets.append(FakeDataSocket())
        return self.sockets[-1]

    def take_feedback(self, parameters: CastParameters, datagram: bytes) -> None:
        """Deliver the receiver's feedback."""
        message = decode_feedback_untrusted(datagram)[1]
        if isinstance(message, Nack) and message.object == CastObject.IMAGE:
            for first, count, _deficit in message.deficits:
                self.nacked_blocks.update(range(first, first + count))
        lost = self.loses_nacks and isinstance(message, Nack)
        if self.sender is not None and not self.muted and not lost:
            self.sender.receive_feedback_untrusted(datagram, trio.current_time())

    @property
    def link(self) -> CastLink:
        """Return a link to the sender, wherever it is."""
        return CastLink(control=self, open_data=self.open_data, send_feedback=self.take_feedback)

    def receiver(
        self,
        target: Target,
        image_class: type[TargetImage] = TargetImage,
        *,
        link: CastLink | None = None,
        wait_for_takeover: Callable[[], Awaitable[CastLink]] | None = None,
        **options: float,
    ) -> CastReceiver:
        """Return a receiver that writes ``target``."""
        settings = {
            "join_timeout_s": 10.0,
            "sender_timeout_s": 30.0,
            "assembly_bytes": 64 * BLOCK_BYTES,
            **options,
        }
        return CastReceiver(
            CastId(7),
            image_class(target),
            patch_gate=PatchGate(
                AcceptedImage(self.image.manifest.image_id, "small", None),
                frozenset(["pc1"]),
                functools.partial(SignedPatchSet.verify, keys=KEYS, now=NOW),
            ),
            link=link or self.link,
            wait_for_takeover=wait_for_takeover,
            options=CastReceiverOptions(
                name="pc1",
                inventory={},
                **settings,  # type: ignore[arg-type]
            ),
            observer=self.observer,
            rng=random.Random(1),
        )

    async def receive(
        self,
        image_class: type[TargetImage] = TargetImage,
        *,
        within_s: float = 300.0,
        link: CastLink | None = None,
        wait_for_takeover: Callable[[], Awaitable[CastLink]] | None = None,
        **options: float,
    ) -> Reception:
        """Run one receiver from join to end beside the sender."""
        reception: Reception | None = None
        with trio.fail_after(within_s), open_target(self.path, raw_bytes=len(self.image.raw)) as target:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.run_sender)
                    receiver = self.receiver(
                        target, image_class, link=link, wait_for_takeover=wait_for_takeover, **options
                    )
                    reception = await receiver.run(SYMBOL_BYTES)
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                raise single_error(group) from group
        assert reception is not None
        return reception


class Place:
    """A place where the sender may be; while it is elsewhere, links to this place reach nothing."""

    def __init__(self, cast: SmallCast) -> None:
        self.socket: FakeDataSocket | None = None
        self._cast = cast

    @property
    def link(self) -> CastLink:
        """Return a link to this place."""
        return CastLink(control=self, open_data=self._open_data, send_feedback=self._take_feedback)

    async def cast(self, cast_id: CastId) -> CastDescription:
        return await (await self._sender_here()).cast(cast_id)

    async def join(self, cast_id: CastId, request: JoinRequest) -> JoinGrant:
        return await (await self._sender_here()).join(cast_id, request)

    async def set_need(self, grant: JoinGrant, need: NDArray[np.bool_], heard_sequence: int | None) -> None:
        await (await self._sender_here()).set_need(grant, need, heard_sequence)

    async def block(self, grant: JoinGrant, block: int, cast_bytes: int) -> memoryview:
        return await (await self._sender_here()).block(grant, block, cast_bytes)

    async def manifest(self, cast_id: CastId, into: ManifestStore) -> None:
        await (await self._sender_here()).manifest(cast_id, into)

    async def patch(self, grant: JoinGrant) -> bytes:
        return await (await self._sender_here()).patch(grant)

    async def patch_set(self, grant: JoinGrant) -> bytes:
        return await (await self._sender_here()).patch_set(grant)

    async def complete(self, grant: JoinGrant, report: CompletionReport) -> None:
        await (await self._sender_here()).complete(grant, report)

    async def _sender_here(self) -> SmallCast:
        await trio.sleep(0.001)
        if self._cast.place is not self:
            raise Unreachable("connection refused")
        return self._cast

    def _open_data(self, frame_bytes: int) -> FakeDataSocket:
        self.socket = self._cast.open_data(frame_bytes)
        return self.socket

    def _take_feedback(self, parameters: CastParameters, datagram: bytes) -> None:
        if self._cast.place is self:
            self._cast.take_feedback(parameters, datagram)


async def _in_place(
    function: Callable[..., object],
    *arguments: object,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> object:
    await trio.lowlevel.checkpoint()
    return functools.partial(function, *arguments)()


@pytest.fixture
def threads_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run worker threads' functions at once: the clock can't jump over them."""
    monkeypatch.setattr(trio.to_thread, "run_sync", _in_place)
