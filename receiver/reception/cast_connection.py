"""Reception from one run of the sender: the receive loop, in the trio thread, around a session.

::

    socket ─► receive loop ─► session ─► pipeline (decode, write, verify: worker threads)
                   │             │
                   │             └── missing and damaged blocks
                   └── NACKs and REPORTs to the sender

The receive loop never waits for the disk. The session's buffer pool bounds the memory: when the disk is slower than the
network the pool runs empty, further symbols are dropped and counted, and the sender, informed by REPORT, slows down or
repairs later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import trio
from numpy.typing import NDArray

from protocol.constants import BLOCK_BYTES_MIN
from protocol.errors import (
    CastCancelledError,
    CastFailedError,
    DroppedError,
    JoinRefusedError,
    NotServedError,
    SenderLostError,
)
from protocol.image.stored_manifest import StoredManifest
from protocol.model.bottleneck import Cause
from protocol.model.cast_state import SessionOutcome
from protocol.receiving.events import (
    BlockAssembled,
    BlockFetchDue,
    CastEnded,
    Demoted,
    Dropped,
    ManifestReceived,
    ManifestRejected,
    NotServed,
    ReceiverEvent,
    Reinstated,
    RestartSuspected,
    SenderSilent,
)
from protocol.receiving.receiver_session import ReceiverSession
from protocol.shared.block_masks import iter_set_blocks
from protocol.shared.units import format_duration
from protocol.wire.codec import other_version_text
from receiver.reception.bottleneck_watch import BottleneckWatch, ReceiverLoad
from receiver.reception.datagram_intake import DatagramIntake
from receiver.reception.joined_sender import JoinedSender
from receiver.reception.network.data_socket import POLL_INTERVAL_MIN_S
from receiver.reception.patch_gate import PatchGate
from receiver.reception.pipeline import Pipeline
from receiver.reception.reporting.status import BOTTLENECK_TEXTS
from receiver.shared.nursery_errors import single_error
from receiver.target.image import PermitPatch, TargetImage, no_patch
from receiver.target.scan import TargetScan

POLL_BYTES: Final = 1 << 20
"""Bytes that each poll should find while data flows: more wouldn't stay in the second-level cache."""

_FETCHES_SLACK: Final = 8
"""Buffers of the smallest pool."""

IDLE_MIN_S: Final = 0.0005
"""Shortest pause: a timer that is due by a rounding error mustn't become a busy loop."""


