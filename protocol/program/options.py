"""Command-line options that both programs have."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from protocol.constants import DATA_PORT_DEFAULT, GROUP_IPV4_DEFAULT

JOIN_VARIABLE: Final = "DISKCAST_JOIN"
"""Environment variable with a join code: the process list is public."""
PIN_VARIABLE: Final = "DISKCAST_PIN"

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
    type=click.IntRange(1, 65535),
    default=DATA_PORT_DEFAULT,
    show_default=True,
    help="UDP port of the cast.",
)

JSON_OPTION: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line to stdout."
)
