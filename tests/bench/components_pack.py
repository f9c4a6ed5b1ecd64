"""Benchmark of packing and verifying in memory: the pipeline without the limits of a disk."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from protocol.constants import GIB, MIB
from protocol.image.block_codec import LEVEL_DEFAULT
from sender.imaging.image_file import ImageFile
from sender.imaging.image_verify import verify_image
from sender.imaging.pack import PackOptions, pack_image
from tests.bench.turns import compare, measure, median_wall_s, take_turns

RANDOM_BYTES = GIB
OS_FILES_BYTES = GIB
"""Enough for seconds of work, so that the start of a program and of its threads doesn't count."""
SPARSE_BYTES = 256 * GIB
SPARSE_DATA_BYTES = 64 * MIB
ROUNDS = 5
OS_FOLDERS = ("/usr/bin", "/usr/lib", "/usr/share", "/usr/sbin", "/opt")


def _write_random(path: Path, size_bytes: int, offset: int = 0) -> None:
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        file.seek(offset)
        for _ in range(0, size_bytes, MIB):
            file.write(rng.bytes(MIB))


def _write_os_files(path: Path) -> None:
    """Return this machine's programs, libraries and documents, ordered by name, as on a disk."""
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w|") as archive:
        for entry in _os_files():
            archive.add(entry, recursive=False)
            if file.tell() >= OS_FILES_BYTES:
                break
    os.truncate(path, min(OS_FILES_BYTES, path.stat().st_size))


def _os_files() -> Iterator[Path]:
    for folder in itertools.chain.from_iterable(os.walk(top) for top in OS_FOLDERS):
        for name in sorted(folder[2]):
            path = Path(folder[0], name)
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                yield path


def _verify(path: Path) -> None:
    with ImageFile.open(path) as image:
        assert not verify_image(image).bad_count


def _compress(source: Path) -> None:
    """Compress with the zstd program on all CPUs, which neither hashes nor looks for free space."""
    output = source.with_suffix(".zst")
    subprocess.run(["zstd", "-q", "-f", "-T0", f"-{LEVEL_DEFAULT}", source, "-o", output], check=True)
    output.unlink()


def _measured(content: str, source: Path, *, beside_zstd: bool = False) -> list[dict[str, object]]:
    """Return raw bytes per second of packing and verifying, and the compression ratio."""
    output = source.with_suffix(".dci")
    raw_bytes = source.stat().st_size

    def pack() -> None:
        pack_image(source, output, PackOptions())

    compared: list[dict[str, object]] = []
    if beside_zstd:
        turns = take_turns(pack, lambda: _compress(source), ROUNDS)
        pack_s, zstd_s = median_wall_s(turns)
        compared = [
            {"component": f"zstd -T0, {content}", "rate": raw_bytes / zstd_s / 1e6, "unit": "MB/s of disk"},
            *compare(turns, f"pack / zstd -T0, {content}"),
        ]
    else:
        pack_s = _median_s(pack)
    verify_s = _median_s(lambda: _verify(output))
    ratio = raw_bytes / output.stat().st_size
    output.unlink()
    rates = {"pack": raw_bytes / pack_s / 1e6, "verify": raw_bytes / verify_s / 1e6}
    rows: list[dict[str, object]] = [
        {"component": f"{name}, {content}", "rate": rate, "unit": "MB/s of disk"}
        for name, rate in rates.items()
    ]
    rows += compared
    return [*rows, {"component": f"disk size / image size, {content}", "rate": ratio, "unit": "ratio"}]


def _median_s(work: Callable[[], object]) -> float:
    """Return the median time; the first run isn't counted, because it allocates memory that later ones reuse."""
    return statistics.median([measure(work).wall_s for _ in range(ROUNDS + 1)][1:])


def run() -> list[dict[str, object]]:
    """Return one row for each component: name, speed, unit; level 3, 256 KiB blocks, one thread per CPU."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="diskcast-bench-", dir=memory) as name:
        folder = Path(name)
        source = folder / "random"
        _write_random(source, RANDOM_BYTES)
        rows += _measured("random bytes", source, beside_zstd=True)
        source.unlink()
        source = folder / "os-files"
        _write_os_files(source)
        rows += _measured("operating system files", source, beside_zstd=True)
        source.unlink()
        source = folder / "sparse"
        _write_random(source, SPARSE_DATA_BYTES, SPARSE_BYTES // 2)
        os.truncate(source, SPARSE_BYTES)
        rows += _measured(f"{SPARSE_BYTES // GIB} GiB with {SPARSE_DATA_BYTES // MIB} MiB of data", source)
    return rows
