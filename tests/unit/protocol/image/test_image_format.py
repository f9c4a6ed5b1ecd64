"""The header page: damage to the file is noticed before any of it is used."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest
from blake3 import blake3

from protocol.errors import ImageDamagedError, ImageError, ImageFormatError, UnsignedImageError
from protocol.image.file_records import pack_record
from protocol.image.image_format import (
    PAGE_BYTES,
    ImageHeader,
    build_header,
    check_file_bytes,
    check_identity,
    parse_header_untrusted,
    tables,
)
from protocol.trust.statement import ImageStatement
from tests.support.signing import SIGNER, signed

PAGE = build_header(manifest_bytes=5000, payload_bytes=12_345, image_id=bytes(range(32))).to_page()
HEADER = parse_header_untrusted(PAGE)
ROOT = Path(__file__).resolve().parents[4]


def sealed(**changes: object) -> bytes:
    """Return a header page with other fields and a valid digest."""
    record = pack_record(dataclasses.replace(HEADER, **changes), ImageHeader.FIELDS)  # type: ignore[arg-type]
    return record + blake3(record).digest()


def test_sections_are_at_the_documented_offsets() -> None:
    assert (HEADER.manifest_offset, HEADER.payload_offset) == (4096, 4096 + 8192)
    assert HEADER.file_bytes == 4096 + 8192 + 12_345
    assert HEADER.signature_name == "none"


def test_every_altered_byte_of_the_header_is_noticed() -> None:
    for offset in range(PAGE_BYTES):
        page = bytearray(PAGE)
        page[offset] ^= 0x10
        with pytest.raises(ImageError):
            parse_header_untrusted(page)


@pytest.mark.parametrize("length", [12, 100, PAGE_BYTES - 1])
def test_a_truncated_header_is_damage(length: int) -> None:
    with pytest.raises(ImageDamagedError, match="truncated"):
        parse_header_untrusted(PAGE[:length])


@pytest.mark.parametrize("data", [b"", b"\x89DCI", bytes(PAGE_BYTES), b"PK\3\4" * 2000])
def test_other_files_are_distinguished_from_damaged_images(data: bytes) -> None:
    with pytest.raises(ImageFormatError, match="isn't diskcast's"):
        parse_header_untrusted(data)


def test_a_newer_version_is_named() -> None:
    page = PAGE[:8] + struct.pack("<I", 7) + PAGE[12:]
    with pytest.raises(ImageFormatError, match="newer diskcast: it has format version 7"):
        parse_header_untrusted(page)


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest_offset": 8192},
        {"payload_offset": 4096},
        {"payload_offset": 4096 * 4},
        {"manifest_bytes": 50_000},
    ],
)
def test_sections_elsewhere_are_refused(changes: dict[str, object]) -> None:
    """Each section has one place: sections can't overlap, and no bytes can hide between them."""
    with pytest.raises(ImageDamagedError, match="sections"):
        parse_header_untrusted(sealed(**changes))


def test_a_signature_of_a_later_version_is_shown_as_unknown() -> None:
    header = parse_header_untrusted(sealed(signature_scheme=9, signature_bytes=64, signer=bytes(range(32))))
    assert header.signature_name == "unknown scheme 9"
    assert header.signed is None


def test_a_signature_survives_the_page() -> None:
    both = signed(ImageStatement(HEADER.image_id, "lab", 7))
    header = parse_header_untrusted(HEADER.with_signature(both, SIGNER.public).to_page())
    assert header.signature_name == "minisign"
    assert header.signed == both
    assert header.signer == SIGNER.public.key
    assert HEADER.signed is None


def test_a_damaged_signature_field_isnt_an_unsigned_image() -> None:
    header = parse_header_untrusted(sealed(signature_scheme=1, signature_bytes=1))
    with pytest.raises(UnsignedImageError, match="damaged"):
        _ = header.signed


def test_file_size_must_be_exact() -> None:
    check_file_bytes(HEADER, HEADER.file_bytes)
    with pytest.raises(ImageDamagedError, match="truncated"):
        check_file_bytes(HEADER, HEADER.file_bytes - 1)
    with pytest.raises(ImageDamagedError, match=f"from offset {HEADER.file_bytes}"):
        check_file_bytes(HEADER, HEADER.file_bytes + 1)


def test_header_and_manifest_must_belong_together() -> None:
    check_identity(HEADER, HEADER.image_id, HEADER.payload_bytes)
    with pytest.raises(ImageDamagedError, match="manifest was altered"):
        check_identity(HEADER, bytes(32), HEADER.payload_bytes)
    with pytest.raises(ImageDamagedError, match="payload"):
        check_identity(HEADER, HEADER.image_id, HEADER.payload_bytes + 1)


def test_the_document_has_the_tables_of_the_code() -> None:
    assert tables() in (ROOT / "docs" / "reference" / "image-format.md").read_text(), "run `make docs`"
