"""Service mode: announce this machine to a daemon, wait for its cast, receive it, tell how it went, and wait again.

::

              no cast                          a cast for this machine
    ┌─► check in, and wait ───────────────────────────► receive ──► verified, or failed ──┐
    │   (long poll; a daemon that is away               beside it: check in every few     │
    │   is asked again and again, for ever)             seconds, follow the cast when     │
    │                                                   another daemon takes it over      │
    └───────── each check-in says how the last cast went, until it is on record ◄─────────┘
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import trio

from protocol.constants import CHECK_IN_WAIT_S_MAX
from protocol.control.check_in import (
    MACHINE_ID_KEY,
    AgentState,
    Assignment,
    CastOutcome,
    CheckIn,
    CheckInAnswer,
    outcome_of,
)
from protocol.errors import DiskcastError, NoSenderError, SenderLostError, ServerRefusedError
from protocol.model.session_records import CastId, MachineIdentity
from protocol.shared.units import format_duration
from receiver.reception.cast_receiver import CastReceiver, Observer, Reception
from receiver.reception.network.cast_endpoint import CastPlace, Whereabouts, place_of
from receiver.reception.network.http_client import Unreachable
from receiver.reception.receive import ReceiveOptions
from receiver.reception.reporting.progress import ReceptionObserver
from receiver.reception.reporting.status import (
    ReceptionState,
    ReceptionStatus,
    completion_report,
    idle_status,
)
from receiver.service.log import ServiceLog
from receiver.service.server_client import BACK_OFF_IDLE_MAX_S, BACK_OFF_RECEIVING_MAX_S, DaemonRing
from receiver.shared.nursery_errors import single_error

PAUSE_MIN_S: Final = 0.5
"""Between two check-ins, whatever the daemon says: a thousand machines mustn't become a flood by its mistake."""

PAUSE_RECEIVING_MAX_S: Final = 5.0
PAUSE_SILENT_S: Final = 1.0
"""Between two check-ins while the cast's sender is silent: perhaps another daemon is taking the cast over."""

OVER_AFTER_S: Final = 30.0
"""A cast whose sender is silent for so long, and that a daemon doesn't assign any more, is over. A daemon that was
started again needs some seconds to find its casts."""

RETRY_FIRST_S: Final = 5.0
RETRY_MAX_S: Final = 120.0
"""Before a cast that has ended here is begun again, if it is assigned again: a wrong target stays wrong, and a daemon
may assign a cast once more before it has noticed that it is complete here."""

UNRECORDED_MAX: Final = 16
"""Results that a daemon without its database hasn't taken: it begins no cast without one, so that two are rare."""

DELIVER_S: Final = 60.0
"""How long the agent tries to get its result on record before it leaves."""

Receive = Callable[
    [
        ReceiveOptions,
        CastPlace,
        Observer,
        Callable[[CastReceiver], contextlib.AbstractContextManager[None]],
        Whereabouts,
    ],
    Awaitable[Reception],
]


@dataclasses.dataclass(frozen=True, slots=True)
class About:
    """What this machine and this program say of themselves."""

    name: str
    version: str
    identity: MachineIdentity
    inventory: dict[str, str]


