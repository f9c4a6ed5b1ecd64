"""Reception of one cast: join, receive, rejoin after the sender's restart or a takeover, report the end."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from protocol.errors import (
    EXIT_INTERRUPTED,
    CastFailedError,
    DiskcastError,
    JoinRefusedError,
    NoSenderError,
    SenderLostError,
    SessionError,
)
from protocol.image.manifest_format import block_count_of
from protocol.model.bottleneck import Cause
from protocol.model.session_records import CastId, CompletionReport, JoinGrant
from protocol.receiving.receiver_session import ReceiverSession
from protocol.shared.units import format_duration
from receiver.reception.bottleneck_watch import BottleneckWatch
from receiver.reception.cast_connection import CastConnection
from receiver.reception.cast_joiner import CastJoiner
from receiver.reception.cast_link import CastLink
from receiver.reception.datagram_intake import DatagramIntake
from receiver.reception.joined_sender import SILENCE_INTERVAL_S, JoinedSender
from receiver.reception.loss_injection import LossInjector
from receiver.reception.manifest_store import manifest_store
from receiver.reception.options import CastReceiverOptions
from receiver.reception.patch_gate import PatchGate
from receiver.reception.reporting.observer import Observer
from receiver.reception.reporting.status import (
    Reception,
    ReceptionState,
    ReceptionStatus,
    SessionTotals,
    completion_report,
)
from receiver.shared.memory_budget import assembly_bytes_for
from receiver.shared.nursery_errors import single_error
from receiver.target.image import TargetImage

FAILURE_REPORT_S: Final = 5.0
"""Time allowed to report a failure: the operator at the machine shouldn't wait for a dead sender."""

SERVICE_REPORT_S: Final = 10.0
"""Time allowed to report to the sender of a daemon's cast: the daemon gets the result at the next check-in anyway."""


