"""Rate control against small models of paths: a full switch must slow the cast, a noisy cable must not."""

from __future__ import annotations

import dataclasses
import random

import pytest

from protocol.constants import RATE_BYTES_PER_S_MAX, RATE_BYTES_PER_S_MIN, RATE_BYTES_PER_S_START
from protocol.model.bottleneck import NO_BOTTLENECK, Bottleneck, Cause
from protocol.model.session_records import ReceiverId
from protocol.sending.rate.rate_control import RateController
from protocol.sending.rate.rate_sample import RateSample
from tests.unit.protocol.sending.rate.rate_path import FRAME_BYTES, GRTT_S, MBIT, STEP_S, Drive, Path, link

FIRST, SECOND = ReceiverId(0), ReceiverId(1)


# -- climbing ------------------------------------------------------------------------------------------------------


def test_clean_path_is_filled_within_a_second() -> None:
    """A small image on a fast network would be over before the rate was found."""
    drive = Drive(Path()).run(1.0)
    assert drive.rates[-1] == RATE_BYTES_PER_S_MAX
    assert drive.controller.bottleneck == Bottleneck(Cause.CEILING)


def test_first_rate_suits_a_classroom_switch() -> None:
    assert Drive(Path()).run(0.02).rates[0] <= RATE_BYTES_PER_S_START


def test_application_limited_sender_earns_no_burst() -> None:
    """When its disk resumes, a rate that has risen to the ceiling would flood every queue."""
    drive = Drive(Path(), sender=400 * MBIT).run(5.0)
    assert max(drive.rates) <= 2.0 * 400 * MBIT
    assert drive.controller.bottleneck == NO_BOTTLENECK, "neither a receiver nor the network is the cause"


def test_the_ceiling_holds_and_is_named() -> None:
    drive = Drive(Path(), maximum=50e6).run(3.0)
    assert max(drive.rates) == 50e6
    assert drive.controller.bottleneck == Bottleneck(Cause.CEILING)


def test_fixed_rate_ignores_reports() -> None:
    """An operator who sets a rate knows the network, or measures it."""
    drive = Drive(link(20, loss=0.1), Path(disk=1e6), fixed=7e6).run(5.0)
    assert set(drive.rates) == {7e6}
    assert drive.controller.bottleneck == Bottleneck(Cause.CEILING)


# -- the network's limit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mbit", [50, 200, 800, 3000])
def test_link_is_filled_within_two_seconds_without_loss(mbit: int) -> None:
    drive = Drive(link(mbit, queue_bytes=262144 + 0.02 * mbit * MBIT)).run(2.0)
    assert drive.lost_share(5.0) < 0.02
    assert 0.93 < drive.mean_rate(5.0) / (mbit * MBIT) < 1.03
    assert drive.bottleneck_share(Bottleneck(Cause.NETWORK, FIRST), 5.0) > 0.9


def test_a_link_below_the_first_rate_is_found() -> None:
    drive = Drive(link(10)).run(4.0)
    assert drive.mean_rate(2.0) < 1.1 * 10 * MBIT


def test_link_that_changes_is_followed_within_three_seconds() -> None:
    drive = Drive(Path(lambda now: (200 if now < 4 or now > 12 else 50) * MBIT)).run(4.0)
    drive.run(3.0)
    assert drive.lost_share(5.0) < 0.02
    assert 0.9 < drive.mean_rate(5.0) / (50 * MBIT) < 1.03
    drive.run(3.0)
    assert drive.lost_share(2.0) < 0.02
    assert 0.9 < drive.mean_rate(2.0) / (200 * MBIT) < 1.03


def test_one_full_link_that_many_report_is_cut_once() -> None:
    """Thirty receivers behind one switch report the same: if each of them lowered the rate, the room would stop."""
    alone = Drive(link(200)).run(4.0)
    room = Drive(*[link(200)] * 30).run(4.0)
    assert room.mean_rate(3.0) > 0.97 * alone.mean_rate(3.0)


def test_slow_processors_of_a_room_are_cut_once() -> None:
    alone = Drive(Path(socket=60e6)).run(6.0)
    room = Drive(*[Path(socket=60e6)] * 30).run(6.0)
    assert room.mean_rate(5.0) > 0.6 * alone.mean_rate(5.0)


def test_the_slowest_link_sets_the_rate_and_is_named() -> None:
    drive = Drive(link(1000), link(200), link(1000)).run(3.0)
    assert drive.mean_rate(1.0) == pytest.approx(200 * MBIT, rel=0.05)
    assert drive.bottleneck_share(Bottleneck(Cause.NETWORK, SECOND), 1.0) > 0.9


