"""Capture of a machine's disk over the network: messages between its agent and the daemon that keeps the image.

::

    POST /api/v1/captures/{id}/upload           start or resume          CaptureStart  ─► CapturePosition
    POST /api/v1/captures/{id}/upload/spans     rows, and the payload    SpanBatch     ─► SpanAnswer
    POST /api/v1/captures/{id}/upload/proof     hashes of a second read  ProofBatch    ─► CapturePosition
    POST /api/v1/captures/{id}/upload/commit    the disk is proven       CaptureEnd    ─► CaptureResult
    POST /api/v1/captures/{id}/upload/failure   the agent gives up       CaptureFailure

A check-in assigns the capture with its own secret, the bearer of all five. The agent sends the blocks in order. A batch
has the manifest rows of some blocks, and the stored bytes of blocks of the batch :data:`BATCHES_ON_THE_WAY` before it:
those that the answer to that batch named. So many batches are on the way at once, each on its own connection, and the
link never waits for an answer. The daemon takes them in the order of their sequence numbers; a batch that is repeated
gets the same answer. After any failure the agent starts again, and continues at the position that the daemon names. The
format is deterministic, so the result is the same as without the failure.

The proof is a second read of the whole disk: the daemon compares its hashes with the manifest before it commits.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import (
    BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN,
    BLOCK_COUNT_MAX,
    HASH_BYTES,
    IMAGE_NAME_BYTES_MAX,
    METADATA_BYTES_MAX,
    MIB,
    NAME_BYTES_MAX,
)
from protocol.errors import ProtocolError
from protocol.image.block_codec import LEVEL_MAX, LEVEL_MIN, zero_hash
from protocol.image.manifest import BlockKind
from protocol.image.manifest_format import COLUMN_ALIGNMENT, HEAD_BYTES, block_count_of
from protocol.schema.json_fields import Boolean, HexBytes, HexData, Integer, JsonRecord, PrintableText

CAPTURE_ID_CHARACTERS: Final = 8

CAPTURE_SECRET_BYTES_MAX: Final = 64

CAPTURE_SECRET_PREFIX: Final = "dcc_"  # noqa: S105  a prefix, not a secret

SOURCE_TEXT_BYTES_MAX: Final = 256
"""Length of the name of a disk, or of its model or serial number."""

SOURCE_AUTO: Final = "auto"
"""The disk that the agent itself would choose: its target if that is a path, or else the machine's only disk."""

UPLOADER_BYTES: Final = 16
"""Random id of one run of an upload, which nobody else knows."""

BATCHES_ON_THE_WAY: Final = 2
"""Batches of an upload that are sent or answered at the same time: the next one fills the link while the daemon answers
the one before."""

BATCH_BLOCKS_MAX: Final = 1 << 16
"""Rows of a batch: a hole of 16 GiB with the usual blocks."""

BATCH_STORED_MAX: Final = 4096
"""Blocks with stored bytes in a batch: their rows are 280 KB."""

BATCH_STORED_BYTES_MAX: Final = 8 * MIB
"""Stored bytes of a batch: two spans of the packer, so that a batch of 4 MiB can always be completed. A daemon holds
three batches for each upload: one that is written, and those on the way."""

PROOF_HASHES_MAX: Final = 1 << 14
"""Hashes in a batch of the proof: 512 KiB."""

ERROR_BYTES_MAX: Final = 1024

_HEAD: Final = struct.Struct("<16sQQII")
_LENGTH_BYTES: Final = 4
SPAN_BATCH_BYTES_MAX: Final = (
    _HEAD.size
    + BATCH_BLOCKS_MAX
    + BATCH_STORED_MAX * (_LENGTH_BYTES + 2 * HASH_BYTES)
    + BATCH_STORED_BYTES_MAX
)
PROOF_BATCH_BYTES_MAX: Final = _HEAD.size + BATCH_BLOCKS_MAX + PROOF_HASHES_MAX * HASH_BYTES
_START_BYTES_MAX: Final = HEAD_BYTES + METADATA_BYTES_MAX + COLUMN_ALIGNMENT

