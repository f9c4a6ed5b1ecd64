"""Small images with every kind of block, for tests of the disk side."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from protocol.image.block_codec import BlockEncoder, block_hash
from protocol.image.image_format import PAGE_BYTES, build_header, payload_offset_of
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import build_manifest
from protocol.trust.secret_key import SecretKey
from protocol.trust.statement import ImageStatement
from sender.imaging.statement_fields import signed_name
from tests.support.signing import SIGNER, signed

BLOCK_BYTES = 64 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class MadeImage:
    """An image in memory."""

    raw: bytes
    """The disk's content; unused blocks have arbitrary content."""
    manifest: Manifest
    stored: list[bytes]

    def write(
        self, path: Path, signer: SecretKey | None = SIGNER, *, statement: ImageStatement | None = None
    ) -> Path:
        """Create the file ``NAME.dci``, signed by the tests' key; ``statement`` replaces the usual one."""
        manifest_bytes = len(self.manifest.data)
        header = build_header(
            manifest_bytes=manifest_bytes,
            payload_bytes=self.manifest.payload_bytes,
            image_id=self.manifest.image_id,
        )
        if signer is not None:
            statement = statement or ImageStatement(
                self.manifest.image_id, signed_name(self.manifest.name), 1
            )
            header = header.with_signature(signed(statement, signer), signer.public)
        manifest = bytes(self.manifest.data).ljust(payload_offset_of(manifest_bytes) - PAGE_BYTES, b"\0")
        path.write_bytes(header.to_page() + manifest + b"".join(self.stored))
        return path

    def stored_offset(self, block: int) -> int:
        """Return the offset of a block's stored bytes in the file."""
        return payload_offset_of(len(self.manifest.data)) + int(self.manifest.offsets[block])


def make_image(
    kinds: str,
    *,
    tail_bytes: int | None = None,
    seed: int = 1,
    block_bytes: int = BLOCK_BYTES,
    frames: dict[int, bytes] | None = None,
    raw_hashes: dict[int, bytes] | None = None,
    metadata: dict[str, object] | None = None,
    name: str = "made",
) -> MadeImage:
    """Create an image with one block for each letter: ``d`` data, ``r`` raw, ``z`` zero, ``u`` unused.

    Args:
        kinds: the letters.
        tail_bytes: raw size of the last block; full when not given.
        seed: of the content.
        block_bytes: raw size of the others.
        frames: stored bytes to put instead of the right ones, with their right hash.
        raw_hashes: wrong raw hashes.
        metadata: what the image says of its source.
        name: as packed.
    """
    rng = np.random.default_rng(seed)
    encoder = BlockEncoder(3, block_bytes)
    raw_blocks, kind, stored, raw_hash = [], [], [], []
    for block, letter in enumerate(kinds):
        length = tail_bytes if tail_bytes and block == len(kinds) - 1 else block_bytes
        if letter == "d":
            raw = rng.integers(1, 9, length, np.uint8).tobytes()
            stored.append(bytes(encoder.encode(memoryview(raw))[1]))
        elif letter == "r":
            raw = rng.bytes(length)
            stored.append(raw)
        else:
            raw = bytes(length)
            stored.append(b"")
        raw_blocks.append(raw)
        kind.append(BlockKind("drzu".index(letter)))
        raw_hash.append(bytes(32) if letter == "u" else block_hash(raw))
    for block, frame in (frames or {}).items():
        stored[block] = frame
    for block, digest in (raw_hashes or {}).items():
        raw_hash[block] = digest
    stored_hash = [block_hash(one) if one else bytes(32) for one in stored]
    data = build_manifest(
        name,
        sum(map(len, raw_blocks)),
        block_bytes,
        np.array(kind, np.uint8),
        np.array([len(one) for one in stored], np.uint32),
        _rows(stored_hash),
        _rows(raw_hash),
        metadata or {},
    )
    return MadeImage(b"".join(raw_blocks), Manifest.parse_untrusted(data), stored)


def _rows(hashes: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)


def allocated_bytes(path: Path) -> int:
    """Return the bytes that a file occupies, without its holes."""
    return path.stat().st_blocks * 512
