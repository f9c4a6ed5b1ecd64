"""Progress of a job: an operator sees its rate and the time that is left, and an alert sees that it is stuck."""

from __future__ import annotations

import pytest

from sender.job_progress import JobProgress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_eta_are_those_of_the_last_seconds() -> None:
    clock = Clock()
    progress = JobProgress(1000, clock=clock)
    assert (progress.share, progress.rate_bytes_per_s(), progress.eta_s()) == (0.0, 0.0, None)
    for second in range(30):
        clock.now += 1
        progress.note(10 * second if second < 15 else 20 * second - 150)
    assert progress.share == pytest.approx(0.43)
    assert progress.rate_bytes_per_s() == pytest.approx(20)
    assert progress.eta_s() == pytest.approx(28.5)
    clock.now += 60
    assert (progress.rate_bytes_per_s(), progress.eta_s()) == (0.0, None)


def test_a_slow_job_that_reports_in_large_steps_has_a_rate() -> None:
    clock = Clock()
    progress = JobProgress(1000, clock=clock)
    progress.note(100)
    clock.now += 20
    progress.note(300)
    assert progress.rate_bytes_per_s() == 10
    clock.now += 20
    assert progress.rate_bytes_per_s() == 5


def test_silence_counts_from_the_last_byte_and_not_from_the_last_report() -> None:
    """Otherwise an agent that reconnects every half minute and sends nothing is never reported."""
    clock = Clock()
    progress = JobProgress(1000, clock=clock)
    progress.note(10)
    clock.now += 40
    progress.note(10)
    progress.restart(1000, 10)
    clock.now += 40
    progress.note(10)
    assert progress.silent_s() == 80
    progress.note(11)
    assert progress.silent_s() == 0


def test_a_new_phase_starts_at_nothing() -> None:
    clock = Clock()
    progress = JobProgress(10, clock=clock)
    progress.note(10)
    progress.restart(20)
    assert (progress.share, progress.rate_bytes_per_s()) == (0.0, 0.0)
    progress.note(5, 40)
    assert progress.share == 0.125
