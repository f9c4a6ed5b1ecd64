"""Attacks by the maker of an image directory of Clonezilla or FOG, or of a file of partclone."""

from __future__ import annotations

import gzip
import os
import re
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import ForeignImageError
from tests.support.disks.partclone_files import build_partclone, repair_header
from tests.support.network.lab import LIMIT_S, Program, diskcast
from tests.support.programs.processes import require_program

SECRET = b"the secret of another user "
DUMP = "label: dos\n/dev/sda1 : start=2048, size=2048, type=83\n"
BLOCKS = [os.urandom(4096) if index % 3 else b"" for index in range(256)]
ROOM_BYTES = 400 * MIB
"""Memory of pack itself: interpreter, spans and encoders; a hostile file may not take more."""


def make_directory(folder: Path) -> Path:
    directory = folder / "image"
    directory.mkdir()
    (directory / "disk").write_text("sda\n")
    (directory / "parts").write_text("sda1\n")
    (directory / "sda-pt.sf").write_text(DUMP)
    (directory / "sda1.ext4-ptcl-img.uncomp").write_bytes(build_partclone(BLOCKS))
    return directory


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET * 40_000)
    return path


def _link(directory: Path, name: str, secret: Path) -> None:
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(secret)


def _linked_dd(directory: Path, secret: Path) -> None:
    (directory / "sda1.ext4-ptcl-img.uncomp").unlink()
    _link(directory, "sda1.dd-img", secret)


WAYS_OUT: dict[str, Callable[[Path, Path], object]] = {
    "link as an image": lambda directory, secret: _link(directory, "sda1.ext4-ptcl-img.uncomp", secret),
    "link as a raw partition": _linked_dd,
    "link as the boot record": lambda directory, secret: _link(directory, "sda-mbr", secret),
    "link as the table": lambda directory, secret: _link(directory, "sda-pt.sf", secret),
    "partition above the directory": lambda directory, _: (directory / "parts").write_text("../secret"),
    "disk above the directory": lambda directory, secret: (directory / "disk").write_text(str(secret)),
    "disk with dots": lambda directory, _: (directory / "disk").write_text("x/../../secret"),
}


@pytest.mark.parametrize("prepare", WAYS_OUT.values(), ids=WAYS_OUT.keys())
def test_37_no_name_leads_out_of_an_image_directory(
    tmp_path: Path, secret: Path, prepare: Callable[[Path, Path], object]
) -> None:
    """An image of somebody would copy a file that only the operator may read, and a cast would spread it."""
    directory = make_directory(tmp_path)
    prepare(directory, secret)
    output = tmp_path / "output"
    output.mkdir()
    trace = tmp_path / "trace"
    command = diskcast("pack", directory, "--format", "clonezilla", "-o", output / "lab.dci", "--no-sign")
    strace = (require_program("strace"), "-f", "-e", "trace=open,openat,openat2", "-o", str(trace))
    done = subprocess.run([*strace, *command], capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == ForeignImageError.exit_code, done.stderr
    opened = [line for line in trace.read_text(errors="replace").splitlines() if re.search(r"= \d+$", line)]
    assert any("sda" in line or "disk" in line for line in opened)
    assert not any(f'"{secret}"' in line or '/secret"' in line for line in opened)
    assert not list(output.iterdir())
    assert SECRET not in done.stdout + done.stderr


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


LIES: dict[str, list[tuple[int, bytes]]] = {
    "a partition of 64 TiB": [(52, number(1 << 46, 8)), (60, number(1 << 32, 8))],
    "more blocks than the partition": [(52, number(1 << 40, 8)), (60, number(1 << 28, 8))],
    "blocks of 4 GiB": [(84, number((1 << 32) - 1, 4))],
    "one checksum for 2^32 blocks": [(100, number((1 << 32) - 1, 4))],
    "fewer used blocks than the bitmap": [(76, number(1, 8))],
    "no bitmap": [(105, number(0, 1))],
}


def refused(directory: Path, output: Path) -> None:
    output.mkdir()
    command = diskcast("pack", directory, "-o", output / "lab.dci", "--no-sign", "--json", "--jobs", "1")
    with Program(command) as program:
        assert program.wait(LIMIT_S) == ForeignImageError.exit_code, program.describe()
        assert program.usage is not None
        assert program.usage.peak_bytes < ROOM_BYTES
    assert not list(output.iterdir())


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_37_a_header_that_lies_is_refused(tmp_path: Path, lie: list[tuple[int, bytes]]) -> None:
    """A file of a few KiB would take the memory or the disk of the machine that imports it."""
    directory = make_directory(tmp_path)
    content = build_partclone(BLOCKS)
    for offset, value in lie:
        content = content[:offset] + value + content[offset + len(value) :]
    (directory / "sda1.ext4-ptcl-img.uncomp").write_bytes(repair_header(content))
    refused(directory, tmp_path / "output")


def test_37_a_partition_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    """A compressed file of 1 MB would fill the disk of the machine that imports it."""
    directory = make_directory(tmp_path)
    (directory / "sda1.ext4-ptcl-img.uncomp").unlink()
    with gzip.open(directory / "sda1.dd-img", "wb", compresslevel=1) as file:
        for _ in range(512):
            file.write(bytes(MIB))
    written_before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock
    refused(directory, tmp_path / "output")
    written = resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock - written_before
    assert written * 512 < 64 * MIB


def test_37_a_bitmap_that_expands_is_bounded_by_the_partition(tmp_path: Path) -> None:
    """The bitmap of a partition of 16 TiB would take half a GiB of memory."""
    directory = make_directory(tmp_path)
    content = build_partclone([*BLOCKS], device_bytes=1 << 44)
    header = content[:60] + number(1 << 32, 8) + content[68:110]
    (directory / "sda1.ext4-ptcl-img.uncomp").write_bytes(
        gzip.compress(repair_header(header) + bytes(64 * MIB))
    )
    refused(directory, tmp_path / "output")
