"""Benchmark of reading partclone's images into a disk: ours and ``partclone.restore``, in turns, in memory."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path

from protocol.constants import MIB
from sender.imaging.foreign.partclone_sources import convert_partclone_file
from sender.imaging.foreign.spool import Spool
from tests.bench.turns import compare, median_wall_s, take_turns

FILESYSTEM_BYTES = 1536 * MIB
ROUNDS = 5


def _make_filesystem(path: Path) -> None:
    """Create an ext4 with files of this machine, as many as exist of one folder."""
    with path.open("wb") as file:
        file.truncate(FILESYSTEM_BYTES)
    folder = next(name for name in ("/usr/share", "/usr/lib") if Path(name).is_dir())
    subprocess.run(["mkfs.ext4", "-q", "-d", folder, path], check=True, capture_output=True)


def _ours(image: Path, folder: Path) -> None:
    with Spool(folder, FILESYSTEM_BYTES) as spool:
        convert_partclone_file(image, spool, lambda *_: None, allow_unsandboxed=False)


def _theirs(image: Path, target: Path) -> None:
    """Restore by partclone, which awaits its progress thread: wall times are multiples of two seconds."""
    with target.open("wb") as file:
        file.truncate(FILESYSTEM_BYTES)
    command: list[str | Path] = ["partclone.restore", "-C", "-q", "-O", target, "-L", "/dev/null", "-s"]
    if image.suffix == ".zst":
        with subprocess.Popen(["zstd", "-dcq", image], stdout=subprocess.PIPE) as zstd:
            subprocess.run([*command, "-"], stdin=zstd.stdout, check=True, capture_output=True)
    else:
        subprocess.run([*command, image], check=True, capture_output=True)
    target.unlink()


def run() -> list[dict[str, object]]:
    """Return one row for each program, and ratios of their speeds."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="diskcast-bench-", dir=memory) as name:
        folder = Path(name)
        source, image = folder / "source", folder / "image"
        _make_filesystem(source)
        for content, options in (("CRC32", ()), ("no checksums", ("-a0",)), ("no checksums, zstd", ("-a0",))):
            command: list[str | Path] = [
                "partclone.ext4",
                "-c",
                "-q",
                "-s",
                source,
                "-O",
                image,
                "-L",
                "/dev/null",
                *options,
            ]
            image.unlink(missing_ok=True)
            subprocess.run(command, check=True, capture_output=True)
            used_bytes = image.stat().st_size
            packed = image
            if content.endswith("zstd"):
                packed = folder / "image.zst"
                subprocess.run(["zstd", "-q", "-f", "-1", image, "-o", packed], check=True)
            turns = take_turns(
                functools.partial(_ours, packed, folder),
                functools.partial(_theirs, packed, folder / "target"),
                ROUNDS,
            )
            ours_s, theirs_s = median_wall_s(turns)
            for program, took_s in (("diskcast", ours_s), ("partclone.restore", theirs_s)):
                rate = used_bytes / took_s / 1e6
                rows.append({"component": f"{program}, {content}", "rate": rate, "unit": "MB/s of image"})
            rows += compare(turns, f"diskcast / partclone.restore, {content}")
    return rows