class Service:
    """An agent that waits for its casts; :meth:`run` once."""

    def __init__(
        self,
        ring: DaemonRing,
        about: About,
        options: ReceiveOptions,
        *,
        receive: Receive,
        log: ServiceLog,
        one_cast: bool = False,
    ) -> None:
        """Prepare.

        Args:
            ring: the daemons to check in with.
            about: what to say of this machine.
            options: how to receive, whichever cast it is.
            receive: receives a cast; :func:`receiver.reception.receive.receive_cast`.
            log: is told what happens.
            one_cast: end after a cast that put its image on the target.
        """
        self._ring = ring
        self._about = about
        self._options = options
        self._receive = receive
        self._log = log
        self._one_cast = one_cast
        self._agent_id = secrets.token_hex(16)
        self._unrecorded: dict[CastId, CastOutcome] = {}
        self._last_cast: CastId | None = None
        self._retry_s = 0.0
        self._retry_at = 0.0
        self._known: tuple[str, str, str] | None = None
        self._agent: CastReceiver | None = None
        self._status = idle_status()
        self._silence = trio.Event()

    def status(self) -> ReceptionStatus:
        """How the cast goes, or how the last one went; from any thread."""
        agent = self._agent
        return self._status if agent is None else agent.status()

    async def run(self) -> None:
        """Serve for ever; with ``one_cast`` until a cast has succeeded and that is on record, or nobody records it.

        Raises:
            ServerRefusedError: a daemon doesn't take this agent's token.
        """
        try:
            while True:
                assignment, answer = await self._wait_for_cast()
                if await self._take_part(assignment, answer) and self._one_cast:
                    with trio.move_on_after(DELIVER_S):
                        while self._unrecorded:
                            await self._check_in(AgentState.IDLE)
                            await trio.sleep(PAUSE_MIN_S)
                    return
        finally:
            if self._unrecorded:
                self._log.unrecorded(list(self._unrecorded))

    # -- waiting ----------------------------------------------------------------------------------------------

    async def _wait_for_cast(self) -> tuple[Assignment, CheckInAnswer]:
        declined = False
        while True:
            # Not before this machine is known and what happened is on record: both are wanted at once.
            # And a daemon that would have this machine begin again too soon mustn't be asked to wait for nothing.
            settled = self._known is not None and not self._unrecorded and not declined
            answer = await self._check_in(AgentState.IDLE, wait_s=CHECK_IN_WAIT_S_MAX if settled else 0.0)
            assignment = answer.assignment
            if assignment is not None and self._takes(assignment):
                return assignment, answer
            declined = assignment is not None
            await trio.sleep(max(PAUSE_MIN_S, answer.check_in_after_s))

    def _takes(self, assignment: Assignment) -> bool:
        """Whether to receive it now."""
        outcome = self._unrecorded.get(assignment.cast_id)
        if outcome is not None and outcome.success:
            return False  # it is here; the daemon hasn't taken note of that yet
        return assignment.cast_id != self._last_cast or trio.current_time() >= self._retry_at

    async def _check_in(self, state: AgentState, *, wait_s: float = 0.0) -> CheckInAnswer:
        """Check in until a daemon answers."""
        while True:
            answer = await self._try_check_in(state, None, wait_s)
            if answer is not None:
                return answer
            await trio.sleep(self._ring.pause_s(BACK_OFF_IDLE_MAX_S))

    async def _try_check_in(
        self, state: AgentState, cast_id: CastId | None, wait_s: float
    ) -> CheckInAnswer | None:
        """Check in once; None without an answer."""
        about = self._about
        said = next(iter(self._unrecorded.values()), None)
        check_in = CheckIn(
            agent_id=self._agent_id,
            name=about.name,
            version=about.version,
            interface=self._options.interface,
            macs=about.identity.macs,
            serial=about.identity.serial,
            asset_tag=about.identity.asset_tag,
            inventory={**about.inventory, "target": self._options.target},
            state=state,
            cast_id=cast_id,
            last_result=said,
            wait_s=wait_s,
        )
        url = self._ring.url
        try:
            answer = await self._ring.check_in(check_in)
        except Unreachable as error:
            if self._ring.failure_count == 1:
                self._known = None
                self._log.unanswered(str(error))
            return None
        known = (url, answer.machine_id, answer.name)
        if known != self._known:
            self._known = known
            self._log.waiting(*known)
        if said is not None and answer.recorded_cast_id == said.cast_id:
            del self._unrecorded[said.cast_id]
        return answer

    # -- receiving --------------------------------------------------------------------------------------------

    async def _take_part(self, assignment: Assignment, answer: CheckInAnswer) -> bool:
        """Receive a cast; whether it is on the target."""
        cast_id = assignment.cast_id
        self._log.assigned(assignment)
        place = place_of(assignment)
        whereabouts = Whereabouts(place)
        inventory = {**self._options.receiver.inventory, MACHINE_ID_KEY: answer.machine_id}
        receiver_options = dataclasses.replace(
            self._options.receiver,
            name=answer.name or self._about.name,
            inventory=inventory,
            agent_id=answer.machine_id,
        )
        options = dataclasses.replace(self._options, receiver=receiver_options)
        self._silence = trio.Event()
        self._status = idle_status()
        reception: Reception | None = None
        try:
            with self._log.observer() as observer:
                told = _Told(observer, self._notice_silence)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._stay_in_touch, cast_id, whereabouts)
                    reception = await self._receive(options, place, told, self._watch, whereabouts)
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = single_error(group)
            if not isinstance(error, DiskcastError):
                raise error from group
            self._note_failure(cast_id, error)
            return False
        finally:
            self._agent = None
        assert reception is not None
        self._keep_result(outcome_of(cast_id, reception.report))
        self._note_end(cast_id)
        self._log.succeeded(str(options.target), reception)
        return True

    def _note_failure(self, cast_id: CastId, error: DiskcastError) -> None:
        self._log.failed(cast_id, error)
        self._note_end(cast_id)
        # Who lost its sender has nothing final to say: it joins again when it is told to.
        if not isinstance(error, NoSenderError | SenderLostError):
            report = completion_report(
                self._status, seconds_receiving=0.0, error=str(error), exit_code=error.exit_code
            )
            self._keep_result(outcome_of(cast_id, report))

    def _keep_result(self, outcome: CastOutcome) -> None:
        """To be said until it is on record; the oldest one first."""
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
    def _watch(self, agent: CastReceiver) -> Iterator[None]:
        self._agent = agent
        try:
            yield
        finally:
            self._status = dataclasses.replace(agent.status(), state=ReceptionState.WAITING)
            self._agent = None

    def _notice_silence(self) -> None:
        self._silence.set()
        self._silence = trio.Event()

    async def _stay_in_touch(self, cast_id: CastId, whereabouts: Whereabouts) -> None:
        """Check in beside the reception: follow the cast to another daemon, and notice that it is over.

        Raises:
            SenderLostError: the sender is gone, and no daemon has this cast for us.
        """
        heard_at = trio.current_time()
        while True:
            answer: CheckInAnswer | None = None
            # A token that was taken back ends the service, not a cast that goes well.
            with contextlib.suppress(ServerRefusedError):
                answer = await self._try_check_in(AgentState.RECEIVING, cast_id, 0.0)
            now = trio.current_time()
            silent = self.status().state in (
                ReceptionState.WAITING,
                ReceptionState.JOINING,
                ReceptionState.SILENT,
            )
            assignment = None if answer is None else answer.assignment
            if assignment is not None and assignment.cast_id == cast_id:
                heard_at = now
                if whereabouts.move(place_of(assignment)):
                    self._log.moved(assignment)
            elif answer is None or not silent:
                heard_at = now
            elif now - heard_at >= OVER_AFTER_S:
                raise SenderLostError(
                    f"the sender has been silent for {format_duration(now - heard_at)}, and the daemon doesn't assign "
                    "this cast any more: it is over; the target is incomplete"
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


class _Told:
    """An observer that also wakes who has to find out why the sender is silent."""

    def __init__(self, observer: ReceptionObserver, on_silence: Callable[[], None]) -> None:
        self.interval_s = observer.interval_s
        self._observer = observer
        self._on_silence = on_silence
        self.joined = observer.joined
        self.demoted = observer.demoted
        self.reinstated = observer.reinstated
        self.progress = observer.progress

    def silent(self, silent_s: float) -> None:
        self._observer.silent(silent_s)
        self._on_silence()
