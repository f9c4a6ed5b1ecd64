"""An encrypted cast, from joining to the written disk: with loss, after a restart, for late joiners.

Lost if these fail: encrypted casts that hang, or that write what they couldn't decrypt.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from protocol.model.cast_state import CastState
from tests.shell.small_cast import SmallCast, SmallImage, threads_in_place

__all__ = ["threads_in_place"]
pytestmark = [pytest.mark.trio, pytest.mark.usefixtures("threads_in_place")]


@pytest.fixture
def cast(tmp_path: Path) -> SmallCast:
    cast = SmallCast(SmallImage(), tmp_path)
    cast.encrypted = True
    return cast


@pytest.mark.parametrize("loss", [0.0, 0.1])
async def test_an_encrypted_image_arrives(
    cast: SmallCast, autojump_clock: trio.testing.MockClock, loss: float
) -> None:
    cast.start_sender()
    reception = await cast.receive(injected_loss=loss, injected_loss_seed=3)
    assert cast.path.read_bytes() == cast.image.raw
    assert reception.status.blocks_rejected == 0


async def test_a_restarted_sender_encrypts_with_another_key(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()

    def restart(count: int) -> None:
        if count > 500 and len(cast.joins) == 1:
            cast.start_sender()

    cast.on_symbols = restart
    reception = await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.observer.joins == [False, True]
    assert reception.status.blocks_rejected == 0


async def test_a_late_joiner_of_an_encrypted_cast_fetches_the_manifest(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    assert cast.sender is not None
    cast.sender.state = CastState.CASTING
    await cast.receive()
    assert cast.path.read_bytes() == cast.image.raw
