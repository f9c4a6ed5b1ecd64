"""The agent in service mode, under a clock that jumps and with a daemon that the test controls.

Lost if these fail: somebody has to walk to a machine whose agent gave up, flooded the daemon, forgot its result or
received its cast twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from protocol.control.capture_messages import CaptureAssignment
from protocol.control.check_in import AgentState, Assignment, CheckIn, CheckInAnswer
from protocol.errors import (
    DiskcastError,
    EnrolmentRefusedError,
    SenderLostError,
    StorageError,
    TargetInUseError,
)
from protocol.model.session_records import CastId, MachineIdentity
from receiver.capture.capture_disk import CapturedImage, CaptureProgress
from receiver.hardware.hardware_watch import HardwareWatch
from receiver.reception.cast_receiver import CastReceiver
from receiver.reception.network.cast_endpoint import CastEndpoint, EndpointTracker, endpoint_of
from receiver.reception.network.http_client import Unreachable
from receiver.reception.options import CastReceiverOptions, ReceiveOptions
from receiver.reception.reporting.observer import Observer, ReceptionObserver
from receiver.reception.reporting.status import Reception, ReceptionState
from receiver.service.agent_service import AgentDescription, AgentService, ServiceEnd
from receiver.service.machine_credentials import MachineCredentials
from receiver.service.server_client import (
    CLAIM_PATIENCE_S,
    CLAIM_RETRY_S,
    ClaimRefused,
    DaemonRing,
    SecretRejected,
)
from receiver.target.options import DEFAULTS
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.image_gate import ImageGate
from tests.shell.small_cast import Recorder
from tests.support.hardware import sample_hardware
from tests.unit.protocol.control.test_check_in import ASSIGNMENT
from tests.unit.receiver.reception.reporting.test_progress import RECEPTION, STATUS

pytestmark = pytest.mark.trio

HOUR_S = 3600.0
CAPTURE = CaptureAssignment("3c4d5e6f", "lab", "auto", 1 << 18, 3, every_byte=False, secret="dcc_x")


class FakeDaemon:
    """A daemon as its agents see it; several share one :class:`FakeDatabase`."""

    def __init__(self, database: FakeDatabase, url: str) -> None:
        self.url = url
        self.up = True
        self.refuses = False
        self.rejects_secret = False
        self._database = database

    async def check_in(self, check_in: CheckIn) -> CheckInAnswer:
        database = self._database
        database.check_ins.append((trio.current_time(), self.url, check_in))
        await trio.sleep(0.001)
        if not self.up:
            raise Unreachable(f"{self.url}: connection refused")
        if self.rejects_secret:
            self.rejects_secret = False
            raise SecretRejected("unknown secret")
        if self.refuses:
            raise EnrolmentRefusedError("no such token")
        with trio.move_on_after(check_in.wait_s):
            while self.up and database.assignment is None:
                await database.changed.wait()
        if not self.up:
            raise Unreachable(f"{self.url}: the connection ended")
        recorded = None
        if check_in.last_result is not None and database.records:
            recorded = check_in.last_result.cast_id
            database.outcomes.append(check_in.last_result)
        if database.needs_enrolment:
            return self._enrol(check_in)
        return CheckInAnswer(
            "m-1",
            "seat 1",
            recorded,
            database.assignment,
            database.check_in_after_s,
            cast_planned=True if database.capture is not None else database.cast_planned,
            capture=database.capture,
        )

    def _enrol(self, check_in: CheckIn) -> CheckInAnswer:
        database = self._database
        if database.claim_refused:
            raise ClaimRefused("another agent is active as machine seat 1")
        if database.approval_code:
            return CheckInAnswer("m-1", "seat 1", None, None, 3.0, approval_code=database.approval_code)
        database.needs_enrolment = False
        return CheckInAnswer("m-1", "seat 1", None, None, 0.0, machine_secret="dcm_x", idle_restart_s=300.0)


class FakeDatabase:
    """The state that the daemons share.

    Attributes:
        check_ins: time, daemon and content of each check-in.
    """

    def __init__(self) -> None:
        self.check_ins: list[tuple[float, str, CheckIn]] = []
        self.outcomes: list[Any] = []
        self.records = True
        self.needs_enrolment = False
        self.approval_code = ""
        self.claim_refused = False
        self.check_in_after_s = 1.0
        self.cast_planned: bool | None = None
        self.assignment: Assignment | None = None
        self.capture: CaptureAssignment | None = None
        self.changed = trio.Event()

    def assign(self, assignment: Assignment | None) -> None:
        self.assignment = assignment
        self.changed.set()
        self.changed = trio.Event()


class FakeReceiver:
    """The part of a cast receiver that the service uses."""

    def __init__(self) -> None:
        self.state = ReceptionState.RECEIVING
        self.prepared = True

    def status(self) -> Any:
        fresh = {} if self.prepared else {"blocks_needed": 0, "raw_bytes_verified": 0}
        return dataclasses.replace(STATUS, state=self.state, **fresh)


class Receptions:
    """Stand-in for real receptions, with results set by the test."""

    def __init__(self) -> None:
        self.started: list[tuple[CastEndpoint, ReceiveOptions]] = []
        self.results: list[DiskcastError | Reception] = []
        self.takes_s = 60.0
        self.tracker: EndpointTracker | None = None
        self.observer: Observer | None = None
        self.receiver = FakeReceiver()
        self.cancelled = False
        self.during: Callable[[], None] = lambda: None

    async def receive(
        self,
        options: ReceiveOptions,
        endpoint: CastEndpoint,
        observer: Observer,
        monitor: Callable[[CastReceiver], contextlib.AbstractContextManager[None]],
        tracker: EndpointTracker,
    ) -> Reception:
        self.started.append((endpoint, options))
        self.tracker, self.observer = tracker, observer
        result = self.results.pop(0) if self.results else RECEPTION
        if isinstance(result, TargetInUseError):
            raise result  # before there is a receiver
        with monitor(self.receiver):  # type: ignore[arg-type]
            self.during()
            try:
                await trio.sleep(self.takes_s)
            except trio.Cancelled:
                self.cancelled = True
                raise
            if isinstance(result, DiskcastError):
                raise result
            return result


class Log:
    """A log that records its calls."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    @contextlib.contextmanager
    def _observer(self) -> Iterator[Recorder]:
        yield Recorder()

    def observer(self) -> ReceptionObserver:
        return self._observer()  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.lines.append((name, *arguments))

    def names(self) -> list[str]:
        return [line[0] for line in self.lines]


