"""Blocks of an image, each checked against both of its hashes before a byte of it is returned."""

from __future__ import annotations

import functools
import threading

from protocol.errors import ImageDamagedError
from protocol.image.block_codec import BlockDecoder, block_hash
from protocol.image.manifest import BlockKind, Manifest
from sender.imaging.image_file import ImageFile


@functools.lru_cache(maxsize=2)
def _zeros(length: int) -> bytes:
    return bytes(length)


def decode_checked(
    manifest: Manifest, block: int, stored: bytes | memoryview, decoder: BlockDecoder
) -> bytes | memoryview:
    """Return the raw bytes of a stored block; those of a RAW block are ``stored`` itself.

    Raises:
        ImageDamagedError: the stored or the raw bytes don't match their hash; the message is the reason alone.
    """
    if block_hash(stored) != manifest.stored_hash[block].tobytes():
        raise ImageDamagedError("its stored bytes were altered")
    kind = BlockKind(int(manifest.kind[block]))
    raw = decoder.decode_untrusted(kind, stored, manifest.raw_length(block))
    # Of a RAW block the raw bytes are the stored bytes, whose hash is already checked.
    raw_hash = manifest.stored_hash[block].tobytes() if kind == BlockKind.RAW else block_hash(raw)
    if raw_hash != manifest.raw_hash[block].tobytes():
        raise ImageDamagedError("its raw bytes don't match their hash")
    return raw


class VerifiedBlocks:
    """Reader of an open image's blocks, for many threads at once.

    Attributes:
        image: the image.
    """

    def __init__(self, image: ImageFile) -> None:
        self.image = image
        self._thread_local = threading.local()

    def read(self, block: int, buffer: memoryview | None = None) -> bytes | memoryview:
        """Return the raw bytes of ``block``; zeros if it is ZERO or UNUSED.

        Args:
            block: number of the block.
            buffer: place for the stored bytes; the result may refer to it. Memory of its own by default.

        Raises:
            ImageDamagedError: the block doesn't match its hashes; the message names it.
            ImageChangedError: the file was altered since it was opened.
            StorageError: the disk failed.
        """
        manifest = self.image.manifest
        stored_bytes = int(manifest.stored_bytes[block])
        if not stored_bytes:
            return _zeros(manifest.block_bytes)[: manifest.raw_length(block)]
        stored = memoryview(bytearray(stored_bytes)) if buffer is None else buffer[:stored_bytes]
        self.image.read_stored(block, stored)
        try:
            return decode_checked(manifest, block, stored, self._decoder())
        except ImageDamagedError as error:
            raise self.image.wrong_block(block) from error

    def read_stored(self, block: int) -> memoryview:
        """Return the stored bytes of ``block``, which isn't ZERO or UNUSED; errors as :meth:`read`."""
        stored = memoryview(bytearray(int(self.image.manifest.stored_bytes[block])))
        self.read(block, stored)
        return stored

    def read_range(self, offset: int, length: int) -> bytes:
        """Return a range of the disk, shorter at its end; errors as :meth:`read`."""
        manifest = self.image.manifest
        stop = min(manifest.raw_bytes, offset + length)
        pieces = []
        while offset < stop:
            block, start = divmod(offset, manifest.block_bytes)
            piece = self.read(block)[start : start + stop - offset]
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def _decoder(self) -> BlockDecoder:
        decoder: BlockDecoder | None = getattr(self._thread_local, "decoder", None)
        if decoder is None:
            decoder = self._thread_local.decoder = BlockDecoder()
        return decoder
