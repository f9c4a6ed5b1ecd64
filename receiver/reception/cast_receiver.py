"""The agent's life in a cast once it is found: join, receive, join again after the sender's restart, report the end."""

from __future__ import annotations

import dataclasses
import functools
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import numpy as np
import trio
from numpy.typing import NDArray

from protocol.constants import ANNOUNCE_INTERVAL_S, DATA_HEADER_BYTES
from protocol.control.control_messages import CastDescription
from protocol.errors import (
    EXIT_INTERRUPTED,
    CastFailedError,
    DiskcastError,
    JoinRefusedError,
    NoSenderError,
    ProtocolError,
    SenderLostError,
    SessionError,
)
from protocol.image.manifest import block_count_of
from protocol.image.stored_manifest import StoredManifest
from protocol.model.bottleneck import Cause
from protocol.model.session_records import (
    CastId,
    CastParameters,
    CompletionReport,
    JoinGrant,
    JoinRequest,
    MachineIdentity,
)
from protocol.receiving.manifest_reception import ManifestStore
from protocol.receiving.receiver_session import ReceiverSession
from protocol.shared.units import format_duration
from receiver.reception.bottleneck_watch import BottleneckWatch
from receiver.reception.cast_connection import CastConnection, DataPort
from receiver.reception.loss_injection import RehearsedLoss
from receiver.reception.manifest_store import manifest_store
from receiver.reception.network.control_client import require_plausible_manifest, retry_until
from receiver.reception.reporting.status import ReceptionState, ReceptionStatus, Totals, completion_report
from receiver.shared.memory_budget import assembly_bytes_for
from receiver.shared.nursery_errors import single_error
from receiver.target.image import TargetImage

FAILURE_REPORT_S: Final = 5.0
"""How long a failed agent tries to say so: the operator at the machine shouldn't wait for a dead sender."""

FOLLOWED_REPORT_S: Final = 10.0
"""How long a daemon's agent tries to report to the cast's sender: the daemon hears it at the next check-in anyway."""

_SILENCE_TOLD_S: Final = 3 * ANNOUNCE_INTERVAL_S


