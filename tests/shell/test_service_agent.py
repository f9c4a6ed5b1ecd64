"""The agent in service mode, under a clock that jumps and with a daemon that does what the test says.

Lost if these fail: a machine that somebody has to walk to, because its agent gave up, flooded the daemon, forgot its
result or took its cast twice.
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

from protocol.control.check_in import AgentState, Assignment, CheckIn, CheckInAnswer
from protocol.errors import (
    DiskcastError,
    SenderLostError,
    ServerRefusedError,
    StorageError,
    TargetInUseError,
)
from protocol.model.session_records import CastId, MachineIdentity
from receiver.reception.cast_receiver import CastReceiver
from receiver.reception.network.cast_endpoint import CastEndpoint, EndpointTracker
from receiver.reception.network.http_client import Unreachable
from receiver.reception.options import CastReceiverOptions, ReceiveOptions
from receiver.reception.reporting.observer import Observer, ReceptionObserver
from receiver.reception.reporting.status import Reception, ReceptionState
from receiver.service.agent_service import AgentDescription, AgentService
from receiver.service.server_client import DaemonRing
from receiver.target.options import DEFAULTS
from tests.shell.small_cast import Recorder
from tests.unit.protocol.control.test_check_in import ASSIGNMENT
from tests.unit.receiver.reception.reporting.test_progress import RECEPTION, STATUS

pytestmark = pytest.mark.trio

HOUR_S = 3600.0


class FakeDaemon:
    """A daemon as its agents see it; several share one :class:`Books`, as several daemons share a database."""

    def __init__(self, books: Books, url: str) -> None:
        self.url = url
        self.up = True
        self.refuses = False
        self._books = books

    async def check_in(self, check_in: CheckIn) -> CheckInAnswer:
        books = self._books
        books.heard.append((trio.current_time(), self.url, check_in))
        await trio.sleep(0.001)
        if not self.up:
            raise Unreachable(f"{self.url}: connection refused")
        if self.refuses:
            raise ServerRefusedError("no such token")
        with trio.move_on_after(check_in.wait_s):
            while self.up and books.assignment is None:
                await books.changed.wait()
        if not self.up:
            raise Unreachable(f"{self.url}: the connection ended")
        recorded = None
        if check_in.last_result is not None and books.records:
            recorded = check_in.last_result.cast_id
            books.outcomes.append(check_in.last_result)
        return CheckInAnswer("m-1", "seat 1", recorded, books.assignment, books.check_in_after_s)


class Books:
    """What the daemons know.

    Attributes:
        heard: time, daemon and check-in.
    """

    def __init__(self) -> None:
        self.heard: list[tuple[float, str, CheckIn]] = []
        self.outcomes: list[Any] = []
        self.records = True
        self.check_in_after_s = 1.0
        self.assignment: Assignment | None = None
        self.changed = trio.Event()

    def assign(self, assignment: Assignment | None) -> None:
        self.assignment = assignment
        self.changed.set()
        self.changed = trio.Event()


class FakeAgent:
    """What the service needs of an agent that receives."""

    def __init__(self) -> None:
        self.state = ReceptionState.RECEIVING

    def status(self) -> Any:
        return dataclasses.replace(STATUS, state=self.state)


class Receptions:
    """Stands for receiving: what the test says happens."""

    def __init__(self) -> None:
        self.begun: list[tuple[CastEndpoint, ReceiveOptions]] = []
        self.results: list[DiskcastError | Reception] = []
        self.takes_s = 60.0
        self.tracker: EndpointTracker | None = None
        self.observer: Observer | None = None
        self.agent = FakeAgent()
        self.cancelled = False
        self.during: Callable[[], None] = lambda: None

    async def receive(
        self,
        options: ReceiveOptions,
        place: CastEndpoint,
        observer: Observer,
        watch: Callable[[CastReceiver], contextlib.AbstractContextManager[None]],
        tracker: EndpointTracker,
    ) -> Reception:
        self.begun.append((place, options))
        self.tracker, self.observer = tracker, observer
        result = self.results.pop(0) if self.results else RECEPTION
        if isinstance(result, TargetInUseError):
            raise result  # before there is an agent
        with watch(self.agent):  # type: ignore[arg-type]
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
    """Remembers."""

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
    """A service, its daemons, and the nursery that they live in."""

    def __init__(self, *, daemon_count: int = 1, exit_after_success: bool = False) -> None:
        self.books = Books()
        self.daemons = [
            FakeDaemon(self.books, f"http://10.0.0.{index}:7400") for index in range(daemon_count)
        ]
        self.receptions = Receptions()
        self.log = Log()
        agent = CastReceiverOptions(
            "pc1", {}, assembly_bytes=1 << 20, join_timeout_s=60.0, sender_timeout_s=300.0
        )
        self.service = AgentService(
            DaemonRing(self.daemons, random.Random(4)),
            AgentDescription(
                "pc1", "1.0", MachineIdentity(("52:54:00:12:34:56",), "S1", "A1"), {"host": "pc1"}
            ),
            ReceiveOptions("auto", DEFAULTS, "lo", agent),
            receive=self.receptions.receive,
            log=self.log,  # type: ignore[arg-type]
            exit_after_success=exit_after_success,
        )

    async def serve(self, seconds: float) -> None:
        """Let it serve for that long, or until it ends."""
        with trio.move_on_after(seconds):
            await self.service.run()

    def after(self, nursery: trio.Nursery, seconds: float, action: Callable[[], object]) -> None:
        async def act() -> None:
            await trio.sleep(seconds)
            action()

        nursery.start_soon(act)

    def times(self, *, state: str | None = None, url: str | None = None) -> list[float]:
        return [
            at
            for at, asked, check_in in self.books.heard
            if state in (None, check_in.state) and url in (None, asked)
        ]


@pytest.fixture
def world() -> World:
    return World()


# -- waiting --------------------------------------------------------------------------------------------------


async def test_a_waiting_agent_says_who_it_is_and_lets_the_daemon_hold_its_answer(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    await world.serve(10 * 60.0)
    assert 20 <= len(world.books.heard) <= 25, "a long poll of 25 s and a pause of 1 s each"
    _, _, check_in = world.books.heard[0]
    assert check_in.macs == ("52:54:00:12:34:56",)
    assert (check_in.serial, check_in.asset_tag, check_in.name) == ("S1", "A1", "pc1")
    assert check_in.inventory == {"host": "pc1", "target": "auto"}
    assert check_in.state == AgentState.IDLE
    assert [check_in.wait_s for _, _, check_in in world.books.heard[:3]] == [0.0, 25.0, 25.0]
    assert world.log.lines == [("waiting", "http://10.0.0.0:7400", "m-1", "seat 1")]
    assert world.service.status().state is ReceptionState.WAITING


async def test_a_daemon_that_is_away_for_days_is_found_again_within_seconds(
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
    assert tries[3] < 6.0, "a daemon that is only started again isn't kept waiting"
    away = [at for at in tries[10:] if at < 48 * HOUR_S]
    pauses = [later - earlier for earlier, later in itertools.pairwise(away)]
    assert min(pauses) > 9.0, "a room without its daemon is no flood"
    assert max(pauses) < 20.1
    assert world.log.names() == ["unanswered", "waiting"], "an hour's absence isn't a thousand lines"


async def test_a_daemon_that_answers_too_fast_is_not_flooded(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.books.check_in_after_s = 0.0
    world.books.assign(ASSIGNMENT)
    world.receptions.results = [StorageError("no disk")] * 100
    world.receptions.takes_s = 0.0
    await world.serve(600.0)
    assert len(world.books.heard) <= 600 / 0.5 + 2 * len(world.receptions.begun)
    assert 4 <= len(world.receptions.begun) <= 12, "what failed is tried again with longer and longer pauses"


async def test_the_next_daemon_is_asked_when_one_does_not_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(daemon_count=3)
    world.daemons[0].up = world.daemons[1].up = False
    await world.serve(60.0)
    assert world.log.names()[-1] == "waiting"
    assert world.log.lines[-1][1] == "http://10.0.0.2:7400"
    assert world.times(url="http://10.0.0.2:7400")[0] < 1.0
    assert len(world.times(url="http://10.0.0.0:7400")) == 1, "the one that answers is kept"


async def test_a_wrong_token_ends_it(world: World, autojump_clock: trio.testing.MockClock) -> None:
    world.daemons[0].refuses = True
    with pytest.raises(ServerRefusedError):
        await world.serve(60.0)


# -- receiving ------------------------------------------------------------------------------------------------


async def test_a_cast_is_received_and_its_result_said_until_it_is_on_record(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.books.records = False

    def record() -> None:
        world.books.records = True

    async with trio.open_nursery() as nursery:
        world.after(nursery, 10.0, lambda: world.books.assign(ASSIGNMENT))
        world.after(nursery, 200.0, record)
        world.after(nursery, 300.0, lambda: world.books.assign(None))
        await world.serve(400.0)
    [(place, options), *again] = world.receptions.begun
    assert place == CastEndpoint(
        ASSIGNMENT.cast_id, "http://10.77.0.1:7421", "10.77.0.1", "239.255.68.80", 7420
    )
    assert options.receiver.inventory["machine_id"] == "m-1", "the sender knows who joins"
    assert (options.receiver.name, options.receiver.agent_id) == ("seat 1", "m-1")
    begun_again = [at for at, _, check_in in world.books.heard if check_in.state == AgentState.RECEIVING]
    assert again == [] or min(at for at in begun_again if at > 71.0) > 200.0, "not twice while it waits"
    said = [check_in.last_result for at, _, check_in in world.books.heard if 71.0 < at < 200.0]
    assert len(said) > 50
    assert all(outcome is not None and outcome.success for outcome in said)
    assert world.books.outcomes[0].raw_bytes_verified == 1000
    last = world.books.heard[-1][2]
    assert (last.last_result, last.wait_s) == (None, 25.0)


async def test_a_machine_that_receives_is_seen_every_few_seconds(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.books.assign(ASSIGNMENT)
    world.books.check_in_after_s = 4.0
    await world.serve(60.0)
    times = world.times(state=AgentState.RECEIVING)
    assert len(times) >= 14
    assert max(b - a for a, b in itertools.pairwise(times)) < 5.1
    cast_ids = {
        check_in.cast_id for _, _, check_in in world.books.heard if check_in.state == AgentState.RECEIVING
    }
    assert cast_ids == {ASSIGNMENT.cast_id}


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(TargetInUseError("/dev/sda is mounted"), 33), (StorageError("/dev/sda: input/output error"), 50)],
)
async def test_a_failure_is_told_and_the_agent_waits_for_the_next_cast(
    world: World, autojump_clock: trio.testing.MockClock, error: DiskcastError, exit_code: int
) -> None:
    world.receptions.results = [error]
    world.books.assign(ASSIGNMENT)
    second = dataclasses.replace(ASSIGNMENT, cast_id=CastId(9))
    async with trio.open_nursery() as nursery:
        world.after(nursery, 62.0, lambda: world.books.assign(second))
        await world.serve(200.0)
    first, *_, last = world.books.outcomes
    assert (first.cast_id, first.success, first.exit_code) == (ASSIGNMENT.cast_id, False, exit_code)
    assert "/dev/sda" in first.error
    assert (last.cast_id, last.success) == (CastId(9), True)
    assert "failed" in world.log.names()


async def test_results_of_several_casts_all_come_on_record(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """A daemon whose database is away for a while takes them one by one."""
    world.books.records = False
    world.receptions.takes_s = 5.0
    casts = [dataclasses.replace(ASSIGNMENT, cast_id=CastId(number)) for number in (3, 4, 5)]

    def record() -> None:
        world.books.assign(None)
        world.books.records = True

    async with trio.open_nursery() as nursery:
        for index, cast in enumerate(casts):
            world.after(nursery, 10.0 * index, functools.partial(world.books.assign, cast))
        world.after(nursery, 60.0, record)
        await world.serve(100.0)
    assert [outcome.cast_id for outcome in world.books.outcomes] == [3, 4, 5]
    assert world.books.heard[-1][2].last_result is None


async def test_a_bug_is_not_taken_for_a_failed_cast(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.books.assign(ASSIGNMENT)

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
    world.books.assign(ASSIGNMENT)
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
        world.after(nursery, 27.0, lambda: world.books.assign(taken_over))
        await world.serve(50.0)
    assert 27.0 <= moves[0] <= 27.0 + 6.0
    assert "moved" in world.log.names()
    assert world.log.names().count("assigned") == 1, "nothing began anew"


async def test_silence_makes_the_agent_ask_at_once_and_often(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.books.assign(ASSIGNMENT)
    world.books.check_in_after_s = 300.0

    def fall_silent() -> None:
        world.receptions.agent.state = ReceptionState.SILENT
        assert world.receptions.observer is not None
        world.receptions.observer.silent(3.0)

    async with trio.open_nursery() as nursery:
        world.after(nursery, 22.4, fall_silent)
        await world.serve(40.0)
    times = [at for at in world.times(state=AgentState.RECEIVING) if at >= 22.4]
    assert times[0] == pytest.approx(22.4, abs=0.01)
    assert len(times) >= 16


async def test_a_cast_that_is_over_everywhere_sets_the_machine_free(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """The agent was cut off when the cast ended; the next cast doesn't wait for its patience to end."""
    world.receptions.takes_s = HOUR_S
    world.receptions.agent.state = ReceptionState.SILENT
    world.books.assign(ASSIGNMENT)
    async with trio.open_nursery() as nursery:
        world.after(nursery, 60.0, lambda: world.books.assign(None))
        await world.serve(120.0)
    assert world.receptions.cancelled
    (failed,) = [line for line in world.log.lines if line[0] == "failed"]
    assert isinstance(failed[2], SenderLostError)
    assert 85.0 < max(world.times(state=AgentState.RECEIVING)) < 100.0
    assert world.books.outcomes == [], "who lost its sender joins again when it is told to"