class CastReceiver:
    """One receiver of one cast; :meth:`run` once."""

    def __init__(
        self,
        cast_id: CastId,
        image: TargetImage,
        *,
        patch_gate: PatchGate,
        link: CastLink,
        options: CastReceiverOptions,
        observer: Observer,
        rng: random.Random,
        wait_for_takeover: Callable[[], Awaitable[CastLink]] | None = None,
    ) -> None:
        """Args:
        cast_id: the cast to join.
        image: the target, checked and opened.
        patch_gate: the image that this machine accepts, before and after every restart of the sender, and the decision
            about the patch of this machine.
        link: the connections to the cast's sender.
        options: how to receive.
        observer: notified of progress.
        rng: randomness for back-off.
        wait_for_takeover: waits until another daemon has taken the cast over, and returns the connections to the
            new sender; None if a sender can only come back at its old address.
        """
        self._image = image
        self._patch_gate = patch_gate
        self._unsigned_allowed = patch_gate.accepted.verified is None
        self._options = options
        self._observer = observer
        self._rng = rng
        self._joiner = CastJoiner(
            cast_id,
            image,
            image_id=patch_gate.accepted.image_id,
            link=link,
            options=options,
            wait_for_takeover=wait_for_takeover,
        )
        self._connection: CastConnection | None = None
        self._loss = (
            LossInjector(options.injected_loss, options.injected_loss_seed) if options.injected_loss else None
        )
        self._bottleneck_watch = BottleneckWatch()
        self._state = ReceptionState.JOINING
        self._totals = SessionTotals()
        self._session: ReceiverSession | None = None
        self._rejoin_count = 0
        self._ended_by_sender = False
        # A reference of its own: metrics are read from a thread in which trio has no clock.
        self._clock = trio.lowlevel.current_clock()
        self._started_at = self._clock.current_time()
        self._first_data_at: float | None = None
        self._silent_until = 0.0

    async def run(self, symbol_bytes: int) -> Reception:
        """Receive the image.

        Args:
            symbol_bytes: the cast's symbol size, as announced.

        Raises:
            NoSenderError: the sender can't be reached.
            JoinRefusedError: the sender refuses this receiver.
            TrustError: the sender casts another image than the accepted one.
            SessionError: the cast failed; the target is incomplete.
            ImageError, TargetError, StorageError: the image or the target failed; the sender was notified.
            InterfaceError: the interface failed.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._report_progress)
                if self._joiner.follows_takeovers:
                    nursery.start_soon(self._joiner.follow_takeovers, self._leave_connection)
                reception = await self._receive(symbol_bytes)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise single_error(group) from group
        finally:
            self._joiner.close()
        self._observer.progress(reception.status)
        return reception

    async def _receive(self, symbol_bytes: int) -> Reception:
        grant = await self._joiner.join(self._options.join_timeout_s, symbol_bytes=symbol_bytes)
        self._observer.joined(grant.parameters, rejoined=False)
        try:
            while not await self._receive_from(grant):
                grant = await self._rejoin()
        except DiskcastError as error:
            if not self._known_to_sender(error):
                await self._report_failure(grant, str(error), error.exit_code)
            raise
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._report_failure(grant, "interrupted", EXIT_INTERRUPTED)
            raise
        self._state = ReceptionState.REPORTING
        report = self.completion_report()
        timeout_s = self._options.sender_timeout_s
        if self._joiner.follows_takeovers:
            timeout_s = min(timeout_s, SERVICE_REPORT_S)
        reported = await self._joined_sender(grant).report_completion(report, timeout_s)
        return Reception(grant.parameters, self.status(), report, reported, tuple(self._image.fitted))

    def _known_to_sender(self, error: DiskcastError) -> bool:
        """Return whether the sender caused an error or can't hear of it; otherwise it would only see a silence."""
        if isinstance(error, JoinRefusedError | NoSenderError):
            return True
        return self._ended_by_sender and isinstance(error, SessionError)

    async def _rejoin(self) -> JoinGrant:
        self._state = ReceptionState.JOINING
        self._rejoin_count += 1
        grant = await self._joiner.rejoin()
        self._observer.joined(grant.parameters, rejoined=True)
        return grant

    async def _receive_from(self, grant: JoinGrant) -> bool:
        """Receive from one run of the sender; return True if the image is complete, False to rejoin."""
        if self._joiner.takeover_pending:
            return False
        self._require_same_patch(grant)
        parameters, data = grant.parameters, self._joiner.data
        assert data is not None
        data.require_mtu()  # after the join, so that the sender hears of it
        block_count = block_count_of(parameters.raw_bytes, parameters.block_bytes)
        assembly_bytes = assembly_bytes_for(self._options.assembly_bytes, block_count)
        self._session = session = ReceiverSession(
            grant,
            assembly_bytes=assembly_bytes,
            rng=self._rng,
            now=trio.current_time(),
            manifest_store=manifest_store(parameters.manifest_bytes)
            if grant.manifest_by_multicast and self._image.manifest is None
            else None,
        )
        self._connection = connection = CastConnection(
            session,
            self._image,
            DatagramIntake(session, data, self._loss),
            self._joined_sender(grant),
            self._patch_gate,
            on_silence=self._on_silence,
            on_demotion=self._on_demotion,
            bottleneck_watch=self._bottleneck_watch,
            assembly_bytes=assembly_bytes,
            sender_timeout_s=self._options.sender_timeout_s,
        )
        self._silent_until = 0.0
        self._state = ReceptionState.RECEIVING
        try:
            return await connection.run()
        except SenderLostError as error:
            if not self._joiner.follows_takeovers:
                raise
            raise SenderLostError(
                f"nothing heard from the sender for {format_duration(self._options.sender_timeout_s)}, and no daemon "
                "has taken the cast over; the target is incomplete and will be completed when the cast resumes"
            ) from error
        finally:
            if self._first_data_at is None:
                self._first_data_at = session.statistics.first_data_at
            self._totals = self._totals.plus(session)
            self._ended_by_sender = connection.ended_by_sender
            self._session = self._connection = None

    def _require_same_patch(self, grant: JoinGrant) -> None:
        """Refuse another patch than the assigned one, or than the one that is being written."""
        self._patch_gate.check_granted(grant.patch_id)
        if self._image.manifest is None:
            return
        patch = self._image.patch
        if grant.patch_id != (None if patch is None else patch.patch_id):
            raise CastFailedError(
                "this machine's patch was changed during the cast; the target is incomplete: run this command again"
            )

    def _leave_connection(self) -> None:
        if self._connection is not None:
            self._connection.leave()

    async def _report_failure(self, grant: JoinGrant, error: str, exit_code: int) -> None:
        self._state = ReceptionState.REPORTING
        report = self.completion_report(error=error, exit_code=exit_code)
        await self._joined_sender(grant).report_completion(report, FAILURE_REPORT_S)

    def _joined_sender(self, grant: JoinGrant) -> JoinedSender:
        return JoinedSender(self._joiner.link, grant, timeout_s=self._options.sender_timeout_s)

    # -- status -------------------------------------------------------------------------------------------------

    def status(self) -> ReceptionStatus:
        """Return a snapshot of the reception; may be called from any thread."""
        image, session, data = self._image, self._session, self._joiner.data
        totals = self._totals.plus(session)
        now = self._clock.current_time()
        silent = self._state is ReceptionState.RECEIVING and now < self._silent_until
        return ReceptionStatus(
            state=ReceptionState.SILENT if silent else self._state,
            target=str(image.target_path),
            seconds=now - self._started_at,
            raw_bytes=image.raw_bytes,
            raw_bytes_used=image.raw_bytes_used,
            raw_bytes_verified=image.raw_bytes_verified,
            raw_bytes_kept=image.raw_bytes_kept,
            scanned_share=image.scanned_share,
            blocks_rewritten=image.blocks_rewritten_count,
            blocks_needed=image.needed_count,
            blocks_verified=image.blocks_verified_count,
            bytes_written=image.bytes_written,
            rejoins=self._rejoin_count,
            fill=session.fill if session is not None else 0.0,
            socket_queued_bytes=data.memory().queued_bytes if data is not None else 0,
            bottleneck=self._bottleneck_watch.cause,
            bottleneck_seconds=dict(self._bottleneck_watch.seconds),
            demoted=session is not None and session.demoted,
            grtt_s=session.grtt_s if session is not None else 0.0,
            unsigned_allowed=self._unsigned_allowed,
            patch_id="" if image.patch is None else image.patch.patch_id.hex(),
            **{field.name: getattr(totals, field.name) for field in dataclasses.fields(SessionTotals)},
        )

    def completion_report(self, *, error: str = "", exit_code: int = 0) -> CompletionReport:
        """Return the report of this reception's end; it succeeded if ``error`` is empty."""
        seconds_receiving = 0.0
        if not error and self._first_data_at is not None:
            seconds_receiving = trio.current_time() - self._first_data_at
        return completion_report(
            self.status(), seconds_receiving=seconds_receiving, error=error, exit_code=exit_code
        )

    async def _report_progress(self) -> None:
        while True:
            await trio.sleep(self._observer.interval_s)
            self._observer.progress(self.status())

    def _on_silence(self, silent_s: float) -> None:
        # The session reports the silence again while it lasts.
        self._silent_until = trio.current_time() + 1.1 * SILENCE_INTERVAL_S
        self._observer.silent(silent_s)

    def _on_demotion(self, cause: Cause | None) -> None:
        if cause is None:
            self._observer.reinstated()
        else:
            self._observer.demoted(cause)
