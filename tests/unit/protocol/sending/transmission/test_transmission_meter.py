"""Measurement of the transmission: the achieved rate, and the cause when it is too low."""

from __future__ import annotations

import pytest

from protocol.model.bottleneck import Cause
from protocol.sending.transmission.transmission_meter import TransmissionMeter


def _sending(rate_bytes_per_s: float, *, read_share: float = 0.0) -> TransmissionMeter:
    transmission = TransmissionMeter(2**32 - 10, 100.0)
    for step in range(1, 101):
        transmission.mark(
            (2**32 - 10 + 4 * step) % 2**32,
            int(rate_bytes_per_s * 0.01),
            100.0 + step * 0.01,
            read_share * 0.01,
        )
    return transmission


def test_numbers_are_counted_across_the_wrap_of_their_header_field() -> None:
    transmission = TransmissionMeter(2**32 - 10, 100.0)
    assert transmission.mark(2**32 + 6, 1000, 100.1, 0.0) == 16
    assert transmission.next_sequence == 2**32 + 6


@pytest.mark.parametrize(
    ("rate", "read_share", "cause"), [(1e6, 0.9, None), (5e5, 0.9, Cause.SOURCE), (5e5, 0.1, Cause.SENDER)]
)
def test_the_cause_of_a_low_rate(rate: float, read_share: float, cause: Cause | None) -> None:
    transmission = _sending(rate, read_share=read_share)
    assert transmission.achieved_bytes_per_s == pytest.approx(rate, rel=0.01)
    assert transmission.starved_by(1e6) is cause


def test_a_read_that_hangs_is_the_sources_fault_despite_earlier_rates() -> None:
    transmission = _sending(1e6)
    transmission.note_read(0.1)
    assert transmission.starved_by(1e6) is None
    transmission.note_read(3.0)
    assert transmission.starved_by(1e6) is Cause.SOURCE
    assert transmission.achieved_bytes_per_s == 0.0
    transmission.note_read(0.0)
    assert not transmission.read_stalled


def test_a_pause_does_not_count_as_slowness() -> None:
    transmission = _sending(1e6)
    transmission.resume(1000.0)
    transmission.mark(0, 10_000, 1000.01, 0.0)
    assert transmission.achieved_bytes_per_s == pytest.approx(1e6, rel=0.01)
