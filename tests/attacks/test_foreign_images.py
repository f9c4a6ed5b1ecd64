"""Attacks by the maker of a foreign image: it names other files, claims impossible sizes, or never ends.

Each attack is first shown to work on the tool without the sandbox, or is checked twice: by our own reading of the
header, and by the sandbox alone.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import ForeignImageError, SourceError, StorageError
from protocol.program.sandbox import ForeignTool
from protocol.program.system_tools import ToolError
from sender.imaging.foreign import spool as spool_module
from sender.imaging.pack import PackOptions, pack_image
from tests.support.network.lab import LIMIT_S, Program, diskcast

SECRET = b"the domain's secret " * 4000
DISK_BYTES = MIB


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file of the user, which no image may reach."""
    path = tmp_path / "secrets" / "shadow"
    path.parent.mkdir()
    path.write_bytes(SECRET.ljust(DISK_BYTES, b"."))
    return path


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def backing_file(folder: Path, secret: Path) -> Path:
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", folder / "disk")
    return folder / "disk"


def json_name(folder: Path, secret: Path) -> Path:
    name = f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}'
    qemu_img("create", "-f", "qcow2", "-u", "-b", name, "-F", "raw", folder / "disk", str(DISK_BYTES))
    return folder / "disk"


def data_file(folder: Path, secret: Path) -> Path:
    options = f"data_file={folder / 'data'},data_file_raw=on"
    qemu_img("create", "-f", "qcow2", "-o", options, folder / "disk", str(DISK_BYTES))
    qemu_img("amend", "-f", "qcow2", "-o", f"data_file={secret}", folder / "disk")
    return folder / "disk"


def flat_extent(folder: Path, secret: Path) -> Path:
    lines = ["# Disk DescriptorFile", "version=1", "CID=12345678", "parentCID=ffffffff"]
    lines += ['createType="monolithicFlat"', f'RW {DISK_BYTES // 512} FLAT "{secret}" 0']
    (folder / "disk").write_text("\n".join([*lines, 'ddb.adapterType = "ide"', ""]))
    return folder / "disk"


def linked_extent(folder: Path, secret: Path) -> Path:
    """Unpack an archive whose maker put a symbolic link beside the descriptor."""
    (folder / "disk-flat.vmdk").symlink_to(secret)
    return flat_extent(folder, Path("disk-flat.vmdk"))


LEAKS: dict[str, tuple[str, Callable[[Path, Path], Path]]] = {
    "backing file": ("qcow2", backing_file),
    "json: name": ("qcow2", json_name),
    "data file": ("qcow2", data_file),
    "flat extent": ("vmdk", flat_extent),
    "linked extent": ("vmdk", linked_extent),
}


@pytest.fixture(params=LEAKS)
def leak(request: pytest.FixtureRequest, tmp_path: Path, secret: Path) -> tuple[str, Path]:
    """Return an image that leaks the secret through a tool without the sandbox."""
    driver, make = LEAKS[request.param]
    (tmp_path / "images").mkdir()
    image = make(tmp_path / "images", secret)
    qemu_img("convert", "-f", driver, "-O", "raw", image, tmp_path / "leaked")
    assert SECRET in (tmp_path / "leaked").read_bytes(), "the attack works on an unprotected tool"
    (tmp_path / "leaked").unlink()
    return driver, image


def test_37_an_image_that_names_another_file_gets_none(
    leak: tuple[str, Path], secret: Path, tmp_path: Path
) -> None:
    """An image of a stranger would carry the password hashes of the server to every machine of a room."""
    _, image = leak
    output = tmp_path / "output"
    output.mkdir()
    trace = tmp_path / "trace"
    command = diskcast("pack", "--no-sign", image, "-o", output / "x.dci", "--json")
    with Program(["strace", "-f", "-qq", "-e", "trace=file", "-o", str(trace), *command]) as program:
        assert program.wait(LIMIT_S) in {ForeignImageError.exit_code, SourceError.exit_code}, (
            program.describe()
        )
        assert program.result["error_class"] in {"ForeignImageError", "SourceError"}
    opened = re.findall(r'open(?:at)?\([^"]*"([^"]*)"[^)]*\)\s*=\s*\d', trace.read_text())
    assert str(image) in opened, "the trace shows opened files"
    assert not [path for path in opened if path.startswith(str(secret.parent))]
    assert not list(output.iterdir())