class World:
    """A service and its daemons."""

    def __init__(
        self,
        *,
        daemon_count: int = 1,
        exit_after_success: bool = False,
        exit_when_idle: bool = False,
        hardware: HardwareWatch | None = None,
    ) -> None:
        self.database = FakeDatabase()
        self.daemons = [
            FakeDaemon(self.database, f"http://10.0.0.{index}:7400") for index in range(daemon_count)
        ]
        self.receptions = Receptions()
        self.log = Log()
        self.credentials = MachineCredentials("dct_enrol_x")
        agent = CastReceiverOptions(
            "pc1", {}, assembly_bytes=1 << 20, join_timeout_s=60.0, sender_timeout_s=300.0
        )
        self.service = AgentService(
            DaemonRing(self.daemons, random.Random(4)),
            AgentDescription(
                "pc1", "1.0", MachineIdentity(("52:54:00:12:34:56",), "S1", "A1"), {"host": "pc1"}
            ),
            ReceiveOptions("auto", DEFAULTS, "lo", agent, ImageGate(TrustOptions())),
            self.credentials,
            receive=self.receptions.receive,
            log=self.log,  # type: ignore[arg-type]
            exit_after_success=exit_after_success,
            exit_when_idle=exit_when_idle,
            hardware=hardware,
            capture=self.capture,
        )
        self.capture_error: DiskcastError | None = None
        self.end: ServiceEnd | None = None

    async def capture(
        self, _url: str, _assignment: CaptureAssignment, _report: Callable[[CaptureProgress], None]
    ) -> CapturedImage:
        await trio.sleep(60.0)
        self.database.capture = None
        if self.capture_error is not None:
            raise self.capture_error
        return CapturedImage(bytes(32), 1 << 30, 1 << 29, 60.0)

    async def serve(self, seconds: float) -> None:
        """Run the service for that long, or until it ends."""
        with trio.move_on_after(seconds):
            self.end = await self.service.run()

    def after(self, nursery: trio.Nursery, seconds: float, action: Callable[[], object]) -> None:
        async def act() -> None:
            await trio.sleep(seconds)
            action()

        nursery.start_soon(act)

    def times(self, *, state: str | None = None, url: str | None = None) -> list[float]:
        return [
            at
            for at, daemon_url, check_in in self.database.check_ins
            if state in (None, check_in.state) and url in (None, daemon_url)
        ]


