"""Fitting a verified image to disk and machine: GPT backup, ``--grow``, firmware boot entry, kernel partition table.

::

    check_fit   before anything is written: every known reason why a request can't be met
    fit         after the image was verified and committed, the disk still claimed by ``Target.fd``

Tools read what the image has put on the disk, so each is confined to its device and, where it has to, writes there only
(:mod:`protocol.program.confinement`). The device is that of the claimed descriptor by its number, even if its name has
changed; the filesystem tools work on loop devices over it (:mod:`protocol.program.loop_device`).

Ctrl-C stops the work between two programs, never in the middle of one. After a power cut or a kill, run the same
command again: the image has its own table and filesystem sizes, so changed blocks differ from it, are written again and
fitted again. Until then a power cut leaves: before the partition is grown, a valid primary table with its backup at the
end of the image or of the disk; afterwards, a larger partition around a filesystem of the old size, which works; within
resize2fs or ntfsresize, possibly a damaged filesystem.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from protocol.disk.disk_layout import layout_of
from protocol.disk.disk_reads import Read, reader_from
from protocol.disk.filesystem_magic import container_signature
from protocol.disk.gpt import has_backup_at_end_untrusted, usable_stop_bytes_untrusted
from protocol.disk.partition_table import DiskLayout, TableKind
from protocol.errors import ConfigurationError, FitError, MissingDependencyError, TargetError
from protocol.image.manifest import Manifest
from protocol.program.confinement import ToolDevice
from protocol.program.loop_device import LoopDeviceError, loop_device
from protocol.shared.units import format_bytes
from receiver.disk.fit import efi, table
from receiver.disk.fit.filesystem import (
    GROWERS,
    SLACK_BYTES,
    check_size,
    filesystem_bytes_untrusted,
    forget_btrfs,
    has_driver,
    nodes_of_disk,
)
from receiver.disk.fit.programs import (
    PACKAGES,
    StepError,
    UninterruptedWork,
    missing_programs,
    require_programs,
)
from receiver.disk.target import Target

_BLKRRPART: Final = 0x125F
"""linux/fs.h."""

_NO_PARTITIONS: Final = (errno.EINVAL, errno.ENOTTY)
"""Errors of devices that have no partitions: a partition, or a loop device created without them."""

_IMAGE_INTACT: Final = "the image on it is complete and verified"
_IMAGE_DAMAGED: Final = (
    "the image was complete and verified before that, but the tool may have damaged it: run the same command again, "
    "which rewrites what differs from the image, or run it without --grow"
)


@dataclasses.dataclass(frozen=True, slots=True)
class FitOptions:
    """Requested changes beyond the image itself."""

    grow: bool = False
    """Grow the last partition and its filesystem to the end of the disk."""
    efi_label: str | None = None
    """Label of the firmware boot entry to create; None for none."""
    boot_next: bool = False
    """Start the disk at the next boot, once, and keep the boot order; without UEFI, nothing."""


NO_FIT: Final = FitOptions()
"""Only the changes that every image needs: the GPT's backup at the end of the disk, and rereading the table."""


def check_fit(options: FitOptions, target: Target, manifest: Manifest) -> None:
    """Refuse requests that :func:`fit` couldn't meet; nothing is changed.

    An older image without a layout is only checked once it is on the disk. On a disk as large as the image ``--grow``
    has nothing to do and is never refused.

    Raises:
        MissingDependencyError: a program isn't installed; the message names its Debian package.
        TargetError: ``--grow`` or ``--efi-entry`` for a file, or the entry for a partition.
        ConfigurationError: the image's last partition can't grow, there is no EFI system partition, or this machine
            wasn't booted by UEFI.
    """
    layout = layout_of(manifest.metadata)
    _check_kind(options, target)
    if options.grow:
        _check_growth(target, manifest, layout)
    if options.efi_label is not None:
        efi.check_label(options.efi_label)
        efi.check_firmware()
        require_programs(["sfdisk", *efi.PROGRAMS], "--efi-entry")
        if layout is not None and efi.find_efi_partition(layout) is None:
            raise ConfigurationError(
                f"{manifest.name} has no EFI system partition: run without --efi-entry; nothing was written"
            )


def _check_kind(options: FitOptions, target: Target) -> None:
    requests = {"--grow": options.grow, "--efi-entry": options.efi_label is not None}
    requested = " and ".join(name for name, is_requested in requests.items() if is_requested)
    if requested and not target.is_device:
        raise TargetError(
            f"{target.path} is a file: {requested} is for disks; run without it; nothing was written"
        )
    if options.efi_label is not None and target.is_partition:
        raise TargetError(
            f"{target.path} is a partition: a boot entry is for a whole disk; run without --efi-entry; nothing was "
            "written"
        )


