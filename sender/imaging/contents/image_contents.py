"""Contents of an image: partitions, filesystems with their space, and the operating systems that can be recognised.

They are read through the image, a few blocks at a time and each checked against its hashes. The image isn't unpacked.
The parsers are Python functions of bounded work; no foreign program sees the image.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import enum
import shlex
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from protocol.constants import KIB
from protocol.disk.disk_layout import layout_of
from protocol.disk.disk_reads import Read, reader_from
from protocol.disk.partition_table import DiskLayout, TableKind
from protocol.errors import DiskcastError
from protocol.image.manifest import BlockKind, Manifest
from protocol.packing.filesystems.superblocks import UsageUnknownError, read_superblock_untrusted
from protocol.preflight.requirements import ImageRequirements, firmwares_of
from protocol.preflight.sectors import sector_needs
from sender.imaging.contents.ext_files import ExtError, ExtFiles
from sender.imaging.contents.filesystem_labels import read_label_untrusted
from sender.imaging.contents.generalisation import (
    GENERALISED_KEY,
    Generalisation,
    has_windows_untrusted,
)
from sender.imaging.contents.image_requirements import FoundRequirements, read_requirements_untrusted
from sender.imaging.image_file import ImageFile
from sender.imaging.verified_blocks import VerifiedBlocks

CONTENTS_VERSION: Final = 3
"""Raised when a later reader recognises more; cached results of other versions are read again."""

BLOCKS_READ_MAX: Final = 4096
"""Decoded blocks of one image, 1 GiB at the default size: a crafted filesystem can't occupy the daemon."""

_BLOCKS_KEPT: Final = 8
_OS_RELEASE: Final = ("/etc/os-release", "/usr/lib/os-release")
_OS_RELEASE_BYTES_MAX: Final = 16 * KIB
_SYSTEM_CHARACTERS_MAX: Final = 100


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionContents:
    """A partition, or the whole disk of an image without partitions.

    Attributes:
        number: 0 for the whole disk.
        filesystem: empty if it isn't recognised.
        free_bytes: free space by the filesystem's own count, else by the blocks that the image leaves out; None if
            unknown.
        stored_bytes: bytes of the image's file for this range.
        system: operating system; empty if none is recognised.
    """

    number: int
    type: str
    name: str
    filesystem: str
    label: str
    uuid: str
    start_bytes: int
    size_bytes: int
    free_bytes: int | None
    stored_bytes: int
    system: str


@dataclasses.dataclass(frozen=True, slots=True)
class ImageContents:
    """Contents of an image.

    Attributes:
        table: ``none``, ``mbr``, ``gpt``; empty if the image doesn't say.
        used_bytes: raw bytes of the blocks with content.
        unused_bytes: raw bytes of the blocks that the filesystems don't use.
        problem: reason for which some of it is unknown; empty if all is known.
        packed_aliases: see :meth:`driver_aliases`; empty if they are unknown.
        generalisation: state of the image as the source of clones.
    """

    table: str
    raw_bytes: int
    used_bytes: int
    unused_bytes: int
    partitions: tuple[PartitionContents, ...]
    requirements: ImageRequirements
    problem: str = ""
    packed_aliases: str = ""
    generalisation: Generalisation = Generalisation.NO_SYSTEM

    def driver_aliases(self) -> tuple[str, ...] | None:
        """Return the devices for which the image has drivers, as in ``modules.alias``; None if they are unknown."""
        if not self.packed_aliases:
            return None
        return tuple(zlib.decompress(base64.b64decode(self.packed_aliases)).decode().split("\n"))


class ContentsState(enum.StrEnum):
    """State of an image's contents."""

    READY = "ready"
    READING = "reading"
    """Ask again in a moment."""
    UNAVAILABLE = "unavailable"
    """The image isn't on this machine, or can't be read: ``problem`` has the reason."""


@dataclasses.dataclass(frozen=True, slots=True)
class FoundContents:
    """Contents of an image as far as they are known; ``contents`` is missing unless the state is ``ready``."""

    state: ContentsState
    contents: ImageContents | None = None
    problem: str = ""


def read_contents(image: ImageFile) -> ImageContents:
    """Read the contents of an open image. Blocks for the time of decoding a few blocks per filesystem.

    Raises:
        StorageError: the disk failed.
        ImageError: the image is damaged, or was changed.
    """
    manifest = image.manifest
    layout = layout_of(manifest.metadata)
    unused_bytes = _unused_bytes(manifest, 0, manifest.raw_bytes)
    reader = _BlockReader(image)
    partitions, problems, shown = [], [], []
    for number, kind, name, filesystem, start_bytes, size_bytes in _ranges(layout, manifest.raw_bytes):
        read = reader_from(reader.read, start_bytes, size_bytes)
        label = read_label_untrusted(filesystem, read)
        system = ""
        try:
            system = read_system_untrusted(filesystem, read)
            shown.append(read_requirements_untrusted(filesystem, read))
        except ExtError as error:
            problems.append(f"partition {number or 'on the disk'}: {error}")
        unused = _unused_bytes(manifest, start_bytes, start_bytes + size_bytes)
        partitions.append(
            PartitionContents(
                number,
                kind,
                name,
                filesystem,
                label.label,
                label.uuid,
                start_bytes,
                size_bytes,
                _free_bytes(filesystem, read, size_bytes, unused),
                _stored_bytes(manifest, start_bytes, start_bytes + size_bytes),
                system,
            )
        )
    return ImageContents(
        "" if layout is None else layout.table.value,
        manifest.raw_bytes,
        manifest.raw_bytes - unused_bytes,
        unused_bytes,
        tuple(partitions),
        _requirements(manifest, layout, shown),
        "; ".join(problems),
        _packed_aliases(shown),
        _generalisation(manifest, layout, partitions, reader.read),
    )


