"""Parsing of times as operators write them: a time of day, a date, a duration from now or ago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from protocol.errors import ConfigurationError
from protocol.shared.units import parse_duration_s


def parse_start(text: str, now: datetime) -> datetime:
    """Parse ``22:00`` (the next one), ``2026-11-21 22:00`` or ``2026-11-21T22:00+01:00``; return UTC.

    Args:
        text: without a zone it is this machine's local time.
        now: aware.

    Raises:
        ConfigurationError: the text isn't a time, or is in the past.
    """
    local = now.astimezone()
    try:
        of_day = datetime.strptime(text.strip(), "%H:%M").time()  # noqa: DTZ007  only its hour and minute
    except ValueError:
        at = _parse_date(text, "22:00, 2026-11-21T22:00 or 2026-11-21T22:00+01:00")
    else:
        # A wall-clock time: combined as such, so that a change to summer time in between doesn't shift it.
        at = datetime.combine(local.date(), of_day).astimezone()
        if at <= now:
            at = datetime.combine(local.date() + timedelta(days=1), of_day).astimezone()
    if at <= now:
        raise ConfigurationError(
            f"{text} is in the past: choose a later time, or leave the option out to start now"
        )
    return at.astimezone(UTC)


def parse_in(text: str, now: datetime) -> datetime:
    """Parse ``10m`` or ``2h`` from now; return UTC.

    Raises:
        ConfigurationError: the text isn't a duration, or is out of the calendar's range.
    """
    return _shifted(now, parse_duration_s(text), text)


def parse_past(text: str, now: datetime) -> datetime:
    """Parse ``7d`` (ago), ``2026-11-01`` or ``2026-11-01T12:00``; return UTC.

    Raises:
        ConfigurationError: the text is neither a duration nor a date.
    """
    try:
        seconds = parse_duration_s(text)
    except ConfigurationError:
        return _parse_date(text, "7d, 2026-11-01 or 2026-11-01T12:00").astimezone(UTC)
    return _shifted(now, -seconds, text)


def _parse_date(text: str, examples: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip()).astimezone()  # without a zone: this machine's
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"{text!r} isn't a time: use {examples}") from error


def _shifted(now: datetime, seconds: float, text: str) -> datetime:
    try:
        return (now + timedelta(seconds=seconds)).astimezone(UTC)
    except OverflowError as error:
        raise ConfigurationError(f"{text} is out of the calendar's range: use a shorter time") from error
