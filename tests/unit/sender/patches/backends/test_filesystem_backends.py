"""Patches that write into a filesystem of the image; e2fsck, debugfs, fsck.fat and mtools are the judges."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from protocol.constants import MIB
from protocol.errors import ConfigurationError
from protocol.patch.machine_patch import MachinePatch
from sender.imaging.image_file import ImageFile
from sender.imaging.sign_command import sign
from sender.patches.backends.open_backend import open_backend
from sender.patches.machines_file import load_machines
from sender.patches.patch_directory import build_patches, read_patch
from sender.patches.template import load_template
from tests.support.filesystem_images import (
    GOLDEN_TIME_S,
    make_ext4,
    make_fat,
    make_image_of,
    make_windows,
    patched_partition,
)
from tests.support.patch_rooms import KEY, write_room
from tests.support.signing import SIGNER

EXT4 = f"""
hostname = "{{{{ name }}}}"
domain = "lab.example"

[filesystem]
kind = "ext4"
partition = 1

[[users]]
name = "teacher"
ssh_keys = ["{KEY}"]

[[files]]
path = "/etc/lab/seat one.conf"
owner = "teacher:shadow"
mode = "0640"
content = "seat: {{{{ position }}}} \u00fc\\n"
"""
FAT = """
hostname = "{{ name }}"

[filesystem]
kind = "fat"
partition = 1

[[files]]
path = "/config.txt"
content = "arm_64bit=1\\nhostname={{ name }}\\n"

[[files]]
path = "/overlays/lab/Long name of a file.txt"
content = "{{ position }}"
"""

NTFS = """
hostname = "{{ name }}"

[filesystem]
kind = "ntfs"
partition = 1

[[files]]
path = "/Windows/Panther/unattend.xml"
content = '''<?xml version="1.0" encoding="utf-8"?>
<unattend xmlns="urn:schemas-microsoft-com:unattend"><settings pass="specialize">{{ name }}</settings></unattend>
'''