async def test_a_daemon_that_forgets_a_cast_does_not_end_one_that_goes_well(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """It was started again and doesn't know its casts yet, or its token was changed."""
    world.receptions.takes_s = 600.0
    world.books.assign(ASSIGNMENT)

    def forget() -> None:
        world.books.assign(None)
        world.daemons[0].refuses = True

    def remember() -> None:
        world.daemons[0].refuses = False

    async with trio.open_nursery() as nursery:
        world.after(nursery, 60.0, forget)
        world.after(nursery, 500.0, remember)
        await world.serve(700.0)
    assert world.books.outcomes[0].success
    refused = [at for at in world.times() if 60.0 < at < 500.0]
    assert len(refused) < 450, "a daemon that refuses isn't flooded"


# -- the end --------------------------------------------------------------------------------------------------


async def test_an_agent_for_one_cast_leaves_when_its_result_is_on_record(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(exit_after_success=True)
    world.receptions.results = [StorageError("no disk"), RECEPTION]
    world.books.assign(ASSIGNMENT)
    world.books.records = False

    def record() -> None:
        world.books.records = True

    with trio.fail_after(600.0):
        async with trio.open_nursery() as nursery:
            world.after(nursery, 140.0, record)
            await world.service.run()
            assert trio.current_time() > 140.0
    assert len(world.receptions.begun) == 2, "a failed cast doesn't end it"
    assert world.books.outcomes[-1].success
    assert "unrecorded" not in world.log.names()


async def test_an_agent_for_one_cast_does_not_wait_for_a_daemon_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(exit_after_success=True)
    world.books.assign(ASSIGNMENT)

    def die() -> None:
        world.daemons[0].up = False

    async with trio.open_nursery() as nursery:
        world.after(nursery, 30.0, die)
        with trio.fail_after(130.0):
            await world.service.run()
    assert world.books.outcomes == []
    assert world.log.lines[-1] == ("unrecorded", [ASSIGNMENT.cast_id])


async def test_a_signal_ends_it_in_the_middle_of_a_cast(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.books.assign(ASSIGNMENT)
    await world.serve(30.0)
    assert world.receptions.cancelled
