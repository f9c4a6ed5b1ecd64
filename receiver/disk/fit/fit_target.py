"""Fitting a verified image to disk and machine: the GPT's end, ``--grow``, a firmware boot entry, the kernel's view.

::

    check_fit   before anything is written: every reason known in advance why a wish can't be met
    fit         after the image was verified and committed, the disk still claimed by ``Target.fd``

Programs are handed ``/proc/PID/fd/N``, which is the claimed descriptor's own device whatever its name has become; the
filesystem tools work on loop devices over it (:mod:`receiver.disk.fit.loop_device`).

Ctrl-C is answered between two programs, never in the middle of one. After a power cut or a kill, run the same command
again: the image has its own table and filesystem sizes, so what had been changed differs from it, is written anew and
fitted anew. What a cut leaves until then: before the partition was grown, a right first table with its backup at the
image's end or at the disk's; after it, a larger partition around a filesystem of the old size, which works; within
resize2fs or ntfsresize, perhaps a damaged filesystem.
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

from protocol.disk.disk_layout import DiskLayout, TableKind, layout_of
from protocol.disk.filesystem_magic import container_signature
from protocol.disk.partition_table import Read, reader_from
from protocol.errors import ConfigurationError, FitError, MissingDependencyError, TargetError
from protocol.image.manifest import Manifest
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
from receiver.disk.fit.loop_device import loop_device
from receiver.disk.fit.programs import PACKAGES, StepError, Undisturbed, missing_programs, require_programs
from receiver.disk.target import Target

_BLKRRPART: Final = 0x125F
"""linux/fs.h."""

_NO_PARTITIONS: Final = (errno.EINVAL, errno.ENOTTY)
"""Of devices on which the kernel has no partitions to show: a partition, or a loop device made without them."""

_UNHARMED: Final = "the image is complete and verified on it all the same"
_HARMED: Final = (
    "the image was complete and verified before that, what the tool left is not: run the same command again, which "
    "writes what differs from the image anew, or without --grow"
)


@dataclasses.dataclass(frozen=True, slots=True)
class FitOptions:
    """What is wished beyond the image itself."""

    grow: bool = False
    """Grow the last partition and its filesystem to the disk's end."""
    efi_label: str | None = None
    """Make a firmware boot entry of this label."""


NO_FIT: Final = FitOptions()
"""Nothing but what every image needs: a GPT's backup at its disk's end, and the kernel's view of the table."""


def check_fit(options: FitOptions, target: Target, manifest: Manifest) -> None:
    """Refuse what :func:`fit` couldn't do; nothing is changed.

    An image that doesn't know its layout (an older one) is only looked at when it is on the disk. A disk as large as
    the image has nothing to grow: then nothing stands in the way of ``--grow``.

    Raises:
        MissingDependencyError: a program isn't installed; the message names its Debian package.
        TargetError: ``--grow`` or ``--efi-entry`` for a file, or the entry for a partition.
        ConfigurationError: the image's last partition can't grow, there is no EFI system partition, or this machine
            wasn't started by UEFI.
    """
    layout = layout_of(manifest.metadata)
    _check_kind(options, target)
    if options.grow:
        _check_growth(target, manifest, layout)
    if target.is_device and layout is not None and _has_gpt_to_move(target, manifest, layout):
        require_programs(["sfdisk"], "a GPT on a disk larger than its image")
    if options.efi_label is not None:
        efi.check_label(options.efi_label)
        efi.check_firmware()
        require_programs(["sfdisk", *efi.PROGRAMS], "--efi-entry")
        if layout is not None and efi.find_efi_partition(layout) is None:
            raise ConfigurationError(
                f"{manifest.name} has no EFI system partition: run without --efi-entry; nothing was written"
            )


