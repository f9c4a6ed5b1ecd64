"""The disk side alone, on one thread and in memory: check, decompress, write, read back and verify blocks.

The target exists and is overwritten in place, by ``dd`` and by our code: otherwise the first writer of a page would pay
for its allocation.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.constants import BLOCK_BYTES_DEFAULT, MIB
from protocol.image.block_codec import BlockEncoder, block_hash
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import build_manifest
from receiver.reception.pipeline import BLOCKS_PER_BATCH
from receiver.target.block_sink import BlockSink
from receiver.target.open_target import open_target

CONTENT_BYTES = 32 * MIB
"""Size larger than the processor's caches."""
REPEATS = 16
RAW_BYTES = CONTENT_BYTES * REPEATS
ROUNDS = 5


class _Image:
    """An image in memory with repeated content."""

    def __init__(self, content: bytes) -> None:
        encoder = BlockEncoder(3, BLOCK_BYTES_DEFAULT)
        view = memoryview(content)
        blocks = [
            view[start : start + BLOCK_BYTES_DEFAULT] for start in range(0, len(view), BLOCK_BYTES_DEFAULT)
        ]
        encoded = [encoder.encode(block) for block in blocks]
        self.stored = [bytes(stored) for _, stored in encoded]
        data = build_manifest(
            "bench",
            RAW_BYTES,
            BLOCK_BYTES_DEFAULT,
            np.tile(np.array([kind for kind, _ in encoded], np.uint8), REPEATS),
            np.tile(np.array([len(stored) for stored in self.stored], np.uint32), REPEATS),
            np.tile(_rows([block_hash(stored) for stored in self.stored]), (REPEATS, 1)),
            np.tile(_rows([block_hash(block) for block in blocks]), (REPEATS, 1)),
            {},
        )
        self.manifest = Manifest.parse_untrusted(data)
        self.ratio = sum(map(len, self.stored)) / len(content)


def _rows(hashes: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)


def _files() -> Iterator[bytes]:
    root = Path(sysconfig.get_path("stdlib"))
    for directory, directories, names in os.walk(root):
        directories.sort()
        for name in sorted(names):
            path = Path(directory, name)
            if path.is_file():
                yield path.read_bytes()


def _file_content() -> bytes:
    """Return content of the interpreter's own files, libraries and texts, repeated as needed."""
    content = bytearray()
    for data in _files():
        content += data
        if len(content) >= CONTENT_BYTES:
            break
    return bytes((content * (CONTENT_BYTES // len(content) + 1))[:CONTENT_BYTES])


def _time(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall and processor seconds."""
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started_s, time.process_time() - started_cpu_s


def _rounds(image: _Image, path: Path) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of writing and of verifying in each round, and their processor seconds."""
    write_s, verify_s, cpu_s = [], [], []
    manifest, stored = image.manifest, [memoryview(stored) for stored in image.stored]
    blocks = np.arange(manifest.block_count)
    for _ in range(ROUNDS):
        with open_target(path, raw_bytes=RAW_BYTES) as target, BlockSink(target, manifest) as sink:
            sink.prepare()

            def write(sink: BlockSink = sink) -> None:
                for first in range(0, manifest.block_count, BLOCKS_PER_BATCH):
                    hop = range(first, min(first + BLOCKS_PER_BATCH, manifest.block_count))
                    sink.write_blocks([(block, stored[block % len(stored)]) for block in hop])
                sink.sync()
                sink.commit()

            def verify(sink: BlockSink = sink) -> None:
                assert sink.verify(blocks).size == 0

            (wrote_s, wrote_cpu_s), (verified_s, verified_cpu_s) = _time(write), _time(verify)
        write_s.append(wrote_s)
        verify_s.append(verified_s)
        cpu_s.append(wrote_cpu_s + verified_cpu_s)
    return write_s, verify_s, cpu_s


def _dd_s(source: Path, path: Path) -> float:
    command = [
        "dd",
        f"if={source}",
        f"of={path}",
        f"bs={BLOCK_BYTES_DEFAULT}",
        "conv=notrunc,fdatasync",
        "status=none",
    ]
    times_s = [_time(lambda: subprocess.run(command, check=True))[0] for _ in range(ROUNDS)]
    return statistics.median(times_s)


def run() -> list[dict[str, object]]:
    """Return one row for each component: name, speed, unit."""
    memory = Path("/dev/shm")
    contents = {
        "incompressible": np.random.default_rng(1).bytes(CONTENT_BYTES),
        "files": _file_content(),
    }
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(
        prefix="diskcast-bench-", dir=memory if memory.is_dir() else None
    ) as folder:
        source, path = Path(folder, "source.raw"), Path(folder, "target.raw")
        source.write_bytes(contents["incompressible"] * REPEATS)
        path.write_bytes(bytes(RAW_BYTES))
        rows.append(_row("dd, memory to memory", RAW_BYTES / _dd_s(source, path) / 1e6, "MB/s"))
        source.unlink()
        for title, content in contents.items():
            image = _Image(content)
            kinds = image.manifest.summary()
            data_share = kinds[BlockKind.DATA].block_count / image.manifest.block_count
            write_s, verify_s, cpu_s = _rounds(image, path)
            detail = f"{title}, {data_share:.0%} of the blocks zstd, stored {image.ratio:.0%}"
            for component, seconds in (("check, unpack, write", write_s), ("read back, verify", verify_s)):
                rate = RAW_BYTES / statistics.median(seconds) / 1e6
                rows.append(_row(f"{component}: {detail}", rate, "MB/s"))
            both_s = [one + other for one, other in zip(write_s, verify_s, strict=True)]
            rows.append(_row(f"total: {detail}", RAW_BYTES / statistics.median(both_s) / 1e6, "MB/s"))
            cpu_per_gib_s = statistics.median(cpu_s) * 1024 * MIB / RAW_BYTES
            rows.append(_row(f"total, CPU time: {detail}", cpu_per_gib_s, "s/GiB"))
    return rows


def _row(component: str, rate: float, unit: str) -> dict[str, object]:
    return {"component": component, "rate": rate, "unit": unit}
