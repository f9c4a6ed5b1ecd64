"""A machine patch: the blocks of an image that differ for one machine, in one canonical run of bytes.

Layout, little-endian as the image file::

    PatchHead      128 bytes, :data:`PatchHead.FIELDS`
    block          u32[n]      ascending, distinct
    stored_bytes   u32[n]
    stored_hash    u8[n, 32]   BLAKE3 of the stored bytes; zeros for kind ZERO
    raw_hash       u8[n, 32]   BLAKE3 of the raw bytes
    kind           u8[n]       DATA, RAW or ZERO
    payload                    the stored bytes of all blocks, in their order

The ``patch_id`` is the BLAKE3 of everything before the payload, to which the hashes bind the payload.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from protocol.constants import (
    BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN,
    GIB,
    HASH_BYTES,
    IMAGE_BYTES_MAX,
    MACHINE_ID_BYTES_MAX,
    MIB,
)
from protocol.errors import ConfigurationError, ImageDamagedError, PatchRefusedError
from protocol.image.block_codec import LEVEL_DEFAULT, BlockDecoder, BlockEncoder, block_hash, zero_hash
from protocol.image.file_records import pack_record, record_struct, unpack_record_untrusted
from protocol.image.manifest import BlockKind, breaks_size_rules
from protocol.image.manifest_format import block_count_of
from protocol.schema.binary_fields import Field, Octets, fields_of, uint
from protocol.shared.units import format_bytes

PATCH_MAGIC: Final = b"\x89DCP\r\n\x1a\n"
PATCH_VERSION: Final = 1

PATCH_BLOCKS_MAX: Final = 4096
"""A GiB of the usual blocks: far more than names and keys change, and few enough to check before the first write."""

PATCH_BYTES_MAX: Final = 16 * MIB
"""A patch is held in memory, by the agent and, for each machine of a room, by its sender."""

PATCH_RAW_BYTES_MAX: Final = GIB
"""Bounds the work of decompressing all blocks of a patch before the first write to a second."""


@dataclasses.dataclass(frozen=True, slots=True)
class PatchHead:
    """The fixed start of a machine patch."""

    FIELDS: ClassVar[tuple[Field, ...]]

    magic: Annotated[bytes, Octets(8, "`89 44 43 50 0D 0A 1A 0A`")]
    version: Annotated[int, uint(32, "format version", low=PATCH_VERSION, high=PATCH_VERSION)]
    block_bytes: Annotated[
        int, uint(32, "block size of the image", low=BLOCK_BYTES_MIN, high=BLOCK_BYTES_MAX)
    ]
    raw_bytes: Annotated[int, uint(64, "size of the image's disk", low=1, high=IMAGE_BYTES_MAX)]
    block_count: Annotated[int, uint(32, "n, patched blocks", low=1, high=PATCH_BLOCKS_MAX)]
    reserved: Annotated[int, uint(32, "zero", high=0)]
    image_id: Annotated[bytes, Octets(HASH_BYTES, "the image that the patch is for")]
    machine_id: Annotated[
        bytes, Octets(MACHINE_ID_BYTES_MAX, "the machine that the patch is for: printable UTF-8, zero-padded")
    ]


PatchHead.FIELDS = fields_of(PatchHead)
PATCH_HEAD_BYTES: Final = record_struct(PatchHead.FIELDS).size
assert PATCH_HEAD_BYTES == 128

_ROW_BYTES: Final = 4 + 4 + HASH_BYTES + HASH_BYTES + 1


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class MachinePatch:
    """A checked machine patch: its payload has the hashes of its rows.

    Attributes:
        data: the whole patch, as in its file.
        image_id: the image that it is for.
        machine_id: the machine that it is for.
        raw_bytes: size of the image's disk.
        block_bytes: block size of the image.
        blocks: ``int64[n]``, ascending: the patched blocks.
        kind: ``uint8[n]`` of :class:`BlockKind`, without UNUSED.
        stored_bytes: ``uint32[n]``.
        stored_hash: ``uint8[n, 32]``.
        raw_hash: ``uint8[n, 32]``.
        patch_id: the patch's id, 32 bytes.
    """

    data: bytes = dataclasses.field(repr=False)  # it may hold a machine's secrets
    image_id: bytes
    machine_id: str
    raw_bytes: int
    block_bytes: int
    blocks: NDArray[np.int64]
    kind: NDArray[np.uint8]
    stored_bytes: NDArray[np.uint32]
    stored_hash: NDArray[np.uint8] = dataclasses.field(repr=False)
    raw_hash: NDArray[np.uint8] = dataclasses.field(repr=False)
    patch_id: bytes

    @property
    def payload_offset(self) -> int:
        """Return the start of the payload in ``data``."""
        return PATCH_HEAD_BYTES + _ROW_BYTES * int(self.blocks.size)

    def stored(self, row: int) -> memoryview:
        """Return the stored bytes of the ``row``-th patched block."""
        start = self.payload_offset + int(self.stored_bytes[:row].sum(dtype=np.int64))
        return memoryview(self.data)[start : start + int(self.stored_bytes[row])]

    def row_of(self, block: int) -> int | None:
        """Return the row of a block; None if it isn't patched."""
        row = int(np.searchsorted(self.blocks, block))
        return row if row < self.blocks.size and self.blocks[row] == block else None

    def raw_length(self, row: int) -> int:
        """Return the raw bytes of the ``row``-th patched block."""
        return min(self.block_bytes, self.raw_bytes - int(self.blocks[row]) * self.block_bytes)


