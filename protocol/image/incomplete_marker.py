"""The marker in the first sector of an incomplete target: firmware doesn't boot it, and diskcast recognises it.

It takes the place of the partition table or boot sector from before the first change of a target until everything is
verified. It has no boot signature (0x55AA at byte 510): without one, a BIOS doesn't run the sector, and UEFI firmware
doesn't look for a GPT behind it (UEFI specification 2.10, section 5.2.3: the protective MBR).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Final

from protocol.constants import HASH_BYTES, IMAGE_NAME_BYTES_MAX
from protocol.errors import ImageDamagedError
from protocol.image.file_records import pack_record, record_struct, unpack_record_untrusted
from protocol.schema.binary_fields import Field, Octets, fields_of, uint

MARKER_BYTES: Final = 512
"""The smallest sector, which every disk writes as a whole."""

MARKER_VERSION: Final = 1
_MAGIC: Final = b"\x89DCI-incomplete\n"
_TEXT: Final = (
    b"\nThis disk is being imaged by diskcast, or the imaging was interrupted. It isn't complete.\n"
    b"Run the same diskcast-agent command again: correct blocks are kept.\n"
)


@dataclasses.dataclass(frozen=True, slots=True)
class _MarkerRecord:
    FIELDS: ClassVar[tuple[Field, ...]]

    magic: Annotated[bytes, Octets(16, "signature of the marker")]
    version: Annotated[int, uint(32, "version of the marker", low=1, high=MARKER_VERSION)]
    reserved: Annotated[int, uint(32, "zero", high=0)]
    image_id: Annotated[bytes, Octets(HASH_BYTES, "the image that is being written")]
    raw_bytes: Annotated[int, uint(64, "its size")]
    image_name: Annotated[bytes, Octets(IMAGE_NAME_BYTES_MAX, "UTF-8, zero-padded")]


_MarkerRecord.FIELDS = fields_of(_MarkerRecord)
_RECORD_BYTES: Final = record_struct(_MarkerRecord.FIELDS).size
assert _RECORD_BYTES + len(_TEXT) <= MARKER_BYTES - 2  # the last two would be the boot signature


@dataclasses.dataclass(frozen=True, slots=True)
class Marker:
    """Content of the marker: the image that was being written."""

    image_id: bytes
    image_name: str
    raw_bytes: int


def build_marker(marker: Marker) -> bytes:
    """Return the 512 bytes of the first sector."""
    record = _MarkerRecord(
        magic=_MAGIC,
        version=MARKER_VERSION,
        reserved=0,
        image_id=marker.image_id,
        raw_bytes=marker.raw_bytes,
        image_name=marker.image_name.encode().ljust(IMAGE_NAME_BYTES_MAX, b"\0"),
    )
    return (pack_record(record, _MarkerRecord.FIELDS) + _TEXT).ljust(MARKER_BYTES, b"\0")


def parse_marker_untrusted(sector: bytes | memoryview) -> Marker | None:
    """Parse the marker from a disk's first bytes; None if there is none. Never raises."""
    if bytes(sector[: len(_MAGIC)]) != _MAGIC or len(sector) < _RECORD_BYTES:
        return None
    try:
        record = unpack_record_untrusted(_MarkerRecord, _MarkerRecord.FIELDS, memoryview(sector), "mark")
    except ImageDamagedError:
        return None
    name = record.image_name.rstrip(b"\0").decode(errors="replace")
    printable = "".join(letter if letter.isprintable() else "�" for letter in name)
    return Marker(record.image_id, printable, record.raw_bytes)
