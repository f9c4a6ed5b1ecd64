"""A whole cast of a disk of 1 TiB: both sides keep their memory limits, although the manifest has 285 MB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protocol.constants import MIB, TIB
from receiver.reception.manifest_store import MANIFEST_IN_MEMORY_BYTES_MAX as AGENT_MANIFEST_BYTES_MAX
from sender.imaging.image_file import MANIFEST_IN_MEMORY_BYTES_MAX as SENDER_MANIFEST_BYTES_MAX
from tests.support.network.lab import LIMIT_S, Network, receive, send
from tests.support.network.loopback_cast import assert_memory_kept, pack

pytestmark = pytest.mark.needs_root

CAST_ID = "00c0ffee"
SENDER_BYTES_MAX = 400 * 10**6
PIECE_COUNT = 64


def make_thin_disk(path: Path) -> None:
    """Create a sparse disk of 1 TiB; its manifest has as many rows as that of a full one."""
    rng = np.random.default_rng(3)
    with path.open("wb") as file:
        file.truncate(TIB)
        for index in range(PIECE_COUNT):
            file.seek(TIB // PIECE_COUNT * index)
            file.write(rng.bytes(MIB))


def pieces(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        read = []
        for index in range(PIECE_COUNT):
            file.seek(TIB // PIECE_COUNT * index)
            read.append(file.read(2 * MIB))
        return read


def test_casting_a_very_large_disk_keeps_both_sides_within_their_memory(tmp_path: Path) -> None:
    source, image, target = tmp_path / "disk.raw", tmp_path / "disk.dci", tmp_path / "target"
    make_thin_disk(source)
    pack(source, image)
    assert image.stat().st_size - PIECE_COUNT * MIB > max(AGENT_MANIFEST_BYTES_MAX, SENDER_MANIFEST_BYTES_MAX)
    with Network(1) as network:
        agent = receive(network, 0, target, "--cast", CAST_ID)
        sender = send(network, image, "--cast-id", CAST_ID)
        assert agent.wait(LIMIT_S) == 0, agent.describe()
        assert sender.wait(LIMIT_S) == 0, sender.describe()
    assert target.stat().st_size == TIB
    assert pieces(target) == pieces(source)
    assert_memory_kept([agent])
    assert sender.usage is not None
    assert sender.usage.peak_bytes < SENDER_BYTES_MAX, sender.describe()
