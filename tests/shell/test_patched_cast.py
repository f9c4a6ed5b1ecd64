"""Casts to a machine with a patch: it gets its own disk, and nobody has to cast the blocks of its patch.

Lost if these fail: a room of clones with one name, or a refresh that casts what every machine replaces.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from protocol.errors import CastFailedError, PatchRefusedError
from protocol.model.session_records import JoinRequest
from protocol.patch.machine_patch import MachinePatch
from tests.shell.small_cast import SYMBOL_BYTES, SmallCast, SmallImage, threads_in_place
from tests.support.patches import make_patch, patched

pytestmark = [pytest.mark.trio, pytest.mark.usefixtures("threads_in_place")]
__all__ = ["threads_in_place"]

BLOCK_COUNT = 96
PATCHED = {0: "d", 3: "r", 7: "z", 40: "d", 41: "r", 42: "z", BLOCK_COUNT - 1: "d"}
"""Blocks within both edges, which are written last, and between them."""


@pytest.fixture
def cast(tmp_path: Path) -> SmallCast:
    cast = SmallCast(SmallImage(block_count=BLOCK_COUNT), tmp_path)
    cast.machine_patch = patch_of(cast)
    return cast


def patch_of(cast: SmallCast, *, machine_id: str = "pc1", seed: int = 7) -> MachinePatch:
    return make_patch(cast.image.manifest, PATCHED, machine_id=machine_id, seed=seed)


def customised(cast: SmallCast) -> bytes:
    assert cast.machine_patch is not None
    return patched(cast.image.raw, cast.machine_patch)


def unpatched_symbols(cast: SmallCast) -> int:
    symbols = cast.image.manifest.source_symbols(SYMBOL_BYTES).astype(int)
    symbols[list(PATCHED)] = 0
    return int(symbols.sum())


async def test_a_machine_gets_the_image_with_its_patch(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    reception = await cast.receive()
    assert cast.path.read_bytes() == customised(cast)
    assert cast.machine_patch is not None
    assert reception.report.patch_id == cast.completions[0].patch_id == cast.machine_patch.patch_id
    assert reception.status.raw_bytes_verified == len(cast.image.raw)
    assert cast.image_symbols_sent == unpatched_symbols(cast), "nobody needs the patched blocks"


async def test_patched_blocks_are_never_requested(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """Another machine of the room needs them, they are lost on the way to this one, and that doesn't matter."""
    rng = np.random.default_rng(1)
    cast.alter = lambda frames: frames[rng.random(frames.shape[0]) < 0.8]
    cast.start_sender()
    assert cast.sender is not None
    other = JoinRequest("other", "pc9", {}, has_manifest=True, need=None, address="192.0.2.9")
    cast.sender.join(other, trio.current_time())
    await cast.receive()
    sent = int(cast.image.manifest.source_symbols(SYMBOL_BYTES).sum(dtype=int))
    assert cast.image_symbols_sent >= sent, "patched blocks were cast, for the other machine"
    assert cast.path.read_bytes() == customised(cast)
    assert cast.nacked_blocks, "with these losses others are requested"
    assert not cast.nacked_blocks & set(PATCHED)
    assert not any(need[list(PATCHED)].any() for need in cast.needs)


async def test_a_second_cast_sends_nothing(cast: SmallCast, autojump_clock: trio.testing.MockClock) -> None:
    cast.path.write_bytes(customised(cast))
    cast.start_sender()
    reception = await cast.receive()
    assert cast.image_symbols_sent == 0
    assert reception.status.bytes_written == 0
    assert reception.status.raw_bytes_kept == reception.status.raw_bytes_verified == len(cast.image.raw)


async def test_a_new_patch_needs_no_image_data(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.path.write_bytes(customised(cast))
    cast.machine_patch = patch_of(cast, seed=8)
    cast.start_sender()
    reception = await cast.receive()
    assert cast.path.read_bytes() == customised(cast)
    assert cast.image_symbols_sent == 0
    assert reception.report.patch_id == cast.machine_patch.patch_id


async def test_a_cast_without_the_patch_restores_the_image(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.path.write_bytes(customised(cast))
    cast.machine_patch = None
    cast.start_sender()
    reception = await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert reception.report.patch_id is None


def restart_at(cast: SmallCast, symbol_count: int, patch: MachinePatch | None) -> None:
    """Restart the sender once, after some symbols, with a patch for this machine."""

    def restart(count: int) -> None:
        if count >= symbol_count:
            cast.on_symbols = lambda _count: None
            cast.machine_patch = patch
            cast.start_sender()

    cast.on_symbols = restart


async def test_a_restart_of_the_sender_keeps_the_patch(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    restart_at(cast, unpatched_symbols(cast) // 2, cast.machine_patch)
    reception = await cast.receive()
    assert reception.status.rejoins == 1
    assert cast.path.read_bytes() == customised(cast)


@pytest.mark.parametrize("other", [True, False], ids=["another patch", "no patch"])
async def test_another_patch_after_a_restart_ends_the_cast(
    cast: SmallCast, autojump_clock: trio.testing.MockClock, other: bool
) -> None:
    """The disk would be a mixture of two machines."""
    cast.start_sender()
    restart_at(cast, unpatched_symbols(cast) // 2, patch_of(cast, seed=9) if other else None)
    with pytest.raises(CastFailedError, match="patch was changed"):
        await cast.receive()


@pytest.mark.parametrize("fault", ["head", "payload", "another patch", "another machine"])
async def test_a_refused_patch_leaves_the_target_alone(
    cast: SmallCast, autojump_clock: trio.testing.MockClock, fault: str
) -> None:
    assert cast.machine_patch is not None
    served = bytearray(cast.machine_patch.data)
    if fault in ("head", "payload"):
        served[70 if fault == "head" else -1] ^= 1
        cast.served_patch = bytes(served)
    elif fault == "another patch":
        cast.served_patch = patch_of(cast, seed=9).data
    else:
        cast.machine_patch = patch_of(cast, machine_id="pc2")
    old = np.random.default_rng(3).bytes(len(cast.image.raw))
    cast.path.write_bytes(old)
    cast.start_sender()
    with pytest.raises(PatchRefusedError):
        await cast.receive()
    assert cast.path.read_bytes() == old
    assert cast.completions[-1].exit_code == PatchRefusedError.exit_code
