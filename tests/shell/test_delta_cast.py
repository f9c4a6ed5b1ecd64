"""Cast to a target that holds a part of the image: correct blocks aren't sent again, and all others are.

If these failed, a weekly refresh would send the nine tenths that the room already has, and a power cut would mean
starting over.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import trio
import trio.testing
from numpy.typing import NDArray

from protocol.errors import StorageError
from protocol.image.incomplete_marker import Marker, build_marker, parse_marker_untrusted
from protocol.image.manifest import BlockKind
from protocol.receiving.block_assembly import AssembledBlock
from protocol.trust.block_cipher import BlockCipher
from receiver.target import image as target_image
from receiver.target import scan as target_scan
from receiver.target.block_sink import Outcome
from receiver.target.image import TargetImage
from receiver.target.options import TargetOptions
from tests.shell.small_cast import BLOCK_BYTES, SYMBOL_BYTES, SmallCast, SmallImage, threads_in_place

pytestmark = [pytest.mark.trio, pytest.mark.usefixtures("threads_in_place")]
__all__ = ["threads_in_place"]

BLOCK_COUNT = 96
EDGE_COUNT = 16
"""Return the blocks that are committed last, at each end."""


@pytest.fixture
def cast(tmp_path, monkeypatch: pytest.MonkeyPatch) -> SmallCast:
    # In several steps, so that much arrives while the rest is still unknown.
    monkeypatch.setattr(target_image, "SCAN_STEP_BYTES", 8 * BLOCK_BYTES)
    return SmallCast(SmallImage(block_count=BLOCK_COUNT), tmp_path)


def symbols_of(cast: SmallCast, blocks: list[int]) -> int:
    return int(cast.image.manifest.source_symbols(SYMBOL_BYTES)[blocks].astype(int).sum())


def stored_blocks(cast: SmallCast) -> list[int]:
    return np.flatnonzero(cast.image.manifest.stored_mask).tolist()


def middle_blocks(cast: SmallCast, kind: BlockKind) -> list[int]:
    blocks = np.flatnonzero(cast.image.manifest.kind == kind)
    return [block for block in blocks.tolist() if EDGE_COUNT <= block < BLOCK_COUNT - EDGE_COUNT - 1]


def spoil(cast: SmallCast, blocks: list[int]) -> None:
    """Write the image to the target, except for ``blocks``."""
    content = bytearray(cast.image.raw)
    for block in blocks:
        content[block * BLOCK_BYTES + 5] ^= 0xFF
    cast.path.write_bytes(content)


async def test_only_different_blocks_are_sent(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    wrong = [*middle_blocks(cast, BlockKind.RAW)[:2], middle_blocks(cast, BlockKind.DATA)[0]]
    spoil(cast, [*wrong, middle_blocks(cast, BlockKind.ZERO)[0]])
    cast.start_sender()
    reception = await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.image_symbols_sent == symbols_of(cast, wrong)
    status = reception.status
    assert status.raw_bytes_kept == len(cast.image.raw) - 4 * BLOCK_BYTES
    assert status.raw_bytes_verified == len(cast.image.raw)
    assert cast.completions[0].raw_bytes_kept == status.raw_bytes_kept


async def test_a_correct_target_is_not_written(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    spoil(cast, [])
    cast.start_sender()
    reception = await cast.receive()
    assert cast.image_symbols_sent == 0
    assert reception.status.bytes_written == 0
    assert reception.status.raw_bytes_verified == reception.status.raw_bytes_kept == len(cast.image.raw)
    assert cast.completions[0].success


async def test_a_wrong_partition_table_is_fixed(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    spoil(cast, [0])
    cast.start_sender()
    await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.image_symbols_sent == symbols_of(cast, [0]), "the other edge blocks were kept in memory"


async def test_a_disk_with_other_content_is_not_scanned_completely(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """A disk with other content is written at once: reading it first would only cost time."""
    cast.path.write_bytes(random.Random(5).randbytes(len(cast.image.raw)))
    cast.start_sender()
    reception = await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert reception.status.raw_bytes_kept == 0
    assert cast.image_symbols_sent == symbols_of(cast, stored_blocks(cast))


async def test_the_mark_of_the_image_causes_a_full_scan(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """After an early power cut a sample of a few blocks would miss the correct ones."""
    manifest = cast.image.manifest
    content = bytearray(random.Random(5).randbytes(len(cast.image.raw)))
    content[:512] = build_marker(Marker(manifest.image_id, "small", manifest.raw_bytes))
    block = middle_blocks(cast, BlockKind.RAW)[0]
    span = slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
    content[span] = cast.image.raw[span]
    cast.path.write_bytes(content)
    cast.start_sender()

    class Unlucky(TargetImage):
        """A random generator whose samples contain no correct block."""

        def __init__(self, target: target_image.Target) -> None:
            super().__init__(target, rng=random.Random(1))

    reception = await cast.receive(Unlucky)
    assert cast.path.read_bytes() == cast.image.raw
    assert reception.status.raw_bytes_kept >= BLOCK_BYTES
    assert cast.image_symbols_sent == symbols_of(cast, stored_blocks(cast)) - symbols_of(cast, [block])


async def test_full_requests_all_blocks(cast: SmallCast, autojump_clock: trio.testing.MockClock) -> None:
    spoil(cast, [])

    class Full(TargetImage):
        def __init__(self, target: target_image.Target) -> None:
            super().__init__(target, TargetOptions(scans=False))

    cast.start_sender()
    await cast.receive(Full)
    assert cast.image_symbols_sent == symbols_of(cast, stored_blocks(cast))


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("restart_after", [0, 40, 300])
async def test_a_restarted_sender_gets_the_progress_of_the_scan(
    cast: SmallCast, autojump_clock: trio.testing.MockClock, restart_after: int, loss: float
) -> None:
    wrong = middle_blocks(cast, BlockKind.RAW)[:12]
    spoil(cast, [0, *wrong])
    cast.start_sender()
    restarted = False

    def restart(sent: int) -> None:
        nonlocal restarted
        if sent >= restart_after and not restarted:
            restarted = True
            cast.stop_sender()
            cast.start_sender()

    cast.on_symbols = restart
    await cast.receive(injected_loss=loss)
    assert restarted
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.completions[0].success


@pytest.mark.parametrize("hops", [1, 2, 3, 5])
async def test_after_a_power_cut_the_same_command_resumes(
    cast: SmallCast, autojump_clock: trio.testing.MockClock, hops: int
) -> None:
    class Cut(TargetImage):
        hop_count = 0

        def write_blocks(
            self, blocks: list[AssembledBlock], cipher: BlockCipher | None = None
        ) -> list[Outcome]:  # type: ignore[override]
            outcomes = super().write_blocks(blocks, cipher)
            type(self).hop_count += 1
            if self.hop_count == hops:
                raise StorageError("the power goes")
            return outcomes

    cast.start_sender()
    with pytest.raises(StorageError, match="power"):
        await cast.receive(Cut)
    first = cast.path.read_bytes()[:512]
    if hops > 1:
        assert parse_marker_untrusted(first) is not None
    missing = np.array([
        cast.path.read_bytes()[block * BLOCK_BYTES :][:BLOCK_BYTES]
        != cast.image.raw[block * BLOCK_BYTES :][:BLOCK_BYTES]
        for block in range(BLOCK_COUNT)
    ])  # fmt: skip
    cast.stop_sender()
    cast.start_sender()
    await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    lacking = np.flatnonzero(missing & cast.image.manifest.stored_mask).tolist()
    assert cast.image_symbols_sent == symbols_of(cast, lacking)


async def test_the_scan_stops_where_an_earlier_run_ended(
    cast: SmallCast, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_scan, "UNMATCHED_BYTES_MAX", 16 * BLOCK_BYTES)
    manifest = cast.image.manifest
    content = bytearray(random.Random(5).randbytes(len(cast.image.raw)))
    content[: 30 * BLOCK_BYTES] = cast.image.raw[: 30 * BLOCK_BYTES]
    content[:512] = build_marker(Marker(manifest.image_id, "small", manifest.raw_bytes))
    cast.path.write_bytes(content)
    looked_at: list[int] = []

    class Looked(TargetImage):
        def scan(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
            looked_at.extend(blocks.tolist())
            return super().scan(blocks)

    cast.start_sender()
    reception = await cast.receive(Looked)
    assert cast.path.read_bytes() == cast.image.raw
    assert reception.status.scanned_share == 1.0
    assert max(looked_at) < BLOCK_COUNT - EDGE_COUNT - 4, "the rest isn't read"


class Faulty(TargetImage):
    """A scan that reports some correct blocks as wrong."""

    def scan(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        wrong = set(super().scan(blocks).tolist()) | set(blocks[::3].tolist())
        return np.array(sorted(wrong), np.int64)


async def test_blocks_found_step_by_step_are_requested_once(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    spoil(cast, [])
    cast.start_sender()
    reception = await cast.receive(Faulty)
    assert cast.path.read_bytes() == cast.image.raw
    sent = len(cast.image.raw) - reception.status.raw_bytes_kept
    assert sent > 0
    assert cast.image_symbols_sent <= symbols_of(cast, stored_blocks(cast)) // 2