def build_patch(
    image_id: bytes,
    machine_id: str,
    *,
    raw_bytes: int,
    block_bytes: int,
    contents: Mapping[int, bytes | memoryview],
    level: int = LEVEL_DEFAULT,
) -> MachinePatch:
    """Return the patch that gives blocks other contents; equal arguments give an equal patch.

    Args:
        image_id: the image.
        machine_id: the machine.
        raw_bytes: size of the image's disk.
        block_bytes: block size of the image.
        contents: raw bytes of each patched block.
        level: compression level.

    Raises:
        ConfigurationError: no patch can be made of them: too many or too large blocks, or an invalid machine id.
    """
    blocks = sorted(contents)
    machine = machine_id.encode(errors="replace")
    if not is_machine_id(machine_id):
        raise ConfigurationError(
            f"{machine_id[:MACHINE_ID_BYTES_MAX]!r} can't name the machine of a patch: use 1 to {MACHINE_ID_BYTES_MAX} "
            "bytes of printable text without spaces at its ends"
        )
    if not 1 <= len(blocks) <= PATCH_BLOCKS_MAX or len(blocks) * block_bytes > PATCH_RAW_BYTES_MAX:
        raise ConfigurationError(
            f"a patch of {len(blocks)} blocks of {format_bytes(block_bytes)} can't be made: a patch has 1 to "
            f"{PATCH_BLOCKS_MAX} blocks and at most {format_bytes(PATCH_RAW_BYTES_MAX)} of content"
        )
    encoder = BlockEncoder(level, block_bytes)
    kind, stored, stored_hash, raw_hash = bytearray(), [], [], []
    for block in blocks:
        raw = memoryview(contents[block])
        digest = block_hash(raw)
        if digest == zero_hash(len(raw)):
            block_kind, frame = BlockKind.ZERO, b""
        else:
            block_kind, encoded = encoder.encode(raw)
            frame = bytes(encoded)
        kind.append(block_kind)
        stored.append(frame)
        stored_hash.append(block_hash(frame) if frame else bytes(HASH_BYTES))
        raw_hash.append(digest)
    head = PatchHead(
        magic=PATCH_MAGIC,
        version=PATCH_VERSION,
        block_bytes=block_bytes,
        raw_bytes=raw_bytes,
        block_count=len(blocks),
        reserved=0,
        image_id=image_id,
        machine_id=machine.ljust(MACHINE_ID_BYTES_MAX, b"\0"),
    )
    data = b"".join(
        (
            pack_record(head, PatchHead.FIELDS),
            np.array(blocks, "<u4").tobytes(),
            np.array([len(frame) for frame in stored], "<u4").tobytes(),
            *stored_hash,
            *raw_hash,
            bytes(kind),
            *stored,
        )
    )
    try:
        return parse_patch_untrusted(data)
    except PatchRefusedError as error:
        raise ConfigurationError(f"these blocks make no patch: {error}") from error


