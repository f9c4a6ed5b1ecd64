"""Shares of a common rate: no cast starves, and the ceiling holds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import RATE_BYTES_PER_S_MIN
from sender.daemon.jobs.rate_share import demand_bytes_per_s, share_rate

CEILING = 100e6
WISHES = st.lists(st.floats(0, 1e9) | st.just(math.inf), max_size=16)


@given(WISHES)
def test_casts_together_never_get_more_than_the_ceiling(demands: list[float]) -> None:
    shares = share_rate(CEILING, demands)
    assert len(shares) == len(demands)
    assert sum(shares) <= CEILING + 1 + len(demands) * RATE_BYTES_PER_S_MIN


@given(WISHES.filter(bool))
def test_no_cast_gets_more_than_another_one_that_could_use_it(demands: list[float]) -> None:
    shares = share_rate(CEILING, demands)
    unsatisfied = [share for share, demand in zip(shares, demands, strict=True) if share < demand]
    if unsatisfied:
        assert max(unsatisfied) == pytest.approx(min(unsatisfied), abs=RATE_BYTES_PER_S_MIN)
        assert max(shares) <= max(unsatisfied) + RATE_BYTES_PER_S_MIN


def test_rate_that_one_cast_cannot_use_goes_to_the_other() -> None:
    slow = demand_bytes_per_s(8e6, held_by_ceiling=False)
    shares = share_rate(CEILING, [slow, demand_bytes_per_s(1e6, held_by_ceiling=True)])
    assert shares == [pytest.approx(10e6), pytest.approx(90e6)]
