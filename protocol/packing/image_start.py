"""The start of an image of a disk: name, layout and metadata, the same for ``pack`` and for a capture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from protocol.constants import IMAGE_NAME_BYTES_MAX
from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import DiskLayout, parse_layout_untrusted
from protocol.image.manifest_format import ManifestLayout, build_manifest_start
from protocol.packing.source import Source
from protocol.packing.source_hash import SHA256_BYTES


def default_name(source_path: Path) -> str:
    """Return the source's file name, made printable and truncated to the limit.

    The name is the source's rather than the output's, so that the same disk always gives the same image.
    """
    printable = "".join(letter if letter.isprintable() else "_" for letter in source_path.name)
    return printable.encode()[:IMAGE_NAME_BYTES_MAX].decode(errors="ignore") or "disk"


@dataclasses.dataclass(frozen=True, slots=True)
class ImageStart:
    """The part of an image that is known before its blocks are read.

    Attributes:
        disk_layout: partitions or filesystem of the disk.
        manifest_layout: offsets of the manifest's columns.
        manifest_start: the manifest before its columns.
    """

    name: str
    raw_bytes: int
    block_bytes: int
    disk_layout: DiskLayout
    metadata: dict[str, object]
    manifest_layout: ManifestLayout
    manifest_start: bytes

    @classmethod
    def of(
        cls,
        source: Source,
        name: str,
        block_bytes: int,
        *,
        every_byte: bool,
        extra: Mapping[str, object] = MappingProxyType({}),
    ) -> ImageStart:
        """Return the start of an image of ``source``, with ``extra`` metadata.

        With ``every_byte`` the digest of the source has a placeholder of its length until :meth:`with_digest`.

        Raises:
            ConfigurationError: the name, the block size or the disk's size exceeds its limits.
            SourceError: the source can't be read.
        """
        disk_layout = parse_layout_untrusted(
            source.read, source.raw_bytes, sector_bytes=source.logical_sector_bytes
        )
        metadata: dict[str, object] = {
            "layout": layout_metadata(disk_layout),
            "logical_sector_bytes": source.logical_sector_bytes,
            **extra,
        }
        if every_byte:
            metadata["source_sha256"] = bytes(SHA256_BYTES)
        start, layout = build_manifest_start(name, source.raw_bytes, block_bytes, metadata)
        return cls(name, source.raw_bytes, block_bytes, disk_layout, metadata, layout, start)

    def with_digest(self, source_sha256: bytes, extra: Mapping[str, object] = MappingProxyType({})) -> bytes:
        """Return the manifest before its columns with the digest of the whole source.

        ``extra`` replaces placeholders of the same length.
        """
        metadata = {**self.metadata, **extra, "source_sha256": source_sha256}
        start, _ = build_manifest_start(self.name, self.raw_bytes, self.block_bytes, metadata)
        return start