def test_38_the_sandbox_alone_denies_files_that_an_image_names(
    leak: tuple[str, Path], tmp_path: Path
) -> None:
    """One format more that our own checks of headers miss would be a leak."""
    driver, image = leak
    spool_fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.ftruncate(spool_fd, DISK_BYTES)
    image_fd = os.open(image, os.O_RDONLY)
    source = f"driver={driver},file.driver=file,file.filename=/proc/self/fd/{image_fd}"
    if driver == "vmdk":  # with the names beside the descriptor: the worst case
        source = f"driver={driver},file.driver=file,file.filename={image}"
    target = f"driver=raw,file.driver=file,file.filename=/proc/self/fd/{spool_fd}"
    arguments = ("qemu-img", "convert", "-n", "--image-opts", source, "--target-image-opts", target)
    tool = ForeignTool(arguments, reads=(image_fd,), writes=(spool_fd,), written_bytes_max=DISK_BYTES)
    with pytest.raises(ToolError, match=r"Permission denied"):
        tool.run(MIB)
    assert SECRET[:20] not in os.pread(spool_fd, DISK_BYTES, 0)


def size_bomb(folder: Path, driver: str) -> Path:
    path = folder / "bomb"
    qemu_img("create", "-f", driver, path, "1M")
    with path.open("r+b") as file:
        file.seek(24 if driver == "qcow2" else 368)
        file.write(struct.pack(">Q" if driver == "qcow2" else "<Q", 60 << 40))
    return path


@pytest.mark.parametrize("driver", ["qcow2", "vdi"])
def test_39_a_disk_of_60_tib_in_a_small_file_is_refused(tmp_path: Path, driver: str) -> None:
    """An image of 200 KiB would cost a server 17 GB for the manifest, and days."""
    bomb = size_bomb(tmp_path, driver)
    with pytest.raises(ForeignImageError, match=r"60\.00 TiB.*--max-size"):
        pack_image(bomb, tmp_path / "x.dci", PackOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["bomb"]


def compression_bomb(folder: Path, kind: str, byte: bytes, count_mib: int) -> Path:
    command = {"zstd": ["zstd", "-qc", "-1"], "xz": ["xz", "-c", "-0"], "gzip": ["gzip", "-c", "-1"]}[kind]
    path = folder / "bomb"
    with path.open("wb") as target, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=target) as tool:
        assert tool.stdin is not None
        for _ in range(count_mib):
            tool.stdin.write(byte * MIB)
    return path


@pytest.mark.parametrize("kind", ["zstd", "xz", "gzip"])
def test_40_a_decompression_bomb_ends_at_the_limit(tmp_path: Path, kind: str) -> None:
    """A file of some KiB would fill the disk of the server, with its database."""
    bomb = compression_bomb(tmp_path, kind, b"a", 96)
    assert bomb.stat().st_size < MIB
    command = diskcast("pack", "--no-sign", bomb, "-o", tmp_path / "x.dci", "--max-size", "16MiB", "--json")
    with Program(command) as program:
        assert program.wait(LIMIT_S) == ForeignImageError.exit_code, program.describe()
        assert "--max-size" in str(program.result["error"])
        assert program.usage is not None
        assert program.usage.peak_bytes < 256 * MIB
    assert [path.name for path in tmp_path.iterdir()] == ["bomb"]


@pytest.mark.parametrize("kind", ["zstd", "xz"])
def test_41_a_decompression_bomb_leaves_the_reserve_of_the_disk(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bomb within the limit would still take the space that the database needs."""
    bomb = compression_bomb(tmp_path, kind, b"a", 96)
    monkeypatch.setattr(spool_module, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(StorageError, match="reserve"):
        pack_image(bomb, tmp_path / "x.dci", PackOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["bomb"]
