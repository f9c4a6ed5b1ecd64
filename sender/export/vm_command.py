"""The command ``vm``."""

from __future__ import annotations

from pathlib import Path

import click

from protocol.constants import MIB
from protocol.program.options import WholeNumber
from protocol.shared.units import parse_size_bytes
from sender.export.accelerator import Accelerator
from sender.export.virtual_machine import (
    CPUS_DEFAULT,
    MEMORY_BYTES_DEFAULT,
    DiskModel,
    VmFirmware,
    VmOptions,
    run_virtual_machine,
)
from sender.imaging.image_file import ImageFile


@click.command()
@click.argument("image_path", metavar="FILE.dci", type=click.Path(path_type=Path))
@click.option(
    "--memory",
    default=f"{MEMORY_BYTES_DEFAULT // MIB}MiB",
    show_default=True,
    metavar="SIZE",
    help="Memory of the machine.",
)
@click.option(
    "--cpus",
    type=WholeNumber(),
    default=CPUS_DEFAULT,
    show_default=True,
    metavar="N",
    help="Processors of the machine.",
)
@click.option(
    "--firmware",
    type=click.Choice([str(firmware) for firmware in VmFirmware]),
    show_default="uefi if the disk has an EFI system partition",
    help="Firmware of the machine.",
)
@click.option(
    "--disk",
    "disk_model",
    type=click.Choice([str(model) for model in DiskModel]),
    show_default="sata",
    help="Controller of the disk.",
)
@click.option("--serial", is_flag=True, help="Show the serial console here, without a window.")
@click.option(
    "--network/--no-network", default=False, show_default=True, help="Give it a network behind NAT."
)
def vm(
    image_path: Path,
    memory: str,
    cpus: int,
    firmware: str | None,
    disk_model: str | None,
    *,
    serial: bool,
    network: bool,
) -> None:
    """Start a virtual machine on an image, to look at it before a room gets it.

    All that the machine writes goes to a temporary overlay and is discarded at the end: the image never changes.
    Nothing is unpacked. Without --network the machine reaches nobody. With --serial, Ctrl-A X switches it off.

    \b
    Examples:
      diskcast vm lab.dci
      diskcast vm lab.dci --memory 4GiB --cpus 4
      diskcast vm server.dci --serial
    """  # noqa: D301
    options = VmOptions(
        memory_bytes=parse_size_bytes(memory),
        cpu_count=cpus,
        firmware=VmFirmware(firmware) if firmware else None,
        disk_model=DiskModel(disk_model) if disk_model else None,
        serial=serial,
        network=network,
    )

    def report_start(chosen: VmFirmware, accelerator: Accelerator) -> None:
        speed = "" if accelerator is Accelerator.KVM else "; without KVM it is slow"
        keys = "; Ctrl-A X switches it off" if serial else ""
        click.echo(
            f"{image_path}: {chosen.upper()}, {accelerator.name}{speed}; changes are discarded{keys}",
            err=True,
        )

    with ImageFile.open(image_path) as image:
        run_virtual_machine(
            image,
            options,
            on_start=report_start,
            on_damage=lambda _block, message: click.echo(message, err=True),
        )
