"""Moments as operators write them: a time of day, a date, how long ago, in how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from protocol.errors import ConfigurationError
from protocol.shared.units import parse_duration_s


def parse_start(text: str, now: datetime) -> datetime:
    """``22:00`` (the next one), ``2026-11-21 22:00`` or with a zone, ``2026-11-21T22:00+01:00``, as UTC.

    Args:
        text: what was written; without a zone it is this machine's time.
        now: aware.

    Raises:
        ConfigurationError: it isn't a time, or is over.
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
        raise ConfigurationError(f"{text} is over: name a time to come, or leave it out to begin now")
    return at.astimezone(UTC)


def parse_in(text: str, now: datetime) -> datetime:
    """``10m`` or ``2h`` from now, as UTC.

    Raises:
        ConfigurationError: it isn't a time, or none that a calendar has.
    """
    return _shifted(now, parse_duration_s(text), text)


def parse_past(text: str, now: datetime) -> datetime:
    """``7d`` (ago), ``2026-11-01`` or ``2026-11-01T12:00``, as UTC.

    Raises:
        ConfigurationError: it is neither.
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
        raise ConfigurationError(f"{text!r} isn't a time: write for example {examples}") from error


def _shifted(now: datetime, seconds: float, text: str) -> datetime:
    try:
        return (now + timedelta(seconds=seconds)).astimezone(UTC)
    except OverflowError as error:
        raise ConfigurationError(f"{text} is further away than a calendar goes") from error