class ControlPort(Protocol):
    """What the agent needs of :class:`receiver.reception.network.control_client.ControlClient`."""

    async def cast(self, cast_id: CastId) -> CastDescription:
        """Describe the cast."""

    async def join(self, cast_id: CastId, request: JoinRequest) -> JoinGrant:
        """Join."""

    async def set_need(self, grant: JoinGrant, need: NDArray[np.bool_], heard_sequence: int | None) -> None:
        """Say what is needed."""

    async def complete(self, grant: JoinGrant, report: CompletionReport) -> None:
        """Report the end."""

    async def manifest(self, cast_id: CastId, into: ManifestStore) -> None:
        """Fetch the manifest."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastLink:
    """The ways to a cast's sender.

    Attributes:
        control: its control API.
        open_data: joins the group, given the length of a data datagram.
        send_feedback: unicasts a datagram to the cast's sender; never waits, never raises.
    """

    control: ControlPort
    open_data: Callable[[int], DataPort]
    send_feedback: Callable[[CastParameters, bytes], None]


class Observer(Protocol):
    """Who is told how it goes: a terminal, a log, a program that reads JSON."""

    interval_s: float

    def joined(self, parameters: CastParameters, *, rejoined: bool) -> None:
        """The agent has joined."""

    def silent(self, silent_s: float) -> None:
        """Nothing has been heard from the sender for so long."""

    def demoted(self, cause: Cause) -> None:
        """This machine is much slower than the others because of ``cause``: it is finished after them."""

    def reinstated(self) -> None:
        """It no longer is."""

    def progress(self, status: ReceptionStatus) -> None:
        """Called every ``interval_s``."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastReceiverOptions:
    """How this agent receives."""

    name: str
    inventory: Mapping[str, str]
    assembly_bytes: int
    join_timeout_s: float
    sender_timeout_s: float
    rehearse_loss: float = 0.0
    rehearse_seed: int = 0
    agent_id: str = ""
    """The same for every run of this agent's program, if it knows one: a machine that was switched off and on again
    takes its old place, and isn't counted twice."""
    identity: MachineIdentity | None = None
    """By what a daemon may know this machine; None if the inventory says already who that is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reception:
    """A reception that reached its end: every byte is verified on the target."""

    parameters: CastParameters
    status: ReceptionStatus
    report: CompletionReport
    reported: bool
    """Whether the sender took the report."""
    fitted: tuple[str, ...]
    """What was done to fit the image to the target."""


class CastReceiver:
    """One receiver of one cast; :meth:`run` once."""

    def __init__(
        self,
        cast_id: CastId,
        image: TargetImage,
        *,
        link: CastLink,
        options: CastReceiverOptions,
        observer: Observer,
        rng: random.Random,
        relocate: Callable[[], Awaitable[CastLink]] | None = None,
    ) -> None:
        """Prepare.

        Args:
            cast_id: the cast to join.
            image: the target, checked and opened.
            link: to its sender.
            options: how to receive.
            observer: is told how it goes.
            rng: for back-off.
            relocate: waits until the cast is elsewhere than it was last known, since another daemon has taken it over,
                and gives the ways to its new sender; None where a sender can only come back at its old place.
        """
        self._cast_id = cast_id
        self._image = image
        self._link = link
        self._relocate = relocate
        self._next_link: CastLink | None = None
        self._relocated = trio.Event()
        self._joining = trio.CancelScope()
        self._incarnation: CastConnection | None = None
        self._options = options
        self._observer = observer
        self._rng = rng
        self._agent_id = options.agent_id or secrets.token_hex(16)
        self._loss = (
            RehearsedLoss(options.rehearse_loss, options.rehearse_seed) if options.rehearse_loss else None
        )
        self._bottleneck_watch = BottleneckWatch()
        self._state = ReceptionState.JOINING
        self._totals = Totals()
        self._session: ReceiverSession | None = None
        self._data: DataPort | None = None
        self._symbol_bytes = 0
        self._rejoin_count = 0
        # Its own reference, since metrics are read from a thread that trio doesn't know.
        self._clock = trio.lowlevel.current_clock()
        self._started_at = self._clock.current_time()
        self._first_data_at: float | None = None
        self._silent_until = 0.0

    async def run(self, symbol_bytes: int) -> Reception:
        """Receive the image.

        Args:
            symbol_bytes: the cast's, as announced: the group is joined before the sender is asked, so that nothing
                that follows its answer is missed.

        Raises:
            NoSenderError: the sender can't be reached.
            JoinRefusedError: it doesn't want this receiver.
            SessionError: the cast went wrong; the target is incomplete.
            ImageError, TargetError, StorageError: the image or the target did, and the sender was told.
            InterfaceError: the interface failed.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_progress)
                if self._relocate is not None:
                    nursery.start_soon(self._follow, self._relocate)
                reception = await self._receive(symbol_bytes)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise single_error(group) from group
        finally:
            data, self._data = self._data, None
            if data is not None:
                data.close()
        self._observer.progress(reception.status)
        return reception

    async def _receive(self, symbol_bytes: int) -> Reception:
        grant = await self._enter(self._options.join_timeout_s, symbol_bytes=symbol_bytes)
        try:
            while not await self._receive_from(grant):
                grant = await self._join_again(grant)
        except DiskcastError as error:
            if not isinstance(error, SessionError):  # what ended at the sender it knows itself
                await self._report_failure(grant, str(error), error.exit_code)
            raise
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._report_failure(grant, "interrupted", EXIT_INTERRUPTED)
            raise
        self._state = ReceptionState.REPORTING
        report = self.account()
        patience_s = self._options.sender_timeout_s
        if self._relocate is not None:
            patience_s = min(patience_s, FOLLOWED_REPORT_S)
        reported = await self._tell_end(grant, report, patience_s)
        return Reception(grant.parameters, self.status(), report, reported, tuple(self._image.fitted))

    async def _receive_from(self, grant: JoinGrant) -> bool:
        """Receive from one run of the sender: True when the image is complete, False when the next run began."""
        if self._next_link is not None:
            return False
        parameters = grant.parameters
        assert self._data is not None
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
        self._incarnation = incarnation = CastConnection(
            session,
            self._image,
            self._data,
            send_feedback=functools.partial(self._link.send_feedback, parameters),
            fetch_manifest=functools.partial(self._fetch_manifest, parameters),
            tell_need=functools.partial(self._tell_need, grant),
            on_silence=self._notice_silence,
            on_standing=self._notice_standing,
            bottleneck_watch=self._bottleneck_watch,
            assembly_bytes=assembly_bytes,
            sender_timeout_s=self._options.sender_timeout_s,
            rehearsed_loss=self._loss,
        )
        self._state = ReceptionState.RECEIVING
        try:
            return await incarnation.run()
        except SenderLostError as error:
            if self._relocate is None:
                raise
            raise SenderLostError(
                f"nothing was heard from the sender for {format_duration(self._options.sender_timeout_s)}, and no "
                "daemon has taken the cast over; the target is incomplete, and is finished when the cast goes on"
            ) from error
        finally:
            if self._first_data_at is None:
                self._first_data_at = session.statistics.first_data_at
            self._totals = self._totals.plus(session)
            self._session = self._incarnation = None

    # -- the sender's place -----------------------------------------------------------------------------------

    async def _follow(self, relocate: Callable[[], Awaitable[CastLink]]) -> None:
        """Leave the old sender, whatever is being done with it, as soon as the cast is elsewhere."""
        while True:
            self._next_link = await relocate()
            self._relocated.set()
            self._joining.cancel()
            if self._incarnation is not None:
                self._incarnation.leave()

    def _take_next_link(self) -> bool:
        """Turn to where the cast is now; whether that is somewhere else."""
        if self._next_link is None:
            return False
        self._link, self._next_link = self._next_link, None
        self._relocated = trio.Event()
        data, self._data = self._data, None
        if data is not None:
            data.close()
        return True

    # -- joining ----------------------------------------------------------------------------------------------

    async def _enter(
        self, timeout_s: float, *, symbol_bytes: int | None = None, grant: JoinGrant | None = None
    ) -> JoinGrant:
        """Join the cast's sender, wherever that turns out to be.

        Args:
            timeout_s: for each place.
            symbol_bytes: the cast's, as announced; None to ask.
            grant: of the run before.

        Raises:
            NoSenderError: it can't be reached.
            JoinRefusedError: it doesn't want this receiver.
            CastFailedError: it casts another image.
        """
        while True:
            if self._take_next_link():
                symbol_bytes = None
            deadline = trio.current_time() + timeout_s
            try:
                with trio.CancelScope() as self._joining:
                    if symbol_bytes is None:
                        symbol_bytes = await self._ask_symbol_bytes(deadline, grant)
                    return await self._join(symbol_bytes, deadline)
            except (NoSenderError, JoinRefusedError):
                if self._relocate is None:
                    raise
                # Perhaps the cast is being taken over at this moment: who comes next says so.
                with trio.move_on_at(deadline):
                    await self._relocated.wait()
                if self._next_link is None:
                    raise

    async def _ask_symbol_bytes(self, deadline: float, grant: JoinGrant | None) -> int:
        cast = await retry_until(deadline, functools.partial(self._link.control.cast, self._cast_id))
        if grant is not None and cast.image_id != grant.parameters.image_id:
            raise CastFailedError(
                f"the cast was started again with another image, {cast.image_name!r}; the target is incomplete: "
                "start this command again to receive that one"
            )
        return cast.symbol_bytes

    async def _join(self, symbol_bytes: int, deadline: float) -> JoinGrant:
        self._open_socket(symbol_bytes)
        request = JoinRequest(
            agent_id=self._agent_id,
            name=self._options.name,
            inventory=dict(self._options.inventory),
            has_manifest=self._image.manifest is not None,
            need=self._image.need.copy() if self._image.manifest is not None else None,
            address="",
            identity=self._options.identity,
        )
        grant = await retry_until(
            deadline, functools.partial(self._link.control.join, self._cast_id, request)
        )
        parameters = grant.parameters
        if parameters.symbol_bytes != self._symbol_bytes:
            raise CastFailedError(
                f"the cast announced symbols of {self._symbol_bytes} bytes and now has {parameters.symbol_bytes}: "
                "start this command again"
            )
        if parameters.raw_bytes != self._image.raw_bytes:
            raise CastFailedError(
                "the cast's image changed its size while this agent joined: start this command again"
            )
        require_plausible_manifest(parameters.raw_bytes, parameters.block_bytes, parameters.manifest_bytes)
        self._silent_until = 0.0
        self._observer.joined(parameters, rejoined=self._rejoin_count > 0)
        return grant

    def _open_socket(self, symbol_bytes: int) -> None:
        if self._data is not None:
            if symbol_bytes == self._symbol_bytes:
                return
            self._data.close()
        self._data = self._link.open_data(DATA_HEADER_BYTES + symbol_bytes)
        self._symbol_bytes = symbol_bytes

    async def _join_again(self, grant: JoinGrant) -> JoinGrant:
        """Join the sender's new run. What an ANNOUNCE said anybody may have said: the control API decides."""
        self._state = ReceptionState.JOINING
        self._rejoin_count += 1
        try:
            return await self._enter(self._options.sender_timeout_s, grant=grant)
        except NoSenderError as error:
            raise SenderLostError(
                f"the sender was started again, but couldn't be joined: {error}; the target is incomplete"
            ) from error

    async def _fetch_manifest(self, parameters: CastParameters) -> memoryview | StoredManifest:
        store = manifest_store(parameters.manifest_bytes)
        fetch = functools.partial(self._link.control.manifest, parameters.cast_id, store)
        await retry_until(trio.current_time() + self._options.sender_timeout_s, fetch)
        return await trio.to_thread.run_sync(store.collected)

    async def _tell_need(self, grant: JoinGrant, need: NDArray[np.bool_], heard_sequence: int | None) -> None:
        deadline = trio.current_time() + self._options.sender_timeout_s
        try:
            await retry_until(
                deadline, functools.partial(self._link.control.set_need, grant, need, heard_sequence)
            )
        except JoinRefusedError:
            # A sender that was just started again doesn't know this receiver; its ANNOUNCE ends this wait.
            await trio.sleep(_SILENCE_TOLD_S)
            raise

    # -- telling ----------------------------------------------------------------------------------------------

    def status(self) -> ReceptionStatus:
        """How it goes at this moment; from any thread."""
        image, session = self._image, self._session
        totals = self._totals.plus(session)
        now = self._clock.current_time()
        silent = self._state is ReceptionState.RECEIVING and now < self._silent_until
        return ReceptionStatus(
            state=ReceptionState.SILENT if silent else self._state,
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
            socket_queued_bytes=self._data.memory().queued_bytes if self._data is not None else 0,
            bottleneck=self._bottleneck_watch.cause.value,
            bottleneck_seconds={cause.value: s for cause, s in self._bottleneck_watch.seconds.items()},
            demoted=session is not None and session.demoted,
            grtt_s=session.grtt_s if session is not None else 0.0,
            **{field.name: getattr(totals, field.name) for field in dataclasses.fields(Totals)},
        )

    async def _tell_progress(self) -> None:
        while True:
            await trio.sleep(self._observer.interval_s)
            self._observer.progress(self.status())

    def _notice_silence(self, silent_s: float) -> None:
        # The session tells it again while it lasts.
        self._silent_until = trio.current_time() + 1.1 * _SILENCE_TOLD_S
        self._observer.silent(silent_s)

    def _notice_standing(self, slow_because: Cause | None) -> None:
        if slow_because is None:
            self._observer.reinstated()
        else:
            self._observer.demoted(slow_because)

    def account(self, *, error: str = "", exit_code: int = 0) -> CompletionReport:
        """What this agent says of itself at its end: that all went well unless there is an error."""
        seconds_receiving = 0.0
        if not error and self._first_data_at is not None:
            seconds_receiving = trio.current_time() - self._first_data_at
        return completion_report(
            self.status(), seconds_receiving=seconds_receiving, error=error, exit_code=exit_code
        )

    async def _report_failure(self, grant: JoinGrant, error: str, exit_code: int) -> None:
        self._state = ReceptionState.REPORTING
        await self._tell_end(grant, self.account(error=error, exit_code=exit_code), FAILURE_REPORT_S)

    async def _tell_end(self, grant: JoinGrant, report: CompletionReport, within_s: float) -> bool:
        """Report; whether the sender took it. What is on the target doesn't depend on that."""
        tell = functools.partial(self._link.control.complete, grant, report)
        with trio.move_on_after(within_s):
            try:
                await retry_until(trio.current_time() + within_s, tell)
            except (SessionError, ProtocolError):
                return False
            return True
        return False