def _check_kind(options: FitOptions, target: Target) -> None:
    wishes = {"--grow": options.grow, "--efi-entry": options.efi_label is not None}
    wished = " and ".join(name for name, is_wished in wishes.items() if is_wished)
    if wished and not target.is_device:
        raise TargetError(
            f"{target.path} is a file, which becomes as long as the image: {wished} is for disks; nothing was written"
        )
    if options.efi_label is not None and target.is_partition:
        raise TargetError(
            f"{target.path} is a partition: a boot entry is for a whole disk; nothing was written"
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
                f"growing {growth.name} needs it mounted for a moment, and this kernel has no driver for it: use a "
                "live system that has, or run without --grow; nothing was written"
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

    Doing it again changes nothing and says nothing.

    Args:
        target: holds the whole image, verified and committed; stays open.
        manifest: the image's.
        options: what is wished.
        on_step: is told what begins, in a few words; from another thread.

    Returns:
        What was done, and what couldn't be but does no harm: sentences for people.

    Raises:
        FitError: something failed; the image was complete and verified before that.
        StorageError: the disk can't be read or flushed.
        KeyboardInterrupt: Ctrl-C; what was under way has ended.
    """
    if not target.is_device:
        return []

    def work(check: Callable[[], None]) -> list[str]:
        def begin(step: str) -> None:
            check()
            on_step(step)

        return _Fit(target, manifest, options, begin).run()

    return Undisturbed(work).run()


def reread_partition_table(target: Target) -> str:
    """Let the kernel read the partition table of the claimed disk anew.

    Returns:
        A sentence if it couldn't; empty if it did, or has no partitions to show for such a device.
    """
    try:
        fcntl.ioctl(target.fd, _BLKRRPART)
    except OSError as error:
        if error.errno in _NO_PARTITIONS:
            return ""
        return (
            f"The kernel still has the old partition table of {target.path} ({error.strerror}): reboot before you use "
            "it."
        )
    return ""


class _Fit:
    """One run of :func:`fit`."""

    def __init__(
        self, target: Target, manifest: Manifest, options: FitOptions, begin: Callable[[str], None]
    ) -> None:
        self._target = target
        self._manifest = manifest
        self._options = options
        self._begin = begin
        self._read = table.direct_reader(target.read_back)
        self._disk = Path(f"/proc/{os.getpid()}/fd/{target.fd}")
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
        finally:
            # The kernel's idea of the table is older than the image, whatever became of the rest.
            complaint = reread_partition_table(self._target)
        if complaint:
            self._done.append(complaint)
        return self._done

    @contextlib.contextmanager
    def _step(self, name: str, consequence: str = _UNHARMED) -> Iterator[None]:
        """One step, its errors in words that say what they mean for the image."""
        self._begin(name)
        try:
            yield
        except StepError as error:
            raise FitError(f"{self._target.path}: {name} failed: {error}; {consequence}") from error

    def _read_layout(self) -> DiskLayout:
        return table.read_layout(self._target.read_back, self._target.sector_bytes)

    def _has_backup_at_end(self, layout: DiskLayout) -> bool:
        return table.has_backup_at_end_untrusted(self._read, self._target.size_bytes, layout.sector_bytes)

    def _move_backup(self, layout: DiskLayout) -> None:
        if self._has_backup_at_end(layout):
            return
        with self._step("moving the backup partition table"):
            if layout.sector_bytes != self._target.sector_bytes:
                raise StepError(
                    f"the table counts sectors of {layout.sector_bytes} bytes, the disk {self._target.sector_bytes}"
                )
            table.move_backup(self._disk)
            self._target.sync()
            if not self._has_backup_at_end(layout) or self._read_layout().partitions != layout.partitions:
                raise StepError("sfdisk reported success, but what is read back from the disk isn't right")
            table.check_table(self._disk)
        self._done.append("The backup of the partition table was moved to the end of the disk.")

    def _make_entry(self, layout: DiskLayout, label: str) -> None:
        with self._step("making the boot entry"):
            sentence = efi.make_entry(self._disk, layout, label)
        if sentence:
            self._done.append(sentence)

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
            usable_stop_bytes=table.usable_stop_bytes_untrusted(self._read, layout.sector_bytes),
        )
        old_bytes = filesystem_bytes_untrusted(self._reader(growth), growth.filesystem)
        if not growth.grows_partition and old_bytes > growth.size_bytes - SLACK_BYTES:
            return
        grower = GROWERS[growth.filesystem]
        # Before the partition: one with a filesystem that can't grow had better stay as it came.
        with self._step(f"checking {growth.name}"):
            container = container_signature(self._reader(growth), growth.old_stop_bytes - growth.start_bytes)
            if container:
                raise StepError(f"it belongs to {container}, which no tool here grows")
            with self._loop(growth) as device:
                grower.before(device)
        if growth.grows_partition:
            with self._step(f"growing {growth.name}"):
                self._grow_partition(layout, growth)
        with self._step(f"growing the filesystem of {growth.name}", _HARMED):
            if growth.filesystem == "btrfs":
                forget_btrfs(*nodes_of_disk(os.fstat(self._target.fd).st_rdev))
            with self._loop(growth) as device:
                grower.grow(device)
            self._target.sync()
        with self._step(f"checking the grown {growth.name}", _HARMED):
            with self._loop(growth) as device:
                grower.after(device)
            now_bytes = check_size(self._reader(growth), growth.filesystem, growth.size_bytes)
        what = "Its filesystem" if growth.partition is None else f"Partition {growth.partition.number}"
        self._done.append(
            f"{what} was grown: its {growth.filesystem} has {format_bytes(now_bytes)} now, {format_bytes(old_bytes)} "
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
    """For the doctor: what each program is for, whether all of it is installed, and the Debian package."""
    purposes = {
        "moving a GPT's backup, growing partitions": ("sfdisk",),
        "checking a GPT a second time (optional)": ("sgdisk",),
        "growing ext2, ext3 and ext4": GROWERS["ext4"].programs,
        "growing XFS": ("xfs_growfs", "xfs_repair"),
        "growing btrfs": ("btrfs",),
        "growing NTFS": GROWERS["ntfs"].programs,
        "firmware boot entries": ("efibootmgr",),
        "finding the boot loader on an EFI system partition": ("mdir",),
    }
    return [(purpose, not missing_programs(names), PACKAGES[names[0]]) for purpose, names in purposes.items()]
