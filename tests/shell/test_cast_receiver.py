"""A cast receiver around real sessions, under a clock that jumps: deadlines, silence, restarts, bad disks and images.

Lost if these fail: a receiver hangs, reports an incomplete disk as complete, or starts over after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing
from numpy.typing import NDArray

from protocol.errors import (
    CastCancelledError,
    CastFailedError,
    DroppedError,
    JoinRefusedError,
    NoSenderError,
    NotServedError,
    SenderLostError,
    StorageError,
    VerificationError,
)
from protocol.model.bottleneck import Cause
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.receiving.block_assembly import AssembledBlock
from protocol.trust.block_cipher import BlockCipher
from protocol.wire.bitmap import bitmap_of
from protocol.wire.messages import Standing
from receiver.reception.reporting.status import ReceptionState
from receiver.target.block_sink import Outcome
from receiver.target.image import TargetImage
from receiver.target.open_target import open_target
from tests.shell.small_cast import SYMBOL_BYTES, SmallCast, SmallImage, threads_in_place
from tests.support.wire import announcement, forged

__all__ = ["threads_in_place"]
pytestmark = [pytest.mark.trio, pytest.mark.usefixtures("threads_in_place")]


@pytest.fixture
def cast(tmp_path: Path) -> SmallCast:
    return SmallCast(SmallImage(), tmp_path)


def source_symbols(image: SmallImage) -> int:
    return int(image.manifest.source_symbols(SYMBOL_BYTES).astype(int).sum())


def at_symbols(cast: SmallCast, count: int, action: Callable[[], None]) -> None:
    """Run ``action`` once, when the sender has sent ``count`` data symbols since its start."""
    done = False

    def watch(sent: int) -> None:
        nonlocal done
        if sent >= count and not done:
            done = True
            action()

    cast.on_symbols = watch


# -- success --------------------------------------------------------------------------------------------------


async def test_an_image_arrives(cast: SmallCast, autojump_clock: trio.testing.MockClock) -> None:
    cast.start_sender()
    reception = await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.image_symbols_sent == source_symbols(cast.image)
    (report,) = cast.completions
    assert report.success
    assert report.raw_bytes_verified == len(cast.image.raw)
    assert report.datagrams_received == report.datagrams_expected > source_symbols(cast.image)
    assert 0 < report.seconds_receiving <= report.seconds_total
    assert cast.observer.joins == [False]
    assert reception.reported
    assert reception.status.state is ReceptionState.REPORTING
    assert reception.status.blocks_needed == 0
    assert all(sock.closed for sock in cast.sockets)


@pytest.mark.parametrize("loss", [0.05, 0.3])
async def test_injected_loss_is_repaired(
    cast: SmallCast, autojump_clock: trio.testing.MockClock, loss: float
) -> None:
    cast.start_sender()
    reception = await cast.receive(injected_loss=loss, injected_loss_seed=3)
    assert cast.path.read_bytes() == cast.image.raw
    status = reception.status
    assert status.nacks_sent > 0
    assert status.blocks_repaired_by_nack + status.blocks_repaired_by_parity > 0
    assert status.datagrams_lost / status.datagrams_expected == pytest.approx(loss, rel=0.4)


async def test_a_late_joiner_fetches_the_manifest(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    assert cast.sender is not None
    cast.sender.state = CastState.CASTING
    await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw


async def test_an_image_of_zeros_needs_no_data(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    cast = SmallCast(SmallImage(zeros_only=True), tmp_path)
    cast.path.write_bytes(b"old" * 200_000)
    cast.start_sender()
    reception = await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.image_symbols_sent == 0
    assert reception.status.raw_bytes_verified == len(cast.image.raw)


# -- the sender disappears ------------------------------------------------------------------------------------


async def test_after_a_restart_only_the_rest_is_sent(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    half = source_symbols(cast.image) // 2
    at_symbols(cast, half, cast.stop_sender)

    async def start_again() -> None:
        while cast.sender is not None:
            await trio.sleep(0.1)
        await trio.sleep(12.0)
        cast.start_sender()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_again)
        reception = await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.observer.joins == [False, True]
    assert cast.observer.silences[0] == pytest.approx(3.0, abs=0.2)
    assert reception.status.rejoins == 1
    need = cast.joins[1].need
    assert need is not None
    assert 0 < need.sum() < cast.image.manifest.stored_mask.sum()
    # The symbols of partly received blocks are sent once more.
    assert cast.image_symbols_sent <= source_symbols(cast.image) - half + 4 * 46
    assert cast.completions[0].datagrams_received > source_symbols(cast.image)


async def test_a_restart_with_other_symbols(cast: SmallCast, autojump_clock: trio.testing.MockClock) -> None:
    """The interface's MTU was changed: the receiver's socket must take frames of the new size."""
    cast.start_sender()

    def restart() -> None:
        cast.start_sender(symbol_bytes=1200)

    at_symbols(cast, 100, restart)
    await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.observer.joins == [False, True]
    assert len(cast.sockets) == 2
    assert cast.sockets[0].closed


async def test_a_restart_with_another_image_ends_it(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    other = SmallImage(seed=2)
    at_symbols(cast, 100, lambda: cast.start_sender(image=other))
    with pytest.raises(CastFailedError, match="another image"):
        await cast.receive()


async def test_forged_announcements_cost_one_question_in_five_seconds(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """Anybody on the network can announce another image, or a restart, under this cast's id."""
    cast.start_sender()
    evil = announcement(incarnation=99, image_name="evil", control_url="http://192.0.2.66:1")
    nothing = np.empty((0, 32 + SYMBOL_BYTES), np.uint8)

    def forge() -> None:
        for counter in range(1, 200):
            cast.sockets[-1].put(nothing, [forged(evil, cast_id=7, counter=counter)])

    at_symbols(cast, 100, forge)
    started_at = trio.current_time()
    reception = await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert reception.status.rejoins == 0
    assert cast.question_count <= 1 + (trio.current_time() - started_at) / 5.0


