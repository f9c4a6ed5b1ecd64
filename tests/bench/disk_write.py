"""``python -m tests.bench.disk_write``: writing a disk as a receiver does, compared with ``dd oflag=direct``.

Needs root. The disk is a loop device over a file that was allocated and written once before, so that every way of
writing finds the same extents. The ways take turns, and each of ours runs in a process of its own, whose peak memory is
reported. The exit code is 1 if a bound isn't kept.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import rich.console

from protocol.constants import BLOCK_BYTES_DEFAULT, MIB
from protocol.image.block_codec import block_hash
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import build_manifest
from protocol.shared.units import parse_size_bytes
from receiver.disk.aligned_buffers import aligned_memory
from receiver.disk.queue_settings import tuned_queue
from receiver.disk.target import Target
from receiver.disk.writer import BUFFER_BYTES, DiskWriter
from receiver.reception.pipeline import BLOCKS_PER_BATCH, VERIFY_BYTES, writer_count
from receiver.shared.parallel import run_parallel
from receiver.target.block_sink import BlockSink, Outcome
from receiver.target.image import VERIFY_THREADS
from receiver.target.open_target import open_target
from tests.bench import report
from tests.bench.figures import FAIL, Figure
from tests.bench.kept_memory import kept_memory
from tests.bench.terminal import run_command
from tests.support.network.lab import privileged_obstacle, run

CONTENT_BYTES = 32 * MIB
"""Size of the repeated, incompressible content: larger than the processor's caches, small beside the measured data."""

WRITE_SHARE_PERCENT_MIN = 80.0
VERIFY_PERCENT_MAX = 25.0
PEAK_BYTES_MAX = 300 * MIB

DD = "dd"
WRITER = "writer"
SINK = "sink"
VERIFIED = "verified"
WAYS = {
    DD: "dd oflag=direct bs=4M conv=fsync, from /dev/zero",
    WRITER: "disk writer, runs of 4 MiB",
    SINK: "blocks checked, unpacked, written, committed",
    VERIFIED: "and read back at watermarks at the same time",
}
CACHED, DIRECT = "cached", "direct"
LOOPS = {CACHED: "off", DIRECT: "on"}
"""``--direct-io`` of the loop device. Through the page cache, losetup's default, read-back comes from memory and shows
the cost of verifying alone. Directly, reading shares the disk with writing: if both share one limit, as on a virtual
machine's disk, verifying adds the time of reading."""


