"""An image's metadata about its source: a small, extensible msgpack map."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgpack

from protocol.constants import HASH_BYTES, METADATA_BYTES_MAX, MSGPACK_NESTING_MAX
from protocol.disk.disk_layout import layout_of_untrusted
from protocol.disk.partition_table import PARTITIONS_MAX
from protocol.errors import ConfigurationError, ImageDamagedError, WireError
from protocol.image.bad_ranges import BAD_RANGES_BYTES, BadRanges
from protocol.image.provenance import Provenance
from protocol.schema.binary_fields import Octets, UInt, uint


@dataclasses.dataclass(frozen=True, slots=True)
class LayoutMap:
    """Kind of a disk layout in the form of :func:`protocol.disk.disk_layout.layout_metadata`."""

    meaning: str

    def check(self, _name: str, value: object) -> None:
        """Raise :class:`ImageDamagedError` unless ``value`` is a layout."""
        layout_of_untrusted(value)


@dataclasses.dataclass(frozen=True, slots=True)
class ProvenanceMap:
    """Kind of an origin in the form of :meth:`protocol.image.provenance.Provenance.to_metadata`."""

    meaning: str

    def check(self, _name: str, value: object) -> None:
        """Raise :class:`ImageDamagedError` unless ``value`` is an origin."""
        Provenance.from_metadata_untrusted(value)


@dataclasses.dataclass(frozen=True, slots=True)
class BadRangesOctets:
    """Kind of a list of unreadable ranges, as of :meth:`protocol.image.bad_ranges.BadRanges.encode`."""

    meaning: str

    def check(self, _name: str, value: object) -> None:
        """Raise :class:`ImageDamagedError` unless ``value`` is such a list."""
        BadRanges.decode_untrusted(value)


METADATA_FIELDS: Final[Mapping[str, UInt | Octets | LayoutMap | ProvenanceMap | BadRangesOctets]] = (
    MappingProxyType(
        {
            "logical_sector_bytes": uint(
                32, "logical sector size of the source disk; 512 for files", low=512, high=65536
            ),
            "layout": LayoutMap(
                "partition table (`table`: none, mbr, gpt; `sector_bytes`; `partitions`; `boot_record_offsets`) or, "
                "without one, the `filesystem` on the disk itself"
            ),
            "source_sha256": Octets(
                HASH_BYTES, "SHA-256 of the whole source disk; only in images that keep every byte"
            ),
            "bad_ranges": BadRangesOctets(
                "unreadable ranges of the source disk, zero in the image; only with `--zero-bad-sectors`: u64 count of "
                "ranges, u64 total bytes, then offset and length (u64 each) of the first 256; zero-padded"
            ),
            "seed_partition": uint(
                8, "number of the partition that machine patches may change", low=1, high=PARTITIONS_MAX
            ),
            "generalised": uint(
                8,
                "version of the list of things that `images generalise` removed, or found missing; missing if it "
                "didn't run",
                low=1,
            ),
            "provenance": ProvenanceMap(
                "origin of an image that was converted: source `format`, its `checksums` (verified, none), `tool` and "
                "`tool_version` that read it, optionally `details`; missing for raw disks"
            ),
        }
    )
)
"""Keys that this version knows and checks; readers ignore others, which later versions may add."""


def pack_metadata(metadata: Mapping[str, object]) -> bytes:
    """Pack the map with sorted keys: equal maps give equal images.

    Raises:
        ConfigurationError: a reader would refuse it.
    """
    packed: bytes = msgpack.packb(dict(sorted(metadata.items())))
    try:
        parse_metadata_untrusted(packed)
    except ImageDamagedError as error:
        raise ConfigurationError(f"this metadata can't be kept in an image: {error}") from error
    return packed


def parse_metadata_untrusted(packed: bytes | memoryview) -> dict[str, object]:
    """Unpack the map; lists become tuples.

    Raises:
        ImageDamagedError: it isn't a map of text to plain values, it is too large or nested too deeply, or a known key
            has a value out of its range.
    """
    if len(packed) > METADATA_BYTES_MAX:
        raise ImageDamagedError(f"metadata of {len(packed)} bytes, at most {METADATA_BYTES_MAX} expected")
    try:
        metadata = msgpack.unpackb(packed, use_list=False, strict_map_key=True, max_ext_len=0)
    except (
        ValueError,
        TypeError,
        msgpack.UnpackException,
        RecursionError,
    ) as error:  # msgpack's own are ValueErrors
        raise ImageDamagedError(f"the manifest's metadata is damaged: {error}") from error
    if not isinstance(metadata, dict):
        raise ImageDamagedError("the manifest's metadata is damaged: it isn't a map")
    _check_plain_untrusted(metadata, MSGPACK_NESTING_MAX)
    for key, kind in METADATA_FIELDS.items():
        if key in metadata:
            try:
                kind.check(key, metadata[key])
            except WireError as error:
                raise ImageDamagedError(f"the manifest's metadata is damaged: {error}") from error
    return metadata


def _check_plain_untrusted(value: object, depth: int) -> None:
    """Raise unless ``value`` is made of text-keyed maps, tuples and scalars, nested at most ``depth`` deep."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return
    if depth == 0 or type(value) not in (dict, tuple):  # exactly: msgpack's ExtType is a tuple too
        raise ImageDamagedError("the manifest's metadata is damaged: nested too deeply or of unknown types")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ImageDamagedError("the manifest's metadata is damaged: a key isn't text")
        items = tuple(value.values())
    else:
        assert isinstance(value, tuple)
        items = value
    for item in items:
        _check_plain_untrusted(item, depth - 1)


def metadata_table() -> str:
    """Return a Markdown table of the known keys."""
    rows = ["| key | meaning | value |", "|---|---|---|"]
    for name, kind in METADATA_FIELDS.items():
        match kind:
            case UInt():
                value = f"{kind.low}..{kind.high}"
            case Octets():
                value = f"{kind.bytes_exact} bytes"
            case BadRangesOctets():
                value = f"{BAD_RANGES_BYTES} bytes"
            case LayoutMap() | ProvenanceMap():
                value = "map"
        rows.append(f"| `{name}` | {kind.meaning} | {value} |")
    return "\n".join(rows)
