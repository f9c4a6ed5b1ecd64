"""Command-line options about the target, shared by casts and restores."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import click

from protocol.program.options import WholeNumber
from receiver.disk.fit.fit_target import NO_FIT, FitOptions
from receiver.disk.target import Target
from receiver.target.open_target import open_target, refuse_unwritable
from receiver.target.selection import choose_target, is_path

_Command = Callable[..., None]

TARGET_HELP = "File, device, serial=…, wwn=…, model=… or auto[:RULES]; docs: “Disks”."


@dataclasses.dataclass(frozen=True, slots=True)
class TargetOptions:
    """Options for writing the target, besides its name.

    Attributes:
        partition: number of the partition to write; None for the whole target.
        scans: compare the target with the image first, and write only differing blocks.
        dry_run: report the work to do, and change nothing.
        fit: changes to make after the image is on the target.
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
        ConfigurationError: the selector is invalid.
        TargetError: no disk fits, or the chosen one is refused.
        StorageError: the target can't be read.
    """
    choice = choose_target(str(selector), partition=options.partition, raw_bytes=raw_bytes)
    return open_target(choice.path, raw_bytes=raw_bytes, image_path=image_path, expected=choice.identity)


def refuse_chosen(selector: str | Path, options: TargetOptions) -> None:
    """Refuse a target that its path names and that no image can be written to, before an image is known.

    The disk that a rule chooses, and the partition, depend on the image: :func:`open_chosen` judges them.

    Raises:
        TargetError, StorageError: as :func:`open_chosen` raises.
    """
    if options.partition is None and is_path(str(selector)):
        refuse_unwritable(Path(selector))


def target_options(command: _Command) -> _Command:
    """Add the options to a command, as its arguments ``target`` and ``target_options``."""
    return click.option("--dry-run", is_flag=True, help="Report the work to do; change nothing.")(
        writing_options(command)
    )


def writing_options(command: _Command) -> _Command:
    """Add the options without ``--dry-run``, for a command that doesn't know its image yet."""

    @functools.wraps(command)
    def with_options(
        partition: int | None,
        *,
        full: bool,
        grow: bool,
        efi_label: str | None,
        bootnext: bool,
        dry_run: bool = False,
        **others: object,
    ) -> None:
        fit = FitOptions(grow=grow, efi_label=efi_label, boot_next=bootnext)
        options = TargetOptions(partition, not full, dry_run, fit)
        command(target_options=options, **others)

    for option in (
        click.option("--bootnext", is_flag=True, help="Start the disk at the next boot, once (UEFI)."),
        click.option(
            "--efi-entry", "efi_label", metavar="LABEL", help="Create a UEFI boot entry of this name."
        ),
        click.option(
            "--grow", is_flag=True, help="Grow the last partition and its filesystem to fill the disk."
        ),
        click.option(
            "--full", is_flag=True, help="Write every block, even those that the target holds already."
        ),
        click.option(
            "--partition", type=WholeNumber(1), metavar="N", help="Write only partition N of the target."
        ),
        click.option("--target", required=True, metavar="TARGET", help=TARGET_HELP),
    ):
        with_options = option(with_options)
    return with_options