BATCH_TYPE: Final = "application/octet-stream"
"""Media type of batches."""


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureAssignment:
    """A capture for a machine to make.

    Attributes:
        name: name of the image.
        source: path of the disk, or :data:`SOURCE_AUTO`.
        every_byte: pack free space too, and record the SHA-256 of the whole disk.
        secret: bearer of the upload; empty in answers to an agent that uploads already.
    """

    capture_id: str
    name: str
    source: str
    block_bytes: int
    level: int
    every_byte: bool
    secret: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureStart:
    """The start of an upload, or its continuation after a failure.

    Attributes:
        uploader: id of this run of the upload.
        disk: path of the disk on the machine.
        manifest_start: the manifest before its columns, which has the name, the sizes and the layout.
    """

    uploader: bytes
    disk: str
    model: str
    serial: str
    manifest_start: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class CapturePosition:
    """The progress of an upload.

    Attributes:
        next_block: first block that the daemon doesn't have; sequence numbers of batches start at 0 after a start.
        proven_block: first block that isn't proven.
    """

    next_block: int
    proven_block: int


@dataclasses.dataclass(frozen=True, slots=True)
class SpanAnswer:
    """The blocks of a batch that the daemon is missing.

    Attributes:
        wanted: a bit for each block of the batch that has stored bytes, the first in the lowest bit.
    """

    wanted: bytes

    @classmethod
    def of(cls, wanted: NDArray[np.bool_]) -> SpanAnswer:
        """Return the answer for ``bool[m]``."""
        return cls(np.packbits(wanted, bitorder="little").tobytes())

    def mask_untrusted(self, stored_count: int) -> NDArray[np.bool_]:
        """Return ``bool[stored_count]``.

        Raises:
            ProtocolError: it has another number of bits.
        """
        if len(self.wanted) != -(-stored_count // 8):
            raise ProtocolError(f"wanted: expected {stored_count} bits")
        bits = np.unpackbits(np.frombuffer(self.wanted, np.uint8), bitorder="little")
        return bits[:stored_count].astype(bool)


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureEnd:
    """The end of an upload.

    Attributes:
        source_sha256: of the whole disk, from the proof; empty unless every byte is kept.
    """

    uploader: bytes
    source_sha256: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureResult:
    """The image that the daemon has committed."""

    image_id: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureFailure:
    """The reason for which an agent can't make a capture."""

    error: str
    exit_code: int


CAPTURE_ASSIGNMENT: JsonRecord[CaptureAssignment] = JsonRecord(
    CaptureAssignment,
    {
        "capture_id": PrintableText(CAPTURE_ID_CHARACTERS, bytes_min=CAPTURE_ID_CHARACTERS),
        "name": PrintableText(IMAGE_NAME_BYTES_MAX, bytes_min=1),
        "source": PrintableText(SOURCE_TEXT_BYTES_MAX, bytes_min=1),
        "block_bytes": Integer(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX),
        "level": Integer(LEVEL_MIN, LEVEL_MAX),
        "every_byte": Boolean(),
        "secret": PrintableText(CAPTURE_SECRET_BYTES_MAX),
    },
)

CAPTURE_START: JsonRecord[CaptureStart] = JsonRecord(
    CaptureStart,
    {
        "uploader": HexBytes(UPLOADER_BYTES),
        "disk": PrintableText(SOURCE_TEXT_BYTES_MAX, bytes_min=1),
        "model": PrintableText(NAME_BYTES_MAX),
        "serial": PrintableText(NAME_BYTES_MAX),
        "manifest_start": HexData(_START_BYTES_MAX),
    },
)

CAPTURE_POSITION: JsonRecord[CapturePosition] = JsonRecord(
    CapturePosition,
    {"next_block": Integer(0, BLOCK_COUNT_MAX), "proven_block": Integer(0, BLOCK_COUNT_MAX)},
)

SPAN_ANSWER: JsonRecord[SpanAnswer] = JsonRecord(SpanAnswer, {"wanted": HexData(BATCH_STORED_MAX // 8)})

CAPTURE_END: JsonRecord[CaptureEnd] = JsonRecord(
    CaptureEnd, {"uploader": HexBytes(UPLOADER_BYTES), "source_sha256": HexData(HASH_BYTES)}
)

CAPTURE_RESULT: JsonRecord[CaptureResult] = JsonRecord(CaptureResult, {"image_id": HexBytes(HASH_BYTES)})

CAPTURE_FAILURE: JsonRecord[CaptureFailure] = JsonRecord(
    CaptureFailure, {"error": PrintableText(ERROR_BYTES_MAX, bytes_min=1), "exit_code": Integer(1, 255)}
)


def upload_path(capture_id: str, step: str = "") -> str:
    """Return the path of an upload, or of one of its steps, below ``API_BASE``."""
    return f"/captures/{capture_id}/upload" + (f"/{step}" if step else "")


@dataclasses.dataclass(frozen=True, slots=True)
class BlockRows:
    """Manifest rows of consecutive blocks, in the columns of a manifest.

    Attributes:
        kind: ``u8[n]``.
        stored_bytes: ``u32[n]``.
        stored_hash: ``32 n`` bytes.
        raw_hash: ``32 n`` bytes.
    """

    first_block: int
    kind: NDArray[np.uint8]
    stored_bytes: NDArray[np.uint32]
    stored_hash: bytes
    raw_hash: bytes

    @property
    def stored(self) -> NDArray[np.intp]:
        """Indices of the rows whose blocks have stored bytes."""
        return np.flatnonzero(self.kind <= BlockKind.RAW)


@dataclasses.dataclass(frozen=True, slots=True)
class BlockGeometry:
    """The blocks of a disk."""

    raw_bytes: int
    block_bytes: int

    @property
    def block_count(self) -> int:
        """Number of blocks."""
        return block_count_of(self.raw_bytes, self.block_bytes)

    def raw_length(self, block: int) -> int:
        """Return the raw bytes of a block: the last one may be short."""
        return min(self.block_bytes, self.raw_bytes - block * self.block_bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class SpanBatch:
    """Rows of consecutive blocks, and the wanted stored bytes of an earlier batch.

    The rows of blocks that are zero or unused follow from their kind, and the stored hash of a raw block is its raw
    hash, so neither is sent::

        16 s   uploader
        u64    sequence          number of the batch since the last start
        u64    first_block
        u32    n                 number of rows
        u32    payload_bytes
        u8     kind[n]
        u32    stored_bytes[m]   of kind data and raw
        32 s   stored_hash[m]
        32 s   raw_hash[d]       of kind data
               payload
    """

    uploader: bytes
    sequence: int
    rows: BlockRows
    payload: memoryview

    def to_bytes(self) -> bytes:
        """Return the batch; a large payload is better sent behind :meth:`head`, in its own pieces."""
        return self.head(self.uploader, self.sequence, self.rows, len(self.payload)) + bytes(self.payload)

    @staticmethod
    def head(uploader: bytes, sequence: int, rows: BlockRows, payload_bytes: int) -> bytes:
        """Return everything of a batch before its payload."""
        stored = rows.stored
        data = np.flatnonzero(rows.kind == BlockKind.DATA)
        return b"".join(
            (
                _HEAD.pack(uploader, sequence, rows.first_block, len(rows.kind), payload_bytes),
                rows.kind.tobytes(),
                rows.stored_bytes[stored].astype("<u4").tobytes(),
                _hashes(rows.stored_hash)[stored].tobytes(),
                _hashes(rows.raw_hash)[data].tobytes(),
            )
        )

    @classmethod
    def parse_untrusted(cls, body: bytes | memoryview, geometry: BlockGeometry) -> SpanBatch:
        """Parse a batch of the capture of a disk of ``geometry``.

        Raises:
            ProtocolError: it is malformed or beyond a limit, or a row contradicts its kind.
        """
        view = memoryview(body)
        uploader, sequence, first_block, kind, payload_bytes = _parse_head_untrusted(view, geometry)
        if kind.size and int(kind.max()) > BlockKind.UNUSED:
            raise ProtocolError("batch: a row has an unknown kind")
        stored = np.flatnonzero(kind <= BlockKind.RAW)
        data = np.flatnonzero(kind == BlockKind.DATA)
        if len(stored) > BATCH_STORED_MAX or payload_bytes > BATCH_STORED_BYTES_MAX:
            raise ProtocolError("batch: too many stored blocks")
        offset = _HEAD.size + len(kind)
        ends = np.cumsum(
            (_LENGTH_BYTES * len(stored), HASH_BYTES * len(stored), HASH_BYTES * len(data), payload_bytes)
        )
        if len(view) != offset + int(ends[-1]):
            raise ProtocolError(f"batch: {len(view)} bytes, {offset + int(ends[-1])} expected")
        lengths_end, stored_end, raw_end = (offset + int(end) for end in ends[:3])
        lengths = np.frombuffer(view[offset:lengths_end], "<u4")
        _check_lengths_untrusted(lengths, kind[stored], first_block + stored, geometry)
        stored_bytes = np.zeros(len(kind), np.uint32)
        stored_bytes[stored] = lengths
        stored_hash = np.zeros((len(kind), HASH_BYTES), np.uint8)
        stored_hash[stored] = _hashes(view[lengths_end:stored_end])
        raw_hash = np.zeros((len(kind), HASH_BYTES), np.uint8)
        raw = kind == BlockKind.RAW
        raw_hash[raw] = stored_hash[raw]
        raw_hash[data] = _hashes(view[stored_end:raw_end])
        _fill_zero_hashes(raw_hash, kind, first_block, geometry)
        rows = BlockRows(first_block, kind, stored_bytes, stored_hash.tobytes(), raw_hash.tobytes())
        return cls(uploader, sequence, rows, view[raw_end:])


@dataclasses.dataclass(frozen=True, slots=True)
class ProofBatch:
    """Hashes of consecutive blocks from the second read of the disk.

    Attributes:
        kind: ``u8[n]``: data, zero or unused.
        raw_hash: ``u8[m, 32]``: hashes of the blocks of kind data.
    """

    uploader: bytes
    sequence: int
    first_block: int
    kind: NDArray[np.uint8]
    raw_hash: NDArray[np.uint8]

    def to_bytes(self) -> bytes:
        """Return the batch: the head of a :class:`SpanBatch` without payload, kinds and hashes."""
        head = _HEAD.pack(self.uploader, self.sequence, self.first_block, len(self.kind), 0)
        return head + self.kind.tobytes() + self.raw_hash.tobytes()

    @classmethod
    def parse_untrusted(cls, body: bytes | memoryview, geometry: BlockGeometry) -> ProofBatch:
        """Parse a batch of the proof of a disk of ``geometry``.

        Raises:
            ProtocolError: it is malformed or beyond a limit.
        """
        view = memoryview(body)
        uploader, sequence, first_block, kind, payload_bytes = _parse_head_untrusted(view, geometry)
        if payload_bytes or np.any((kind == BlockKind.RAW) | (kind > BlockKind.UNUSED)):
            raise ProtocolError("proof: a row has an unknown kind")
        hash_count = int(np.count_nonzero(kind == BlockKind.DATA))
        hashes = view[_HEAD.size + len(kind) :]
        if hash_count > PROOF_HASHES_MAX or len(hashes) != HASH_BYTES * hash_count:
            raise ProtocolError(f"proof: {len(hashes)} bytes of hashes, {HASH_BYTES * hash_count} expected")
        return cls(uploader, sequence, first_block, kind, _hashes(hashes))


def _parse_head_untrusted(
    view: memoryview, geometry: BlockGeometry
) -> tuple[bytes, int, int, NDArray[np.uint8], int]:
    """Return uploader, sequence, first block, kinds and payload length."""
    if len(view) < _HEAD.size:
        raise ProtocolError("batch: shorter than its head")
    uploader, sequence, first_block, count, payload_bytes = _HEAD.unpack_from(view)
    if count > BATCH_BLOCKS_MAX or first_block + count > geometry.block_count:
        raise ProtocolError("batch: its rows exceed the disk or their limit")
    if len(view) < _HEAD.size + count:
        raise ProtocolError("batch: shorter than its rows")
    kind = np.frombuffer(view[_HEAD.size : _HEAD.size + count], np.uint8)
    return uploader, sequence, first_block, kind, payload_bytes


def _check_lengths_untrusted(
    lengths: NDArray[np.uint32], kind: NDArray[np.uint8], blocks: NDArray[np.intp], geometry: BlockGeometry
) -> None:
    """Compare the stored bytes of blocks with their kinds, as a reader of the image does."""
    raw_length = np.minimum(
        geometry.block_bytes, geometry.raw_bytes - blocks.astype(np.int64) * geometry.block_bytes
    )
    fits = np.where(kind == BlockKind.RAW, lengths == raw_length, (lengths > 0) & (lengths < raw_length))
    if not fits.all():
        raise ProtocolError("batch: the length of a stored block contradicts its kind")
    if int(lengths.sum(dtype=np.int64)) > BATCH_STORED_BYTES_MAX:
        raise ProtocolError("batch: too many stored bytes")


def _fill_zero_hashes(
    raw_hash: NDArray[np.uint8], kind: NDArray[np.uint8], first_block: int, geometry: BlockGeometry
) -> None:
    zero = np.flatnonzero(kind == BlockKind.ZERO)
    raw_hash[zero] = np.frombuffer(zero_hash(geometry.block_bytes), np.uint8)
    last = geometry.block_count - 1
    if len(zero) and first_block + int(zero[-1]) == last:
        raw_hash[zero[-1]] = np.frombuffer(zero_hash(geometry.raw_length(last)), np.uint8)


def _hashes(data: bytes | memoryview) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(-1, HASH_BYTES)
