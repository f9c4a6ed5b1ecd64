"""A block's stored bytes and back: the one place that says what "stored" and "right" mean.

Hashing and (de)compression release the GIL; an encoder or decoder belongs to one thread.
"""

from __future__ import annotations

import functools
from typing import Final

import zstandard
from blake3 import blake3

from protocol.errors import ConfigurationError, ImageDamagedError
from protocol.manifest import BlockKind

LEVEL_MIN: Final = 1
LEVEL_MAX: Final = 22
LEVEL_DEFAULT: Final = 3
"""zstd's own default: on OS files, levels above 6 cost several times the time for a few percent."""

_GAIN_SHIFT: Final = 6
"""A block that compression doesn't shorten by 1/64 is stored raw: every receiver would pay the decompression."""


def block_hash(data: bytes | memoryview) -> bytes:
    """BLAKE3, 32 bytes, as in the manifest's columns."""
    return blake3(data).digest()


@functools.lru_cache(maxsize=4)
def zero_hash(length: int) -> bytes:
    """The hash of ``length`` zeros."""
    return block_hash(bytes(length))


def _parameters(level: int, block_bytes: int) -> zstandard.ZstdCompressionParameters:
    if not LEVEL_MIN <= level <= LEVEL_MAX:
        raise ConfigurationError(
            f"compression level {level} doesn't exist: choose {LEVEL_MIN} to {LEVEL_MAX}; {LEVEL_DEFAULT} is usual"
        )
    return zstandard.ZstdCompressionParameters.from_level(
        level, source_size=block_bytes, write_content_size=True, write_checksum=False, write_dict_id=False
    )


def encoder_memory_bytes(level: int, block_bytes: int) -> int:
    """What one :class:`BlockEncoder` occupies: 1 MB at level 3, 68 MB at level 22 with 4 MiB blocks.

    Raises:
        ConfigurationError: there is no such level.
    """
    return _parameters(level, block_bytes).estimated_compression_context_size()


class BlockEncoder:
    """Compresses the blocks of one thread; the same input gives the same frame, whatever came before."""

    def __init__(self, level: int, block_bytes: int) -> None:
        self._compressor = zstandard.ZstdCompressor(compression_params=_parameters(level, block_bytes))

    def encode(self, raw: memoryview) -> tuple[BlockKind, bytes | memoryview]:
        """DATA and its frame, or RAW and ``raw`` itself where compression gains nothing."""
        frame = self._compressor.compress(raw)
        if len(frame) < len(raw) - (len(raw) >> _GAIN_SHIFT):
            return BlockKind.DATA, frame
        return BlockKind.RAW, raw


class BlockDecoder:
    """Decompresses the blocks of one thread."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def decode_untrusted(
        self, kind: BlockKind, stored: bytes | memoryview, raw_length: int
    ) -> bytes | memoryview:
        """The raw bytes, exactly ``raw_length`` of them; ``stored`` itself for RAW.

        Memory is bounded before anything is allocated: a frame must announce exactly ``raw_length``.

        Raises:
            ImageDamagedError: the stored bytes aren't that.
        """
        assert kind <= BlockKind.RAW
        if kind == BlockKind.RAW:
            if len(stored) != raw_length:
                raise ImageDamagedError(f"{len(stored)} bytes stored, {raw_length} expected")
            return stored
        try:
            announced = zstandard.get_frame_parameters(stored).content_size
            if announced != raw_length:
                raise ImageDamagedError(f"its frame announces {announced} bytes, {raw_length} expected")
            raw = self._decompressor.decompress(stored, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ImageDamagedError(f"it doesn't decompress: {error}") from error
        if len(raw) != raw_length:
            raise ImageDamagedError(f"it decompresses to {len(raw)} bytes, {raw_length} expected")
        return raw
