"""Random casts to random targets: scan, arrival, zeroing and commit in every order end with the right disk.

Calls in threads take a random while, in which everything else goes on; the sender is started again at any time.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing
from numpy.typing import NDArray

from protocol.image.manifest import BlockKind
from receiver.disk.target import Target
from receiver.reception import pipeline
from receiver.target import image as target_image
from receiver.target import scan as target_scan
from receiver.target.image import TargetImage
from receiver.target.options import TargetOptions
from tests.shell.small_cast import SYMBOL_BYTES, SmallCast, SmallImage
from tests.support.disks.disk_images import BLOCK_BYTES, make_image

SEEDS = range(24)


class RandomImage(SmallImage):
    def __init__(self, rng: random.Random) -> None:
        letters = rng.choice(["dr", "drz", "drzu", "drzzzz", "zu"])
        count = rng.choice([1, 3, rng.randrange(1, 40), rng.randrange(36, 100)])
        made = make_image(
            rng.choice("dzu") + "".join(rng.choice(letters) for _ in range(count - 1)),
            tail_bytes=rng.choice([None, 10_000]),
            seed=rng.randrange(1 << 30),
        )
        self.raw, self.manifest, self.stored = made.raw, made.manifest, made.stored


def random_target(image: RandomImage, rng: random.Random) -> bytes:
    wrong_share = rng.choice([0.0, 0.1, 0.5, 1.0])
    content = bytearray(image.raw)
    for start in range(0, len(content), BLOCK_BYTES):
        if rng.random() < wrong_share:
            content[start] ^= 0xFF
    return bytes(content[: rng.choice([len(content), len(content), len(content) // 2])])


def wrong_blocks(image: RandomImage, content: bytes) -> NDArray[np.bool_]:
    content = content.ljust(len(image.raw), b"\0")
    starts = range(0, len(image.raw), BLOCK_BYTES)
    return np.array([content[at : at + BLOCK_BYTES] != image.raw[at : at + BLOCK_BYTES] for at in starts])


def let_threads_take_a_while(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    longest_s = rng.choice([0.0, 0.01, 0.3])

    async def run(
        function: Callable[..., object],
        *arguments: object,
        limiter: trio.CapacityLimiter | None = None,
        abandon_on_cancel: bool = False,
    ) -> object:
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            await trio.sleep(rng.uniform(0, longest_s))
            result = functools.partial(function, *arguments)()
            await trio.sleep(rng.uniform(0, longest_s))
        return result

    monkeypatch.setattr(trio.to_thread, "run_sync", run)


class DoubtfulImage(TargetImage):
    """Some blocks read back wrong once, before or after they were written."""

    def __init__(self, target: Target, *, scans: bool, doubtful_share: float, rng: random.Random) -> None:
        super().__init__(target, TargetOptions(scans=scans), rng=rng)
        self._share = doubtful_share
        self._doubts = rng
        self._seen: set[int] = set()

    def scan(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._doubt(blocks, super().scan(blocks))

    def sync_and_verify(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._doubt(blocks, super().sync_and_verify(blocks))

    def _doubt(self, blocks: NDArray[np.int64], wrong: NDArray[np.int64]) -> NDArray[np.int64]:
        doubtful = {block for block in blocks.tolist() if self._doubts.random() < self._share} - self._seen
        self._seen |= doubtful
        return np.array(sorted(doubtful | set(wrong.tolist())), np.int64)


@pytest.mark.trio
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_order_ends_right(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    rng = random.Random(seed)
    image = RandomImage(rng)
    cast = SmallCast(image, tmp_path)
    old = random_target(image, rng)
    cast.path.write_bytes(old)
    wrong = wrong_blocks(image, old)
    let_threads_take_a_while(monkeypatch, rng)
    doubtful_share = rng.choice([0.0, 0.0, 0.05])
    monkeypatch.setattr(target_image, "SCAN_STEP_BYTES", rng.choice([1, 3, 10]) * BLOCK_BYTES)
    monkeypatch.setattr(target_image, "ZERO_STEP_BYTES", rng.choice([1, 3, 64]) * BLOCK_BYTES)
    fruitless_count = rng.choice([4, 1000])
    monkeypatch.setattr(target_scan, "UNMATCHED_BYTES_MAX", fruitless_count * BLOCK_BYTES)
    monkeypatch.setattr(pipeline, "VERIFY_BYTES_MIN", rng.choice([1, 8, 200]) * BLOCK_BYTES)
    images: list[TargetImage] = []
    scans, loss = rng.random() < 0.85, rng.choice([0.0, 0.0, 0.05, 0.3])

    class Remembered(DoubtfulImage):
        def __init__(self, target: Target) -> None:
            super().__init__(target, scans=scans, doubtful_share=doubtful_share, rng=rng)
            images.append(self)

    restarts = sorted(rng.uniform(0, 3) for _ in range(rng.choice([0, 0, 1, 3])))

    async def start_again() -> None:
        for at in restarts:
            await trio.sleep_until(at)
            cast.stop_sender()
            cast.start_sender()

    cast.start_sender()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_again)
        reception = await cast.receive(Remembered, injected_loss=loss)
        nursery.cancel_scope.cancel()
    manifest = image.manifest
    used = np.repeat(manifest.kind != BlockKind.UNUSED, BLOCK_BYTES)[: len(image.raw)]
    content = np.frombuffer(cast.path.read_bytes(), np.uint8)
    assert content.size == len(image.raw)
    assert np.array_equal(content[used], np.frombuffer(image.raw, np.uint8)[used])
    # A sender that is restarted at the last moment does not know this receiver.
    assert cast.completions[-1].success if reception.reported else restarts
    assert reception.status.raw_bytes_verified == used.sum()
    assert reception.status.blocks_needed == 0
    assert not images[0].need.any()
    assert not images[0].unscanned.any()
    if not (restarts or loss or doubtful_share or reception.status.pool_drops):
        lacking = manifest.stored_mask
        if reception.status.raw_bytes_kept and fruitless_count > manifest.block_count:
            lacking &= wrong
        symbols = manifest.source_symbols(SYMBOL_BYTES)[lacking]
        assert cast.image_symbols_sent <= int(symbols.sum(dtype=np.int64))
