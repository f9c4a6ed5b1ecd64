"""Scenarios of a room that is imaged again: blocks that the targets already have are neither sent nor written."""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from protocol.constants import BLOCK_BYTES_DEFAULT
from tests.bench.figures import Figure
from tests.bench.room import Bench, CastRecord, Image, Target
from tests.support.network.lab import Network

RECEIVER_COUNT = 4
RATE_MBIT_PER_S = 200
CHANGED_SHARE = 0.05
LIMIT_S = 120.0


def reimage(bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure a full cast, a cast to targets with a twentieth changed, and a cast to unchanged targets."""
    name = f"reimage-{RATE_MBIT_PER_S}"
    with (
        Network(RECEIVER_COUNT) as network,
        tempfile.TemporaryDirectory(dir=bench.folder) as folder,
    ):
        network.set_rate(RATE_MBIT_PER_S)
        files = [Path(folder, str(index)) for index in range(RECEIVER_COUNT)]
        cast = functools.partial(_cast, bench, network, image, files)
        full, full_s = cast()
        _change(files, image.raw_bytes)
        changed, changed_s = cast()
        right, right_s = cast()
    yield Figure(
        name,
        "sent to targets changed by 5 %",
        100 * changed.result["bytes_sent"] / full.result["bytes_sent"],
        "%",
        at_most=6.0,
        note="of a full cast's datagrams, all targets changed in the same blocks",
    )
    note = f"{changed_s:.2f} s from join to verified, the full cast {full_s:.2f} s"
    yield Figure(name, "time for that", changed_s / full_s, at_most=0.2, note=note)
    yield Figure(
        name,
        "sent to targets that are right",
        100 * right.result["bytes_sent"] / full.result["bytes_sent"],
        "%",
        at_most=1.0,
        note=f"{right_s:.2f} s from join to verified",
    )


def _cast(bench: Bench, network: Network, image: Image, files: Sequence[Path]) -> tuple[CastRecord, float]:
    """Run a cast; return its record and the time that the slowest receiver reports, including its scan."""
    targets = {index: Target(path, path) for index, path in enumerate(files)}
    with bench.cast(network, image, targets=targets, limit_s=LIMIT_S) as cast:
        record = cast.finish()
        return record, max(agent.result["seconds_total"] for agent in cast.agents)


def _change(files: Sequence[Path], raw_bytes: int) -> None:
    """Change the same twentieth of the blocks in every file, as between the images of two weeks."""
    block_count = raw_bytes // BLOCK_BYTES_DEFAULT
    blocks = random.Random(3).sample(range(block_count), round(CHANGED_SHARE * block_count))
    for path in files:
        with path.open("r+b") as file:
            for block in blocks:
                file.seek(block * BLOCK_BYTES_DEFAULT)
                file.write(b"changed")
