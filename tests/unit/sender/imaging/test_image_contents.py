"""Contents of images that are packed from disks made by the real tools, and of hostile ones."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from protocol.disk.disk_reads import Read
from protocol.disk.filesystem_magic import FILESYSTEMS
from sender.imaging.contents import filesystem_labels, image_contents
from sender.imaging.contents.ext_files import ExtError, ExtFiles
from sender.imaging.contents.filesystem_labels import read_label_untrusted
from sender.imaging.contents.generalisation import Generalisation
from sender.imaging.contents.image_contents import read_contents, system_name_untrusted
from sender.imaging.image_file import ImageFile
from sender.imaging.pack import PackOptions, pack_image

MIB = 1 << 20
UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
OS_RELEASE = 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n'
MAKERS = {
    "ext4": ["mkfs.ext4", "-q", "-L", "golden", "-U", UUID],
    "xfs": ["mkfs.xfs", "-q", "-L", "golden", "-m", f"uuid={UUID}"],
    "btrfs": ["mkfs.btrfs", "-q", "-L", "golden", "-U", UUID],
    "ntfs": ["mkfs.ntfs", "-q", "-f", "-F", "-L", "golden"],
    "vfat": ["mkfs.vfat", "-n", "GOLDEN", "-i", "3F2504E0"],
    "exfat": ["mkfs.exfat", "-L", "golden"],
    "swap": ["mkswap", "-q", "-L", "golden", "-U", UUID],
}


def make(filesystem: str, path: Path, *more: str | Path) -> Path:
    maker = MAKERS[filesystem]
    if shutil.which(maker[0]) is None:
        pytest.skip(f"{maker[0]} isn't installed")
    with path.open("wb") as file:
        file.truncate((400 if filesystem == "xfs" else 128) * MIB)
    subprocess.run([*maker, *more, path], check=True, capture_output=True)
    return path


def packed(source: Path, output: Path) -> ImageFile:
    pack_image(source, output, PackOptions(name="golden", level=1))
    return ImageFile.open(output)


def reader(path: Path) -> Read:
    data = path.read_bytes()
    return lambda offset, length: data[offset : offset + length] if offset >= 0 else b""


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_labels_and_uuids_are_those_that_blkid_shows(filesystem: str, tmp_path: Path) -> None:
    disk = make(filesystem, tmp_path / "disk")
    shown = subprocess.run(["blkid", "-p", "-o", "export", disk], check=True, capture_output=True, text=True)
    values = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    found = read_label_untrusted(filesystem, reader(disk))
    assert (found.label, found.uuid) == (values["LABEL"], values["UUID"])


@pytest.mark.parametrize(
    ("script", "boot_sector", "found"),
    [
        (
            "label: gpt\nsize=4M, type=uefi\nsize=1M, type=E3C9E316-0B5C-4DB8-817D-F92DF00215AE\nsize=20M\n",
            b"",
            True,
        ),
        ("label: gpt\nsize=4M, type=uefi\nsize=1M\nsize=20M\n", b"", False),
        ("label: dos\nsize=1M\nsize=1M\nsize=20M, type=7, bootable\n", b"BOOTMGR is missing", True),
        ("label: dos\nsize=1M\nsize=1M\nsize=20M, type=7\n", b"BOOTMGR is missing", False),
        ("label: dos\nsize=1M\nsize=1M\nsize=20M, type=7, bootable\n", b"", False),
    ],
)
def test_a_disk_that_boots_windows_is_recognised(
    script: str, boot_sector: bytes, found: bool, tmp_path: Path
) -> None:
    disk, part = tmp_path / "disk", tmp_path / "part"
    for path, size in ((disk, 40), (part, 20)):
        with path.open("wb") as file:
            file.truncate(size * MIB)
    subprocess.run(["sfdisk", "-q", disk], input=script.encode(), check=True, capture_output=True)
    subprocess.run([*MAKERS["ntfs"], part], check=True, capture_output=True)
    report = subprocess.run(["sfdisk", "--json", disk], check=True, capture_output=True).stdout
    start = json.loads(report)["partitiontable"]["partitions"][2]["start"] * 512
    with disk.open("r+b") as file:
        file.seek(start)
        file.write(part.read_bytes())
        file.seek(start + 0x180)
        file.write(boot_sector)
    with packed(disk, tmp_path / "disk.dci") as image:
        state = read_contents(image).generalisation
    assert state is (Generalisation.NOT_GENERALISED if found else Generalisation.NO_SYSTEM)


def tree(folder: Path, *, link: bool) -> Path:
    (folder / "usr/lib").mkdir(parents=True)
    (folder / "etc").mkdir()
    if link:
        (folder / "usr/lib/os-release").write_text(OS_RELEASE)
        (folder / "etc/os-release").symlink_to("../usr/lib/os-release")
    else:
        (folder / "etc/os-release").write_text(OS_RELEASE)
    return folder


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_a_linux_is_recognised_through_the_image(kind: str, link: bool, tmp_path: Path) -> None:
    disk = make("ext4", tmp_path / "disk", "-t", kind, "-d", tree(tmp_path / "tree", link=link))
    with packed(disk, tmp_path / "disk.dci") as image:
        contents = read_contents(image)
    [part] = contents.partitions
    assert (part.filesystem, part.label, part.uuid) == ("ext4", "golden", UUID)
    assert part.system == "Debian GNU/Linux 12 (bookworm)"
    shown = subprocess.run(["dumpe2fs", "-h", disk], check=True, capture_output=True, text=True).stdout
    values = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    assert part.free_bytes == int(values["Free blocks"]) * int(values["Block size"])
    assert contents.used_bytes + contents.unused_bytes == contents.raw_bytes
    assert contents.problem == ""
    assert contents.generalisation is Generalisation.NOT_GENERALISED


def test_partitions_share_the_figures_of_the_whole(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(200 * MIB)
    script = (
        "label: gpt\nstart=2048, size=131072, type=uefi, name=EFI\n"
        "start=133120, size=262144, type=linux, name=root\n"
    )
    subprocess.run(["sfdisk", "-q", disk], input=script.encode(), check=True, capture_output=True)
    part = make("ext4", tmp_path / "part", "-d", tree(tmp_path / "tree", link=True))
    with disk.open("r+b") as file:
        file.seek(133120 * 512)
        file.write(part.read_bytes())
    with packed(disk, tmp_path / "disk.dci") as image:
        contents = read_contents(image)
        payload_bytes = image.manifest.payload_bytes
    assert contents.table == "gpt"
    assert [(each.number, each.name, each.system) for each in contents.partitions] == [
        (1, "EFI", ""),
        (2, "root", "Debian GNU/Linux 12 (bookworm)"),
    ]
    assert 0 < contents.partitions[1].stored_bytes <= payload_bytes


def test_a_crafted_filesystem_is_read_in_bounded_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_contents, "BLOCKS_READ_MAX", 1)
    disk = make("ext4", tmp_path / "disk", "-d", tree(tmp_path / "tree", link=False))
    pack_image(disk, tmp_path / "disk.dci", PackOptions(name="golden", level=1, block_bytes=64 << 10))
    with ImageFile.open(tmp_path / "disk.dci") as image:
        contents = read_contents(image)
    assert "too many blocks" in contents.problem
    assert contents.partitions[0].system == ""


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    folder = tree(tmp_path / "tree", link=False)
    (folder / "etc/os-release").unlink()
    (folder / "etc/os-release").symlink_to("/usr/lib/os-release")
    (folder / "usr/lib/os-release").symlink_to("../../etc/os-release")
    disk = make("ext4", tmp_path / "disk", "-d", folder)
    assert ExtFiles.open_untrusted(reader(disk)).read_file_untrusted("/etc/os-release", 100) is None


def test_a_truncated_superblock_is_an_error() -> None:
    with pytest.raises(ExtError):
        ExtFiles.open_untrusted(lambda _offset, _length: b"")
    bad = bytearray(1024)
    struct.pack_into("<H", bad, 0x38, 0xEF53)
    with pytest.raises(ExtError):
        ExtFiles.open_untrusted(lambda _offset, length: bytes(bad[:length]))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"PRETTY_NAME=Arch\n", "Arch"),
        (b"# x\nPRETTY_NAME='a b'\n", "a b"),
        (b'PRETTY_NAME="unclosed\n', ""),
        (b"PRETTY_NAME=two words\n", ""),
        (b"NAME=x\n", ""),
        (b'PRETTY_NAME="\x1b[31mred"\n', "[31mred"),
        (b"PRETTY_NAME=" + b"x" * 999, "x" * 100),
    ],
)
def test_the_name_of_the_system_is_one_printable_text(text: bytes, name: str) -> None:
    assert system_name_untrusted(text) == name


def test_every_filesystem_has_a_parser() -> None:
    assert set(filesystem_labels._PARSERS) == set(FILESYSTEMS)
