"""Service mode: check in with a daemon, receive the cast that it assigns, report the result, and wait again.

::

    enrol with a token, once; show the approval code while an operator decides

              no cast                          a cast for this machine
    ┌─► check in, and wait ───────────────────────────► receive ──► verified or failed ───┐
    │   (long poll; retried forever while               meanwhile: check in every few     │
    │   no daemon is available)                         seconds, follow the cast when     │
    │                                                   another daemon takes it over      │
    └───────── each check-in reports the last result until a daemon has recorded it ◄─────┘
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import trio

from protocol.constants import CHECK_IN_WAIT_S_MAX
from protocol.control.capture_messages import CaptureAssignment
from protocol.control.check_in import (
    AgentState,
    Assignment,
    CastOutcome,
    CheckIn,
    CheckInAnswer,
    outcome_of,
)
from protocol.errors import DiskcastError, EnrolmentRefusedError, NoSenderError, SenderLostError
from protocol.model.hardware import Hardware
from protocol.model.session_records import CastId, MachineIdentity
from protocol.shared.units import format_duration
from receiver.capture.capture_disk import CapturedImage, CaptureProgress, CaptureStopped
from receiver.hardware.hardware_watch import HardwareWatch
from receiver.reception.cast_receiver import CastReceiver
from receiver.reception.network.cast_endpoint import CastEndpoint, EndpointTracker, endpoint_of
from receiver.reception.network.http_client import Unreachable
from receiver.reception.options import ReceiveOptions
from receiver.reception.receive import Monitor
from receiver.reception.reporting.observer import Observer, ReceptionObserver
from receiver.reception.reporting.status import (
    Reception,
    ReceptionState,
    ReceptionStatus,
    completion_report,
    idle_status,
)
from receiver.service.idle_watch import IdleWatch
from receiver.service.log import ServiceLog
from receiver.service.machine_credentials import MachineCredentials
from receiver.service.server_client import (
    BACK_OFF_IDLE_MAX_S,
    BACK_OFF_RECEIVING_MAX_S,
    CLAIM_PATIENCE_S,
    CLAIM_RETRY_S,
    ClaimRefused,
    DaemonRing,
    SecretRejected,
)
from receiver.shared.nursery_errors import single_error

PAUSE_MIN_S: Final = 0.5
"""Shortest pause between check-ins, whatever the daemon requests: its mistake mustn't make machines flood it."""

PAUSE_RECEIVING_MAX_S: Final = 5.0
"""Longest pause between check-ins during a cast."""

PAUSE_SILENT_S: Final = 1.0
"""Pause between check-ins while the cast's sender is silent: another daemon may be taking the cast over."""

OVER_AFTER_S: Final = 30.0
"""Time after which a cast is over if its sender is silent and no daemon assigns it any more. A restarted daemon needs
some seconds to find its casts."""

RETRY_FIRST_S: Final = 5.0
RETRY_MAX_S: Final = 120.0
"""Back-off before a cast that has ended here is received again if it is still assigned: a wrong target stays wrong, and
a daemon may assign a cast again before it knows that the cast is complete here."""

UNRECORDED_MAX: Final = 16
"""Most results kept until a daemon records them. A daemon whose database is unavailable records none, but it starts no
cast either: more than one is rare."""

LEAVE_S: Final = 2.0
"""Time allowed to report the exit: systemd and the operator at the machine wait for it."""

DELIVER_S: Final = 60.0
"""Time allowed to get the last result recorded before the agent exits."""

Receive = Callable[
    [
        ReceiveOptions,
        CastEndpoint,
        Observer,
        Monitor,
        EndpointTracker,
    ],
    Awaitable[Reception],
]
"""A function like :func:`receiver.reception.receive.receive_cast`."""

MakeCapture = Callable[
    [str, CaptureAssignment, Callable[[CaptureProgress], None]],
    Awaitable[CapturedImage],
]
"""A function like :meth:`receiver.capture.capture_runner.CaptureRunner.run`."""


