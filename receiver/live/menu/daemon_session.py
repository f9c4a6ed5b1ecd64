"""A machine's check-ins with a daemon while a technician uses the menu, and the one cast that the technician wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import trio

from protocol.control.check_in import Assignment, CheckIn, CheckInAnswer
from protocol.errors import DiskcastError
from protocol.model.session_records import CastId
from receiver.hardware.hardware_watch import HardwareWatch
from receiver.live.menu.daemon_api import OperatorApi
from receiver.reception.network.cast_endpoint import CastEndpoint, EndpointTracker
from receiver.reception.options import ReceiveOptions
from receiver.reception.receive import Monitor, receive_cast
from receiver.reception.reporting.observer import Observer, ReceptionObserver
from receiver.reception.reporting.progress import PlainObserver
from receiver.reception.reporting.status import Reception
from receiver.service.agent_service import AgentDescription, AgentService
from receiver.service.log import PlainServiceLog
from receiver.service.machine_credentials import MachineCredentials
from receiver.service.server_client import DaemonRing


@dataclasses.dataclass(frozen=True, slots=True)
class Registration:
    """This machine, as the daemon knows it."""

    machine_id: str
    name: str


class ObservedRing(DaemonRing):
    """A ring that keeps the last answer: only that has the id of a machine that waits for approval."""

    last_answer: CheckInAnswer | None = None

    async def check_in(self, check_in: CheckIn) -> CheckInAnswer:
        """Check in as :meth:`DaemonRing.check_in` does."""
        self.last_answer = await super().check_in(check_in)
        return self.last_answer


class SessionLog(PlainServiceLog):
    """The events of the service, as lines on the consoles, and kept for the menu.

    Attributes:
        registration: the machine, as soon as it is enrolled.
        approval_code: code of a machine that waits for approval.
        error: failure of the last cast.
        reception: the successful cast.
        changed: set at the next event, and replaced.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.registration: Registration | None = None
        self.approval_code = ""
        self.error: DiskcastError | None = None
        self.reception: Reception | None = None
        self.changed = trio.Event()

    def observer(self) -> ReceptionObserver:
        """Return an observer that prints lines on the consoles."""
        return _ConsoleObserver(self._say)

    def awaiting_approval(self, name: str, code: str) -> None:
        """Show and keep the code."""
        super().awaiting_approval(name, code)
        self.approval_code = code
        self._notify()

    def waiting(self, url: str, machine_id: str, name: str) -> None:
        """Show and keep the machine."""
        self._print(f"checked in with {url} as {name or machine_id}")
        self.registration = Registration(machine_id, name or machine_id)
        self._notify()

    def succeeded(self, reception: Reception) -> None:
        """Show and keep the outcome."""
        self.observer().finished(reception)
        self.reception = reception
        self._notify()

    def failed(self, cast_id: CastId, error: DiskcastError) -> None:
        """Show and keep the error."""
        super().failed(cast_id, error)
        self.error = error
        self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def _print(self, text: str) -> None:
        self._say(text)


class _ConsoleObserver(PlainObserver):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def _print(self, text: str) -> None:
        self._say(text)


class DaemonSession:
    """The session: :meth:`run` in a nursery, and the other methods meanwhile."""

    def __init__(
        self,
        ring: ObservedRing,
        description: AgentDescription,
        options: ReceiveOptions,
        credentials: MachineCredentials,
        log: SessionLog,
        hardware: HardwareWatch,
    ) -> None:
        """Args:
        ring: the daemons.
        description: this machine.
        options: how to receive; the target is chosen later.
        credentials: a boot token, or a token for enrolment.
        log: notified of events.
        hardware: this machine's hardware.
        """
        self._ring = ring
        self._credentials = credentials
        self._log = log
        self._wanted: tuple[bytes, CastId | None] | None = None
        self._target = ""
        self._service = AgentService(
            ring,
            description,
            options,
            credentials,
            receive=self._receive,
            log=log,
            exit_after_success=True,
            wants=self._wants,
            hardware=hardware,
        )

    @property
    def secret(self) -> str:
        """The machine's secret, once it is enrolled."""
        return self._credentials.bearer

    async def run(self) -> None:
        """Check in, and receive the wanted cast; return when its success is recorded.

        Raises:
            EnrolmentRefusedError: the daemon refuses this machine's token.
        """
        await self._service.run()

    async def registration(self, operator: OperatorApi | None) -> Registration:
        """Wait until the machine is enrolled; an operator who has signed in here approves it.

        Raises:
            ServerRefusedError: the approval is refused.
        """
        approved = ""
        while self._log.registration is None:
            changed, answer, code = self._log.changed, self._ring.last_answer, self._log.approval_code
            if operator is not None and answer is not None and code not in ("", approved):
                await operator.approve(answer.machine_id, code)
                approved = code
                continue
            await changed.wait()
        return self._log.registration

    def expect(self, image_id: bytes, cast_id: CastId | None, target: str) -> None:
        """Receive the cast of this image, and no other, onto ``target``, which the technician has confirmed."""
        self._log.error = None
        self._target = target
        self._wanted = (image_id, cast_id)

    def expect_nothing(self) -> None:
        """Receive no cast."""
        self._wanted = None

    async def outcome(self) -> Reception:
        """Wait for the end of the expected cast.

        Raises:
            DiskcastError: it failed on this machine.
        """
        while True:
            changed = self._log.changed
            if self._log.reception is not None:
                return self._log.reception
            if self._log.error is not None:
                raise self._log.error
            await changed.wait()

    def _wants(self, assignment: Assignment) -> bool:
        """Decline every cast but the one for which the technician confirmed the disk."""
        if self._wanted is None:
            return False
        image_id, cast_id = self._wanted
        return assignment.image_id == image_id and cast_id in (None, assignment.cast_id)

    async def _receive(
        self,
        options: ReceiveOptions,
        endpoint: CastEndpoint,
        observer: Observer,
        monitor: Monitor,
        tracker: EndpointTracker,
    ) -> Reception:
        chosen = dataclasses.replace(options, target=self._target)
        return await receive_cast(chosen, endpoint, observer, monitor, tracker)
