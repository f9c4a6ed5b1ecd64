"""Decoding of stored bytes into a given buffer: exactly its length, or an error before memory is allocated."""

from __future__ import annotations

import contextlib
import random

import pytest
import zstandard

from protocol.errors import ImageDamagedError
from protocol.image.block_codec import BlockDecoder, BlockEncoder
from protocol.image.manifest import BlockKind

BLOCK_BYTES = 1 << 18


def _content(seed: int, length: int) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.randbytes(50) + bytes(rng.randrange(200)) for _ in range(length // 50 + 1))[:length]


def _frame(raw: bytes, *, content_size: bool = True, checksum: bool = False) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=content_size, write_checksum=checksum).compress(raw)


@pytest.mark.parametrize("length", [1, 255, 4096, 65536, (1 << 17) - 1, 1 << 17, BLOCK_BYTES, (1 << 22) - 3])
@pytest.mark.parametrize("level", [1, 3, 19])
def test_a_block_is_put_where_it_belongs(length: int, level: int) -> None:
    decoder = BlockDecoder()
    for raw in (_content(length, length), bytes(length), random.Random(1).randbytes(length)):
        kind, stored = BlockEncoder(level, 1 << 22).encode(memoryview(raw))
        memory = bytearray(b"\xaa" * (length + 20))
        decoder.decode_into_untrusted(kind, stored, memoryview(memory)[10:-10])
        assert memory[10:-10] == raw
        assert memory[:10] == memory[-10:] == b"\xaa" * 10


def test_a_frame_with_a_checksum_is_one() -> None:
    raw = _content(3, 100_000)
    memory = bytearray(len(raw))
    BlockDecoder().decode_into_untrusted(BlockKind.DATA, _frame(raw, checksum=True), memoryview(memory))
    assert memory == raw


_SKIPPABLE = bytes.fromhex("502a4d18") + (4).to_bytes(4, "little") + b"hide"


def _skippable(length: int) -> bytes:
    return bytes.fromhex("5f2a4d18") + length.to_bytes(4, "little") + bytes(length)


def _dictionary_frame(raw: bytes) -> bytes:
    words = zstandard.train_dictionary(8192, [_content(seed, 400) for seed in range(500)])
    return zstandard.ZstdCompressor(dict_data=words).compress(raw)


def _repeated(length: int, window_log: int) -> bytes:
    """Return a valid frame of repeated bytes that demands a window of ``2 ** window_log`` bytes (RFC 8878, 3.1.1)."""
    header = bytes.fromhex("28b52ffd") + bytes([2 << 6, window_log - 10 << 3]) + length.to_bytes(4, "little")
    blocks = [
        (min(1 << 17, length - start) << 3 | 1 << 1 | (start + (1 << 17) >= length)).to_bytes(3, "little")
        + b"a"
        for start in range(0, length, 1 << 17)
    ]
    return header + b"".join(blocks)


def test_a_window_of_a_blocks_size_is_fine() -> None:
    memory = bytearray(BLOCK_BYTES)
    BlockDecoder().decode_into_untrusted(BlockKind.DATA, _repeated(BLOCK_BYTES, 22), memoryview(memory))
    assert memory == b"a" * BLOCK_BYTES


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (_skippable(BLOCK_BYTES), "skippable"),
        (_dictionary_frame(_content(1, BLOCK_BYTES)), "dictionary"),
        (_repeated(BLOCK_BYTES, 27), "window"),
        (_repeated(BLOCK_BYTES, 31), "window"),
        (_repeated(1 << 30, 18), "announces"),
    ],
    ids=["skippable", "dictionary", "window", "largest-window", "bomb"],
)
def test_a_hostile_frame_is_refused_by_its_header(frame: bytes, words: str) -> None:
    """A signed image may be hostile: its maker's key was stolen, or he didn't know what he packed."""
    for decode in (
        lambda: BlockDecoder().decode_untrusted(BlockKind.DATA, frame, BLOCK_BYTES),
        lambda: BlockDecoder().decode_into_untrusted(
            BlockKind.DATA, frame, memoryview(bytearray(BLOCK_BYTES))
        ),
    ):
        with pytest.raises(ImageDamagedError, match=words):
            decode()


@pytest.mark.parametrize(
    "frame",
    [
        _frame(bytes(BLOCK_BYTES - 1)),
        _frame(bytes(BLOCK_BYTES + 1)),
        _frame(bytes(1 << 28)),
        _frame(bytes(BLOCK_BYTES), content_size=False),
        _frame(_content(1, BLOCK_BYTES)) + b"m",
        _frame(_content(1, BLOCK_BYTES)) + b"more",
        _frame(_content(1, BLOCK_BYTES)) + _frame(b""),
        _frame(_content(1, BLOCK_BYTES)) + _frame(b"more"),
        _frame(_content(1, BLOCK_BYTES)) + _SKIPPABLE,
        _SKIPPABLE + _frame(_content(1, BLOCK_BYTES)),
        _frame(_content(1, BLOCK_BYTES))[:-1],
        _frame(_content(1, BLOCK_BYTES))[:40],
        _frame(_content(1, BLOCK_BYTES))[:9],
        _frame(_content(1, BLOCK_BYTES), checksum=True)[:-1] + b"?",
        b"no frame at all",
        b"",
    ],
    ids=[
        "shorter", "longer", "bomb", "silent", "byte", "more", "empty", "another", "skippable", "skippable-first",
        "cut", "cut-early", "header", "checksum", "none", "nothing",
    ],
)  # fmt: skip
def test_a_wrong_frame_is_refused(frame: bytes) -> None:
    decoder = BlockDecoder()
    memory = bytearray(BLOCK_BYTES)
    for stored in (frame, memoryview(frame)):
        with pytest.raises(ImageDamagedError):
            decoder.decode_into_untrusted(BlockKind.DATA, stored, memoryview(memory))
    # and the decoder is as good as before
    raw = _content(2, BLOCK_BYTES)
    decoder.decode_into_untrusted(BlockKind.DATA, _frame(raw), memoryview(memory))
    assert memory == raw


def test_a_frame_altered_anywhere_never_does_more_than_fail() -> None:
    """The decoder doesn't write beyond the buffer either; hashes check the content before and after."""
    rng = random.Random(5)
    frame = _frame(_content(1, 20_000))
    decoder = BlockDecoder()
    for _ in range(3000):
        altered = bytearray(frame)
        for _ in range(rng.randint(1, 3)):
            altered[rng.randrange(len(altered) if rng.random() < 0.5 else 20)] = rng.randrange(256)
        memory = bytearray(b"\xaa" * 20_020)
        with contextlib.suppress(ImageDamagedError):
            decoder.decode_into_untrusted(BlockKind.DATA, altered, memoryview(memory)[10:-10])
        assert memory[:10] == memory[-10:] == b"\xaa" * 10


@pytest.mark.parametrize("length", [0, 99, 101])
def test_raw_bytes_must_fit(length: int) -> None:
    with pytest.raises(ImageDamagedError, match="100 expected"):
        BlockDecoder().decode_into_untrusted(BlockKind.RAW, bytes(length), memoryview(bytearray(100)))