class ServiceEnd(enum.Enum):
    """The reason for which a service ends."""

    CAST_SUCCEEDED = enum.auto()
    NOTHING_PLANNED = enum.auto()
    """The machine has waited for long enough, and no cast is planned for it."""


@dataclasses.dataclass(frozen=True, slots=True)
class AgentDescription:
    """The facts about this machine and this program that a check-in carries."""

    name: str
    version: str
    identity: MachineIdentity
    inventory: dict[str, str]


class AgentService:
    """An agent in service mode; :meth:`run` once."""

    def __init__(
        self,
        ring: DaemonRing,
        description: AgentDescription,
        options: ReceiveOptions,
        credentials: MachineCredentials,
        *,
        receive: Receive,
        log: ServiceLog,
        exit_after_success: bool = False,
        exit_when_idle: bool = False,
        wants: Callable[[Assignment], bool] = lambda _assignment: True,
        capture: MakeCapture | None = None,
        hardware: HardwareWatch | None = None,
    ) -> None:
        """Args:
        ring: the daemons to check in with.
        description: facts about this machine.
        options: how to receive, the same for every cast.
        credentials: the credentials of the ring's clients.
        receive: receives a cast; :func:`receiver.reception.receive.receive_cast`.
        log: notified of events.
        exit_after_success: stop after a successful cast.
        exit_when_idle: stop when nothing has been planned for as long as the daemon says.
        wants: returns whether to receive an assigned cast; one that isn't wanted is declined for now.
        capture: makes a capture; None to leave captures to another run of the agent.
        hardware: this machine's hardware, to report when it is new to a daemon; None to leave it out.
        """
        self._ring = ring
        self._description = description
        self._options = options
        self._credentials = credentials
        self._receive = receive
        self._log = log
        self._exit_after_success = exit_after_success
        self._exit_when_idle = exit_when_idle
        self._idle_watch = IdleWatch()
        self._wants = wants
        self._capture = capture
        self._hardware = hardware
        self._hardware_known: Hardware | None = None
        self._agent_id = secrets.token_hex(16)
        self._unrecorded: dict[CastId, CastOutcome] = {}
        self._last_cast: CastId | None = None
        self._retry_s = 0.0
        self._retry_at = 0.0
        self._registration: tuple[str, str, str] | None = None
        self._approval_code = ""
        self._claim_refused_at: float | None = None
        self._receiver: CastReceiver | None = None
        self._status = idle_status()
        self._silence = trio.Event()

    def status(self) -> ReceptionStatus:
        """Return the status of the current or else the last cast; may be called from any thread."""
        receiver = self._receiver
        return self._status if receiver is None else receiver.status()

    async def run(self) -> ServiceEnd:
        """Run until a cast has succeeded and its result is recorded, or nothing is planned, as the options say.

        Raises:
            EnrolmentRefusedError: a daemon refuses this agent's token, or another agent stays active as this machine.
        """
        try:
            while True:
                assigned = await self._wait_for_cast()
                if assigned is None:
                    return ServiceEnd.NOTHING_PLANNED
                assignment, answer = assigned
                if await self._receive_cast(assignment, answer) and self._exit_after_success:
                    with trio.move_on_after(DELIVER_S):
                        while self._unrecorded:
                            await self._check_in(AgentState.IDLE)
                            await trio.sleep(PAUSE_MIN_S)
                    return ServiceEnd.CAST_SUCCEEDED
        finally:
            if self._unrecorded:
                self._log.unrecorded(list(self._unrecorded))
            if self._credentials.enrolled:
                await self._leave()

    async def _leave(self) -> None:
        """Report that this agent exits, so that the machine can enrol again right after a reboot."""
        with (
            trio.move_on_after(LEAVE_S, shield=True),
            contextlib.suppress(Unreachable, EnrolmentRefusedError),
        ):
            await self._ring.check_in(self._message(AgentState.LEAVING, None, 0.0))

    # -- waiting ----------------------------------------------------------------------------------------------

    async def _wait_for_cast(self) -> tuple[Assignment, CheckInAnswer] | None:
        """Return the next cast to receive; None if nothing has been planned for long enough."""
        try:
            async with trio.open_nursery() as nursery:
                waited = await self._poll(nursery)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise single_error(group) from group
        return waited

    async def _poll(self, nursery: trio.Nursery) -> tuple[Assignment, CheckInAnswer] | None:
        """Check in until there is a cast; after the first answer, watch the hardware in ``nursery``."""
        declined, watched = False, self._hardware is None
        while True:
            # Long-poll only once this machine is registered and its results are recorded, since both are urgent.
            # After a declined assignment a long poll would return at once.
            settled = self._registration is not None and not self._unrecorded and not declined
            answer = await self._check_in(AgentState.IDLE, wait_s=CHECK_IN_WAIT_S_MAX if settled else 0.0)
            if not watched and self._hardware is not None:
                nursery.start_soon(self._hardware.run)
                watched = True
            assignment = answer.assignment
            if assignment is not None and self._accepts(assignment):
                return assignment, answer
            declined = assignment is not None or answer.capture is not None
            if answer.capture is not None and self._capture is not None:
                await self._make_capture(answer.capture, self._capture)
            idle_s = self._idle_watch.note(answer, trio.current_time())
            if idle_s is not None and self._exit_when_idle and not self._unrecorded:
                self._log.nothing_planned(idle_s)
                return None
            await trio.sleep(max(PAUSE_MIN_S, answer.check_in_after_s))

    def _accepts(self, assignment: Assignment) -> bool:
        """Return whether to receive the cast now."""
        outcome = self._unrecorded.get(assignment.cast_id)
        if outcome is not None and outcome.success:
            return False  # the image is on the target; the daemon hasn't recorded that yet
        if not self._wants(assignment):
            return False
        return assignment.cast_id != self._last_cast or trio.current_time() >= self._retry_at

    async def _check_in(self, state: AgentState, *, wait_s: float = 0.0) -> CheckInAnswer:
        """Check in, retrying until a daemon answers."""
        while True:
            answer = await self._try_check_in(state, None, wait_s)
            if answer is not None:
                return answer
            refused = self._claim_refused_at is not None
            await trio.sleep(CLAIM_RETRY_S if refused else self._ring.pause_s(BACK_OFF_IDLE_MAX_S))

    async def _try_check_in(
        self, state: AgentState, cast_id: CastId | None, wait_s: float
    ) -> CheckInAnswer | None:
        """Check in once; return None if no daemon answers."""
        message = self._message(state, cast_id, wait_s)
        url = self._ring.url
        try:
            answer = await self._ring.check_in(message)
        except ClaimRefused as error:
            self._note_claim_refused(error)
            return None
        except SecretRejected as error:
            self._credentials.drop()
            self._registration = None
            self._log.unanswered(f"{error}; this machine enrols again")
            return None
        except Unreachable as error:
            if self._ring.failure_count == 1:
                self._registration = None
                self._log.unanswered(str(error))
            return None
        self._claim_refused_at = None
        if not self._note_enrolment(answer):
            return answer
        registration = (url, answer.machine_id, answer.name)
        if registration != self._registration:
            self._registration = registration
            self._hardware_known = None
            self._log.waiting(*registration)
        self._hardware_known = message.hardware or self._hardware_known
        result = message.last_result
        if result is not None and answer.recorded_cast_id == result.cast_id:
            self._unrecorded.pop(result.cast_id, None)
        return answer

    def _message(self, state: AgentState, cast_id: CastId | None, wait_s: float) -> CheckIn:
        """Return a check-in with the oldest result that no daemon has recorded."""
        description = self._description
        return CheckIn(
            agent_id=self._agent_id,
            name=description.name,
            version=description.version,
            interface=self._options.interface,
            macs=description.identity.macs,
            serial=description.identity.serial,
            asset_tag=description.identity.asset_tag,
            inventory={**description.inventory, "target": self._options.target},
            state=state,
            cast_id=cast_id,
            last_result=next(iter(self._unrecorded.values()), None),
            wait_s=wait_s,
            hardware=self._hardware_to_report(),
        )

    def _hardware_to_report(self) -> Hardware | None:
        """Return the hardware if the daemon may not know it: it is new, or the last check-in went elsewhere."""
        if self._hardware is None or (
            self._registration is not None and self._hardware_known == self._hardware.hardware
        ):
            return None
        return self._hardware.hardware

    def _note_enrolment(self, answer: CheckInAnswer) -> bool:
        """Keep a new secret, or show the code of a machine that waits for approval; return whether it checked in."""
        if answer.machine_secret:
            problem = self._credentials.keep(answer.machine_secret)
            self._approval_code = ""
            self._log.enrolled(answer.name or answer.machine_id, problem)
            return False  # the next check-in, with the secret, is the first that counts
        if answer.approval_code:
            if answer.approval_code != self._approval_code:
                self._approval_code = answer.approval_code
                self._log.awaiting_approval(answer.name or answer.machine_id, answer.approval_code)
            return False
        return True

    def _note_claim_refused(self, error: ClaimRefused) -> None:
        """Log the first refusal of a claim; give up after many.

        Raises:
            EnrolmentRefusedError: another agent stays active as this machine.
        """
        now = trio.current_time()
        if self._claim_refused_at is None:
            self._claim_refused_at = now
            self._registration = None
            self._log.unanswered(str(error))
        elif now - self._claim_refused_at >= CLAIM_PATIENCE_S:
            raise EnrolmentRefusedError(
                f"this machine can't enrol: {error}; the other agent has been active for "
                f"{format_duration(now - self._claim_refused_at)}"
            ) from error

    # -- capturing --------------------------------------------------------------------------------------------

    async def _make_capture(self, assignment: CaptureAssignment, capture: MakeCapture) -> None:
        """Make a capture; its daemon learns of a failure."""
        self._log.capture_assigned(assignment)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stay_present)
                image = await capture(self._ring.url, assignment, self._log.capture_progress)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = single_error(group)
            if isinstance(error, CaptureStopped):
                self._log.unanswered(str(error))
                return
            if not isinstance(error, DiskcastError):
                raise error from group
            self._log.capture_failed(assignment, error)
            return
        self._log.captured(assignment, image)
        self._idle_watch.finish()

    async def _stay_present(self) -> None:
        """Check in during a capture, so that the machine stays online and no other agent becomes this machine."""
        while True:
            # A revoked token ends the service, but not a running capture.
            with contextlib.suppress(EnrolmentRefusedError):
                await self._try_check_in(AgentState.CAPTURING, None, 0.0)
            await trio.sleep(PAUSE_RECEIVING_MAX_S)

    # -- receiving --------------------------------------------------------------------------------------------

    async def _receive_cast(self, assignment: Assignment, answer: CheckInAnswer) -> bool:
        """Receive a cast; return whether it succeeded."""
        cast_id = assignment.cast_id
        self._log.assigned(assignment)
        endpoint = endpoint_of(assignment)
        tracker = EndpointTracker(endpoint)
        receiver_options = dataclasses.replace(
            self._options.receiver, name=answer.name or self._description.name
        )
        options = dataclasses.replace(self._options, receiver=receiver_options)
        self._silence = trio.Event()
        self._status = idle_status()
        reception: Reception | None = None
        try:
            with self._log.observer() as observer:
                forwarder = _SilenceForwarder(observer, self._on_silence)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_checking_in, cast_id, tracker)
                    reception = await self._receive(options, endpoint, forwarder, self._monitor, tracker)
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = single_error(group)
            if not isinstance(error, DiskcastError):
                raise error from group
            self._note_failure(cast_id, error)
            return False
        finally:
            self._receiver = None
        assert reception is not None
        self._keep_result(outcome_of(cast_id, reception.report))
        self._note_end(cast_id)
        self._log.succeeded(reception)
        return True

    def _note_failure(self, cast_id: CastId, error: DiskcastError) -> None:
        self._log.failed(cast_id, error)
        self._note_end(cast_id)
        if self._status.target_prepared:
            self._idle_watch.stay()
        # A lost sender is no final result: the agent joins again when the cast is assigned again.
        if not isinstance(error, NoSenderError | SenderLostError):
            report = completion_report(
                self._status, seconds_receiving=0.0, error=str(error), exit_code=error.exit_code
            )
            self._keep_result(outcome_of(cast_id, report))

    def _keep_result(self, outcome: CastOutcome) -> None:
        """Report the result at check-ins, the oldest first, until a daemon has recorded it."""
        self._unrecorded.pop(outcome.cast_id, None)
        self._unrecorded[outcome.cast_id] = outcome
        if len(self._unrecorded) > UNRECORDED_MAX:
            del self._unrecorded[next(iter(self._unrecorded))]

    def _note_end(self, cast_id: CastId) -> None:
        if cast_id != self._last_cast:
            self._last_cast, self._retry_s = cast_id, RETRY_FIRST_S
        self._retry_at = trio.current_time() + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    @contextlib.contextmanager
    def _monitor(self, receiver: CastReceiver) -> Iterator[None]:
        self._receiver = receiver
        try:
            yield
        finally:
            self._status = dataclasses.replace(receiver.status(), state=ReceptionState.WAITING)
            self._receiver = None

    def _on_silence(self) -> None:
        self._silence.set()
        self._silence = trio.Event()

    async def _keep_checking_in(self, cast_id: CastId, tracker: EndpointTracker) -> None:
        """Check in during a reception, to follow the cast to another daemon and to detect its end.

        Raises:
            SenderLostError: the sender is lost, and no daemon assigns this cast any more.
        """
        alive_at = trio.current_time()
        while True:
            answer: CheckInAnswer | None = None
            # A revoked token ends the service, but not a running cast.
            with contextlib.suppress(EnrolmentRefusedError):
                answer = await self._try_check_in(AgentState.RECEIVING, cast_id, 0.0)
            now = trio.current_time()
            silent = self.status().state in (
                ReceptionState.WAITING,
                ReceptionState.JOINING,
                ReceptionState.SILENT,
            )
            assignment = None if answer is None else answer.assignment
            if assignment is not None and assignment.cast_id == cast_id:
                alive_at = now
                if tracker.update(endpoint_of(assignment)):
                    self._log.moved(assignment)
            elif answer is None or not silent:
                alive_at = now
            elif now - alive_at >= OVER_AFTER_S:
                raise SenderLostError(
                    f"the sender has been silent for {format_duration(now - alive_at)}, and the daemon no longer "
                    "assigns this cast: it is over; the target is incomplete"
                )
            await self._pause(answer, silent=silent)

    async def _pause(self, answer: CheckInAnswer | None, *, silent: bool) -> None:
        if answer is None:
            await trio.sleep(self._ring.pause_s(BACK_OFF_RECEIVING_MAX_S))
            return
        pause_s = min(max(PAUSE_MIN_S, answer.check_in_after_s), PAUSE_RECEIVING_MAX_S)
        silence = self._silence
        with trio.move_on_after(min(pause_s, PAUSE_SILENT_S) if silent else pause_s):
            await silence.wait()


class _SilenceForwarder:
    """An observer that also triggers a check-in when the sender is silent."""

    def __init__(self, observer: ReceptionObserver, on_silence: Callable[[], None]) -> None:
        self.interval_s = observer.interval_s
        self._observer = observer
        self._on_silence = on_silence
        self.accepted = observer.accepted
        self.joined = observer.joined
        self.demoted = observer.demoted
        self.reinstated = observer.reinstated
        self.progress = observer.progress

    def silent(self, silent_s: float) -> None:
        self._observer.silent(silent_s)
        self._on_silence()
