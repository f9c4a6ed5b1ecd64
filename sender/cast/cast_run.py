"""Run one cast in an event loop: gather the room, cast the image, summarise.

::

    event loop:   control API ─┐                        ┌─ timers: ANNOUNCE, FLUSH, EOT, timeouts, progress
                  feedback ────┴──► session (one lock) ─┤
                                                        └─► encoder thread ──► 2 batches ──► transmitter thread
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import secrets
import socket
import time
from collections.abc import Callable
from typing import Final

from protocol.constants import DATA_HEADER_BYTES
from protocol.errors import DiskcastError
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.model.session_records import CastParameters
from protocol.sending.events import CastingStarted, SenderEvent
from protocol.sending.sender_session import SenderSession
from protocol.shared.units import format_duration
from protocol.wire.codec import other_version_text
from sender.blocking_calls import start_blocking_call
from sender.cast.cast_settings import CastSettings
from sender.cast.network.datagram_output import typed_send_error
from sender.cast.network.sockets import CastSockets
from sender.cast.reporting.reporter import CastIntroduction, ProgressClock, Reporter
from sender.cast.reporting.snapshot import CastSummary, CastView
from sender.cast.session.admission import CastAccess
from sender.cast.session.control_api import ControlApi, ControlServer, MatchMachine
from sender.cast.session.feedback import FeedbackPort
from sender.cast.session.locked_session import LockedSession
from sender.cast.session.machine_patches import MachinePatches
from sender.cast.session.rival_check import is_confirmed_rival_untrusted
from sender.cast.session.sender_conflicts import ConflictWatch
from sender.cast.transmission.batches import BatchQueue
from sender.cast.transmission.block_loader import BlockLoader
from sender.cast.transmission.encoder_thread import Encoder
from sender.cast.transmission.transmitter import Transmitter
from sender.imaging.image_file import ImageFile

_THREADS_END_S: Final = 2.0
"""Time for the threads to finish a batch after the end of the cast. A thread that takes longer is stuck in a read of
the image, which nothing can interrupt, and the program exits without it."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastResult:
    """The end of a cast; an error of the sender itself is raised instead."""

    summary: CastSummary
    cancelled: bool
    abandoned: bool = False
    """The cast was not ended: it continues elsewhere or later."""


