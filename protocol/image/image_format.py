"""The image file ``NAME.dci``: its header page and the offsets of its sections.

``docs/reference/image-format.md`` describes the format.

::

    0                header page, 4096 bytes, ended by its own BLAKE3
    4096             manifest (:mod:`protocol.image.manifest_format`), zero-padded to a page
    payload_offset   stored bytes of every block of kind DATA or RAW, in block order, without gaps
                     end of file

The manifest comes first since its size follows from the disk's: a packer writes its rows as it proceeds, without a
second copy of up to 18 GiB.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Final

from blake3 import blake3

from protocol.constants import HASH_BYTES, IMAGE_BYTES_MAX
from protocol.errors import ImageDamagedError
from protocol.image.file_records import fields_table, pack_record, record_struct, unpack_record_untrusted
from protocol.image.image_metadata import metadata_table
from protocol.image.manifest import BlockKind
from protocol.image.manifest_format import FORMAT_VERSION, ManifestHead, check_magic_and_version_untrusted
from protocol.schema.binary_fields import Field, Octets, fields_of, uint
from protocol.trust.minisign import PublicKey
from protocol.trust.statement import SignedStatement

IMAGE_MAGIC: Final = b"\x89DCI\r\n\x1a\n"
PAGE_BYTES: Final = 4096
"""Alignment of the sections: the page size of most machines and the sector size of large disks."""

SIGNATURE_BYTES_MAX: Final = 3072
"""Space for a statement of 1 KiB with a minisign signature and its comments."""

SIGNATURE_NONE: Final = 0
SIGNATURE_MINISIGN: Final = 1
SIGNATURE_SCHEMES: Final = {SIGNATURE_NONE: "none", SIGNATURE_MINISIGN: "minisign"}

_OFFSET_MAX: Final = 2 * IMAGE_BYTES_MAX
"""No section of a valid image extends beyond it, and sums of two offsets fit 64 bits."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header page without its digest."""

    FIELDS: ClassVar[tuple[Field, ...]]

    magic: Annotated[bytes, Octets(8, "`89 44 43 49 0D 0A 1A 0A`")]
    version: Annotated[int, uint(32, "format version", low=FORMAT_VERSION, high=FORMAT_VERSION)]
    header_bytes: Annotated[int, uint(32, "size of this page", low=PAGE_BYTES, high=PAGE_BYTES)]
    manifest_offset: Annotated[
        int, uint(64, "start of the manifest, a multiple of 4096", low=PAGE_BYTES, high=_OFFSET_MAX)
    ]
    manifest_bytes: Annotated[int, uint(64, "size of the manifest without padding", low=1, high=_OFFSET_MAX)]
    payload_offset: Annotated[
        int, uint(64, "start of the payload, a multiple of 4096", low=PAGE_BYTES, high=_OFFSET_MAX)
    ]
    payload_bytes: Annotated[int, uint(64, "size of the payload; the file ends with it", high=_OFFSET_MAX)]
    image_id: Annotated[bytes, Octets(HASH_BYTES, "BLAKE3 of the manifest")]
    signature_scheme: Annotated[int, uint(32, "0: not signed; 1: statement and minisign signature")]
    signature_bytes: Annotated[int, uint(32, "bytes of `signature` in use", high=SIGNATURE_BYTES_MAX)]
    signer: Annotated[bytes, Octets(32, "public key of the signer; zero when not signed")]
    signature: Annotated[
        bytes, Octets(SIGNATURE_BYTES_MAX, "u16 length of the statement, statement, signature; zero-padded")
    ]
    reserved: Annotated[bytes, Octets(872, "zero; ignored on reading")]

    @property
    def file_bytes(self) -> int:
        """Return the size of the whole file."""
        return self.payload_offset + self.payload_bytes

    @property
    def signature_name(self) -> str:
        """Return the name of the signature's scheme; ``none`` when the image isn't signed."""
        return SIGNATURE_SCHEMES.get(self.signature_scheme, f"unknown scheme {self.signature_scheme}")

    @property
    def signed(self) -> SignedStatement | None:
        """Return the statement and its signature, not yet verified; None if there is none of a known scheme.

        Raises:
            UnsignedImageError: the signature field is damaged.
        """
        if self.signature_scheme != SIGNATURE_MINISIGN:
            return None
        return SignedStatement.from_bytes_untrusted(self.signature[: self.signature_bytes])

    def with_signature(self, signed: SignedStatement, signer: PublicKey) -> ImageHeader:
        """Return the header of the same image with this signature."""
        data = signed.to_bytes()
        return dataclasses.replace(
            self,
            signature_scheme=SIGNATURE_MINISIGN,
            signature_bytes=len(data),
            signer=signer.key,
            signature=data.ljust(SIGNATURE_BYTES_MAX, b"\0"),
        )

    def to_page(self) -> bytes:
        """Return the header page."""
        record = pack_record(self, ImageHeader.FIELDS)
        return record + blake3(record).digest()


