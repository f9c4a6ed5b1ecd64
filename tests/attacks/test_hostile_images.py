"""Attacks by the maker of an image that a trusted key signed: its hashes are right, and its content is hostile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zstandard

from protocol.errors import ImageDamagedError
from protocol.image.incomplete_marker import parse_marker_untrusted
from tests.support.disks.disk_images import BLOCK_BYTES, make_image
from tests.support.network.lab import LIMIT_S
from tests.support.network.loopback_cast import LoopbackCast, assert_memory_kept

ROOM_BYTES = 32 << 20
"""Memory that a hostile block may cost beyond an ordinary cast; the bomb would need 1 GiB, the window 2 GiB."""

KINDS = "d" * 40
HOSTILE_BLOCK = 20
"""Not one of the blocks at the edges, which are written last."""


def repeated(length: int, *, window_log: int = 18, announced: int | None = None) -> bytes:
    """Return a zstd frame of ``length`` repeated bytes, four bytes for each 128 KiB (RFC 8878, 3.1.1)."""
    announced = length if announced is None else announced
    frame = (
        bytes.fromhex("28b52ffd") + bytes([2 << 6, window_log - 10 << 3]) + announced.to_bytes(4, "little")
    )
    for start in range(0, length, 1 << 17):
        size, is_last = min(1 << 17, length - start), start + (1 << 17) >= length
        frame += (size << 3 | 1 << 1 | is_last).to_bytes(3, "little") + b"a"
    return frame


def skippable(claimed: int, content: bytes) -> bytes:
    return bytes.fromhex("502a4d18") + claimed.to_bytes(4, "little") + content


def with_dictionary() -> bytes:
    rng = np.random.default_rng(1)
    words = [rng.integers(0, 9, 400, np.uint8).tobytes() for _ in range(500)]
    dictionary = zstandard.train_dictionary(8192, words)
    raw = b"".join(words)[:BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(raw)


FRAMES = {
    "bomb": repeated(1 << 30),
    "bomb with the right size announced": repeated(1 << 30, announced=BLOCK_BYTES),
    "largest window": repeated(BLOCK_BYTES, window_log=31),
    "skippable": skippable(BLOCK_BYTES, bytes(1000)),
    "skippable before a frame": skippable(1000, bytes(1000)) + repeated(BLOCK_BYTES),
    "skippable behind a frame": repeated(BLOCK_BYTES) + skippable(1000, bytes(1000)),
    "dictionary": with_dictionary(),
}


@pytest.fixture(scope="module")
def ordinary_peak_bytes(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return the memory of an agent that receives the same image without the hostile block."""
    folder = tmp_path_factory.mktemp("ordinary")
    with LoopbackCast(make_image(KINDS).write(folder / "lab.dci")) as cast:
        agent = cast.receive(folder / "disk")
        assert agent.wait(LIMIT_S) == 0, agent.describe()
        assert agent.usage is not None
        return agent.usage.peak_bytes


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_26_a_signed_block_that_is_no_plain_frame_is_refused(
    tmp_path: Path, ordinary_peak_bytes: int, frame: bytes
) -> None:
    """A user would lose a room of machines that run out of memory in the middle of a cast, with half-written disks."""
    assert len(frame) < BLOCK_BYTES
    image = make_image(KINDS, frames={HOSTILE_BLOCK: frame}).write(tmp_path / "lab.dci")
    target = tmp_path / "disk"
    with LoopbackCast(image) as cast:
        agent = cast.receive(target)
        assert agent.wait(LIMIT_S) == ImageDamagedError.exit_code, agent.describe()
        assert f"block {HOSTILE_BLOCK}" in agent.result["error"]
        assert_memory_kept([agent])
        assert agent.usage is not None
        assert agent.usage.peak_bytes <= ordinary_peak_bytes + ROOM_BYTES
    assert parse_marker_untrusted(target.read_bytes()[:512]) is not None, "the disk is marked as incomplete"
