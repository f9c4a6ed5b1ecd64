"""Rate control against small models of paths: a full switch must slow the cast, a noisy cable must not."""

from __future__ import annotations

import random
from collections.abc import Callable

from protocol.constants import RATE_BYTES_PER_S_MIN
from protocol.rate_control import RateController, RateSample
from protocol.session_records import ReceiverId

DATAGRAM_BYTES = 1472


def _run(arrives: Callable[[float], float], seconds: float, *, drops: Callable[[float], int] = lambda _: 0,
         fill: Callable[[float], float] = lambda _: 0.0, sender_limit: float = 1e9,
         maximum: float | None = None) -> list[float]:  # fmt: skip
    """Rates over time; ``arrives(rate)`` is the share of datagrams that the path lets through."""
    rng = random.Random(1)
    controller = RateController(fixed_bytes_per_s=None, maximum_bytes_per_s=maximum, now=0.0)
    rates = []
    for step in range(int(seconds * 100)):
        now = step / 100
        sent_rate = min(controller.rate_bytes_per_s, sender_limit)
        controller.tick(sent_rate, now)
        if step % 10 == 9:
            expected = int(sent_rate * 0.1 / DATAGRAM_BYTES)
            mean = expected * arrives(sent_rate)
            noise = rng.gauss(0.0, (mean * (1 - mean / expected)) ** 0.5) if expected else 0.0
            received = min(expected, round(mean + noise))
            sample = RateSample(expected, received, drops(sent_rate), fill(sent_rate))
            controller.add_sample(ReceiverId(0), sample, 0.005, now)
        rates.append(controller.rate_bytes_per_s)
    return rates


def _mean(rates: list[float], seconds: float) -> float:
    tail = rates[-int(seconds * 100) :]
    return sum(tail) / len(tail)


def test_a_clean_path_is_filled_fast() -> None:
    assert _run(lambda _: 1.0, 1.5)[-1] > 400e6


def test_a_bottleneck_is_found_and_kept() -> None:
    capacity = 60e6
    rates = _run(lambda rate: min(1.0, capacity / rate), 10.0)
    assert 0.6 * capacity < _mean(rates, 6.0) < 1.1 * capacity


def test_a_bottleneck_below_the_first_rate_is_found() -> None:
    capacity = 6e6
    rates = _run(lambda rate: min(1.0, capacity / rate), 20.0)
    assert _mean(rates, 5.0) < 2.0 * capacity


def test_random_loss_keeps_the_rate() -> None:
    clean = _mean(_run(lambda _: 1.0, 6.0, sender_limit=60e6), 3.0)
    lossy = _mean(_run(lambda _: 0.95, 6.0, sender_limit=60e6), 3.0)
    assert lossy > 0.8 * clean


def test_full_buffers_slow_it_down() -> None:
    capacity = 40e6
    rates = _run(lambda _: 1.0, 10.0, fill=lambda rate: 0.9 if rate > capacity else 0.1)
    assert _mean(rates, 5.0) < 1.3 * capacity


def test_socket_drops_slow_it_down() -> None:
    capacity = 40e6
    rates = _run(
        lambda rate: min(1.0, capacity / rate), 10.0, drops=lambda rate: 10 if rate > capacity else 0
    )
    assert 0.5 * capacity < _mean(rates, 5.0) < 1.2 * capacity


def test_the_ceiling_and_a_fixed_rate_hold() -> None:
    assert max(_run(lambda _: 1.0, 3.0, maximum=50e6)) <= 50e6
    fixed = RateController(fixed_bytes_per_s=7e6, maximum_bytes_per_s=None, now=0.0)
    fixed.tick(7e6, 1.0)
    fixed.add_sample(ReceiverId(0), RateSample(1000, 10, 100, 1.0), 0.01, 1.0)
    assert fixed.rate_bytes_per_s == 7e6


def test_it_never_falls_below_the_floor() -> None:
    assert min(_run(lambda _: 0.01, 30.0, drops=lambda _: 5)) >= RATE_BYTES_PER_S_MIN
