"""The initrd's archive: cpio reads it as written, and the same content gives the same bytes."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from pathlib import Path

from sender.netboot.cpio import CpioWriter
from tests.support.programs.processes import require_program

TIME_S = 1_700_000_000


def _write(folder: Path) -> bytes:
    source = folder / "source"
    source.write_bytes(b"x" * 4097)
    source.chmod(0o600)
    os.utime(source, (1, 1))
    file = io.BytesIO()
    archive = CpioWriter(file, TIME_S)
    archive.add_directory("bin")
    archive.add_bytes("bin/run", b"#!/bin/sh\n", 0o755)
    archive.add_symlink("bin/alias", "run")
    archive.add_bytes("empty", b"")
    archive.add_file("copy", source)
    archive.finish()
    return file.getvalue()


def test_cpio_unpacks_what_was_written(tmp_path: Path) -> None:
    content = _write(tmp_path)
    assert len(content) % 512 == 0
    target = tmp_path / "target"
    target.mkdir()
    command = [
        require_program("cpio"),
        "--extract",
        "--quiet",
        "--preserve-modification-time",
        "--no-preserve-owner",
    ]
    subprocess.run(command, input=content, cwd=target, check=True)
    assert (target / "bin/run").read_bytes() == b"#!/bin/sh\n"
    assert stat.S_IMODE((target / "bin/run").stat().st_mode) == 0o755
    assert (target / "bin/alias").readlink() == Path("run")
    assert (target / "empty").read_bytes() == b""
    assert (target / "copy").read_bytes() == b"x" * 4097
    assert stat.S_IMODE((target / "copy").stat().st_mode) == 0o644
    assert (target / "copy").stat().st_mtime == TIME_S


def test_cpio_finds_the_device_node_of_the_console() -> None:
    file = io.BytesIO()
    archive = CpioWriter(file, TIME_S)
    archive.add_directory("dev")
    archive.add_character_device("dev/console", 5, 1)
    archive.finish()
    command = [require_program("cpio"), "--list", "--verbose", "--quiet", "--numeric-uid-gid"]
    listing = subprocess.run(command, input=file.getvalue(), check=True, capture_output=True).stdout.decode()
    console = next(line for line in listing.splitlines() if line.endswith("dev/console"))
    assert console.startswith("crw-------")
    assert "5,   1" in console


def test_two_archives_of_the_same_files_are_identical(tmp_path: Path) -> None:
    first = _write(tmp_path)
    (tmp_path / "source").unlink()
    assert _write(tmp_path) == first