class CastConnection:
    """One joined session between its socket and its pipeline; :meth:`run` once."""

    def __init__(
        self,
        session: ReceiverSession,
        image: TargetImage,
        intake: DatagramIntake,
        sender: JoinedSender,
        patch_gate: PatchGate,
        *,
        on_silence: Callable[[float], None],
        on_demotion: Callable[[Cause | None], None],
        bottleneck_watch: BottleneckWatch,
        assembly_bytes: int,
        sender_timeout_s: float,
    ) -> None:
        """Args:
        session: the session that the sender granted.
        image: the target; outlives this run of the sender.
        intake: the joined data socket.
        sender: the joined sender.
        patch_gate: decides about this machine's patch.
        on_silence: called with the time for which the sender has been silent.
        on_demotion: called with this machine's bottleneck when the sender demotes it, with None when it is
            reinstated.
        bottleneck_watch: detects this receiver's bottleneck.
        assembly_bytes: size of the session's buffer pool.
        sender_timeout_s: silence after which the sender is lost; noticed within three seconds.
        """
        self.session = session
        self._image = image
        self._intake = intake
        self._sender = sender
        self._patch_gate = patch_gate
        self._on_silence = on_silence
        self._on_demotion = on_demotion
        self._bottleneck_watch = bottleneck_watch
        self._sender_timeout_s = sender_timeout_s
        self._pipeline = Pipeline(
            session,
            image,
            assembly_bytes=assembly_bytes,
            on_rejected=self._wake,
            on_complete=self._complete,
        )
        self._idle = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._preparing = trio.CancelScope()
        self._scanning = trio.CancelScope()
        self._fetching = trio.CancelScope()
        # Never full: each entry holds a buffer of the session's pool, which has fewer than this.
        fetches_max = assembly_bytes // BLOCK_BYTES_MIN + _FETCHES_SLACK
        self._fetches_in, self._fetches_out = trio.open_memory_channel[BlockFetchDue](fetches_max)
        self._ended: CastEnded | None = None
        self._dropped_because: Cause | None = None
        self._restarted = False

    @property
    def ended_by_sender(self) -> bool:
        """Return whether the sender has ended the cast or dropped this receiver."""
        return self._ended is not None or self._dropped_because is not None

    async def run(self) -> bool:
        """Receive until the image is verified on the target, or the sender has restarted.

        Returns:
            True when the image is complete; False when the sender has restarted or :meth:`leave` was called. All blocks
            received until then are verified.

        Raises:
            SenderLostError: the sender was silent for too long.
            NotServedError: the sender was heard, and nothing that this receiver needs arrived for too long.
            CastCancelledError, CastFailedError: the sender ended the cast; the target is incomplete.
            DroppedError: the sender ended or continues the cast without this receiver.
            StorageError, TargetError, ImageError: as the pipeline raises.
        """
        self._bottleneck_watch.pause()
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._run_pipeline)
                self._nursery.start_soon(self._receive_loop)
                self._nursery.start_soon(self._fetch_blocks)
                if self._image.manifest is not None:
                    self._start_data()
                elif not self.session.grant.manifest_by_multicast:
                    self._nursery.start_soon(self._prepare_target, None)
        except BaseExceptionGroup as group:
            raise single_error(group) from group
        self._update_statistics(trio.current_time())
        return self._image.complete

    def leave(self) -> None:
        """End :meth:`run` as if the sender had restarted, because the cast has moved to another sender."""
        self._restarted = True
        self._wake()

    async def _run_pipeline(self) -> None:
        """Run the pipeline beside a watchdog for a disk that hangs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._image.threads.watch_until_cancelled)
            await self._pipeline.run()
            nursery.cancel_scope.cancel()

    def _complete(self) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()

    def _wake(self) -> None:
        self._idle.cancel()

    # -- the receive loop ---------------------------------------------------------------------------------------

    async def _receive_loop(self) -> None:
        session, intake, pipeline = self.session, self._intake, self._pipeline
        pause_s = POLL_INTERVAL_MIN_S
        while not self._restarted:
            now = trio.current_time()
            taken_bytes = intake.take_batches(now)
            if now >= session.next_timer():
                self._update_statistics(now)
                for datagram in session.datagrams_to_send(now):
                    self._sender.send_feedback(datagram)
            for event in session.next_events():
                self._handle(event, now)
            linger_until = pipeline.flush_lingering(now)
            self._check_ended()
            if taken_bytes is not None:
                pause_s *= POLL_BYTES / max(taken_bytes, 1)
                pause_s = min(max(pause_s, POLL_INTERVAL_MIN_S), intake.poll_interval_max_s)
                await trio.sleep(pause_s)
            else:
                pause_s = POLL_INTERVAL_MIN_S
                wake_at = min(session.next_timer(), linger_until)
                self._idle = trio.CancelScope(deadline=max(wake_at, now + IDLE_MIN_S))
                with self._idle:
                    await intake.wait_readable()
        pipeline.close()
        self._preparing.cancel()
        self._scanning.cancel()
        self._fetching.cancel()

    def _update_statistics(self, now: float) -> None:
        self._intake.update_statistics()
        self.session.statistics.bytes_written = self._image.bytes_written
        self._watch_bottleneck(now)

    def _watch_bottleneck(self, now: float) -> None:
        session, image, pipeline = self.session, self._image, self._pipeline
        statistics = session.statistics
        if statistics.first_data_at is None and not pipeline.all_received:
            return  # receivers are still joining
        load = ReceiverLoad(
            held_share=session.backlog,
            pool_drop_count=session.pool_drop_count,
            queue_share=statistics.socket_fill,
            socket_drop_count=statistics.socket_drop_count,
            decode_s=image.decode_s,
            write_s=image.write_s,
            all_received=pipeline.all_received,
        )
        self._bottleneck_watch.update(now, load)
        statistics.bottleneck = self._bottleneck_watch.cause

    def _handle(self, event: ReceiverEvent, now: float) -> None:
        assert self._nursery is not None
        match event:
            case BlockAssembled(assembled):
                self._pipeline.submit(assembled, now)
            case BlockFetchDue():
                self._fetches_in.send_nowait(event)
            case ManifestReceived(data):
                self._nursery.start_soon(self._prepare_target, data)
            case ManifestRejected():
                self._nursery.start_soon(self._prepare_target, None)
            case CastEnded():
                self._ended = event
            case SenderSilent(silent_s):
                self._on_sender_silent(silent_s)
            case NotServed():
                self._raise_not_served(event)
            case Demoted():
                self._on_demotion(self._bottleneck_watch.cause)
            case Reinstated():
                self._on_demotion(None)
            case Dropped():
                self._dropped_because = self._bottleneck_watch.cause
            case RestartSuspected():
                self._nursery.start_soon(self._follow_restart)

    async def _follow_restart(self) -> None:
        """Join again if the control API confirms a new run; datagrams alone can't cause that."""
        if await self._sender.has_restarted():
            self.leave()

    def _on_sender_silent(self, silent_s: float) -> None:
        if self.ended_by_sender:
            return  # nothing more is expected; the received blocks are being verified
        if silent_s >= self._sender_timeout_s and not self._pipeline.all_received:
            version = self.session.foreign_version
            fix = (
                "start the same diskcast send again, then this command"
                if version is None
                else other_version_text("a sender on the group", version)
            )
            raise SenderLostError(
                f"nothing heard from the sender for {format_duration(silent_s)}; the target is incomplete: {fix}"
            )
        self._on_silence(silent_s)
        if self.session.loss.received_count == 0:
            self._intake.accept_any_source()

    def _raise_not_served(self, event: NotServed) -> None:
        lasted = format_duration(event.unserved_s)
        if event.no_data:
            raise NotServedError(
                f"no data has arrived from the sender for {lasted}, although its announcements do; the target is "
                "incomplete: compare the MTU of the sender, this machine and the switches between them"
            )
        port = self.session.parameters.feedback_port
        raise NotServedError(
            f"the sender hasn't answered this machine's requests for missing blocks for {lasted}; the target is "
            f"incomplete: allow UDP from this machine to the sender's port {port}"
        )

    def _check_ended(self) -> None:
        """Raise if the sender is done with this receiver and blocks are still missing."""
        if not self.ended_by_sender or self._pipeline.all_received:
            return
        if self._dropped_because is not None:
            raise DroppedError(
                f"this machine is much slower than the others because of {BOTTLENECK_TEXTS[self._dropped_because]}, "
                "and the cast continues without it; the verified blocks stay on the target, which is incomplete: cast "
                "again for this machine alone, or with --slow demote, which finishes slow machines after the others"
            )
        assert self._ended is not None
        reason = self._ended.reason or "no reason given"
        if self._ended.outcome is SessionOutcome.CANCELLED:
            raise CastCancelledError(f"the cast was cancelled: {reason}; the target is incomplete")
        if self._ended.outcome is SessionOutcome.FAILED:
            raise CastFailedError(f"the sender ended the cast: {reason}; the target is incomplete")
        raise DroppedError(
            f"the sender ended the cast without this receiver ({reason}); the target is incomplete: cast again"
        )

    async def _fetch_blocks(self) -> None:
        """Fetch spoilt blocks over the control API, one after the other, until closed."""
        with self._fetching:
            async for due in self._fetches_out:
                data = await self._sender.fetch_block(due.block, due.cast_bytes)
                if data is None:
                    self.session.block_unfetchable(due.block, trio.current_time())
                else:
                    self.session.block_fetched(due.block, data)
                self._wake()

    # -- the manifest -------------------------------------------------------------------------------------------

    async def _prepare_target(self, data: memoryview | StoredManifest | None) -> None:
        """Prepare the target for the manifest, fetched if ``data`` is None, and start receiving data."""
        with self._preparing:
            if data is None:
                data = await self._sender.fetch_manifest()
            permit = await self._fetch_patch()
            image = self._image
            await image.threads.run_sync(image.take_manifest, data, self.session.parameters, permit)
            assert image.manifest is not None
            self._start_data(unreported=image.need)
            # The sender casts no data for this receiver before it knows the need; a scan reports it.
            if not image.scanning:
                await self._report_missing(image.need)
                for missing in iter_set_blocks(image.need):
                    self.session.blocks_missing(missing)

    async def _fetch_patch(self) -> PermitPatch:
        """Fetch this machine's patch, if it has one, and return the decision about it."""
        patch_id, gate = self.session.grant.patch_id, self._patch_gate
        if patch_id is None:
            return no_patch
        data, signed_set = await self._sender.fetch_patch(with_set=gate.needs_set)
        return gate.permit(patch_id, data, signed_set)

    def _start_data(self, unreported: NDArray[np.bool_] | None = None) -> None:
        """Start receiving data.

        Args:
            unreported: missing blocks that weren't reported to the sender yet.
        """
        assert self._nursery is not None
        session, image = self.session, self._image
        assert image.manifest is not None
        unscanned = image.unscanned if unreported is None else image.unscanned | unreported
        session.set_manifest(image.manifest, image.need, trio.current_time(), unscanned=unscanned)
        self._nursery.start_soon(self._pipeline.zero_blocks)
        if image.scanning:
            self._nursery.start_soon(self._scan, unreported)
        self._pipeline.check_progress()
        self._wake()

    async def _report_missing(self, need: NDArray[np.bool_]) -> None:
        try:
            await self._sender.report_need(need, self.session.heard_sequence)
        except JoinRefusedError:
            # A sender that has just restarted doesn't know this receiver.
            if not await self._sender.has_restarted():
                raise
            self.leave()
            await trio.sleep_forever()

    async def _scan(self, unreported: NDArray[np.bool_] | None) -> None:
        on_change = self._pipeline.check_progress
        scan = TargetScan(
            self.session,
            self._image,
            report_need=self._report_missing,
            on_change=on_change,
            unreported=unreported,
        )
        with self._scanning:
            await scan.run()
