"""Arrival at a receiver: a queue that is missed fills a switch, an imaginary one slows the cast."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.receiving.arrival import ArrivalMeter
from protocol.shared.feedback_timing import sent_at_ticks
from protocol.shared.sequence import LossCounter

FRAME_BYTES = 1472
BATCH = 40


class Stream:
    """A sender's datagrams as they arrive, in batches; the two clocks differ by ``offset_s``."""

    def __init__(self, offset_s: float = 0.0) -> None:
        self.meter = ArrivalMeter(FRAME_BYTES)
        self.loss = LossCounter()
        self.now = 1000.0
        self.offset_s = offset_s
        self._sequence = 0

    def send(self, seconds: float, *, every_s: float = 0.005, delay_s: float = 0.0, lost: int = 0) -> None:
        """Pass in batches that leave every ``every_s``, each delayed by ``delay_s`` and without ``lost`` datagrams."""
        for _ in range(round(seconds / every_s)):
            self.now += every_s
            numbers = np.arange(self._sequence, self._sequence + BATCH, dtype=np.uint32)
            self._sequence += BATCH
            self.loss.add(numbers[lost:])
            arrived_at = self.now + delay_s
            self.meter.add(self.loss, sent_at_ticks(self.now + self.offset_s), arrived_at)


@pytest.mark.parametrize("offset_s", [0.0, -1000.0, 12345.678, 3.2768])
def test_clocks_that_differ_hide_no_queue_and_make_none(offset_s: float) -> None:
    stream = Stream(offset_s)
    stream.send(1.0)
    assert stream.meter.queue_delay_s < 0.0005
    stream.send(0.2, delay_s=0.012)
    assert stream.meter.queue_delay_s == pytest.approx(0.012, abs=0.0005)
    stream.send(0.2)
    assert stream.meter.queue_delay_s < 0.0005


def test_a_cast_of_hours_outlives_the_time_stamps_wrap() -> None:
    stream = Stream()
    stream.send(40.0, every_s=0.02)
    assert stream.meter.queue_delay_s < 0.0005
    stream.send(0.2, delay_s=0.02)
    assert stream.meter.queue_delay_s == pytest.approx(0.02, abs=0.001)


def test_a_queue_that_empties_now_and_then_is_none() -> None:
    """After a busy moment, or a burst behind another one, slowing down would only cost time."""
    stream = Stream()
    stream.send(0.5)
    for _ in range(50):
        stream.send(0.015, delay_s=0.01)
        stream.send(0.005)
    assert stream.meter.queue_delay_s < 0.0005


def test_a_new_queue_is_noticed_soon() -> None:
    """Early reports depend on it: at 4 Gbit/s a tenth of a second is 50 MB."""
    stream = Stream()
    stream.send(0.5)
    stream.send(0.03, delay_s=0.008)
    assert stream.meter.queue_delay_s < 0.0005, "not standing yet"
    stream.send(0.05, delay_s=0.008)
    assert stream.meter.queue_delay_s == pytest.approx(0.008, abs=0.0005)


@pytest.mark.parametrize("ppm", [-50, 50])
def test_crystals_that_drift_apart_are_no_queue(ppm: int) -> None:
    """A minute at 50 ppm is 3 ms: as much as a full link."""
    stream = Stream()
    for _ in range(300):
        stream.send(0.2, every_s=0.02)
        stream.offset_s += 0.2 * ppm * 1e-6
    assert stream.meter.queue_delay_s < 0.001


def test_a_way_that_has_become_shorter_is_the_new_measure() -> None:
    stream = Stream()
    stream.send(1.0, delay_s=0.05)
    stream.send(1.0, delay_s=0.001)
    stream.send(0.2, delay_s=0.011)
    assert stream.meter.queue_delay_s == pytest.approx(0.01, abs=0.0007)


@pytest.mark.parametrize("every_s", [0.0005, 0.005, 0.012])
def test_the_arriving_rate_counts_arrived_datagrams(every_s: float) -> None:
    """With a standing queue it becomes the rate of the cast."""
    stream = Stream()
    stream.send(1.0, every_s=every_s, lost=10)
    rate = (BATCH - 10) * FRAME_BYTES / every_s
    assert stream.meter.rate_bytes_per_s(stream.now) == pytest.approx(rate, rel=0.02)


def test_the_rate_follows_a_change_within_its_window() -> None:
    stream = Stream()
    stream.send(1.0, every_s=0.002)
    stream.send(0.15, every_s=0.008)
    assert stream.meter.rate_bytes_per_s(stream.now) == pytest.approx(BATCH * FRAME_BYTES / 0.008, rel=0.1)


def test_too_few_datagrams_mean_an_unknown_rate() -> None:
    """A rate of almost nothing would lower the cast to its minimum."""
    stream = Stream()
    assert stream.meter.rate_bytes_per_s(stream.now) == 0.0
    assert stream.meter.queue_delay_s == 0.0
    assert stream.meter.recent_counts == (0, 0)
    stream.send(0.02)
    assert stream.meter.rate_bytes_per_s(stream.now) == 0.0, "a few batches"
    stream.send(1.0)
    assert stream.meter.rate_bytes_per_s(stream.now + 0.5) == 0.0, "long ago"


def test_the_loss_of_late_is_counted_not_that_of_long_ago() -> None:
    stream = Stream()
    stream.send(2.0, lost=20)
    stream.send(0.2, lost=4)
    sent_count, arrived_count = stream.meter.recent_counts
    assert 1 - arrived_count / sent_count == pytest.approx(0.1, abs=0.01)
    assert 0.1 <= sent_count * 0.005 / BATCH < 0.15