ImageHeader.FIELDS = fields_of(ImageHeader)
assert record_struct(ImageHeader.FIELDS).size + HASH_BYTES == PAGE_BYTES


def page_aligned(count: int) -> int:
    """Return ``count`` rounded up to a whole page."""
    return -(-count // PAGE_BYTES) * PAGE_BYTES


def payload_offset_of(manifest_bytes: int) -> int:
    """Return the start of the payload behind a manifest of this size."""
    return PAGE_BYTES + page_aligned(manifest_bytes)


def build_header(*, manifest_bytes: int, payload_bytes: int, image_id: bytes) -> ImageHeader:
    """Return the header of an unsigned image."""
    return ImageHeader(
        magic=IMAGE_MAGIC,
        version=FORMAT_VERSION,
        header_bytes=PAGE_BYTES,
        manifest_offset=PAGE_BYTES,
        manifest_bytes=manifest_bytes,
        payload_offset=payload_offset_of(manifest_bytes),
        payload_bytes=payload_bytes,
        image_id=image_id,
        signature_scheme=SIGNATURE_NONE,
        signature_bytes=0,
        signer=bytes(32),
        signature=bytes(SIGNATURE_BYTES_MAX),
        reserved=bytes(872),
    )


def parse_header_untrusted(data: bytes | memoryview) -> ImageHeader:
    """Parse the header in the first page of a file, or in fewer bytes of a shorter file.

    Raises:
        ImageFormatError: the file isn't an image, or has a newer format.
        ImageDamagedError: the header is truncated or altered.
    """
    check_magic_and_version_untrusted(data, IMAGE_MAGIC, "file")
    if len(data) < PAGE_BYTES:
        raise ImageDamagedError(f"the file is truncated: {len(data)} bytes are less than the header")
    record, digest = data[: PAGE_BYTES - HASH_BYTES], data[PAGE_BYTES - HASH_BYTES : PAGE_BYTES]
    if blake3(record).digest() != bytes(digest):
        raise ImageDamagedError("the header was altered: its own digest doesn't match")
    header = unpack_record_untrusted(ImageHeader, ImageHeader.FIELDS, record, "header")
    if header.manifest_offset != PAGE_BYTES or header.payload_offset != payload_offset_of(
        header.manifest_bytes
    ):
        raise ImageDamagedError("the header is damaged: the offsets of its sections are wrong")
    return header


def check_file_bytes(header: ImageHeader, file_bytes: int) -> None:
    """Raise :class:`ImageDamagedError` unless the image's file has exactly ``file_bytes``."""
    if file_bytes < header.file_bytes:
        raise ImageDamagedError(
            f"the file is truncated: it has {file_bytes} of {header.file_bytes} bytes; copy it again"
        )
    if file_bytes > header.file_bytes:
        raise ImageDamagedError(
            f"the file has {file_bytes - header.file_bytes} bytes of other data behind the image, from offset "
            f"{header.file_bytes}; copy it again"
        )


def check_identity(header: ImageHeader, image_id: bytes, payload_bytes: int) -> None:
    """Compare the header with the manifest.

    Args:
        header: the file's header.
        image_id: the digest computed from the manifest's bytes.
        payload_bytes: the sum of the manifest's stored sizes.

    Raises:
        ImageDamagedError: header and manifest don't belong together.
    """
    if image_id != header.image_id:
        raise ImageDamagedError("the manifest was altered: its digest isn't the image's id")
    if payload_bytes != header.payload_bytes:
        raise ImageDamagedError(
            "the header is damaged: its payload's size isn't the sum of the manifest's blocks"
        )


def tables() -> str:
    """Return the generated part of ``docs/reference/image-format.md``: both records, kinds and metadata keys."""
    kind_rows = {
        BlockKind.DATA: ("one zstd frame with its content size and without checksum", "1 .. raw length - 1"),
        BlockKind.RAW: ("the raw bytes", "raw length"),
        BlockKind.ZERO: ("nothing: all raw bytes are zero", "0"),
        BlockKind.UNUSED: ("nothing: free according to the filesystem, the content doesn't matter", "0"),
    }
    kinds = ["| value | kind | stored | `stored_bytes` |", "|---:|---|---|---|"]
    kinds += [
        f"| {kind.value} | {kind.name.lower()} | {stored} | {size} |"
        for kind, (stored, size) in kind_rows.items()
    ]
    digest_offset = PAGE_BYTES - HASH_BYTES
    digest_row = f"| {digest_offset} | {HASH_BYTES} | `digest` | BLAKE3 of the {digest_offset} bytes before |"
    return "\n\n".join(
        [
            "### Header page",
            fields_table(ImageHeader.FIELDS) + "\n" + digest_row,
            "### Manifest head",
            fields_table(ManifestHead.FIELDS),
            "### Block kinds",
            "\n".join(kinds),
            "### Metadata keys",
            metadata_table(),
        ]
    )