def _check_growth(target: Target, manifest: Manifest, layout: DiskLayout | None) -> None:
    if layout is None:
        return
    obstacle = table.growth_obstacle(layout)
    if not obstacle:
        growth = table.plan_growth(layout, target.size_bytes)
        if not growth.grows_partition and not _has_room(target, manifest):
            return
        grower = GROWERS[growth.filesystem]
        programs = ("sfdisk", *grower.programs) if growth.partition else grower.programs
        require_programs(programs, f"growing {growth.name}")
        if grower.driver and not has_driver(grower.driver):
            raise MissingDependencyError(
                f"growing {growth.name} needs to mount it for a moment, and this kernel has no driver for it: use a "
                "live system with the driver, or run without --grow; nothing was written"
            )
    elif _has_room(target, manifest):
        raise ConfigurationError(
            f"{manifest.name} can't be grown: {obstacle}; run without --grow; nothing was written"
        )


def _has_room(target: Target, manifest: Manifest) -> bool:
    return target.size_bytes - manifest.raw_bytes >= table.ALIGNMENT


def _has_gpt_to_move(target: Target, manifest: Manifest, layout: DiskLayout) -> bool:
    return layout.table is TableKind.GPT and target.size_bytes > manifest.raw_bytes


def fit(
    target: Target,
    manifest: Manifest,
    options: FitOptions,
    *,
    on_step: Callable[[str], None] = lambda _step: None,
) -> list[str]:
    """Fit the image on ``target`` to the disk and the machine; blocks, for hours on a huge filesystem.

    A second call changes nothing and returns no sentences.

    Args:
        target: holds the whole image, verified and committed; stays open.
        manifest: manifest of the image.
        options: requested changes.
        on_step: called with the name of each step that starts, from another thread.

    Returns:
        Sentences for people about changes made and harmless failures.

    Raises:
        FitError: something failed; the image was complete and verified before that.
        StorageError: the disk can't be read or flushed.
        KeyboardInterrupt: Ctrl-C was pressed; the current step has finished.
    """
    if not target.is_device:
        return []

    def work(check: Callable[[], None]) -> list[str]:
        def start_step(step: str) -> None:
            check()
            on_step(step)

        return _Fit(target, manifest, options, start_step).run()

    return UninterruptedWork(work).run()


def reread_partition_table(target: Target) -> str:
    """Make the kernel reread the partition table of the claimed disk.

    Returns:
        A sentence if that failed; empty if it succeeded or such a device has no partitions.
    """
    try:
        fcntl.ioctl(target.fd, _BLKRRPART)
    except OSError as error:
        if error.errno in _NO_PARTITIONS:
            return ""
        return (
            f"The kernel still has the old partition table of {target.path} ({error.strerror}): reboot before using "
            "it."
        )
    return ""


