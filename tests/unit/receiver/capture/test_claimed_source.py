"""The disk of a capture: claimed for the capture alone, read-only meanwhile, and given back as it was."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import SourceError, SourceInUseError
from receiver.capture.claimed_source import choose_source, claimed, release_read_only
from receiver.disk.syscalls import is_read_only
from tests.support.disks.devices import loop_device

MIB = 1 << 20


@contextlib.contextmanager
def loop_disk(file: Path) -> Iterator[Path]:
    """Provide a loop device that is writable at first and at the end: its flag outlives its file."""
    with loop_device(file) as device:
        subprocess.run(["blockdev", "--setrw", device], check=True)
        try:
            yield device
        finally:
            subprocess.run(["blockdev", "--setrw", device], check=True)


def flag(device: Path) -> bool:
    fd = os.open(device, os.O_RDONLY)
    try:
        return is_read_only(fd)
    finally:
        os.close(fd)


@pytest.mark.needs_root
def test_a_claimed_disk_is_read_only_and_given_back(tmp_path: Path) -> None:
    """A filesystem that is mounted during a capture would replay its journal, and change the disk."""
    file = tmp_path / "disk"
    file.write_bytes(bytes(16 * MIB))
    subprocess.run(["mkfs.ext4", "-q", file], check=True)
    with loop_disk(file) as device:
        with claimed(device, tmp_path / "state"):
            assert flag(device)
            with pytest.raises(OSError, match="Device or resource busy"):
                os.open(device, os.O_RDONLY | os.O_EXCL)
            mounted = subprocess.run(["mount", device, tmp_path], capture_output=True, check=False)
            assert mounted.returncode != 0
        assert not flag(device)
        assert not (tmp_path / "state").exists()


@pytest.mark.needs_root
def test_a_killed_agent_leaves_no_disk_read_only_for_ever(tmp_path: Path) -> None:
    """The next cast onto this machine would fail, for a reason that nobody remembers."""
    file = tmp_path / "disk"
    file.write_bytes(bytes(MIB))
    state = tmp_path / "state"
    with loop_disk(file) as device:
        held = claimed(device, state)
        held.__enter__()
        kept = state.read_text()
        held.__exit__(None, None, None)
        # As a killed agent leaves them: the flag set, and the note.
        state.write_text(kept)
        subprocess.run(["blockdev", "--setro", device], check=True)
        release_read_only(state)
        assert not flag(device)
        assert not state.exists()


@pytest.mark.needs_root
def test_a_flag_that_somebody_else_set_stays(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(MIB))
    with loop_disk(file) as device:
        subprocess.run(["blockdev", "--setro", device], check=True)
        with claimed(device, tmp_path / "state"):
            assert flag(device)
        assert flag(device)


@pytest.mark.needs_root
def test_a_mounted_disk_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(16 * MIB))
    subprocess.run(["mkfs.ext4", "-q", file], check=True)
    point = tmp_path / "mounted"
    point.mkdir()
    with loop_disk(file) as device:
        subprocess.run(["mount", device, point], check=True)
        try:
            with (
                pytest.raises(SourceInUseError, match=r"mounted writable at .*boot the live system"),
                claimed(device, tmp_path / "state"),
            ):
                pass
        finally:
            subprocess.run(["umount", point], check=True)


def test_only_disks_and_the_agents_own_target_are_captured(tmp_path: Path) -> None:
    """An operator of the daemon mustn't read single files of a machine, such as its keys."""
    target = tmp_path / "target"
    target.write_bytes(b"x")
    secret = tmp_path / "key"
    secret.write_bytes(b"secret")
    assert choose_source("auto", str(target)).path == target
    with pytest.raises(SourceError, match="isn't a disk"):
        choose_source(str(secret), str(target))
    with pytest.raises(SourceError, match="name a disk with --source"):
        choose_source("/dev/no-such-disk", str(target))