def _requirements(
    manifest: Manifest, layout: DiskLayout | None, shown: list[FoundRequirements]
) -> ImageRequirements:
    """Return what the metadata and the filesystems require, each fact from the first of them that shows it."""
    sector_bytes = manifest.metadata.get("logical_sector_bytes")
    signed = [each.signed_loader for each in shown if each.signed_loader is not None]
    # Programs rather than boot loaders: a disk may start on more machines than its system runs on.
    by_program = sorted(shown, key=lambda each: each.signed_loader is not None)
    return ImageRequirements(
        sector_needs(layout, sector_bytes if isinstance(sector_bytes, int) else None, manifest.raw_bytes),
        firmwares_of(layout),
        next((each.architecture for each in by_program if each.architecture), ""),
        any(signed) if signed else None,
        any(each.aliases for each in shown),
    )


def _packed_aliases(shown: list[FoundRequirements]) -> str:
    aliases = next((each.aliases for each in shown if each.aliases), None)
    return base64.b64encode(zlib.compress("\n".join(aliases).encode())).decode() if aliases else ""


def _generalisation(
    manifest: Manifest, layout: DiskLayout | None, partitions: Sequence[PartitionContents], read: Read
) -> Generalisation:
    if GENERALISED_KEY in manifest.metadata:
        return Generalisation.GENERALISED
    if any(part.system for part in partitions):
        return Generalisation.NOT_GENERALISED
    with contextlib.suppress(ExtError):  # the limit of decoded blocks
        if layout is not None and has_windows_untrusted(layout, read):
            return Generalisation.NOT_GENERALISED
    return Generalisation.NO_SYSTEM


def system_name_untrusted(os_release: bytes) -> str:
    """Return the operating system's name from the text of ``os-release``; empty if there is none."""
    for line in os_release.decode("utf-8", "replace").splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() == "PRETTY_NAME":
            try:
                [name] = shlex.split(value)
            except ValueError:
                return ""
            return "".join(letter for letter in name if letter.isprintable())[:_SYSTEM_CHARACTERS_MAX]
    return ""


class _BlockReader:
    """Reader of ranges of the disk that keeps the last blocks and limits the number of decoded ones."""

    def __init__(self, image: ImageFile) -> None:
        self._blocks = VerifiedBlocks(image)
        self._manifest = image.manifest
        self._kept: collections.OrderedDict[int, bytes | memoryview] = collections.OrderedDict()
        self._left = BLOCKS_READ_MAX

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0:
            return b""
        block_bytes = self._manifest.block_bytes
        stop = min(self._manifest.raw_bytes, offset + length)
        pieces = []
        while offset < stop:
            block, start = divmod(offset, block_bytes)
            piece = self._block(block)[start : start + stop - offset]
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def _block(self, block: int) -> bytes | memoryview:
        if block in self._kept:
            self._kept.move_to_end(block)
            return self._kept[block]
        self._left -= 1
        if self._left < 0:
            raise ExtError("its structures are spread over too many blocks")
        raw = self._kept[block] = self._blocks.read(block)
        if len(self._kept) > _BLOCKS_KEPT:
            self._kept.popitem(last=False)
        return raw


def _ranges(layout: DiskLayout | None, raw_bytes: int) -> list[tuple[int, str, str, str, int, int]]:
    if layout is None:
        return []
    if layout.table is TableKind.NONE:
        return [(0, "", "", layout.filesystem, 0, raw_bytes)]
    return [
        (part.number, part.type, part.name, part.filesystem, part.start_bytes, part.size_bytes)
        for part in layout.partitions
        if not part.is_extended
    ]


def read_system_untrusted(filesystem: str, read: Read) -> str:
    """Return the operating system in a filesystem; empty if there is none, or no reader for it."""
    if filesystem != "ext4":
        return ""
    files = ExtFiles.open_untrusted(read)
    for path in _OS_RELEASE:
        text = files.read_file_untrusted(path, _OS_RELEASE_BYTES_MAX)
        if text:
            return system_name_untrusted(text)
    return ""


def _free_bytes(filesystem: str, read: Read, size_bytes: int, unused_bytes: int) -> int | None:
    if not filesystem:
        return unused_bytes or None
    try:
        free_bytes = read_superblock_untrusted(filesystem, read, size_bytes).free_bytes
    except (UsageUnknownError, DiskcastError):
        free_bytes = None
    counted = filesystem in ("ext4", "xfs", "btrfs")  # the others' superblocks have an upper bound only
    return free_bytes if counted and free_bytes is not None else unused_bytes


def _block_range(manifest: Manifest, start_bytes: int, stop_bytes: int) -> tuple[int, int]:
    return start_bytes // manifest.block_bytes, min(
        manifest.block_count, -(-stop_bytes // manifest.block_bytes)
    )


def _stored_bytes(manifest: Manifest, start_bytes: int, stop_bytes: int) -> int:
    first, last = _block_range(manifest, start_bytes, stop_bytes)
    return int(manifest.stored_bytes[first:last].sum(dtype=np.int64))


def _unused_bytes(manifest: Manifest, start_bytes: int, stop_bytes: int) -> int:
    """Return the raw bytes of the unused blocks within a range."""
    first, last = _block_range(manifest, start_bytes, stop_bytes)
    if first >= last:
        return 0
    unused = manifest.kind[first:last] == BlockKind.UNUSED
    total = int(unused.sum()) * manifest.block_bytes
    if unused[-1]:
        total -= last * manifest.block_bytes - min(stop_bytes, last * manifest.block_bytes)
    if unused[0]:
        total -= start_bytes - first * manifest.block_bytes
    return max(0, min(total, stop_bytes - start_bytes))