def parse_patch_untrusted(data: bytes) -> MachinePatch:
    """Parse a patch and check everything that it says of itself, its payload too.

    Whether it may be applied is decided by :func:`protocol.patch.patch_permission.require_permitted`.

    Raises:
        PatchRefusedError: it isn't a patch, is damaged, too large, or of a newer version.
    """
    if len(data) > PATCH_BYTES_MAX:
        raise _damaged(f"it has {len(data)} bytes, and patches have at most {PATCH_BYTES_MAX}")
    if len(data) < PATCH_HEAD_BYTES or data[: len(PATCH_MAGIC)] != PATCH_MAGIC:
        raise _damaged("it doesn't start like a patch")
    try:
        head = unpack_record_untrusted(PatchHead, PatchHead.FIELDS, data, "machine patch")
    except ImageDamagedError as error:
        raise _damaged(str(error)) from error
    n = head.block_count
    if head.block_bytes & (head.block_bytes - 1) or n * head.block_bytes > PATCH_RAW_BYTES_MAX:
        raise _damaged("its blocks have no size that a patch can have")
    if len(data) < PATCH_HEAD_BYTES + _ROW_BYTES * n:
        raise _damaged("it is truncated")
    column = functools.partial(_column, data, n)
    payload_offset = PATCH_HEAD_BYTES + _ROW_BYTES * n
    patch = MachinePatch(
        data=bytes(data),
        image_id=head.image_id,
        machine_id=_machine_id_untrusted(head.machine_id),
        raw_bytes=head.raw_bytes,
        block_bytes=head.block_bytes,
        blocks=column(0, 4).view("<u4").astype(np.int64),
        kind=column(8 + 2 * HASH_BYTES, 1),
        stored_bytes=column(4, 4).view("<u4"),
        stored_hash=column(8, HASH_BYTES).reshape(n, HASH_BYTES),
        raw_hash=column(8 + HASH_BYTES, HASH_BYTES).reshape(n, HASH_BYTES),
        patch_id=blake3(data[:payload_offset]).digest(),
    )
    _check_rows_untrusted(patch)
    _check_payload_untrusted(patch)
    return patch


def _column(data: bytes, row_count: int, bytes_before: int, width: int) -> NDArray[np.uint8]:
    """Return the column of ``width`` bytes that starts behind columns of ``bytes_before`` bytes a row."""
    return np.frombuffer(data, np.uint8, row_count * width, PATCH_HEAD_BYTES + bytes_before * row_count)


def is_machine_id(text: str) -> bool:
    """Return whether ``text`` can name the machine of a patch; it becomes part of lines."""
    return (
        text.isprintable()
        and text == text.strip()
        and 1 <= len(text.encode(errors="replace")) <= MACHINE_ID_BYTES_MAX
    )


def _machine_id_untrusted(padded: bytes) -> str:
    try:
        machine_id = padded.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise _damaged("its machine id isn't UTF-8") from error
    if not is_machine_id(machine_id):
        raise _damaged("its machine id isn't printable")
    return machine_id


def _check_rows_untrusted(patch: MachinePatch) -> None:
    blocks, last = patch.blocks, block_count_of(patch.raw_bytes, patch.block_bytes) - 1
    if int(blocks[-1]) > last or (np.diff(blocks) <= 0).any():
        raise _damaged("its blocks aren't ascending blocks of the image")
    full = blocks < last
    short_bytes = patch.raw_bytes - last * patch.block_bytes
    bad = np.concatenate(
        [
            breaks_size_rules(patch.kind[full], patch.stored_bytes[full], patch.block_bytes),
            breaks_size_rules(patch.kind[~full], patch.stored_bytes[~full], short_bytes),
        ]
    )
    if bad.any() or (patch.kind > BlockKind.ZERO).any():
        raise _damaged("a block has a kind or size that it can't have")
    if len(patch.data) != patch.payload_offset + int(patch.stored_bytes.sum(dtype=np.int64)):
        raise _damaged("it is truncated, or something follows it")


def _check_payload_untrusted(patch: MachinePatch) -> None:
    decoder = BlockDecoder()
    for row, block in enumerate(patch.blocks.tolist()):
        kind, stored = BlockKind(int(patch.kind[row])), patch.stored(row)
        expected = patch.raw_hash[row].tobytes()
        if kind is BlockKind.ZERO:
            if patch.stored_hash[row].any() or expected != zero_hash(patch.raw_length(row)):
                raise _damaged(f"block {block} is zero and has another hash")
            continue
        if block_hash(stored) != patch.stored_hash[row].tobytes():
            raise _damaged(f"the stored bytes of block {block} don't match their hash")
        try:
            raw = decoder.decode_untrusted(kind, stored, patch.raw_length(row))
        except ImageDamagedError as error:
            raise _damaged(f"block {block}: {error}") from error
        if block_hash(raw) != expected:
            raise _damaged(f"block {block} doesn't decompress to its raw hash")


def _damaged(reason: str) -> PatchRefusedError:
    return PatchRefusedError(f"the machine patch is refused: {reason}; make or fetch it again")
