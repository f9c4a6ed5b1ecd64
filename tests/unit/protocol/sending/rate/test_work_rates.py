"""Rates of work: a machine that decodes batches of blocks isn't stopped between two of them.

Lost if these fail: the rate of a slow room follows a sawtooth down to the floor, and its machines are called slow and
fast by turns.
"""

from __future__ import annotations

import pytest

from protocol.sending.rate.work_rates import WorkRates

REPORT_S = 0.1
BATCH_BYTES = 4_000_000


def written_rates(*batch_s: float) -> list[float]:
    """Return the rate after each report: one batch of blocks after each of these times."""
    work = WorkRates()
    rates = []
    for seconds in batch_s:
        report_count = round(seconds / REPORT_S)
        for index in range(report_count):
            written_bytes = BATCH_BYTES if index == report_count - 1 else 0
            work.add(written_bytes=written_bytes, taken_frames=0, elapsed_s=REPORT_S)
            rates.append(work.written_bytes_per_s)
    return rates


@pytest.mark.parametrize("batch_s", [0.1, 1.0, 6.0])
def test_regular_batches_are_a_steady_rate(batch_s: float) -> None:
    rates = written_rates(*[batch_s] * 5)
    first = round(batch_s / REPORT_S) - 1
    assert rates[first:] == pytest.approx([BATCH_BYTES / batch_s] * len(rates[first:]))


def test_no_rate_before_the_first_batch() -> None:
    assert written_rates(2.0)[:-1] == [0.0] * 19


def test_a_machine_that_stops_is_noticed() -> None:
    """A disk that hangs has to limit the cast while it does."""
    work = WorkRates()
    for _ in range(50):
        work.add(written_bytes=BATCH_BYTES, taken_frames=0, elapsed_s=1.0)
    for _ in range(10):
        work.add(written_bytes=0, taken_frames=0, elapsed_s=1.0)
    assert work.written_bytes_per_s < 0.2 * BATCH_BYTES