def test_limit_of_most_receivers_names_none_of_them() -> None:
    """Naming one of thirty behind the same uplink would send the operator to the wrong machine."""
    drive = Drive(link(200), link(200), link(1000)).run(3.0)
    assert drive.bottleneck_share(Bottleneck(Cause.NETWORK), 1.0) > 0.9


def test_hopeless_path_leaves_the_least_rate() -> None:
    drive = Drive(Path(lambda _: 0.01 * MBIT, queue_bytes=10e3)).run(20.0)
    assert min(drive.rates) >= RATE_BYTES_PER_S_MIN


def test_competing_traffic_does_not_starve_the_cast() -> None:
    """A download that keeps the switch's buffer half full would otherwise bring the room to a stop."""
    drive = Drive(link(200, greedy_queue_bytes=256e3)).run(15.0)
    assert drive.mean_rate(10.0) > 0.25 * 200 * MBIT


def test_share_is_not_starved_by_a_full_queue() -> None:
    drive = Drive(link(200, greedy_queue_bytes=512e3), share=True).run(15.0)
    assert drive.mean_rate(10.0) / (200 * MBIT) > 0.25


def test_cast_takes_the_rest_of_a_used_link() -> None:
    drive = Drive(Path(lambda _: 200 * MBIT, neighbour=lambda now: 150 * MBIT if now > 2 else 0.0)).run(6.0)
    assert drive.lost_share(4.0) < 0.1
    assert 0.8 < drive.mean_rate(4.0) / (50 * MBIT) < 1.2


# -- loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "burst"), [(0.01, 1), (0.05, 1), (0.2, 1), (0.01, 44)])
def test_random_loss_keeps_the_rate_and_is_learned(loss: float, burst: int) -> None:
    """Parity repairs it: a sender that slows down for every noisy cable is slow in every room."""
    drive = Drive(Path(loss=loss, loss_burst=burst), sender=2000 * MBIT).run(8.0)
    assert drive.mean_rate(4.0) > 0.9 * 2000 * MBIT
    assert drive.controller.usual_loss(FIRST) == pytest.approx(loss, rel=0.3)
    assert drive.controller.capacities[FIRST].loss_burst == pytest.approx(burst, rel=0.3)