class _Image:
    """An image in memory with repeated content."""

    def __init__(self, raw_bytes: int) -> None:
        content = np.random.default_rng(1).bytes(CONTENT_BYTES)
        self.content = aligned_memory(CONTENT_BYTES)
        self.content[:] = content
        starts = range(0, CONTENT_BYTES, BLOCK_BYTES_DEFAULT)
        self.stored = [self.content[start : start + BLOCK_BYTES_DEFAULT] for start in starts]
        hashes = np.frombuffer(b"".join(map(block_hash, self.stored)), np.uint8).reshape(len(self.stored), -1)
        rows = np.arange(raw_bytes // BLOCK_BYTES_DEFAULT) % len(self.stored)
        data = build_manifest(
            "bench",
            raw_bytes,
            BLOCK_BYTES_DEFAULT,
            np.full(rows.size, BlockKind.RAW, np.uint8),
            np.full(rows.size, BLOCK_BYTES_DEFAULT, np.uint32),
            hashes[rows],
            hashes[rows],
            {},
        )
        self.manifest = Manifest.parse_untrusted(data)

    def stored_of(self, block: int) -> memoryview:
        return self.stored[block % len(self.stored)]


def _in_threads(work: Callable[[int], object], items: range) -> None:
    """Write on as many threads as a receiver uses."""

    def count(item: int) -> int:
        work(item)
        return 1

    run_parallel(items, count, threads=writer_count(), on_progress=lambda _count: None)


def _write_runs(image: _Image, target: Target) -> None:
    with DiskWriter(target, image.manifest) as writer:

        def write(start: int) -> None:
            at = start % CONTENT_BYTES
            writer.write(start, image.content[at : at + BUFFER_BYTES])

        _in_threads(write, range(0, image.manifest.raw_bytes, BUFFER_BYTES))
        target.sync()


def _write_blocks(image: _Image, sink: BlockSink, on_written: Callable[[list[int]], None]) -> None:
    block_count = image.manifest.block_count

    def write(first: int) -> None:
        blocks = range(first, min(first + BLOCKS_PER_BATCH, block_count))
        outcomes = sink.write_blocks([(block, image.stored_of(block)) for block in blocks])
        on_written(
            [block for block, outcome in zip(blocks, outcomes, strict=True) if outcome is Outcome.WRITTEN]
        )

    _in_threads(write, range(0, block_count, BLOCKS_PER_BATCH))


def _sink(image: _Image, target: Target) -> None:
    with BlockSink(target, image.manifest) as sink:
        sink.prepare()
        _write_blocks(image, sink, lambda _blocks: None)
        sink.sync()
        sink.commit()


def _sink_verified(image: _Image, target: Target) -> None:
    """Write as the receiver's pipeline does: one thread flushes and reads back while the others continue."""
    written: list[int] = []
    due = threading.Condition()
    over = False
    wrong: list[int] = []

    def note(blocks: list[int]) -> None:
        with due:
            written.extend(blocks)
            if len(written) * BLOCK_BYTES_DEFAULT >= VERIFY_BYTES:
                due.notify()

    def verify() -> None:
        while True:
            with due:
                due.wait_for(lambda: over or len(written) * BLOCK_BYTES_DEFAULT >= VERIFY_BYTES)
                blocks = np.sort(np.array(written, np.int64))
                written.clear()
                last = over
            sink.sync()
            wrong.extend(sink.verify(blocks, VERIFY_THREADS).tolist())
            if last:
                return

    with BlockSink(target, image.manifest) as sink:
        sink.prepare()
        verifier = threading.Thread(target=verify)
        verifier.start()
        try:
            _write_blocks(image, sink, note)
        finally:
            with due:
                over = True
                due.notify()
            verifier.join()
        assert not wrong, f"blocks {wrong[:10]} read back wrong"
        sink.commit()


OURS: dict[str, Callable[[_Image, Target], None]] = {
    WRITER: _write_runs,
    SINK: _sink,
    VERIFIED: _sink_verified,
}


def _measure_here(way: str, device: Path, raw_bytes: int) -> dict[str, float]:
    """Measure the seconds and peak memory of one of our ways, in this process."""
    image = _Image(raw_bytes)
    with open_target(device, raw_bytes=raw_bytes) as target, tuned_queue(target):
        target.prepare(0)
        started_s = time.perf_counter()
        OURS[way](image, target)
        seconds = time.perf_counter() - started_s
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - CONTENT_BYTES
    return {"seconds": seconds, "peak_bytes": peak_bytes}


def _measure(way: str, device: Path, raw_bytes: int) -> dict[str, float]:
    if way == DD:
        command = ["dd", "if=/dev/zero", f"of={device}", "bs=4M", f"count={raw_bytes // (4 * MIB)}"]
        started_s = time.perf_counter()
        subprocess.run([*command, "oflag=direct", "conv=fsync,notrunc", "status=none"], check=True)
        return {"seconds": time.perf_counter() - started_s, "peak_bytes": 0.0}
    command = [sys.executable, "-m", __spec__.name, "--way", way, "--device", str(device)]
    output = subprocess.run(
        [*command, "--size", str(raw_bytes)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    result: dict[str, float] = json.loads(output)
    return result


@contextlib.contextmanager
def _loop_device(folder: Path, raw_bytes: int, direct: str) -> Iterator[Path]:
    backing = folder / "disk"
    with backing.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, raw_bytes)
    device = Path(run("losetup", "--find", "--show", f"--direct-io={direct}", backing).strip())
    try:
        _measure(DD, device, raw_bytes)  # every extent is written once before anything is measured
        yield device
    finally:
        run("losetup", "--detach", device)
        backing.unlink()


def _figures(loop: str, rounds: dict[str, list[dict[str, float]]], raw_bytes: int) -> Iterator[Figure]:
    scenario = f"loop {loop}"
    seconds = {way: statistics.median([one["seconds"] for one in results]) for way, results in rounds.items()}
    for way, results in rounds.items():
        rates = ", ".join(f"{raw_bytes / one['seconds'] / 1e6:.0f}" for one in results)
        yield Figure(scenario, WAYS[way], raw_bytes / seconds[way] / 1e6, "MB/s", note=f"rounds: {rates}")
    for way in (WRITER, SINK):
        share = 100 * seconds[DD] / seconds[way]
        yield Figure(scenario, f"{WAYS[way]}, of dd", share, "%", at_least=WRITE_SHARE_PERCENT_MIN)
    added = 100 * (seconds[VERIFIED] / seconds[SINK] - 1)
    bound = VERIFY_PERCENT_MAX if loop == CACHED else None
    yield Figure(scenario, "verification adds", added, "%", at_most=bound)
    peak_bytes = max(one["peak_bytes"] for results in rounds.values() for one in results)
    yield Figure(scenario, "peak memory", peak_bytes / MIB, "MiB", at_most=PEAK_BYTES_MAX / MIB)


@click.command()
@click.option("--size", default="4GiB", show_default=True)
@click.option("--rounds", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option(
    "--loop", "loops", multiple=True, type=click.Choice(list(LOOPS)), default=list(LOOPS), show_default=True
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=Path("/var/tmp"),
    show_default=True,
    help="on the disk to measure",
)
@click.option("--way", type=click.Choice(list(OURS)), hidden=True)
@click.option("--device", type=click.Path(path_type=Path), hidden=True)
def main(
    size: str, rounds: int, loops: tuple[str, ...], folder: Path, way: str | None, device: Path | None
) -> int:
    """Write a loop device in several ways and compare."""
    raw_bytes = parse_size_bytes(size)
    if way is not None:
        assert device is not None
        print(json.dumps(_measure_here(way, device, raw_bytes)))
        return 0
    obstacle = privileged_obstacle()
    if obstacle is not None:
        raise click.ClickException(f"the bench needs root and loop devices: {obstacle}")
    if raw_bytes % (CONTENT_BYTES) or raw_bytes == 0:
        raise click.BadParameter(f"choose a multiple of {CONTENT_BYTES // MIB} MiB")
    console = rich.console.Console(stderr=True)
    load_before = os.getloadavg()[0]
    figures: list[Figure] = []
    for loop in loops:
        results: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
        with (
            kept_memory(),
            tempfile.TemporaryDirectory(dir=folder, prefix="diskcast-bench-") as temporary,
            _loop_device(Path(temporary), raw_bytes, LOOPS[loop]) as target,
        ):
            for number, name in itertools.product(range(rounds), WAYS):
                console.print(f"loop {loop}, round {number + 1}: {WAYS[name]}")
                results[name].append(_measure(name, target, raw_bytes))
        figures += _figures(loop, results, raw_bytes)
    table = report.rates_table(figures, f"load average before {load_before:.2f}")
    rich.console.Console(width=None if sys.stdout.isatty() else 160).print(table)
    return int(any(figure.verdict == FAIL for figure in figures))


if __name__ == "__main__":
    run_command(main)
