"""Disk layouts as plain values for an image's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from protocol.constants import IMAGE_BYTES_MAX
from protocol.disk.filesystem_magic import FILESYSTEMS
from protocol.disk.partition_table import (
    BOOT_RECORDS_MAX,
    PARTITIONS_MAX,
    DiskLayout,
    Partition,
    TableKind,
)
from protocol.errors import ImageDamagedError

_TEXT_BYTES_MAX: Final = 128
"""A GPT name has 36 UTF-16 units, at most 108 bytes of UTF-8."""


def layout_metadata(layout: DiskLayout) -> dict[str, object]:
    """Return ``layout`` as plain values for an image's metadata, which :func:`layout_of` reads."""
    return {
        "table": str(layout.table),
        "sector_bytes": layout.sector_bytes,
        "filesystem": layout.filesystem,
        "boot_record_offsets": layout.boot_record_offsets,
        "partitions": tuple(
            {
                "number": part.number,
                "start_bytes": part.start_bytes,
                "size_bytes": part.size_bytes,
                "type": part.type,
                "name": part.name,
                "filesystem": part.filesystem,
            }
            for part in layout.partitions
        ),
    }


def layout_of(metadata: Mapping[str, object]) -> DiskLayout | None:
    """Return the layout in an image's metadata; None for older images, which have none.

    Raises:
        ImageDamagedError: the layout is invalid; never for a parsed manifest, which was checked.
    """
    if "layout" not in metadata:
        return None
    return layout_of_untrusted(metadata["layout"])


def layout_of_untrusted(value: object) -> DiskLayout:
    """Return the layout of :func:`layout_metadata`'s values; unknown keys are ignored.

    Raises:
        ImageDamagedError: a value is missing, of another type or out of its range.
    """
    fields = _map(value)
    table = _text(fields, "table")
    if table not in set(TableKind):
        raise _damaged("table")
    return DiskLayout(
        TableKind(table),
        _integer(fields, "sector_bytes", 512, 65536),
        tuple(_partition(item) for item in _items(fields, "partitions", PARTITIONS_MAX)),
        tuple(
            _in_range("boot_record_offsets", offset, 0, IMAGE_BYTES_MAX)
            for offset in _items(fields, "boot_record_offsets", BOOT_RECORDS_MAX)
        ),
        _filesystem(fields),
    )


def _partition(value: object) -> Partition:
    fields = _map(value)
    return Partition(
        _integer(fields, "number", 1, 2**16),
        _integer(fields, "start_bytes", 0, IMAGE_BYTES_MAX),
        _integer(fields, "size_bytes", 1, IMAGE_BYTES_MAX),
        _text(fields, "type"),
        _text(fields, "name"),
        _filesystem(fields),
    )


def _map(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _damaged("map")
    return value


def _items(fields: dict[str, object], key: str, count_max: int) -> tuple[object, ...]:
    value = fields.get(key)
    if not isinstance(value, tuple) or len(value) > count_max:
        raise _damaged(key)
    return value


def _integer(fields: dict[str, object], key: str, low: int, high: int) -> int:
    return _in_range(key, fields.get(key), low, high)


def _in_range(key: str, value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _damaged(key)
    return value


def _text(fields: dict[str, object], key: str) -> str:
    value = fields.get(key)
    if (
        not isinstance(value, str)
        or len(value.encode("utf-8", "surrogatepass")) > _TEXT_BYTES_MAX
        or not value.isprintable()
    ):
        raise _damaged(key)
    return value


def _filesystem(fields: dict[str, object]) -> str:
    # A later version may know more filesystems: that is no reason to refuse its images.
    value = _text(fields, "filesystem")
    return value if value in FILESYSTEMS else ""


def _damaged(key: str) -> ImageDamagedError:
    return ImageDamagedError(f"the manifest's metadata is damaged: the disk layout's {key} is invalid")