async def test_silence_ends_at_the_deadline(cast: SmallCast, autojump_clock: trio.testing.MockClock) -> None:
    cast.start_sender()
    at_symbols(cast, 100, cast.stop_sender)
    with pytest.raises(SenderLostError, match="start the same diskcast send again"):
        await cast.receive(sender_timeout_s=30.0)
    assert 30.0 <= autojump_clock.current_time() < 34.0
    assert len(cast.observer.silences) == 9
    assert ReceptionState.SILENT in {status.state for status in cast.observer.statuses}
    assert not cast.sockets[-1].any_source, "the sender was heard before"


async def test_a_machine_that_hears_nothing_reports_to_a_sender_that_is_still_there(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """Otherwise the operator reads "silent for 10 s", and looks at the machine instead of the switch."""
    cast.start_sender()
    at_symbols(cast, 100, lambda: setattr(cast, "muted", True))
    with pytest.raises(SenderLostError):
        await cast.receive()
    [report] = cast.completions
    assert report.exit_code == SenderLostError.exit_code
    assert report.error.startswith("nothing heard from the sender for 30.0 s")


@pytest.mark.parametrize("lost", ["data", "requests"])
async def test_a_machine_that_gets_nothing_gives_up_with_cause_and_fix(
    cast: SmallCast, autojump_clock: trio.testing.MockClock, lost: str
) -> None:
    cast.start_sender()

    def cut_off() -> None:
        if lost == "data":
            cast.alter = lambda frames: frames[:0]
        else:
            cast.alter = lambda frames: frames[::2].copy()
            cast.loses_nacks = True

    at_symbols(cast, 100, cut_off)
    fix = {"data": "compare the MTU", "requests": "allow UDP from this machine to the sender's port 2"}[lost]
    with pytest.raises(NotServedError, match=fix):
        await cast.receive()
    [report] = cast.completions
    assert fix in report.error
    assert autojump_clock.current_time() < 60.0


async def test_a_sender_that_is_heard_again_in_time_is_still_joined(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()

    def mute() -> None:
        cast.muted = True

    at_symbols(cast, 100, mute)

    async def unmute() -> None:
        await trio.sleep(9.0)
        cast.muted = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unmute)
        await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.observer.joins == [False]


async def test_the_source_filter_is_removed_if_nothing_is_heard(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    cast.muted = True
    with pytest.raises(SenderLostError):
        await cast.receive()
    assert cast.sockets[-1].any_source


async def test_a_restart_that_cannot_be_joined(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()

    def restart() -> None:
        cast.start_sender()
        cast.unreachable = True

    at_symbols(cast, 100, restart)
    with pytest.raises(SenderLostError, match="nothing heard from the sender"):
        await cast.receive()


# -- the sender ends it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (SessionOutcome.CANCELLED, CastCancelledError),
        (SessionOutcome.FAILED, CastFailedError),
        (SessionOutcome.COMPLETE, DroppedError),
    ],
)
async def test_the_sender_ends_the_cast(
    cast: SmallCast, autojump_clock: trio.testing.MockClock, outcome: int, error: type[Exception]
) -> None:
    cast.start_sender()

    def end() -> None:
        assert cast.sender is not None
        cast.sender.end(outcome, "lunch", trio.current_time())

    at_symbols(cast, 100, end)
    with pytest.raises(error, match=r"lunch.*incomplete"):
        await cast.receive()
    assert cast.completions == []


async def test_a_cast_that_ends_after_the_last_symbol_is_complete_here(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """The received blocks are verified first, whatever the sender reports."""
    cast.start_sender()

    def end() -> None:
        assert cast.sender is not None
        cast.sender.end(SessionOutcome.CANCELLED, "lunch", trio.current_time())

    at_symbols(cast, source_symbols(cast.image), end)
    await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw


# -- the others are much faster -------------------------------------------------------------------------------


def standing(*, demoted: tuple[int, ...] = (), dropped: tuple[int, ...] = ()) -> Standing:
    return Standing(demoted=bitmap_of(demoted), dropped=bitmap_of(dropped))


async def test_a_demotion_is_reported_once(cast: SmallCast, autojump_clock: trio.testing.MockClock) -> None:
    """A demoted receiver requests nothing until its turn, however long that takes, and then completes."""
    cast.start_sender()
    cast.observer.interval_s = 0.01
    at_symbols(cast, 100, lambda: [cast.inject(standing(demoted=(0,))) for _ in range(3)])

    async def reinstate() -> None:
        while not cast.observer.demotions:
            await trio.sleep(0.01)
        await trio.sleep(60.0)
        for _ in range(10):
            cast.inject(standing())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reinstate)
        reception = await cast.receive(injected_loss=0.3, injected_loss_seed=3)
        nursery.cancel_scope.cancel()
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.observer.demotions == [Cause.NETWORK, None]
    assert {status.demoted for status in cast.observer.statuses} == {False, True}
    assert autojump_clock.current_time() > 60.0
    assert not reception.status.demoted


async def test_a_dropped_machine_ends_with_the_cause_and_the_fix(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    at_symbols(cast, 100, lambda: cast.inject(standing(dropped=(0,))))
    with pytest.raises(DroppedError, match=r"network connection.*incomplete.*--slow demote"):
        await cast.receive()
    assert cast.completions == [], "the sender already knows"


async def test_a_machine_that_is_dropped_with_all_it_needs_completes(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()

    def drop_and_fall_silent() -> None:
        cast.inject(standing(dropped=(0,)))
        cast.muted = True

    at_symbols(cast, source_symbols(cast.image), drop_and_fall_silent)
    await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw


# -- joining and reporting ------------------------------------------------------------------------------------


async def test_joining_is_retried_until_the_deadline(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    async def start_late() -> None:
        await trio.sleep(7.0)
        cast.start_sender()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_late)
        await cast.receive(join_timeout_s=10.0)
    assert cast.path.read_bytes() == cast.image.raw


async def test_no_sender_before_the_deadline(cast: SmallCast, autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(NoSenderError, match="connection refused"):
        await cast.receive(join_timeout_s=10.0)
    assert 7.0 <= autojump_clock.current_time() <= 10.0
    assert not cast.path.exists(), "a new file isn't left behind"


async def test_a_refused_join_is_not_retried(cast: SmallCast, autojump_clock: trio.testing.MockClock) -> None:
    cast.start_sender()
    assert cast.sender is not None
    cast.sender.end(SessionOutcome.COMPLETE, "over", trio.current_time())
    with pytest.raises(JoinRefusedError):
        await cast.receive()


async def test_a_report_that_nobody_takes_changes_nothing_here(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()

    def cut() -> None:
        cast.unreachable = True

    at_symbols(cast, source_symbols(cast.image), cut)
    reception = await cast.receive()
    assert not reception.reported
    assert cast.path.read_bytes() == cast.image.raw


async def test_an_interrupt_is_reported(cast: SmallCast, autojump_clock: trio.testing.MockClock) -> None:
    cast.start_sender()
    scope = trio.CancelScope()
    at_symbols(cast, 100, scope.cancel)
    with open_target(cast.path, raw_bytes=len(cast.image.raw)) as target:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cast.run_sender)
            with scope:
                await cast.receiver(target).run(SYMBOL_BYTES)
            nursery.cancel_scope.cancel()
    (report,) = cast.completions
    assert (report.success, report.error, report.exit_code) == (False, "interrupted", 130)


# -- bad disks and images -------------------------------------------------------------------------------------


class FullDisk(TargetImage):
    """A disk without room for more than the first blocks."""

    def write_blocks(
        self, blocks: Sequence[AssembledBlock], cipher: BlockCipher | None = None
    ) -> list[Outcome]:
        if self.blocks_verified_count:
            raise StorageError("the disk is full: make room")
        return super().write_blocks(blocks, cipher)


async def test_a_failed_write_is_reported_to_the_sender(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    with pytest.raises(StorageError, match="full"):
        await cast.receive(FullDisk)
    (report,) = cast.completions
    assert (report.success, report.error, report.exit_code) == (False, "the disk is full: make room", 50)
    assert report.bytes_written > 0


class ForgetfulDisk(TargetImage):
    """A disk that reads one block back wrong, ``wrong_count`` times; not one of the blocks written last."""

    wrong_count = 1
    block = 20

    def sync_and_verify(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        wrong = super().sync_and_verify(blocks)
        if self.wrong_count and self.block in blocks:
            self.wrong_count -= 1
            return np.array([self.block])
        return wrong


class BadDisk(ForgetfulDisk):
    """A disk that reads the block back wrong twice."""

    wrong_count = 2


async def test_a_block_that_reads_back_wrong_once_is_sent_again(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    reception = await cast.receive(ForgetfulDisk)
    assert cast.path.read_bytes() == cast.image.raw
    assert reception.status.blocks_rejected == 1
    assert cast.image_symbols_sent > source_symbols(cast.image)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (SessionOutcome.CANCELLED, CastCancelledError),
        (SessionOutcome.FAILED, CastFailedError),
        (SessionOutcome.COMPLETE, DroppedError),
    ],
)
async def test_a_block_that_reads_back_wrong_after_the_end_ends_it_as_incomplete(
    cast: SmallCast, autojump_clock: trio.testing.MockClock, outcome: int, error: type[Exception]
) -> None:
    """Every block had arrived and only had to be verified: the damaged one isn't sent again."""
    cast.start_sender()

    def end() -> None:
        assert cast.sender is not None
        cast.sender.end(outcome, "lunch", trio.current_time())

    at_symbols(cast, source_symbols(cast.image), end)
    with pytest.raises(error, match=r"lunch.*incomplete"):
        await cast.receive(ForgetfulDisk)
    assert cast.completions == []


async def test_a_block_that_reads_back_wrong_when_the_sender_is_gone_ends_it(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing shows that the cast has ended, nor that it continues."""
    cast.start_sender()
    at_symbols(cast, source_symbols(cast.image), cast.stop_sender)
    with pytest.raises(SenderLostError, match=r"nothing heard.*incomplete"):
        await cast.receive(ForgetfulDisk, sender_timeout_s=30.0)
    assert 30.0 < autojump_clock.current_time() < 40.0


async def test_a_block_that_reads_back_wrong_twice_ends_it(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    with pytest.raises(
        VerificationError,
        match=r"target\.img: block 20 \(byte 1310720\) read back wrong 2 times.*replace the disk",
    ):
        await cast.receive(BadDisk)
    assert cast.completions[0].exit_code == 51


async def test_an_image_that_is_damaged_at_the_sender_ends_it(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    stored = bytearray(cast.image.stored[0])
    stored[100] ^= 1
    cast.image.stored[0] = bytes(stored)
    with pytest.raises(CastFailedError, match=r"served block 0 3 times.*diskcast verify"):
        await cast.receive()
    assert "check the image file at the sender" in cast.completions[0].error
