"""Command-line options that both programs have, and types of options that are numbers.

The types take ASCII digits within limits. Python's own ``int`` and ``float`` also take ``nan``, ``inf``, ``1_000`` and
digits of other scripts, which are slips or attacks in an option.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final

import click

from protocol.constants import DATA_PORT_DEFAULT, GROUP_IPV4_DEFAULT
from protocol.errors import ConfigurationError
from protocol.shared.units import format_duration, parse_duration_s, parse_share

JOIN_VARIABLE: Final = "DISKCAST_JOIN"
"""Environment variable with a join code: the process list is public."""
PIN_VARIABLE: Final = "DISKCAST_PIN"

_WHOLE: Final = re.compile(r"-?[0-9]+")


class WholeNumber(click.IntRange):
    """A whole number of decimal digits, within limits."""

    name = "number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        if isinstance(value, str) and _WHOLE.fullmatch(value.strip()) is None:
            self.fail(f"{value!r} isn't a whole number", param, ctx)
        number: int = super().convert(value, param, ctx)  # type: ignore[arg-type]  # it takes text too
        return number


class Duration(click.ParamType[float]):
    """A time, such as ``90``, ``500ms``, ``5m`` or ``2h``, in seconds."""

    name = "time"

    def __init__(self, low_s: float = 0.0, high_s: float = math.inf) -> None:
        """Allow times from ``low_s`` to ``high_s``, both included."""
        self._low_s = low_s
        self._high_s = high_s

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, int | float):
            return float(value)
        try:
            seconds = parse_duration_s(str(value))
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)
        if seconds < self._low_s:
            self.fail(f"{value} is too short: at least {format_duration(self._low_s)}", param, ctx)
        if seconds > self._high_s:
            self.fail(f"{value} is too long: at most {format_duration(self._high_s)}", param, ctx)
        return seconds


class Share(click.ParamType[float]):
    """A share below one: ``5%`` or ``0.05``."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the share, in [0, 1)."""
        if isinstance(value, float):
            return value
        try:
            share = parse_share(str(value))
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)
        if share >= 1:
            self.fail(f"{value!r} is everything: write less, for example 5% or 0.05", param, ctx)
        return share


PIN_OPTION: Final = click.option(
    "--pin",
    "pins",
    multiple=True,
    envvar=PIN_VARIABLE,
    metavar="PIN",
    help=f"Pin of the peer's certificate; repeatable.  [env: {PIN_VARIABLE}]",
)

CA_OPTION: Final = click.option(
    "--ca",
    "ca_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Accept certificates of this authority (PEM) instead of a pin.",
)

GROUP_OPTION: Final = click.option(
    "--group",
    metavar="ADDRESS",
    default=GROUP_IPV4_DEFAULT,
    show_default=True,
    help="Multicast group of the cast.",
)

PORT_OPTION: Final = click.option(
    "--port",
    metavar="P",
    type=WholeNumber(1, 65535),
    default=DATA_PORT_DEFAULT,
    show_default=True,
    help="UDP port of the cast.",
)

JSON_OPTION: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line to stdout."
)
