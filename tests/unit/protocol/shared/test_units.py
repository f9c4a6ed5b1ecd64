"""Sizes, rates, times and shares as operators type them: parsed as meant, or refused."""

from __future__ import annotations

import pytest

from protocol.errors import ConfigurationError
from protocol.shared.units import parse_duration_s, parse_rate_bytes_per_s, parse_share, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("10", 10.0),
        ("500ms", 0.5),
        ("2m", 120.0),
        ("2 min", 120.0),
        ("1.5h", 5400.0),
        ("90d", 7776000.0),
        (" 0.5 s ", 0.5),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "10 days", "-1s", "1:30", "1e3", "nan", "inf"])
def test_an_invalid_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="isn't a time: write for example 10s"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "share"), [("30%", 0.3), ("0.3", 0.3), ("2.5 %", 0.025), ("0", 0.0), ("100%", 1.0)]
)
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "30", "101%", "-5%", "a third", "nan"])
def test_an_invalid_share_is_refused_with_an_example(text: str) -> None:
    """``30`` is refused: it could mean 30 % as well as thirtyfold."""
    with pytest.raises(ConfigurationError, match="isn't a share: write for example 30%"):
        parse_share(text)


def test_sizes_are_binary_and_rates_decimal_bits() -> None:
    assert parse_size_bytes("1M") == 1 << 20
    assert parse_rate_bytes_per_s("8M") == 1_000_000.0
