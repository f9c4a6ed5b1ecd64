"""Times on the command line: the right day, in the right time zone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from sender.console.schedules import own_time_zone
from sender.console.time_parsing import parse_in, parse_past, parse_start

NOW = datetime(2026, 3, 28, 20, 0, tzinfo=UTC)
"""21:00 in Berlin, hours before summer time starts."""


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("22:00", "2026-03-28T21:00"),
        ("21:00", "2026-03-29T19:00"),  # tomorrow, when Berlin is two hours ahead
        ("06:30", "2026-03-29T04:30"),
        ("2026-04-01 06:30", "2026-04-01T04:30"),
        ("2026-04-01T06:30Z", "2026-04-01T06:30"),
        ("2026-04-01T06:30-05:00", "2026-04-01T11:30"),
    ],
)
def test_start_times_are_parsed(text: str, expected: str) -> None:
    assert parse_start(text, NOW) == datetime.fromisoformat(f"{expected}:00+00:00")


@pytest.mark.parametrize(
    "text", ["", "25:00", "noon", "22", "2026-13-01T00:00", "2026-03-28 20:59", "0001-01-01"]
)
def test_an_invalid_or_past_start_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"isn't a time|is in the past"):
        parse_start(text, NOW)


def test_durations_from_now_and_ago_are_parsed() -> None:
    assert parse_in("90m", NOW) == datetime(2026, 3, 28, 21, 30, tzinfo=UTC)
    assert parse_past("7d", NOW) == datetime(2026, 3, 21, 20, 0, tzinfo=UTC)
    assert parse_past("2026-03-01", NOW) == datetime(2026, 2, 28, 23, 0, tzinfo=UTC)
    for parse in (parse_in, parse_past):
        with pytest.raises(ConfigurationError, match="calendar"):
            parse("99999999d", NOW)


def test_the_machines_time_zone_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert own_time_zone() == "Europe/Berlin"
    monkeypatch.delenv("TZ")
    (tmp_path / "zoneinfo" / "Asia").mkdir(parents=True)
    (tmp_path / "zoneinfo" / "Asia" / "Tokyo").touch()
    link = tmp_path / "localtime"
    link.symlink_to(tmp_path / "zoneinfo" / "Asia" / "Tokyo")
    assert own_time_zone(link) == "Asia/Tokyo"
    assert own_time_zone(tmp_path / "missing") == "UTC"