[[files]]
path = "/Windows/win.ini"
content = "[{{ name }}]\\n"
"""


@pytest.fixture(scope="module")
def ext4_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ext4")
    return make_image_of(folder, make_ext4(folder))


@pytest.fixture(scope="module")
def fat_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fat")
    return make_image_of(folder, make_fat(folder))


@pytest.fixture(scope="module")
def ntfs_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ntfs")
    return make_image_of(folder, make_windows(folder))


def build(image: Path, folder: Path, template: str, machine_count: int = 1) -> list[MachinePatch]:
    folder.mkdir(exist_ok=True)
    template_path, machines_path = write_room(folder, machine_count, template=template)
    declared, machines = load_template(template_path), load_machines(machines_path)
    with ImageFile.open(image) as opened:
        built = build_patches(open_backend(opened, declared), declared, machines, folder / "out")
    return [read_patch(folder / "out" / one.file) for one in built]


def debugfs(filesystem: Path, command: str) -> str:
    done = subprocess.run(["debugfs", "-R", command, filesystem], capture_output=True, check=True, text=True)
    return done.stdout


def owner_and_mode(filesystem: Path, path: str) -> tuple[str, ...]:
    text = debugfs(filesystem, f'stat "{path}"')
    found = re.search(r"Mode: +0?(\d+).*?User: +(\d+) +Group: +(\d+)", text, re.DOTALL)
    assert found, text
    return found.groups()


def test_an_ext4_filesystem_gets_the_machines_name_files_and_keys(ext4_image: Path, tmp_path: Path) -> None:
    before = hashlib.sha256(ext4_image.read_bytes()).digest()
    (patch,) = build(ext4_image, tmp_path, EXT4)
    filesystem = patched_partition(ext4_image, patch, tmp_path / "patched")
    subprocess.run(["e2fsck", "-fn", filesystem], check=True, capture_output=True)
    assert patch.blocks.size <= 9
    assert debugfs(filesystem, "cat /etc/hostname") == "pc-01\n"
    assert debugfs(filesystem, "cat /etc/hosts") == (
        "127.0.0.1\tlocalhost\n127.0.1.1\tpc-01.lab.example pc-01\n::1\tlocalhost\n"
    )
    assert re.fullmatch(r"[0-9a-f]{32}\n", debugfs(filesystem, "cat /etc/machine-id"))
    assert debugfs(filesystem, 'cat "/etc/lab/seat one.conf"') == "seat: row 0 \u00fc\n"
    assert owner_and_mode(filesystem, "/etc/lab/seat one.conf") == ("640", "1000", "42")
    assert owner_and_mode(filesystem, "/etc/hostname") == ("644", "0", "0")
    assert owner_and_mode(filesystem, "/etc/machine-id") == ("444", "0", "0")
    assert debugfs(filesystem, "cat /home/teacher/.ssh/authorized_keys") == f"{KEY}\n"
    assert owner_and_mode(filesystem, "/home/teacher/.ssh") == ("700", "1000", "1001")
    assert owner_and_mode(filesystem, "/home/teacher/.ssh/authorized_keys") == ("600", "1000", "1001")
    assert hashlib.sha256(ext4_image.read_bytes()).digest() == before


@pytest.mark.parametrize("kind", ["ext4", "fat", pytest.param("ntfs", marks=pytest.mark.needs_root)])
def test_the_same_settings_give_the_same_patches_with_a_time_of_the_image(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """Two daemons must agree on a patch_id, or a machine is patched again after a takeover."""
    image: Path = request.getfixturevalue(f"{kind}_image")
    template = {"ext4": EXT4, "fat": FAT, "ntfs": NTFS}[kind]
    first = build(image, tmp_path / "first", template, 2)
    second = build(image, tmp_path / "second", template, 2)
    assert [one.patch_id for one in first] == [one.patch_id for one in second]
    assert first[0].patch_id != first[1].patch_id
    filesystem = patched_partition(image, first[0], tmp_path / "patched")
    if kind == "ext4":
        times = set(re.findall(r"time: (0x[0-9a-f]+)", debugfs(filesystem, "stat /etc/hostname")))
        assert times == {f"0x{GOLDEN_TIME_S:08x}"}
    elif kind == "ntfs":
        command = ["ntfsinfo", "-F", "/Windows/Panther/unattend.xml", filesystem]
        times = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        assert len(re.findall(r"Time:\s+Wed Jan  1 00:00:00 2020 UTC", times)) >= 4, times
    else:
        listing = ["mdir", "-i", filesystem, "::/overlays/lab"]
        assert "1980-01-02" in subprocess.run(listing, capture_output=True, check=True, text=True).stdout


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("feature needs_recovery", "wasn't unmounted, and its journal would undo the patch"),
        ("ssv state 0", "has errors, or wasn't unmounted"),
        ("ssv state 3", "has errors, or wasn't unmounted"),
        ("ssv last_orphan 12", "has errors, or wasn't unmounted"),
    ],
)
def test_an_ext4_filesystem_that_was_not_unmounted_is_refused(
    tmp_path: Path, command: str, reason: str
) -> None:
    """The replay of its journal would silently discard the patch."""
    filesystem = make_ext4(tmp_path)
    subprocess.run(["debugfs", "-w", "-R", command, filesystem], check=True, capture_output=True)
    image = make_image_of(tmp_path, filesystem)
    with pytest.raises(ConfigurationError, match=reason) as refused:
        build(image, tmp_path / "room", EXT4)
    assert "pack it again" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("partition = 1", "partition = 2"), "has no partition 2: its partitions are 1"),
        (('kind = "ext4"', 'kind = "fat"'), r"has no FAT filesystem"),
        (('kind = "ext4"', 'kind = "xfs"'), "filesystem.kind: 'xfs' can't be used: write ext4, fat, ntfs"),
        (('name = "teacher"', 'name = "nobody"'), "no user 'nobody' in /etc/passwd"),
        (("teacher:shadow", "teacher:nobody"), r"files\[0\].owner: it has no such user or group"),
        (("/etc/lab/seat one.conf", "/etc/link"), "/etc/link isn't a regular file"),
        (("/etc/lab/seat one.conf", "/etc/hosts"), "/etc/hosts is declared twice"),
        (("/etc/lab/seat one.conf", "/etc/<12>"), "without"),
        (('domain = "lab.example"', 'locale = "de_DE.UTF-8"'), "locale: the backend ext4 can't apply it"),
        (('name = "teacher"', 'name = "teacher"\ngroups = ["sudo"]'), r"users\[0\].groups: the backend ext4"),
    ],
)
def test_settings_that_cannot_be_applied_are_refused(
    ext4_image: Path, tmp_path: Path, change: tuple[str, str], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        build(ext4_image, tmp_path, EXT4.replace(*change))


def test_a_replaced_file_keeps_no_label_and_is_refused(tmp_path: Path) -> None:
    filesystem = make_ext4(tmp_path)
    command = "ea_set /etc/hostname security.selinux system_u:object_r:hostname_etc_t:s0"
    subprocess.run(["debugfs", "-w", "-R", command, filesystem], check=True, capture_output=True)
    with pytest.raises(ConfigurationError, match="/etc/hostname has extended attributes"):
        build(make_image_of(tmp_path, filesystem), tmp_path / "room", EXT4)


def test_a_full_ext4_filesystem_is_refused(tmp_path: Path) -> None:
    filesystem = make_ext4(tmp_path, 8 * MIB)
    large = tmp_path / "large"
    large.write_bytes(b"x" * (8 * MIB))
    subprocess.run(
        ["debugfs", "-w", "-R", f"write {large} large", filesystem], capture_output=True, check=False
    )
    template = EXT4.replace("content = ", 'content = """' + "y" * 20000 + '"""\n#')
    with pytest.raises(ConfigurationError, match="the filesystem is full or damaged"):
        build(make_image_of(tmp_path, filesystem), tmp_path / "room", template)


def test_a_fat_filesystem_gets_the_machines_files(fat_image: Path, tmp_path: Path) -> None:
    (patch,) = build(fat_image, tmp_path, FAT)
    filesystem = patched_partition(fat_image, patch, tmp_path / "patched")
    subprocess.run(["fsck.fat", "-n", filesystem], check=True, capture_output=True)

    def read(path: str) -> bytes:
        return subprocess.run(
            ["mtype", "-i", filesystem, f"::{path}"], capture_output=True, check=True
        ).stdout

    assert read("/config.txt") == b"arm_64bit=1\nhostname=pc-01\n"
    assert read("/overlays/lab/Long name of a file.txt") == b"row 0"
    assert patch.blocks.size <= 4


def test_a_fat_filesystem_that_was_not_unmounted_is_refused(tmp_path: Path) -> None:
    filesystem = make_fat(tmp_path)
    with filesystem.open("r+b") as file:
        file.seek(0x41)
        file.write(b"\x01")
    with pytest.raises(ConfigurationError, match="FAT filesystem wasn't unmounted"):
        build(make_image_of(tmp_path, filesystem), tmp_path / "room", FAT)


def test_the_images_statement_must_allow_the_partition(ext4_image: Path, tmp_path: Path) -> None:
    """Agents would refuse such a patch at the last moment."""
    image = tmp_path / "signed.dci"
    shutil.copyfile(ext4_image, image)
    key = tmp_path / "image.key"
    key.touch(mode=0o600)
    key.write_text(SIGNER.file_text())
    for partitions, allowed in (
        ((), False),
        (("--patch-partitions", "2"), False),
        (("--patch-partitions", "1,2"), True),
    ):
        arguments = [str(image), "--patches", "daemon", *partitions, "--key", str(key)]
        done = CliRunner().invoke(sign, arguments)
        assert done.exit_code == 0, done.output
        if allowed:
            assert build(image, tmp_path / "room", EXT4)
            continue
        with pytest.raises(ConfigurationError, match=r"sign it with --patch-partitions (2,)?1$"):
            build(image, tmp_path / "room", EXT4)


@pytest.mark.needs_root
def test_windows_gets_its_computer_name_and_answer_file(ntfs_image: Path, tmp_path: Path) -> None:
    (patch,) = build(ntfs_image, tmp_path, NTFS)
    filesystem = patched_partition(ntfs_image, patch, tmp_path / "patched")
    fixed = subprocess.run(["ntfsfix", "-n", filesystem], capture_output=True, check=True, text=True).stdout
    assert "processed successfully" in fixed

    def read(path: str) -> bytes:
        return subprocess.run(["ntfscat", filesystem, path], capture_output=True, check=True).stdout

    assert b'<settings pass="specialize">pc-01</settings>' in read("/Windows/Panther/unattend.xml")
    assert read("/Windows/win.ini") == b"[pc-01]\n"
    hive = tmp_path / "SYSTEM"
    hive.write_bytes(read("/Windows/System32/config/SYSTEM"))
    for key, value, expected in (
        ("Control\\ComputerName\\ComputerName", "ComputerName", "PC-01"),
        ("Services\\Tcpip\\Parameters", "Hostname", "pc-01"),
        ("Services\\Tcpip\\Parameters", "NV Hostname", "pc-01"),
        ("Services\\Tcpip\\Parameters", "DataBasePath", "kept"),
    ):
        command = ["hivexget", hive, f"\\ControlSet002\\{key}", value]
        assert subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip() == expected
    assert patch.blocks.size <= 8


@pytest.mark.needs_root
@pytest.mark.parametrize(("kind", "reason"), [("hibernated", "is hibernated"), ("dirty", "marked as dirty")])
def test_a_windows_that_was_not_shut_down_is_refused(tmp_path: Path, kind: str, reason: str) -> None:
    filesystem = make_windows(tmp_path)
    if kind == "hibernated":
        content = tmp_path / "hiberfil.sys"
        content.write_bytes(b"hibr" + bytes(4092))
        subprocess.run(["ntfscp", "-q", filesystem, content, "/hiberfil.sys"], check=True)
    else:
        mark_dirty(filesystem)
    with pytest.raises(ConfigurationError, match=reason):
        build(make_image_of(tmp_path, filesystem), tmp_path / "room", NTFS)


def mark_dirty(filesystem: Path) -> None:
    """Set the flag of the volume, as Windows does while the volume is mounted."""
    data = bytearray(filesystem.read_bytes())
    cluster_bytes = int.from_bytes(data[11:13], "little") * data[13]
    for table in (48, 56):  # $MFT and its mirror; record 3 is $Volume
        record = int.from_bytes(data[table : table + 8], "little") * cluster_bytes + 3 * 1024
        place = record + int.from_bytes(data[record + 20 : record + 22], "little")
        while data[place] != 0x70:  # $VOLUME_INFORMATION
            place += int.from_bytes(data[place + 4 : place + 8], "little")
        flags = place + int.from_bytes(data[place + 20 : place + 22], "little") + 10
        data[flags] |= 1
    filesystem.write_bytes(data)


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("</unattend>", ""), "the answer file isn't XML"),
        (("urn:schemas-microsoft-com:unattend", "urn:other"), "an answer file has the root"),
        (("/Windows/win.ini", "/Windows/none/win.ini"), "must have the folders"),
        (("/Windows/win.ini", "/Windows/System32/config/SYSTEM"), "can't be written"),
        (('{{ name }}"', 'a-name-of-18-chars"'), "can't be a computer name"),
    ],
)
def test_settings_that_windows_cannot_take_are_refused(
    ntfs_image: Path, tmp_path: Path, change: tuple[str, str], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        build(ntfs_image, tmp_path, NTFS.replace(*change))