@pytest.fixture
def world() -> World:
    return World()


# -- waiting --------------------------------------------------------------------------------------------------


async def test_a_waiting_agent_identifies_itself_and_long_polls(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    await world.serve(10 * 60.0)
    assert 20 <= len(world.database.check_ins) <= 25, "a long poll of 25 s and a pause of 1 s each"
    _, _, check_in = world.database.check_ins[0]
    assert check_in.macs == ("52:54:00:12:34:56",)
    assert (check_in.serial, check_in.asset_tag, check_in.name) == ("S1", "A1", "pc1")
    assert check_in.inventory == {"host": "pc1", "target": "auto"}
    assert check_in.state == AgentState.IDLE
    assert [check_in.wait_s for _, _, check_in in world.database.check_ins[:3]] == [0.0, 25.0, 25.0]
    assert world.log.lines == [("waiting", "http://10.0.0.0:7400", "m-1", "seat 1")]
    assert world.service.status().state is ReceptionState.WAITING


class StillWatch(HardwareWatch):
    """A watch that the test changes: the real one's threads know nothing of the simulated clock."""

    async def run(self) -> None:
        await trio.sleep_forever()


async def test_hardware_is_reported_until_a_daemon_knows_it_and_when_it_changes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Otherwise each of a thousand waiting machines sends some KiB with each of its check-ins."""
    disks = [sample_hardware(), sample_hardware(disks=())]
    watch = StillWatch(lambda: disks[0])
    world = World(daemon_count=2, hardware=watch)
    first, second = world.daemons

    def fail() -> None:
        first.up = False

    def plug_out() -> None:
        watch.hardware = disks[1]

    async with trio.open_nursery() as nursery:
        world.after(nursery, 100.0, fail)
        world.after(nursery, 250.0, plug_out)
        await world.serve(400.0)
    reports = [(url, check_in.hardware) for _, url, check_in in world.database.check_ins if check_in.hardware]
    assert reports[0] == (first.url, disks[0])
    assert [one for one in reports if one[0] == second.url][-2:] == [
        (second.url, disks[0]),
        (second.url, disks[1]),
    ]
    answered = [check_in.hardware for _, url, check_in in world.database.check_ins if url == second.url]
    assert answered.count(None) >= len(answered) - 2


async def test_a_daemon_that_was_down_for_days_is_found_within_seconds(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    (daemon,) = world.daemons
    daemon.up = False

    def come_back() -> None:
        daemon.up = True

    async with trio.open_nursery() as nursery:
        world.after(nursery, 48 * HOUR_S, come_back)
        await world.serve(48 * HOUR_S + 30.0)
    tries = world.times()
    assert tries[3] < 6.0, "a daemon that only restarts isn't kept waiting"
    late = [at for at in tries[10:] if at < 48 * HOUR_S]
    pauses = [later - earlier for earlier, later in itertools.pairwise(late)]
    assert min(pauses) > 9.0, "a room without its daemon makes no flood"
    assert max(pauses) < 20.1
    assert world.log.names() == ["unanswered", "waiting"], "an hour's absence isn't a thousand lines"


async def test_a_daemon_that_answers_too_fast_is_not_flooded(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.database.check_in_after_s = 0.0
    world.database.assign(ASSIGNMENT)
    world.receptions.results = [StorageError("no disk")] * 100
    world.receptions.takes_s = 0.0
    await world.serve(600.0)
    assert len(world.database.check_ins) <= 600 / 0.5 + 2 * len(world.receptions.started)
    assert 4 <= len(world.receptions.started) <= 12, "a failed cast is retried with growing pauses"


async def test_the_next_daemon_is_tried_when_one_does_not_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(daemon_count=3)
    world.daemons[0].up = world.daemons[1].up = False
    await world.serve(60.0)
    assert world.log.names()[-1] == "waiting"
    assert world.log.lines[-1][1] == "http://10.0.0.2:7400"
    assert world.times(url="http://10.0.0.2:7400")[0] < 1.0
    assert len(world.times(url="http://10.0.0.0:7400")) == 1, "the one that answers is kept"


async def test_a_wrong_token_ends_the_service(world: World, autojump_clock: trio.testing.MockClock) -> None:
    world.daemons[0].refuses = True
    with pytest.raises(EnrolmentRefusedError):
        await world.serve(60.0)


async def test_a_new_machine_keeps_its_secret_and_then_waits(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.database.needs_enrolment = True
    await world.serve(60.0)
    assert world.credentials.bearer == "dcm_x"
    assert world.log.names() == ["enrolled", "waiting"]
    leaving = world.database.check_ins[-1][2]
    assert leaving.state is AgentState.LEAVING, "its machine may enrol again right after a reboot"


async def test_a_machine_that_waits_for_approval_shows_each_code_once_and_asks_politely(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.database.needs_enrolment = True
    world.database.approval_code = "7KX2QM"

    def approve() -> None:
        world.database.approval_code = ""

    async with trio.open_nursery() as nursery:
        world.after(nursery, 3600.0, approve)
        await world.serve(3660.0)
    assert world.log.lines[:2] == [("awaiting_approval", "seat 1", "7KX2QM"), ("enrolled", "seat 1", "")]
    pauses = [later - earlier for earlier, later in itertools.pairwise(world.times()) if later < 3600.0]
    assert min(pauses) >= 3.0


async def test_a_second_agent_retries_politely_and_gives_up_with_the_reason(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.database.needs_enrolment = world.database.claim_refused = True
    with pytest.raises(EnrolmentRefusedError, match="another agent is active"):
        await world.serve(2 * CLAIM_PATIENCE_S)
    assert trio.current_time() >= CLAIM_PATIENCE_S
    assert len(world.database.check_ins) <= 2 + CLAIM_PATIENCE_S / CLAIM_RETRY_S
    assert world.log.names() == ["unanswered"]


async def test_a_machine_whose_secret_is_rejected_enrols_again(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Its row was removed and the operator has imported it again, or the database was restored."""
    world.credentials.keep("dcm_old")
    world.daemons[0].rejects_secret = world.database.needs_enrolment = True
    await world.serve(60.0)
    assert world.credentials.bearer == "dcm_x"
    assert world.log.names() == ["unanswered", "enrolled", "waiting"]


# -- receiving ------------------------------------------------------------------------------------------------


async def test_a_cast_is_received_and_its_result_reported_until_recorded(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.database.records = False

    def record() -> None:
        world.database.records = True

    async with trio.open_nursery() as nursery:
        world.after(nursery, 10.0, lambda: world.database.assign(ASSIGNMENT))
        world.after(nursery, 200.0, record)
        world.after(nursery, 300.0, lambda: world.database.assign(None))
        await world.serve(400.0)
    [(endpoint, options), *again] = world.receptions.started
    assert endpoint == endpoint_of(ASSIGNMENT)
    assert (endpoint.control_url, endpoint.source) == ("http://10.77.0.1:7421", "10.77.0.1")
    assert (endpoint.image_id, endpoint.version_min) == (ASSIGNMENT.image_id, ASSIGNMENT.version_min)
    assert options.receiver.name == "seat 1"
    assert "machine_id" not in options.receiver.inventory, "only the ticket says which machine it is"
    started_again = [
        at for at, _, check_in in world.database.check_ins if check_in.state == AgentState.RECEIVING
    ]
    assert again == [] or min(at for at in started_again if at > 71.0) > 200.0, "not twice while it waits"
    reported = [check_in.last_result for at, _, check_in in world.database.check_ins if 71.0 < at < 200.0]
    assert len(reported) > 50
    assert all(outcome is not None and outcome.success for outcome in reported)
    assert world.database.outcomes[0].raw_bytes_verified == 1000
    last = world.database.check_ins[-1][2]
    assert (last.last_result, last.wait_s) == (None, 25.0)


async def test_a_receiving_machine_checks_in_every_few_seconds(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.database.assign(ASSIGNMENT)
    world.database.check_in_after_s = 4.0
    await world.serve(60.0)
    times = world.times(state=AgentState.RECEIVING)
    assert len(times) >= 14
    assert max(b - a for a, b in itertools.pairwise(times)) < 5.1
    cast_ids = {
        check_in.cast_id
        for _, _, check_in in world.database.check_ins
        if check_in.state == AgentState.RECEIVING
    }
    assert cast_ids == {ASSIGNMENT.cast_id}


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(TargetInUseError("/dev/sda is mounted"), 33), (StorageError("/dev/sda: input/output error"), 50)],
)
async def test_a_failure_is_reported_and_the_agent_waits_for_the_next_cast(
    world: World, autojump_clock: trio.testing.MockClock, error: DiskcastError, exit_code: int
) -> None:
    world.receptions.results = [error]
    world.database.assign(ASSIGNMENT)
    second = dataclasses.replace(ASSIGNMENT, cast_id=CastId(9))
    async with trio.open_nursery() as nursery:
        world.after(nursery, 62.0, lambda: world.database.assign(second))
        await world.serve(200.0)
    first, *_, last = world.database.outcomes
    assert (first.cast_id, first.success, first.exit_code) == (ASSIGNMENT.cast_id, False, exit_code)
    assert "/dev/sda" in first.error
    assert (last.cast_id, last.success) == (CastId(9), True)
    assert "failed" in world.log.names()


async def test_results_of_several_casts_are_all_recorded(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """A daemon whose database was unavailable takes them one by one."""
    world.database.records = False
    world.receptions.takes_s = 5.0
    casts = [dataclasses.replace(ASSIGNMENT, cast_id=CastId(number)) for number in (3, 4, 5)]

    def record() -> None:
        world.database.assign(None)
        world.database.records = True

    async with trio.open_nursery() as nursery:
        for index, cast in enumerate(casts):
            world.after(nursery, 10.0 * index, functools.partial(world.database.assign, cast))
        world.after(nursery, 60.0, record)
        await world.serve(100.0)
    assert [outcome.cast_id for outcome in world.database.outcomes] == [3, 4, 5]
    assert world.database.check_ins[-1][2].last_result is None


async def test_a_bug_is_not_reported_as_a_failed_cast(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.database.assign(ASSIGNMENT)

    def break_down() -> None:
        raise ZeroDivisionError

    world.receptions.during = break_down
    with pytest.raises(BaseExceptionGroup) as caught:
        await world.serve(60.0)
    assert caught.group_contains(ZeroDivisionError)


# -- a daemon dies, another takes over ------------------------------------------------------------------------


async def test_a_cast_that_is_taken_over_is_followed_within_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(daemon_count=2)
    world.database.assign(ASSIGNMENT)
    taken_over = dataclasses.replace(
        ASSIGNMENT, control_url="http://10.77.0.2:7421", sender_address="10.77.0.2", group="239.255.68.81"
    )

    def die() -> None:
        world.daemons[0].up = False

    moves: list[float] = []

    async def watch_moves() -> None:
        while world.receptions.tracker is None:
            await trio.sleep(0.1)
        tracker = world.receptions.tracker
        assert (await tracker.wait_for_change(tracker.endpoint)).source == "10.77.0.2"
        moves.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_moves)
        world.after(nursery, 20.0, die)
        world.after(nursery, 27.0, lambda: world.database.assign(taken_over))
        await world.serve(50.0)
    assert 27.0 <= moves[0] <= 27.0 + 6.0
    assert "moved" in world.log.names()
    assert world.log.names().count("assigned") == 1, "the cast isn't assigned again"


async def test_silence_makes_the_agent_check_in_at_once_and_often(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.database.assign(ASSIGNMENT)
    world.database.check_in_after_s = 300.0

    def fall_silent() -> None:
        world.receptions.receiver.state = ReceptionState.SILENT
        assert world.receptions.observer is not None
        world.receptions.observer.silent(3.0)

    async with trio.open_nursery() as nursery:
        world.after(nursery, 22.4, fall_silent)
        await world.serve(40.0)
    times = [at for at in world.times(state=AgentState.RECEIVING) if at >= 22.4]
    assert times[0] == pytest.approx(22.4, abs=0.01)
    assert len(times) >= 16


async def test_a_cast_that_is_over_everywhere_frees_the_machine(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """The agent was cut off when the cast ended; the next cast doesn't wait for its timeout."""
    world.receptions.takes_s = HOUR_S
    world.receptions.receiver.state = ReceptionState.SILENT
    world.database.assign(ASSIGNMENT)
    async with trio.open_nursery() as nursery:
        world.after(nursery, 60.0, lambda: world.database.assign(None))
        await world.serve(120.0)
    assert world.receptions.cancelled
    (failed,) = [line for line in world.log.lines if line[0] == "failed"]
    assert isinstance(failed[2], SenderLostError)
    assert 85.0 < max(world.times(state=AgentState.RECEIVING)) < 100.0
    assert world.database.outcomes == [], "a lost sender is no final result"


async def test_a_daemon_that_forgets_a_cast_does_not_end_a_running_one(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """The daemon was restarted and doesn't know its casts yet, or the token was changed."""
    world.receptions.takes_s = 600.0
    world.database.assign(ASSIGNMENT)

    def forget() -> None:
        world.database.assign(None)
        world.daemons[0].refuses = True

    def remember() -> None:
        world.daemons[0].refuses = False

    async with trio.open_nursery() as nursery:
        world.after(nursery, 60.0, forget)
        world.after(nursery, 500.0, remember)
        await world.serve(700.0)
    assert world.database.outcomes[0].success
    refused = [at for at in world.times() if 60.0 < at < 500.0]
    assert len(refused) < 450, "a daemon that refuses isn't flooded"


# -- the end --------------------------------------------------------------------------------------------------


async def test_an_agent_for_one_cast_exits_when_its_result_is_recorded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(exit_after_success=True)
    world.receptions.results = [StorageError("no disk"), RECEPTION]
    world.database.assign(ASSIGNMENT)
    world.database.records = False

    def record() -> None:
        world.database.records = True

    with trio.fail_after(600.0):
        async with trio.open_nursery() as nursery:
            world.after(nursery, 140.0, record)
            await world.service.run()
            assert trio.current_time() > 140.0
    assert len(world.receptions.started) == 2, "a failed cast doesn't end it"
    assert world.database.outcomes[-1].success
    assert "unrecorded" not in world.log.names()


async def test_an_agent_for_one_cast_does_not_wait_for_a_daemon_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(exit_after_success=True)
    world.database.assign(ASSIGNMENT)

    def die() -> None:
        world.daemons[0].up = False

    async with trio.open_nursery() as nursery:
        world.after(nursery, 30.0, die)
        with trio.fail_after(130.0):
            await world.service.run()
    assert world.database.outcomes == []
    assert world.log.lines[-1] == ("unrecorded", [ASSIGNMENT.cast_id])


async def test_a_signal_ends_the_service_in_the_middle_of_a_cast(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.database.assign(ASSIGNMENT)
    await world.serve(30.0)
    assert world.receptions.cancelled


# -- a machine that was booted for a cast, and has nothing to do ----------------------------------------------------


@pytest.fixture
def booted() -> World:
    world = World(exit_when_idle=True)
    world.database.needs_enrolment = True
    world.database.cast_planned = False
    return world


async def test_a_machine_whose_cast_ended_before_it_came_restarts(
    booted: World, autojump_clock: trio.testing.MockClock
) -> None:
    await booted.serve(HOUR_S)
    assert booted.end is ServiceEnd.NOTHING_PLANNED
    assert 300.0 <= booted.times()[-1] <= 340.0
    assert booted.log.names() == ["enrolled", "waiting", "nothing_planned"]
    assert booted.database.check_ins[-1][2].state is AgentState.LEAVING


async def test_a_captured_machine_restarts_at_once(
    booted: World, autojump_clock: trio.testing.MockClock
) -> None:
    """The reference PC would wait in the live system for an hour, as if a cast could still come."""
    booted.database.capture = CAPTURE
    await booted.serve(HOUR_S)
    assert booted.end is ServiceEnd.NOTHING_PLANNED
    assert booted.times()[-1] < 70.0
    assert booted.log.names()[-3:] == ["capture_assigned", "captured", "nothing_planned"]


async def test_a_captured_machine_waits_for_the_cast_that_is_planned(
    booted: World, autojump_clock: trio.testing.MockClock
) -> None:
    booted.database.capture = CAPTURE
    booted.database.cast_planned = True
    await booted.serve(HOUR_S)
    assert booted.end is None


async def test_a_machine_whose_capture_failed_shows_why_for_a_while(
    booted: World, autojump_clock: trio.testing.MockClock
) -> None:
    booted.database.capture = CAPTURE
    booted.capture_error = StorageError("the disk failed")
    await booted.serve(HOUR_S)
    assert booted.end is ServiceEnd.NOTHING_PLANNED
    assert booted.times()[-1] >= 300.0


async def test_a_machine_waits_on_while_a_cast_is_planned(
    booted: World, autojump_clock: trio.testing.MockClock
) -> None:
    booted.database.cast_planned = True

    def call_off() -> None:
        booted.database.cast_planned = False

    async with trio.open_nursery() as nursery:
        booted.after(nursery, HOUR_S, call_off)
        await booted.serve(2 * HOUR_S)
    assert booted.end is ServiceEnd.NOTHING_PLANNED
    assert booted.times()[-1] >= HOUR_S + 300.0


async def test_a_machine_waits_on_while_no_daemon_answers(
    booted: World, autojump_clock: trio.testing.MockClock
) -> None:
    (daemon,) = booted.daemons

    def go_down() -> None:
        daemon.up = False
        booted.database.changed.set()

    async with trio.open_nursery() as nursery:
        booted.after(nursery, 60.0, go_down)
        await booted.serve(2 * HOUR_S)
    assert booted.end is None


async def test_a_machine_waits_on_for_approval(booted: World, autojump_clock: trio.testing.MockClock) -> None:
    booted.database.approval_code = "7KQ2"
    await booted.serve(2 * HOUR_S)
    assert booted.end is None


async def test_a_machine_with_an_incomplete_disk_stays_and_shows_why(
    booted: World, autojump_clock: trio.testing.MockClock
) -> None:
    booted.database.assign(ASSIGNMENT)
    booted.receptions.results = [StorageError("the disk failed")]
    booted.receptions.during = lambda: booted.database.assign(None)
    await booted.serve(2 * HOUR_S)
    assert booted.end is None


async def test_a_machine_that_joined_too_late_for_any_data_restarts(
    booted: World, autojump_clock: trio.testing.MockClock
) -> None:
    booted.database.assign(ASSIGNMENT)
    booted.receptions.receiver.prepared = False
    booted.receptions.results = [SenderLostError("it is over")]
    booted.receptions.during = lambda: booted.database.assign(None)
    await booted.serve(2 * HOUR_S)
    assert booted.end is ServiceEnd.NOTHING_PLANNED


async def test_an_agent_that_no_boot_service_started_never_restarts(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.database.needs_enrolment = True
    world.database.cast_planned = False
    await world.serve(2 * HOUR_S)
    assert world.end is None