class CastRun:
    """A cast in an event loop. Every task and thread that it starts ends with :meth:`run`.

    Not thread-safe: use it on the event loop; only ``locked_session`` may be used from other threads.

    Attributes:
        parameters: the parameters that every receiver gets.
        locked_session: the session.
        transmitter: sends the datagrams.
        feedback: receives NACKs and REPORTs.
    """

    def __init__(
        self,
        settings: CastSettings,
        image: ImageFile,
        parameters: CastParameters,
        sockets: CastSockets,
        reporter: Reporter,
        access: CastAccess,
        match_machine: MatchMachine,
        patches: MachinePatches,
    ) -> None:
        """Prepare the cast; :func:`sender.cast.open_cast.open_cast` calls this."""
        self.parameters = parameters
        self._settings = settings
        self._image = image
        self._sockets = sockets
        self._reporter = reporter
        self._access = access
        self._match_machine = match_machine
        self._patches = patches
        self._queue = BatchQueue()
        self._cancelled = False
        self._aborted = False
        self._abandoned = False
        self._failure: DiskcastError | None = None
        self._wake = asyncio.Event()
        loop = asyncio.get_running_loop()
        session = SenderSession(
            parameters,
            image.manifest,
            policy=settings.policy,
            rng=random.Random(secrets.randbits(64)),
            secrets=secrets.token_bytes,
            now=time.monotonic(),
        )

        def wake() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        self.locked_session = LockedSession(session, wake)
        self.transmitter = Transmitter(sockets.data, parameters, self.locked_session, self._queue)
        self.feedback = FeedbackPort(sockets.feedback, self.locked_session)
        # Of its own, since the encoder thread's isn't thread-safe.
        self._fetched_blocks = BlockLoader(image, parameters, cache_bytes=0)
        self._blocks = BlockLoader(image, parameters)

    @property
    def read_waiting_s(self) -> float:
        """Seconds that the current read of the image has taken so far; 0 without one."""
        return self._blocks.waiting_s

    async def run(self, *, metrics_port: int | None = None) -> CastResult:
        """Run the cast to its end.

        Args:
            metrics_port: TCP port of this cast's metrics, for the reporter.

        Raises:
            DiskcastError: the sender itself failed; the room has been notified.
        """
        encoder = Encoder(self.parameters, self.locked_session, self._blocks, self._queue)
        api = ControlApi(
            self.locked_session,
            self.parameters,
            self._image.manifest,
            self._access.admission,
            self._fetched_blocks.read_cast_bytes,
            self._fail,
            self._match_machine,
            self._patches,
        )
        server = ControlServer(api.application(), self._sockets.control, tls=self._access.tls)
        conflicts = ConflictWatch(
            self._sockets.announcements,
            self.parameters,
            is_confirmed=lambda url, source: is_confirmed_rival_untrusted(
                url, source, self.parameters, self._access
            ),
            on_conflict=self._fail,
            on_foreign=self._reporter.note,
        )
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            stack.callback(self._reporter.close)
            self._reporter.started(
                CastIntroduction(
                    parameters=self.parameters,
                    interface=self._settings.interface,
                    wait_for=self._settings.policy.wait_for,
                    send_mode=self.transmitter.mode.value,
                    metrics_port=metrics_port,
                    pin=self._access.pin,
                    join_code=self._access.join_code,
                )
            )
            async with asyncio.TaskGroup() as group:
                threads = [
                    group.create_task(self._run_thread(encoder.run, "encoder")),
                    group.create_task(self._run_thread(self.transmitter.run, "transmitter")),
                ]
                serving = group.create_task(server.run_until_stopped())
                receiving = group.create_task(self.feedback.run())
                self._listening = group.create_task(conflicts.run())
                await self._run_timers()
                self._close()
                self._listening.cancel()
                receiving.cancel()
                server.stop()
                if self._aborted:
                    serving.cancel()
                await self._await_threads(threads)
        return self._result()

    # -- the operator -----------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Cancel and notify the room; a second call stops without waiting for that."""
        with self.locked_session.read() as (session, _now):
            ended = session.state is CastState.ENDED
        if self._cancelled or ended:
            self._aborted = True
            self._wake.set()
        else:
            self.cancel("cancelled by the operator")

    def cancel(self, reason: str) -> None:
        """End the cast and notify the room."""
        self._cancelled = True
        with self.locked_session.update() as (session, now):
            session.end(SessionOutcome.CANCELLED, reason, now)
        self._wake.set()

    def abandon(self) -> None:
        """Stop without notifying the room: the cast continues elsewhere, or after a restart of this program."""
        self._abandoned = True
        self._close()
        self._wake.set()

    def start_now(self) -> None:
        """Start casting without waiting for more receivers."""
        with self.locked_session.update() as (session, _now):
            session.gathering.start_now()
        self._wake.set()

    def stop_waiting_for(self, count: int) -> None:
        """Wait for ``count`` receivers fewer than the policy requires."""
        with self.locked_session.update() as (session, _now):
            session.gathering.stop_waiting_for(count)
        self._wake.set()

    def expect_more(self, count: int) -> None:
        """Wait for ``count`` receivers besides those that have joined, within the policy's time limit."""
        with self.locked_session.update() as (session, _now):
            session.gathering.expect_more(count)
        self._wake.set()

    def expect_late(self, count: int) -> None:
        """Don't end before ``count`` receivers that are about to join have joined, within a limit."""
        with self.locked_session.update() as (session, _now):
            session.gathering.expect_late(count)

    def pause(self) -> None:
        """Send no data until :meth:`resume`."""
        with self.locked_session.update() as (session, _now):
            session.pause()

    def resume(self) -> None:
        """Resume after :meth:`pause`."""
        with self.locked_session.update() as (session, now):
            session.resume(now)
        self._wake.set()

    def set_rate_ceiling(self, bytes_per_s: float) -> None:
        """Limit the rate from now on."""
        with self.locked_session.update() as (session, _now):
            session.set_rate_ceiling(bytes_per_s)

    # -- inside -----------------------------------------------------------------------------------------------

    def _result(self) -> CastResult:
        with self.locked_session.read() as (session, now):
            summary = CastSummary.of(session, now)
        if self._abandoned:
            return CastResult(summary, cancelled=False, abandoned=True)
        self._reporter.finished(summary)
        if self._failure is not None:
            self._failure.details = dataclasses.asdict(summary)
            raise self._failure
        return CastResult(summary, self._cancelled)

    async def _run_timers(self) -> None:
        """Send control datagrams when they are due and report progress, until the last EOT is sent."""
        clock = ProgressClock(self._reporter.interval_s)
        finished = foreign_version_noted = False
        while not (finished or self._abandoned):
            self._wake.clear()
            with self.locked_session.update() as (session, now):
                if self._aborted:
                    session.end(SessionOutcome.CANCELLED, "cancelled by the operator", now)
                    while not session.finished:  # send the remaining EOTs without pauses
                        self._multicast(session.control_datagrams(session.next_timer(now)))
                session.note_read(self._blocks.waiting_s)
                self._multicast(session.control_datagrams(now))
                events = [(event, self._receiver_name(session, event)) for event in session.next_events()]
                finished = session.finished
                foreign_version = session.foreign_version
                view = CastView.of(session, now) if clock.due() else None
            for event, receiver in events:
                self._reporter.happened(event, receiver)
                if isinstance(event, CastingStarted):
                    self._listening.cancel()  # a member of the group also receives our own data
            if foreign_version is not None and not foreign_version_noted:
                foreign_version_noted = True
                self._reporter.note(other_version_text("an agent", foreign_version))
            if view is not None:
                self._reporter.progress(view)
            if not finished:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self.locked_session.arm_timer())

    @staticmethod
    def _receiver_name(session: SenderSession, event: SenderEvent) -> str | None:
        receiver_id = getattr(event, "receiver_id", None)
        return None if receiver_id is None else session.receivers[receiver_id].name

    def _multicast(self, datagrams: list[bytes]) -> None:
        """Send control datagrams without blocking; drop them if the buffer is full, since every kind is repeated."""
        for datagram in datagrams:
            try:
                self._sockets.data.send(datagram, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                destination = f"{self.parameters.group} port {self.parameters.port}"
                frame_bytes = DATA_HEADER_BYTES + self.parameters.symbol_bytes
                self._fail(typed_send_error(error, destination, frame_bytes))

    async def _run_thread(self, function: Callable[[], None], name: str) -> None:
        try:
            await start_blocking_call(function, name)
        except DiskcastError as error:
            self._fail(error)
        finally:
            self._close()  # the two threads need each other

    async def _await_threads(self, threads: list[asyncio.Task[None]]) -> None:
        """Wait for both threads, but not for one that is stuck in a read."""
        _, stuck = await asyncio.wait(threads, timeout=_THREADS_END_S)
        for thread in stuck:
            thread.cancel()
        if stuck:
            self._image.leave_open()
            self._reporter.note(
                f"a read of {self._image.path} hasn't returned for {format_duration(self._blocks.waiting_s)}; diskcast "
                "exits without it: check the disk or server that holds the image"
            )

    def _fail(self, error: DiskcastError) -> None:
        """End the cast for an error of the sender, notify the room, and raise the first error at the end."""
        if self._failure is None:
            self._failure = error
            with self.locked_session.update() as (session, now):
                session.end(SessionOutcome.FAILED, str(error), now)

    def _close(self) -> None:
        """Make both threads return."""
        self.locked_session.close()
        self._queue.close()
