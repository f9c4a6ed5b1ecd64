"""Command line options for rate, stragglers and encryption, shared by ``send`` and ``casts create``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, TypedDict

import click

from protocol.constants import (
    RATE_BYTES_PER_S_MAX,
    RATE_BYTES_PER_S_MIN,
    SLOW_BELOW_DEFAULT,
    SLOW_BELOW_MAX,
    SLOW_BELOW_MIN,
    SLOW_FOR_S_DEFAULT,
    SLOW_FOR_S_MAX,
    SLOW_FOR_S_MIN,
)
from protocol.errors import ConfigurationError
from protocol.model.cast_policy import SlowPolicy
from protocol.shared.units import (
    format_duration,
    format_rate,
    parse_duration_s,
    parse_rate_bytes_per_s,
    parse_share,
)

AUTOMATIC: Final = "auto"

_OPTIONS: Final = (
    click.option(
        "--rate",
        metavar="RATE",
        default=AUTOMATIC,
        show_default=True,
        help="'auto' adapts to the room; 800M is a fixed rate in bits per second.",
    ),
    click.option(
        "--max-rate",
        metavar="RATE",
        show_default="no limit",
        help="Limit of the automatic rate, such as 500M.",
    ),
    click.option("--share", is_flag=True, help="Share links with other traffic, as TCP does."),
    click.option(
        "--slow",
        type=click.Choice([policy.value for policy in SlowPolicy]),
        default=SlowPolicy.DEMOTE.value,
        show_default=True,
        help="Stragglers: wait for them, demote (finish last) or drop them.",
    ),
    click.option(
        "--slow-below",
        metavar="SHARE",
        default=f"{SLOW_BELOW_DEFAULT:.0%}",
        show_default=True,
        help="A machine is slow below this share of the group's rate.",
    ),
    click.option(
        "--slow-for",
        metavar="TIME",
        default=f"{SLOW_FOR_S_DEFAULT:g}s",
        show_default=True,
        help="Apply --slow to a machine that is slow for this time, such as 2m.",
    ),
)

encrypt_option: Final = click.option("--encrypt", is_flag=True, help="Encrypt the data on the network.")


class Pace(TypedDict):
    """The parsed options: arguments of :class:`protocol.model.cast_policy.CastPolicy`."""

    rate_bytes_per_s: float | None
    rate_max_bytes_per_s: float | None
    share: bool
    slow_policy: SlowPolicy
    slow_below: float
    slow_for_s: float


def pace_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options ``--rate`` to ``--slow-for`` to a command, which gets their parsed values as ``pace``.

    Raises:
        ConfigurationError: when the command runs, for an invalid value or combination.
    """

    @functools.wraps(function)
    def with_pace(
        *args: object,
        rate: str,
        max_rate: str | None,
        share: bool,
        slow: str,
        slow_below: str,
        slow_for: str,
        **kwargs: object,
    ) -> object:
        if rate != AUTOMATIC and max_rate is not None:
            raise ConfigurationError(
                "--max-rate limits --rate auto and can't be used with a fixed --rate: remove one of them"
            )
        if rate != AUTOMATIC and share:
            raise ConfigurationError(
                "--share makes --rate auto yield to other traffic, which a fixed --rate can't: remove one of them"
            )
        pace = Pace(
            rate_bytes_per_s=None if rate == AUTOMATIC else _parse_rate("--rate", rate),
            rate_max_bytes_per_s=None if max_rate is None else _parse_rate("--max-rate", max_rate),
            share=share,
            slow_policy=SlowPolicy(slow),
            slow_below=_parse_slow_below(slow_below),
            slow_for_s=_parse_slow_for(slow_for),
        )
        return function(*args, pace=pace, **kwargs)

    decorated: Callable[..., Any] = with_pace
    for option in reversed(_OPTIONS):  # the last one applied is the first one in --help
        decorated = option(decorated)
    return decorated


def _parse_rate(option: str, text: str) -> float:
    rate_bytes_per_s = parse_rate_bytes_per_s(text)
    if not RATE_BYTES_PER_S_MIN <= rate_bytes_per_s <= RATE_BYTES_PER_S_MAX:
        raise ConfigurationError(
            f"{option} {text} is out of range: choose from {format_rate(RATE_BYTES_PER_S_MIN)} to "
            f"{format_rate(RATE_BYTES_PER_S_MAX)}"
        )
    return rate_bytes_per_s


def _parse_slow_below(text: str) -> float:
    share = parse_share(text)
    if not SLOW_BELOW_MIN <= share <= SLOW_BELOW_MAX:
        raise ConfigurationError(
            f"--slow-below {text} is out of range: choose from {SLOW_BELOW_MIN:.0%} to {SLOW_BELOW_MAX:.0%}"
        )
    return share


def _parse_slow_for(text: str) -> float:
    seconds = parse_duration_s(text)
    if not SLOW_FOR_S_MIN <= seconds <= SLOW_FOR_S_MAX:
        raise ConfigurationError(
            f"--slow-for {text} is out of range: choose from {format_duration(SLOW_FOR_S_MIN)} to "
            f"{format_duration(SLOW_FOR_S_MAX)}"
        )
    return seconds
