"""Generalise an image: a new image of the same disk without the traces of the machine on which it was made.

Filesystems of Linux are edited in sparse copies, by debugfs in the sandbox; free space, the journal and swap are zeroed
besides, so that nothing of a removed file is in the new image. Windows is only examined.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from protocol.disk.disk_layout import layout_of
from protocol.disk.disk_reads import reader_from
from protocol.disk.filesystem_magic import container_signature
from protocol.disk.partition_table import Partition
from protocol.errors import ConfigurationError, ImageError, SourceUncleanError
from protocol.image.image_format import ImageHeader
from protocol.image.manifest_format import build_manifest_start
from protocol.packing.filesystems.superblocks import (
    FilesystemUncleanError,
    Superblock,
    UsageUnknownError,
    read_superblock_untrusted,
)
from protocol.packing.source_hash import source_sha256_of
from protocol.program.system_tools import ToolError
from sender.imaging.contents.ext_files import ExtError, ExtFiles
from sender.imaging.contents.generalisation import GENERALISED_KEY
from sender.imaging.editing.edited_blocks import EditedBlocks
from sender.imaging.editing.ext_editor import check_ext, require_ext_tools
from sender.imaging.editing.image_rewriter import ChangedBlock, rewrite_image
from sender.imaging.editing.partition_copy import PartitionCopy, stored_raw_bytes
from sender.imaging.generalise.hidden_ranges import journal_body_untrusted, swap_file_body_untrusted
from sender.imaging.generalise.linux_changes import Change, apply_files, plan_files_untrusted, require_applied
from sender.imaging.generalise.systems import Systems, find_systems_untrusted, partitions_of
from sender.imaging.generalise.traces import GENERALISED_VERSION, Action, TraceKind
from sender.imaging.generalise.windows_state import read_windows_state
from sender.imaging.image_file import ImageFile
from sender.imaging.verified_blocks import VerifiedBlocks

OnProgress = Callable[[int, int], None]

_SWAP: Final = "swap"
_EXT: Final = "ext4"
_NTFS: Final = "ntfs"


@dataclasses.dataclass(frozen=True, slots=True)
class GeneraliseResult:
    """A generalised image.

    Attributes:
        path: the new image.
        image_id: its id; that of the old image if nothing had to change.
        systems: the operating systems on the disk.
        changes: the changes, in the order of the disk.
        remarks: traces that stay, and the reason.
        changed_blocks: number of blocks that differ from the old image.
    """

    path: Path
    image_id: bytes
    systems: tuple[str, ...]
    changes: tuple[Change, ...]
    remarks: tuple[str, ...]
    changed_blocks: int


def generalise_image(
    image: ImageFile,
    output_path: Path,
    sign: Callable[[ImageHeader], ImageHeader] = lambda header: header,
    *,
    allow_unsandboxed: bool = False,
    on_copy: OnProgress = lambda *_: None,
    on_write: OnProgress = lambda *_: None,
) -> GeneraliseResult:
    """Write ``image`` without the traces of its machine to ``output_path``; the same image always gives the same one.

    Raises:
        ConfigurationError: the image is evidence, has no operating system that can be generalised, or Windows in it
            isn't generalised.
        SourceUncleanError: a filesystem wasn't unmounted cleanly.
        ImageError: a filesystem or the image is damaged.
        MissingDependencyError, SandboxUnavailableError: a tool is missing or can't be confined.
        StorageError: a disk is full or failed.
    """
    if source_sha256_of(image.manifest) is not None:
        raise ConfigurationError(
            f"{image.path}: the image is evidence (--every-byte), which must not change: pack the disk again without "
            "--every-byte"
        )
    with contextlib.ExitStack() as stack:
        work = _Work(image, stack, output_path.absolute().parent, allow_unsandboxed)
        changes, systems = work.generalise(on_copy)
        counted = _Counted(work.edited().changed())
        manifest = image.manifest
        metadata = {**manifest.metadata, GENERALISED_KEY: GENERALISED_VERSION}
        start, rows = build_manifest_start(manifest.name, manifest.raw_bytes, manifest.block_bytes, metadata)
        path, image_id = rewrite_image(image, output_path, start, rows, counted, sign, on_write)
    return GeneraliseResult(path, image_id, systems, tuple(changes), tuple(work.remarks), counted.count)


class _Counted:
    """Changed blocks, counted as they are read."""

    def __init__(self, changed: Iterable[ChangedBlock]) -> None:
        self._changed = changed
        self.count = 0

    def __iter__(self) -> Iterator[ChangedBlock]:
        for changed in self._changed:
            self.count += 1
            yield changed


class _Work:
    """The copies of the partitions of one image.

    Attributes:
        remarks: traces that stay, and the reason.
    """

    def __init__(
        self, image: ImageFile, stack: contextlib.ExitStack, directory: Path, allow_unsandboxed: bool
    ) -> None:
        self._image = image
        self._stack = stack
        self._directory = directory
        self._allow_unsandboxed = allow_unsandboxed
        self._blocks = VerifiedBlocks(image)
        layout = layout_of(image.manifest.metadata)
        if layout is None:
            raise ConfigurationError(f"{image.path}: the image has no partition table: pack its disk again")
        self.remarks: list[str] = []
        parts = partitions_of(layout, image.manifest.raw_bytes)
        self._parts = tuple(part for part in parts if not self._is_container(part))
        self._edited: list[PartitionCopy] = []

    def _is_container(self, part: Partition) -> bool:
        """Return whether a partition belongs to a RAID or a volume manager, or is encrypted; remark on it."""
        read = reader_from(self._blocks.read_range, part.start_bytes, part.size_bytes)
        container = container_signature(read, part.size_bytes)
        if container:
            self.remarks.append(
                f"{_place(part)} belongs to {container}, which isn't read: nothing in it was changed"
            )
        return bool(container)

    def edited(self) -> EditedBlocks:
        """Return the image with the edited copies."""
        return EditedBlocks(self._blocks, self._edited)

    def generalise(self, on_copy: OnProgress) -> tuple[list[Change], tuple[str, ...]]:
        """Copy the partitions, edit the copies, and return the changes and the operating systems."""
        superblocks = {
            part.number: self._superblock(part) for part in self._parts if part.filesystem in (_EXT, _SWAP)
        }
        copies = self._copy(on_copy)
        ext = {part.number: copies[part.number].read for part in self._parts if part.filesystem == _EXT}
        try:
            systems = find_systems_untrusted(self._parts, ext)
        except ExtError as error:
            raise ImageError(f"{self._image.path}: a filesystem can't be read: {error}") from error
        windows = self._windows(copies)
        if not systems.names and not windows:
            raise ConfigurationError(
                f"{self._image.path}: no operating system that can be generalised was found: Linux on ext2, ext3 or "
                "ext4, not on LVM and not encrypted; or Windows on NTFS"
                + "".join(f"; {text}" for text in self.remarks)
            )
        changes: list[Change] = []
        self.remarks += systems.remarks
        for part in self._parts:
            copy = copies.get(part.number)
            if part.filesystem == _SWAP and copy is not None:
                changes += self._clear_swap(copy, superblocks[part.number])
            elif part.number in systems.mounts and copy is not None:
                changes += self._generalise_ext(copy, systems)
        return changes, (*systems.names.values(), *windows)

    def _superblock(self, part: Partition) -> Superblock:
        """Refuse a filesystem that isn't clean: replay of its journal would undo the changes."""
        read = reader_from(self._blocks.read_range, part.start_bytes, part.size_bytes)
        with self._named(part):
            return read_superblock_untrusted(part.filesystem, read, part.size_bytes)

    def _copy(self, on_copy: OnProgress) -> dict[int, PartitionCopy]:
        """Copy the partitions whose filesystems are read."""
        wanted = [part for part in self._parts if part.filesystem in (_EXT, _SWAP, _NTFS)]
        if any(part.filesystem == _EXT for part in wanted):
            require_ext_tools()
        total_bytes = sum(stored_raw_bytes(self._blocks, part) for part in wanted)
        done_bytes = 0

        def advance(count: int) -> None:
            nonlocal done_bytes
            done_bytes += count
            on_copy(done_bytes, total_bytes)

        copies = {}
        for part in wanted:
            copy = PartitionCopy(
                self._blocks, part, self._directory, allow_unsandboxed=self._allow_unsandboxed
            )
            copies[part.number] = self._stack.enter_context(copy)
            copy.fill(advance)
        return copies

    def _windows(self, copies: dict[int, PartitionCopy]) -> list[str]:
        """Return the installations of Windows, all of them generalised; remark on unreadable filesystems."""
        found = []
        for part in self._parts:
            if part.filesystem != _NTFS:
                continue
            try:
                state = read_windows_state(copies[part.number])
            except ToolError as error:
                self.remarks.append(f"{_place(part)} (ntfs) wasn't examined: {error}")
                continue
            if state is not None and not state.generalised:
                raise ConfigurationError(f"{self._image.path}: {_place(part)}: {state.problem}")
            if state is not None:
                found.append("Windows")
        return found

    def _clear_swap(self, copy: PartitionCopy, superblock: Superblock) -> list[Change]:
        """Zero all but the first page, which has the UUID and the label."""
        copy.free = np.array([(superblock.unit_bytes, superblock.size_bytes)], np.int64)
        self._edited.append(copy)
        return self._zeroed(copy, TraceKind.SWAP, "swap partition", copy.free.tolist())

    def _generalise_ext(self, copy: PartitionCopy, systems: Systems) -> list[Change]:
        part = copy.part
        mount_point = systems.mounts[part.number]
        with self._named(part):
            plan = plan_files_untrusted(ExtFiles.open_untrusted(copy.read), mount_point, part.number)
            apply_files(copy, plan)
            files = ExtFiles.open_untrusted(copy.read)
            require_applied(plan_files_untrusted(files, mount_point, part.number))
            check_ext(copy)  # before its bitmaps decide which blocks are zeroed
            changes = list(plan.changes)
            self.remarks += plan.remarks
            for path in systems.swap_files.get(part.number, ()):
                changes += self._zeroed(copy, TraceKind.SWAP, path, swap_file_body_untrusted(files, path))
            changes += self._zeroed(
                copy, TraceKind.JOURNAL, "journal", journal_body_untrusted(files, copy.read)
            )
            copy.find_free()
            changes += self._zeroed(copy, TraceKind.FREE_SPACE, "free space", copy.free.tolist())
        self._edited.append(copy)
        return changes

    @contextlib.contextmanager
    def _named(self, part: Partition) -> Iterator[None]:
        """Put the names of the image and the partition before the message of an error."""
        try:
            yield
        except (UsageUnknownError, ExtError) as error:
            unclean = isinstance(error, FilesystemUncleanError)
            kind = SourceUncleanError if unclean else ImageError
            raise kind(f"{self._image.path}: {_place(part)}: {error}") from error
        except (ImageError, ConfigurationError) as error:
            raise type(error)(f"{self._image.path}: {_place(part)}: {error}") from error

    def _zeroed(
        self, copy: PartitionCopy, kind: TraceKind, what: str, ranges: Sequence[Sequence[int]]
    ) -> list[Change]:
        zeroed_bytes = copy.zero(ranges)
        if not zeroed_bytes:
            return []
        return [Change(kind, Action.ZEROED, copy.part.number, what, size_bytes=zeroed_bytes)]


def _place(part: Partition) -> str:
    return f"partition {part.number}" if part.number else "the disk"