class _Fit:
    """One run of :func:`fit`."""

    def __init__(
        self, target: Target, manifest: Manifest, options: FitOptions, on_step: Callable[[str], None]
    ) -> None:
        self._target = target
        self._manifest = manifest
        self._options = options
        self._on_step = on_step
        self._read = table.direct_reader(target.read_back)
        number = os.fstat(target.fd).st_rdev
        self._disk = ToolDevice(str(nodes_of_disk(number)[0]), number)
        self._done: list[str] = []

    def run(self) -> list[str]:
        layout = self._read_layout()
        try:
            if _has_gpt_to_move(self._target, self._manifest, layout):
                self._move_backup(layout)
                layout = self._read_layout()
            if self._options.efi_label is not None:
                self._make_entry(layout, self._options.efi_label)
            if self._options.grow:
                self._grow(layout)
            if self._options.boot_next:
                self._start_at_next_boot(layout)
        finally:
            # The kernel's copy of the table is older than the image, even if a step failed.
            failure_text = reread_partition_table(self._target)
        if failure_text:
            self._done.append(failure_text)
        return self._done

    @contextlib.contextmanager
    def _step(self, name: str, consequence: str = _IMAGE_INTACT) -> Iterator[None]:
        """Run one step; its errors state the consequence for the image."""
        self._on_step(name)
        try:
            yield
        except (StepError, LoopDeviceError) as error:
            raise FitError(f"{self._target.path}: {name} failed: {error}; {consequence}") from error

    def _read_layout(self) -> DiskLayout:
        return table.read_layout(self._target.read_back, self._target.sector_bytes)

    def _has_backup_at_end(self, layout: DiskLayout) -> bool:
        return has_backup_at_end_untrusted(self._read, self._target.size_bytes, layout.sector_bytes)

    def _move_backup(self, layout: DiskLayout) -> None:
        if self._has_backup_at_end(layout):
            return
        with self._step("moving the backup partition table"):
            if layout.sector_bytes != self._target.sector_bytes:
                raise StepError(
                    f"the table counts sectors of {layout.sector_bytes} bytes, the disk has {self._target.sector_bytes}"
                )
            table.move_backup(self._target, layout.sector_bytes)
            if not self._has_backup_at_end(layout) or self._read_layout().partitions != layout.partitions:
                raise StepError("it was written, but the table reads back wrong: the disk may be failing")
        self._done.append("The backup of the partition table was moved to the end of the disk.")

    def _make_entry(self, layout: DiskLayout, label: str) -> None:
        with self._step("creating the boot entry"):
            sentence = efi.ensure_entry(self._disk, self._read, layout, label, last=self._options.boot_next)
        if sentence:
            self._done.append(sentence)

    def _start_at_next_boot(self, layout: DiskLayout) -> None:
        """Set the next boot; a failure is no error: the boot order or the boot service leads to the disk too."""
        if not efi.FIRMWARE.is_dir() or efi.find_efi_partition(layout) is None:
            return
        self._on_step("setting the next boot")
        label = self._options.efi_label or efi.BOOT_NEXT_LABEL
        try:
            if self._options.efi_label is None:
                efi.ensure_entry(self._disk, self._read, layout, label, last=True)
            efi.set_boot_next(label)
        except StepError as error:
            self._done.append(f"The disk couldn't be set as the next boot: {error}; the boot order decides.")
        else:
            self._done.append(f"The next boot starts {label}, once.")

    def _grow(self, layout: DiskLayout) -> None:
        obstacle = table.growth_obstacle(layout)
        if obstacle:
            if not _has_room(self._target, self._manifest):
                return
            with self._step("growing the last partition"):
                raise StepError(obstacle)
        growth = table.plan_growth(
            layout,
            self._target.size_bytes,
            usable_stop_bytes=usable_stop_bytes_untrusted(self._read, layout.sector_bytes),
        )
        old_bytes = filesystem_bytes_untrusted(self._reader(growth), growth.filesystem)
        if not growth.grows_partition and old_bytes > growth.size_bytes - SLACK_BYTES:
            return
        grower = GROWERS[growth.filesystem]
        # Checked before the partition grows: if the filesystem can't grow, the partition stays as it is.
        with self._step(f"checking {growth.name}"):
            container = container_signature(self._reader(growth), growth.old_stop_bytes - growth.start_bytes)
            if container:
                raise StepError(f"it belongs to {container}, which can't be grown here")
            with self._loop(growth) as device:
                grower.before(device)
        if growth.grows_partition:
            with self._step(f"growing {growth.name}"):
                self._grow_partition(layout, growth)
        with self._step(f"growing the filesystem of {growth.name}", _IMAGE_DAMAGED):
            if growth.filesystem == "btrfs":
                forget_btrfs(*nodes_of_disk(os.fstat(self._target.fd).st_rdev))
            with self._loop(growth) as device:
                grower.grow(device)
            self._target.sync()
        with self._step(f"checking the grown {growth.name}", _IMAGE_DAMAGED):
            with self._loop(growth) as device:
                grower.after(device)
            now_bytes = check_size(self._reader(growth), growth.filesystem, growth.size_bytes)
        grown = "The filesystem" if growth.partition is None else f"Partition {growth.partition.number}"
        self._done.append(
            f"{grown} was grown: its {growth.filesystem} has {format_bytes(now_bytes)} now, {format_bytes(old_bytes)} "
            "before, and passes its own check."
        )

    def _grow_partition(self, layout: DiskLayout, growth: table.Growth) -> None:
        table.grow_partition(self._disk, growth, layout.sector_bytes)
        self._target.sync()
        table.check_grown(self._read_layout(), growth)
        if layout.table is TableKind.GPT:
            table.check_table(self._disk)

    def _reader(self, growth: table.Growth) -> Read:
        return reader_from(self._read, growth.start_bytes, growth.size_bytes)

    def _loop(self, growth: table.Growth) -> contextlib.AbstractContextManager[Path]:
        return loop_device(
            self._target.fd,
            growth.start_bytes,
            growth.size_bytes,
            sector_bytes=self._target.sector_bytes,
            name=f"diskcast: {self._target.path}",
        )


def fit_tools() -> list[tuple[str, bool, str]]:
    """Return the purposes of external programs, with whether they are installed and their Debian package."""
    purposes = {
        "growing partitions": ("sfdisk",),
        "checking a GPT a second time (optional)": ("sgdisk",),
        "growing ext2, ext3 and ext4": GROWERS["ext4"].programs,
        "growing XFS": ("xfs_growfs", "xfs_logprint", "xfs_repair"),
        "growing btrfs": ("btrfs",),
        "growing NTFS": GROWERS["ntfs"].programs,
        "firmware boot entries": ("efibootmgr",),
    }
    return [(purpose, not missing_programs(names), PACKAGES[names[0]]) for purpose, names in purposes.items()]
