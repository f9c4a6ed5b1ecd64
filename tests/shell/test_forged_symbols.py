"""Forged symbols on the way to a receiver: blocks are told apart, completed, or fetched; none of them ends the cast.

Lost if these fail: a hostile member fails the casts of others, and the image is blamed for it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing
from numpy.typing import NDArray

from protocol.constants import DATA_HEADER_BYTES
from protocol.errors import CastFailedError
from protocol.wire.batch import header_view
from protocol.wire.messages import BlockDigests, CastObject
from tests.shell.small_cast import SmallCast, SmallImage, threads_in_place

__all__ = ["threads_in_place"]
pytestmark = [pytest.mark.trio, pytest.mark.usefixtures("threads_in_place")]


class Forger:
    """A member that sends a forged symbol just before every right one of its blocks, for a while."""

    def __init__(self, blocks: set[int], count_max: int, object_index: CastObject = CastObject.IMAGE) -> None:
        self.blocks = blocks
        self.object_index = object_index
        self.count_left = count_max

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        headers = header_view(frames)
        mine = (headers["object"] == self.object_index) & np.isin(
            headers["block"].astype(int), list(self.blocks)
        )
        rows = np.flatnonzero(mine)[: self.count_left]
        self.count_left -= rows.size
        if rows.size == 0:
            return frames
        forged = frames[rows].copy()
        forged[:, DATA_HEADER_BYTES:] ^= 0x5A
        return np.insert(frames, rows, forged, axis=0)


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def cast(tmp_path: Path, request: pytest.FixtureRequest) -> SmallCast:
    cast = SmallCast(SmallImage(), tmp_path)
    cast.encrypted = request.param
    return cast


def stored_blocks(cast: SmallCast) -> list[int]:
    return [int(block) for block in np.flatnonzero(cast.image.manifest.stored_mask)]


async def test_a_thousand_forgeries_of_one_block_only_delay_it(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    block = stored_blocks(cast)[3]
    cast.alter = Forger({block}, 1000)
    cast.start_sender()
    await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    (report,) = cast.completions
    assert report.success


async def test_every_block_forged_once(cast: SmallCast, autojump_clock: trio.testing.MockClock) -> None:
    blocks = stored_blocks(cast)

    class One(Forger):
        def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
            for block in sorted(self.blocks):
                before = frames.shape[0]
                frames = Forger({block}, 1)(frames)
                if frames.shape[0] > before:
                    self.blocks.remove(block)
            return frames

    cast.alter = One(set(blocks), 0)
    cast.start_sender()
    reception = await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert reception.status.blocks_rejected >= len(blocks) // 2
    assert cast.fetched_blocks == [], "digests were enough"
    assert cast.image_symbols_sent <= 1.3 * int(cast.image.manifest.source_symbols(1440).astype(int).sum())


async def test_a_forged_manifest_is_repaired_by_multicast(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """Otherwise one forged symbol would make a room of 500 fetch 13 MB each."""
    cast.alter = Forger({0}, 1, CastObject.MANIFEST)
    cast.start_sender()
    reception = await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert reception.status.blocks_rejected == 1, "the forgery arrived"
    assert cast.fetched_manifest_count == 0


async def test_without_digests_a_manifest_is_fetched(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.alter = Forger({0}, 1_000_000, CastObject.MANIFEST)
    cast.passes = lambda datagram: datagram[3] != BlockDigests.WIRE_TYPE
    cast.start_sender()
    await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.fetched_manifest_count == 1


async def test_without_digests_a_block_a_block_is_fetched(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """Digests get lost, or a forger found symbols that match them: the control API ends the race."""
    block = stored_blocks(cast)[3]
    cast.alter = Forger({block}, 1_000_000)
    cast.passes = lambda datagram: datagram[3] != BlockDigests.WIRE_TYPE
    cast.start_sender()
    await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.fetched_blocks == [block]


async def test_a_sender_that_serves_wrong_blocks_is_blamed(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    block = stored_blocks(cast)[3]
    cast.alter = Forger({block}, 1_000_000)
    cast.passes = lambda datagram: datagram[3] != BlockDigests.WIRE_TYPE
    cast.serve_block = lambda content: memoryview(bytes(len(content)))
    cast.start_sender()
    with pytest.raises(CastFailedError, match=rf"block {block} 3 times"):
        await cast.receive()
    assert cast.fetched_blocks == [block] * 3
