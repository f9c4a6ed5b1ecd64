"""Benchmark of an import in memory: qcow2 through the sandbox, against qemu-img and then ``pack``, without one."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from protocol.constants import MIB
from sender.imaging.pack import PackOptions, pack_image
from tests.bench.turns import compare, median_wall_s, take_turns

DISK_BYTES = 768 * MIB
ROUNDS = 3


def _write_disk(path: Path) -> None:
    """Write a disk of which a third is a hole and the rest compresses to about a half."""
    rng = np.random.default_rng(3)
    with path.open("wb") as file:
        for start in range(0, DISK_BYTES, MIB):
            if start // MIB % 3:
                file.seek(start)
                file.write(rng.integers(0, 16, MIB, np.uint8).tobytes())
        file.truncate(DISK_BYTES)


def run() -> list[dict[str, object]]:
    """Return the rates of both ways and their ratio; they take turns, so that both see the same machine."""
    options = PackOptions(name="import")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="diskcast-bench-", dir=memory) as name:
        folder = Path(name)
        raw, foreign, copy = folder / "raw", folder / "qcow2", folder / "copy"
        _write_disk(raw)
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, foreign], check=True)
        raw.unlink()

        def convert_and_pack() -> None:
            subprocess.run(["qemu-img", "convert", "-O", "raw", foreign, copy], check=True)
            pack_image(copy, folder / "two.dci", options)
            copy.unlink()

        turns = take_turns(lambda: pack_image(foreign, folder / "one.dci", options), convert_and_pack, ROUNDS)
    ours_s, theirs_s = median_wall_s(turns)
    rates = {"import of qcow2": ours_s, "qemu-img convert, then pack": theirs_s}
    rows: list[dict[str, object]] = [
        {"component": name, "rate": DISK_BYTES / seconds / 1e6, "unit": "MB/s of disk"}
        for name, seconds in rates.items()
    ]
    return [*rows, *compare(turns, "import of qcow2 / qemu-img and pack")]
