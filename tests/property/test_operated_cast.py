"""A cast of real sessions with interventions of an operator and a bad network in any order: always safe, and it ends.

Datagrams are lost, doubled, reordered and altered; machines join, leave, return and find verified blocks damaged; the
operator pauses, resumes, moves the ceiling, stops waiting for machines and starts by hand. Hypothesis draws the
events and shortens failing sequences.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.model.bottleneck import Cause
from protocol.model.cast_policy import SlowPolicy
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.model.session_records import ReceiverState
from tests.simulation.world import Path, Scenario, SimulatedReceiver, World
from tests.support.network.completion_reports import completion

STEPS_MAX = 200_000
"""Actions of the simulation that must end with the cast: arriving datagrams, timers, batches."""

RECEIVERS_MAX = 3
whichever = st.integers(0, RECEIVERS_MAX - 1)
_CUT = 0.9
_seconds = st.sampled_from([0.003, 0.03, 0.1, 0.3, 1.0, 3.5])


def happens(**drawn: st.SearchStrategy) -> Callable[[Callable], Callable]:
    """Return a rule that is followed by some time."""

    def make_rule(function: Callable) -> Callable:
        @functools.wraps(function)
        def step(self: OperatedCast, after_s: float, **arguments: object) -> None:
            function(self, **arguments)
            self.world.run_for(after_s)

        return rule(after_s=_seconds, **drawn)(step)

    return make_rule


@dataclasses.dataclass(slots=True)
class CutPath(Path):
    """Watch whether so much was lost that the sender may consider the machine lost."""

    cut: bool = False


class OperatedCast(RuleBasedStateMachine):
    """One cast; at the end the network works and the operator lets the cast continue."""

    @initialize(
        seed=st.integers(0, 2**16),
        block_count=st.integers(1, 40),
        joined_count=st.integers(0, RECEIVERS_MAX),
        wait_for=st.integers(1, RECEIVERS_MAX),
        rate_bytes_per_s=st.sampled_from([20_000.0, 100_000.0, None]),
        by_hand=st.booleans(),
        paused=st.booleans(),
        linger=st.booleans(),
        losses=st.tuples(*RECEIVERS_MAX * [st.sampled_from([0.0, 0.02, 0.2, 0.9])]),
        slow_policy=st.sampled_from(SlowPolicy),
        pool_block_count=st.sampled_from([8, 64]),
    )
    def gather(
        self,
        seed: int,
        block_count: int,
        joined_count: int,
        wait_for: int,
        rate_bytes_per_s: float | None,
        by_hand: bool,
        paused: bool,
        linger: bool,
        losses: tuple[float, ...],
        slow_policy: SlowPolicy,
        pool_block_count: int,
    ) -> None:
        policy = {"by_hand": by_hand, "slow_policy": slow_policy, "slow_for_s": 0.5, "max_wait_s": None}
        paths = [CutPath(loss=loss, cut=loss >= _CUT) for loss in losses]
        scenario = Scenario(
            seed,
            block_count=block_count,
            paths=paths,
            join_at=[1e9] * RECEIVERS_MAX,
            wait_for=wait_for,
            pool_block_count=pool_block_count,
            rate_bytes_per_s=rate_bytes_per_s,
            policy=policy,
        )
        self.world = World(scenario)
        self.rng = random.Random(seed)
        self.runs = 0
        if paused:
            self.world.sender.pause()
        for receiver in self.world.receivers:
            receiver.lingers = linger
        for receiver in self.world.receivers[:joined_count]:
            receiver.join()

    # -- machines ---------------------------------------------------------------------------------------------

    @happens(index=whichever)
    def join(self, index: int) -> None:
        receiver = self.world.receivers[index]
        if receiver.session is None:
            receiver.join()

    @happens(index=whichever)
    def start_again(self, index: int) -> None:
        """Restart the machine: its scan finds the blocks on its disk."""
        receiver = self.world.receivers[index]
        if receiver.session is None or receiver.complete:
            return
        self.runs += 1
        receiver.agent_id = f"run{self.runs} of agent{index}" if self.rng.random() < 0.5 else f"agent{index}"
        receiver.ended = None
        receiver.dropped = False
        receiver.join()

    @happens(index=whichever)
    def give_up(self, index: int) -> None:
        receiver = self.world.receivers[index]
        session = receiver.session
        if session is None or receiver.complete or self.rng.random() < 0.5:
            return
        receiver.die()
        if self.rng.random() < 0.5:
            self.world.sender.complete(
                session.grant.receiver_id, completion(success=False, error="disk on fire"), self.world.now
            )

    @happens(index=whichever, lingers=st.booleans())
    def linger(self, index: int, lingers: bool) -> None:
        self.world.receivers[index].lingers = lingers

    @happens(index=whichever, count=st.sampled_from([1, 100]))
    def find_blocks_bad(self, index: int, count: int) -> None:
        receiver = self.world.receivers[index]
        if receiver.lingers and not receiver.complete:
            for block in sorted(receiver.disk)[:count]:
                receiver.turn_bad(block)

    @happens(index=whichever)
    def turn_out_too_slow(self, index: int) -> None:
        """Set the loss that reports of a bad link would have shown after a while."""
        receiver, sender = self.world.receivers[index], self.world.sender
        if receiver.session is not None:
            capacity = sender.rate_control.capacities.get(receiver.session.grant.receiver_id)
            if capacity is not None:
                capacity.meet_knee(1_000.0, 0.1, Cause.NETWORK, self.world.now)
                capacity.usual_loss = 0.9

    # -- the network ------------------------------------------------------------------------------------------

    @happens(
        index=whichever,
        loss=st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]),
        duplication=st.sampled_from([0.0, 0.1]),
        corruption=st.sampled_from([0.0, 0.003]),
        jitter_s=st.sampled_from([0.0, 0.001, 0.05]),
    )
    def disturb(
        self, index: int, loss: float, duplication: float, corruption: float, jitter_s: float
    ) -> None:
        path = self.world.receivers[index].path
        path.loss, path.duplication, path.corruption, path.jitter_s = loss, duplication, corruption, jitter_s
        path.cut = path.cut or loss >= _CUT

    @happens()
    def let_it_run(self) -> None:
        pass

    # -- the operator -----------------------------------------------------------------------------------------

    @happens()
    def pause(self) -> None:
        self.world.sender.pause()

    @happens()
    def resume(self) -> None:
        self.world.sender.resume(self.world.now)

    @happens(ceiling=st.sampled_from([10_000.0, 50_000.0, 1e9]))
    def move_the_ceiling(self, ceiling: float) -> None:
        self.world.sender.set_rate_ceiling(ceiling)

    @happens(count=st.integers(0, RECEIVERS_MAX))
    def stop_waiting_for(self, count: int) -> None:
        self.world.sender.gathering.stop_waiting_for(count)

    @happens()
    def start_casting(self) -> None:
        self.world.sender.gathering.start_now()

    @precondition(lambda self: self.world.sender.state != CastState.GATHERING)
    @happens(outcome=st.sampled_from(SessionOutcome))
    def end(self, outcome: SessionOutcome) -> None:
        if self.rng.random() < 0.1:
            self.world.sender.end(outcome, "the lesson begins", self.world.now)

    # -- invariants ------------------------------------------------------------------------------------------

    @invariant()
    def a_complete_receiver_holds_the_image(self) -> None:
        if not hasattr(self, "world"):
            return
        for receiver in self.world.receivers:
            if receiver.complete:
                assert receiver.holds_image(), f"receiver {receiver.index} holds a wrong image"
            state = _state(receiver)
            assert state is not ReceiverState.COMPLETE or receiver.complete, f"receiver {receiver.index}"

    @invariant()
    def the_session_is_consistent(self) -> None:
        if not hasattr(self, "world"):
            return
        sender = self.world.sender
        records = sender.receivers.values()
        assert sender.active_count == sum(record.state.active for record in records)
        if sender.paused or sender.state == CastState.ENDED:
            assert sender.next_plan(self.world.now, 8) is None
        if sender.state == CastState.ENDED:
            assert sender.image_demand.idle
        assert sender.next_timer(self.world.now) >= self.world.now

    def teardown(self) -> None:
        """Let the network work again, and the cast continue."""
        if not hasattr(self, "world"):
            return
        world = self.world
        sender = world.sender
        for receiver in world.receivers:
            path = receiver.path
            path.loss, path.duplication = min(path.loss, 0.2), min(path.duplication, 0.05)
            path.jitter_s = min(path.jitter_s, 0.02)
            receiver.lingers = False
            if receiver.session is None:
                receiver.join()
        sender.gathering.start_now()
        sender.resume(world.now)
        sender.set_rate_ceiling(1e9)
        for _ in range(STEPS_MAX):
            if sender.finished or not world.step():
                break
        assert sender.finished, f"not over after {STEPS_MAX} steps: {world.describe()}"
        self.a_complete_receiver_holds_the_image()
        for receiver in world.receivers:
            if receiver.alive and receiver.session is not None:
                _assert_completed_or_notified(receiver)


def _state(receiver: SimulatedReceiver) -> ReceiverState | None:
    if receiver.session is None:
        return None
    record = receiver.world.sender.receivers[receiver.session.grant.receiver_id]
    ours = record.key == receiver.session.grant.key  # else another run of the agent has taken over the record
    return record.state if ours else None


def _assert_completed_or_notified(receiver: SimulatedReceiver) -> None:
    """A machine that stays completes, unless the operator ended the cast or the cast notified it that it is dropped."""
    sender = receiver.world.sender
    if receiver.complete:
        return
    given_up = _state(receiver) is ReceiverState.DROPPED or (
        _state(receiver) is ReceiverState.LOST and receiver.path.cut
    )
    assert given_up or sender.outcome != SessionOutcome.COMPLETE or sender.reason == "the lesson begins", (
        f"receiver {receiver.index} didn't complete, {receiver.world.describe()}"
    )


OperatedCast.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestOperatedCast = OperatedCast.TestCase
