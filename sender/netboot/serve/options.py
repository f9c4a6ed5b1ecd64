"""Command-line options of the boot service and of what is printed about it."""

from __future__ import annotations

from typing import Final

import click

from protocol.program.options import WholeNumber
from sender.netboot.serve.boot_files import HTTP_PORT_DEFAULT

HTTP_PORT_OPTION: Final = click.option(
    "--http-port",
    metavar="P",
    type=WholeNumber(1, 65535),
    default=HTTP_PORT_DEFAULT,
    show_default=True,
    help="TCP port of boot scripts and files.",
)
SECURE_BOOT_OPTION: Final = click.option(
    "--secure-boot", is_flag=True, help="Boot UEFI machines by Debian's signed shim and GRUB."
)
