"""What an operator may say about a target, the same for a cast and for a restore."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import click

from receiver.disk.fit.fit_target import NO_FIT, FitOptions
from receiver.disk.target import Target
from receiver.target.open_target import open_target
from receiver.target.selection import choose_target

_Command = Callable[..., None]

TARGET_HELP = (
    "What to write: a file, a device, or a disk by serial=…, wwn=…, model=… or auto (the only one that isn't "
    "removable; auto:smallest, auto:min=100G,max=600G). See diskcast-agent disks."
)


@dataclasses.dataclass(frozen=True, slots=True)
class TargetOptions:
    """Beside what names the target.

    Attributes:
        partition: write this partition of it.
        scans: look first at what it holds already, and write only what differs.
        dry_run: say what would be done, and do nothing.
        fit: what is done to it after the image is on it.
    """

    partition: int | None = None
    scans: bool = True
    dry_run: bool = False
    fit: FitOptions = NO_FIT


DEFAULTS = TargetOptions()


def open_chosen(
    selector: str | Path, options: TargetOptions, *, raw_bytes: int, image_path: Path | None = None
) -> Target:
    """Choose the target and open it; nothing on it is changed.

    Raises:
        ConfigurationError: the selector can't be understood.
        TargetError: nothing fits, or what was chosen is refused.
        StorageError: it can't be read.
    """
    choice = choose_target(str(selector), partition=options.partition, raw_bytes=raw_bytes)
    return open_target(choice.path, raw_bytes=raw_bytes, image_path=image_path, expected=choice.identity)


def target_options(command: _Command) -> _Command:
    """Give a command these options, as the arguments ``target`` and ``target_options``."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")(
        writing_options(command)
    )


def writing_options(command: _Command) -> _Command:
    """The same without ``--dry-run``: for a command that waits for what it will write."""

    @functools.wraps(command)
    def with_options(
        partition: int | None,
        *,
        full: bool,
        grow: bool,
        efi_label: str | None,
        dry_run: bool = False,
        **others: object,
    ) -> None:
        options = TargetOptions(partition, not full, dry_run, FitOptions(grow=grow, efi_label=efi_label))
        command(target_options=options, **others)

    for option in (
        click.option("--efi-entry", "efi_label", metavar="LABEL", help="Make a firmware boot entry (UEFI)."),
        click.option(
            "--grow", is_flag=True, help="Grow the last partition and its filesystem to the disk's end."
        ),
        click.option(
            "--full", is_flag=True, help="Write everything, without looking at what is there already."
        ),
        click.option(
            "--partition", type=click.IntRange(1), metavar="N", help="Write the target's partition N only."
        ),
        click.option("--target", required=True, metavar="TARGET", help=TARGET_HELP),
    ):
        with_options = option(with_options)
    return with_options