@pytest.mark.parametrize("loss", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("receiver_count", [1, 4, 30])
def test_random_loss_that_starts_at_the_ceiling_costs_a_moment(loss: float, receiver_count: int) -> None:
    """A cable that comes loose during a cast."""
    drive = Drive(*[Path(loss=loss, loss_from_s=3.0)] * receiver_count, maximum=1000 * MBIT).run(6.0)
    assert drive.mean_rate(3.0) > 0.85 * 1000 * MBIT
    assert drive.run(3.0).mean_rate(3.0) > 0.95 * 1000 * MBIT
    assert drive.controller.usual_loss(FIRST) == pytest.approx(loss, rel=0.3)


@pytest.mark.parametrize("receiver_count", [1, 4])
def test_policed_link_that_becomes_slower_is_followed(receiver_count: int) -> None:
    """Loss at a steady rate without a queue: taken for random, a fifth would be lost for the rest of the cast."""
    path = Path(lambda now: (1000 if now < 3 else 800) * MBIT, queue_bytes=100e3)
    drive = Drive(*[path] * receiver_count, maximum=900 * MBIT).run(6.0)
    assert drive.lost_share(3.0) < 0.03
    assert drive.mean_rate(3.0) > 0.85 * 800 * MBIT


def test_experiments_do_not_queue_up() -> None:
    """Thirty lossy receivers, one after the other at seven tenths of the rate, would cost seconds."""
    drive = Drive(*[Path(loss=0.05)] * 30, sender=2000 * MBIT).run(1.5)
    assert drive.run(2.0).mean_rate(2.0) > 0.95 * 2000 * MBIT
    for receiver_id in range(30):
        assert drive.controller.usual_loss(ReceiverId(receiver_id)) == pytest.approx(0.05, rel=0.3)


# -- a receiver's own limit ----------------------------------------------------------------------------------------


def test_slow_disk_sets_the_rate_before_its_buffers_overflow() -> None:
    drive = Drive(Path(), Path(disk=60e6), sender=1000 * MBIT).run(30.0)
    assert drive.ends[1].overflow_bytes == 0.0
    assert drive.mean_rate(20.0) == pytest.approx(60e6, rel=0.1)
    assert drive.bottleneck_share(Bottleneck(Cause.DISK, SECOND), 20.0) > 0.95


def test_busy_processor_is_distinguished_from_a_full_link() -> None:
    """The loss is the same: one is fixed at that machine, the other at the switch."""
    drive = Drive(Path(), Path(socket=60e6)).run(5.0)
    assert 0.85 < drive.mean_rate(3.0) / 60e6 < 1.05
    assert drive.lost_share(5.0, index=1) < 0.05
    assert drive.bottleneck_share(Bottleneck(Cause.SOCKET, SECOND), 5.0) > 0.9


def test_a_room_that_is_flooded_before_it_reports_is_spared() -> None:
    """Slow machines report late: slow start had reached 624 MB/s before the first report of two of them."""
    controller = RateController(
        fixed_bytes_per_s=None, maximum_bytes_per_s=None, frame_bytes=FRAME_BYTES, now=0.0
    )
    for step in range(1, 25):
        controller.tick(controller.rate_bytes_per_s, step / 50)
    assert controller.rate_bytes_per_s == RATE_BYTES_PER_S_START, "nobody has reported"
    delivered = 2.0 * RATE_BYTES_PER_S_START
    sample = RateSample(1000, 1000, arriving_bytes_per_s=delivered, taken_bytes_per_s=delivered)
    for step in range(25, 200):
        if step % 5 == 0:
            controller.add_sample(FIRST, sample, GRTT_S, step / 50)
        controller.tick(controller.rate_bytes_per_s, step / 50)
    assert delivered < controller.rate_bytes_per_s <= 2.0 * delivered


def test_a_machine_is_compared_by_its_work_and_not_by_its_buffers() -> None:
    """Equal machines were slow beside one whose buffers still took ten times its work."""
    controller = RateController(
        fixed_bytes_per_s=None, maximum_bytes_per_s=None, frame_bytes=FRAME_BYTES, now=0.0
    )
    work, burst = 4e6, 40e6
    fast = RateSample(1000, 1000, arriving_bytes_per_s=burst, taken_bytes_per_s=burst)
    filling = dataclasses.replace(fast, fill=0.3, written_bytes_per_s=work, cause=Cause.DECODE)
    controller.add_sample(FIRST, fast, GRTT_S, 1.0)
    controller.add_sample(SECOND, fast, GRTT_S, 1.0)
    sustained = controller.capacities[FIRST]
    assert sustained.sustainable_bytes_per_s == burst
    controller.add_sample(FIRST, filling, GRTT_S, 1.1)
    assert sustained.sustainable_bytes_per_s == work, "its buffers took the rest"
    controller.add_sample(FIRST, dataclasses.replace(filling, fill=0.6), GRTT_S, 1.2)
    assert sustained.knee_bytes_per_s > work, "nobody confirms the report yet"
    assert sustained.sustainable_bytes_per_s == work


def test_a_room_that_is_too_busy_to_report_is_sent_little() -> None:
    """Two virtual machines did nothing but take packets for ten seconds, and lost 60 % of the image."""
    drive = Drive(Path(), Path())
    for end in drive.ends:
        end.silent = True
    drive.run(2.0)
    assert sum(drive.rates) * STEP_S < 20e6, "a socket holds this much"
    assert drive.rates[-1] == RATE_BYTES_PER_S_MIN
    drive.ends[0].silent = False
    drive.run(1.5)
    assert drive.rates[-1] > 10 * RATE_BYTES_PER_S_START, "its network is fast"


def test_jitter_of_a_slow_machine_is_no_queue() -> None:
    """Virtual machines on a busy host delayed datagrams by up to 12 ms: the rate fell to 1 Mbit/s for good."""
    controller = RateController(
        fixed_bytes_per_s=None, maximum_bytes_per_s=600e3, frame_bytes=FRAME_BYTES, now=0.0
    )
    rng = random.Random(1)
    for step in range(1, 2000):
        now, rate = step * STEP_S, controller.rate_bytes_per_s
        if step % 10 == 0:
            arriving = rate * rng.uniform(0.7, 1.2)  # of a few datagrams
            sample = RateSample(
                40,
                40,
                queue_delay_s=rng.uniform(0.0, 0.012),
                arriving_bytes_per_s=arriving,
                taken_bytes_per_s=arriving,
            )
            for receiver in (FIRST, SECOND):
                controller.add_sample(receiver, sample, GRTT_S, now)
        controller.tick(rate, now)
    assert controller.rate_bytes_per_s == 600e3


@pytest.mark.parametrize("path", [Path(socket=60e6), Path(disk=60e6)], ids=("socket", "disk"))
def test_a_machine_that_reports_late_is_not_probed(path: Path) -> None:
    """It is too busy to report: more data would only fill its socket, and its next report comes later still."""
    drive = Drive(path, Path()).run(6.0)
    drive.ends[0].silent = True
    drive.run(0.3)
    held = drive.controller.rate_bytes_per_s
    drive.run(5.0)
    assert drive.controller.rate_bytes_per_s == pytest.approx(held, rel=0.001)


# -- exempt receivers --------------------------------------------------------------------------------------------------


def _two_at_50_and_200() -> Drive:
    return Drive(link(50), link(200)).run(3.0)


def test_receiver_that_left_no_longer_limits() -> None:
    drive = _two_at_50_and_200()
    drive.controller.forget(FIRST)
    drive.ends[0].silent = True
    drive.run(0.3)
    assert drive.rates[-1] > 150 * MBIT


def test_exempt_receiver_does_not_limit_but_keeps_its_knee() -> None:
    """The knee shows when it has recovered."""
    drive = _two_at_50_and_200()
    drive.controller.capacities[FIRST].exempt = True
    drive.run(3.0)
    assert drive.mean_rate(1.0) == pytest.approx(200 * MBIT, rel=0.05)
    assert drive.controller.capacities[FIRST].sustainable_bytes_per_s == pytest.approx(50 * MBIT, rel=0.1)
    drive.controller.capacities[FIRST].exempt = False
    drive.controller.follow_group(drive.now)
    assert drive.controller.rate_bytes_per_s < 1.1 * 50 * MBIT, "at once, not with its next report"


def test_tiny_samples_are_ignored() -> None:
    """Between two bursts of repairs a receiver has seen hardly a datagram: that is chance, not a measurement."""
    controller = RateController(
        fixed_bytes_per_s=None, maximum_bytes_per_s=None, frame_bytes=FRAME_BYTES, now=0.0
    )
    for step in range(20):
        controller.add_sample(FIRST, RateSample(4, 1), GRTT_S, step / 10)
    assert controller.rate_bytes_per_s == RATE_BYTES_PER_S_START
    assert controller.usual_loss(FIRST) == 0.0
    assert controller.usual_loss(SECOND) == 0.0, "unknown receiver"


def test_duplicates_are_no_negative_loss() -> None:
    """A network that duplicates datagrams would hide the loss of others in the mean."""
    assert RateSample(100, 130).loss == 0.0
    assert RateSample(0, 0).loss == 0.0
    assert RateSample(100, 90).loss == pytest.approx(0.1)


@pytest.mark.parametrize("mbit", [50, 200, 800])
def test_link_with_hardly_a_buffer_is_found_by_loss(mbit: int) -> None:
    """A policed port: it would be flooded at the ceiling, 98 % lost, for the whole cast."""
    drive = Drive(link(mbit, queue_bytes=0.001 * mbit * MBIT)).run(2.5)
    assert drive.lost_share(5.0) < 0.05
    assert 0.8 < drive.mean_rate(5.0) / (mbit * MBIT) < 1.05


# -- false reports -------------------------------------------------------------------------------------------------

LIES = (
    RateSample(100, 1, arriving_bytes_per_s=1.0, queue_delay_s=1.0),
    RateSample(100, 100, local_drop_count=1000, arriving_bytes_per_s=1.0),
    RateSample(100, 100, fill=1.0, arriving_bytes_per_s=1.0, written_bytes_per_s=1.0, cause=Cause.DISK),
    RateSample(100, 1, arriving_bytes_per_s=1.0),
)


@pytest.mark.parametrize("lie", LIES, ids=("queue", "socket", "disk", "loss"))
@pytest.mark.parametrize("share", [False, True])
def test_one_false_report_lowers_the_rate_by_a_tenth_at_most(lie: RateSample, share: bool) -> None:
    """It used to lower a room from 10 Gbit/s to 1 Mbit/s."""
    drive = Drive(*[link(500, queue_bytes=1e6)] * 8, share=share).run(3.0)
    before = drive.controller.rate_bytes_per_s
    for _ in range(100):  # the last reports of the others no longer confirm anything
        drive.run(0.1)
        if drive.controller.rate_bytes_per_s >= 0.98 * before:
            break
    before = drive.controller.rate_bytes_per_s
    drive.controller.add_sample(FIRST, lie, GRTT_S, drive.now)
    assert drive.controller.rate_bytes_per_s >= 0.899 * before
