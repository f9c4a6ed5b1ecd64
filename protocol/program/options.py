"""Command-line options that both programs have."""

from __future__ import annotations

from typing import Final

import click

from protocol.constants import DATA_PORT_DEFAULT, GROUP_IPV4_DEFAULT

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
