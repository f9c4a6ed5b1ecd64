"""Single files of an image without writing a disk: the commands of docs/how-to/export.md."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from protocol.constants import MIB
from tests.support.disks.devices import mounted
from tests.support.disks.fuse import unmount
from tests.support.network.lab import LIMIT_S, Program, diskcast, run, wait_until
from tests.support.programs.processes import require_program

pytestmark = pytest.mark.needs_root

_START_BYTES = MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of a disk with a partition that holds this test."""
    filesystem, disk, path = tmp_path / "ext4", tmp_path / "disk", tmp_path / "a.dci"
    with filesystem.open("wb") as file:
        file.truncate(32 * MIB)
    run(require_program("mkfs.ext4"), "-q", "-d", Path(__file__).parent, filesystem)
    with disk.open("wb") as file:
        file.truncate(_START_BYTES)
        file.seek(_START_BYTES)
        file.write(filesystem.read_bytes())
        file.truncate(34 * MIB)
    run(require_program("sgdisk"), "-n", "1:2048:+32M", disk)
    run(*diskcast("pack", disk, "-o", path, "--no-sign"))
    return path


def test_file_is_read_through_nbdfuse_and_the_server_stops_afterwards(image: Path, tmp_path: Path) -> None:
    nbdfuse = require_program("nbdfuse")
    folder, socket_path = tmp_path / "fuse", tmp_path / "s"
    folder.mkdir()
    with Program(diskcast("nbd", image, "--socket", socket_path, "--once", "--json")) as server:
        uri = server.wait_event("listening", LIMIT_S)["uri"]
        assert uri == f"nbd+unix:///?socket={socket_path}"
        with Program([nbdfuse, "-r", folder, uri]) as fuse:
            try:
                wait_until("nbdfuse is mounted", (folder / "nbd").exists)
                options = f"ro,loop,noload,offset={_START_BYTES}"
                with mounted(folder / "nbd", tmp_path / "files", "-o", options) as files:
                    assert (files / Path(__file__).name).read_bytes() == Path(__file__).read_bytes()
            finally:
                unmount(folder)
            fuse.wait(LIMIT_S)
        assert server.wait(LIMIT_S) == 0, server.describe()
        assert server.result["ok"]
    assert not socket_path.exists()


def test_file_is_read_through_qemu_without_mounting(image: Path, tmp_path: Path) -> None:
    """``debugfs`` reads the file from a copy of the partition, as guestfish does from the disk."""
    part, wanted = tmp_path / "part", tmp_path / "wanted"
    with Program(diskcast("nbd", image, "--socket", tmp_path / "s", "--json")) as server:
        uri = server.wait_event("listening", LIMIT_S)["uri"]
        source = (
            f"driver=raw,offset={_START_BYTES},size={32 * MIB},file.driver=nbd,file.path={tmp_path / 's'}"
        )
        run(require_program("qemu-img"), "convert", "--image-opts", source, "-O", "raw", part)
        run(require_program("debugfs"), "-R", f"dump /{Path(__file__).name} {wanted}", part)
        assert wanted.read_bytes() == Path(__file__).read_bytes()
        assert "base:allocation" in run(require_program("nbdinfo"), uri)
        subprocess.run(["kill", "-INT", str(server.pid)], check=True)
        assert server.wait(LIMIT_S) == 0, server.describe()
