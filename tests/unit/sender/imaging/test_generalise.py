"""Tests of generalised images: nothing of the reference machine is left, and everything else is."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.constants import KIB, MIB
from protocol.disk.disk_reads import reader_from
from protocol.errors import ConfigurationError, ImageError, SourceUncleanError
from protocol.image.manifest import BlockKind
from sender.console.images import images
from sender.imaging.contents.ext_files import JOURNAL_INODE, ExtFiles
from sender.imaging.contents.generalisation import Generalisation
from sender.imaging.contents.image_contents import read_contents
from sender.imaging.generalise.generalise_image import GeneraliseResult, generalise_image
from sender.imaging.generalise.traces import TraceKind
from sender.imaging.generalise.windows_state import parse_state_untrusted
from sender.imaging.image_commands import inspect
from sender.imaging.image_file import ImageFile
from sender.imaging.pack import PackOptions, pack_image
from tests.support.disks.filesystems import mounted_ntfs
from tests.support.disks.linux_disk import (
    ROOT_MIB,
    ROOT_UUID,
    SWAP_MIB,
    SWAP_UUID,
    VAR_MIB,
    Traces,
    extract,
    make_linux_disk,
    make_traces,
)
from tests.unit.sender.imaging.test_pack import raw_of

ROOT = MIB, ROOT_MIB * MIB
SWAP = (1 + ROOT_MIB) * MIB + 68 * KIB, SWAP_MIB * MIB
VAR = (2 + ROOT_MIB + SWAP_MIB) * MIB, VAR_MIB * MIB


def generalised(image: Path, output: Path) -> GeneraliseResult:
    with ImageFile.open(image) as opened:
        return generalise_image(opened, output)


def packed(disk: Path) -> Path:
    return pack_image(disk, disk.with_suffix(".dci"), PackOptions()).path


def files_of(raw: Path, area: tuple[int, int]) -> ExtFiles:
    return ExtFiles.open_untrusted(reader_from(lambda offset, length: _read(raw, offset, length), *area))


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def fill_journal(disk: Path, area: tuple[int, int], secret: bytes) -> None:
    """Write ``secret`` into the last block of the journal, as an old transaction would leave it."""
    files = files_of(disk, area)
    _, stop = files.ranges_untrusted(files.inode_untrusted(JOURNAL_INODE))[-1]
    with disk.open("r+b") as file:
        file.seek(area[0] + stop - len(secret))
        file.write(secret)


def fill_free_space(disk: Path, area: tuple[int, int], secret: bytes) -> None:
    """Leave ``secret`` behind in a block beside a file in use: write a file, and remove it with the kernel's care."""
    part = extract(disk, *area, disk.with_name("part.raw"))
    content = disk.with_name("content")
    content.write_bytes(secret)
    commands = f"write {content} /deleted\nrm /deleted\n"
    subprocess.run(
        ["debugfs", "-w", "-f", "-", part], input=commands.encode(), capture_output=True, check=True
    )
    with disk.open("r+b") as file:
        file.seek(area[0])
        file.write(part.read_bytes())


def check_filesystem(raw: Path, area: tuple[int, int]) -> None:
    part = extract(raw, *area, raw.with_name("part.raw"))
    done = subprocess.run(["e2fsck", "-fn", part], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("kind", "with_var", "options"),
    [
        ("ext4", False, ()),
        ("ext4", True, ()),
        ("ext4", False, ("-O", "bigalloc,metadata_csum_seed")),
        ("ext3", False, ()),
        ("ext2", False, ()),
    ],
)
def test_nothing_of_the_machine_is_left(
    kind: str, with_var: bool, options: tuple[str, ...], tmp_path: Path
) -> None:
    traces = make_traces(1)
    disk, raw = tmp_path / "disk.raw", tmp_path / "new.raw"
    make_linux_disk(disk, traces, kind=kind, with_var=with_var, mke2fs=options)
    fill_free_space(disk, ROOT, b"SECRET of a deleted file")
    if kind != "ext2":
        fill_journal(disk, ROOT, b"SECRET in the journal")
    image = packed(disk)
    before = raw_of(image)
    assert [name for name, secret in traces.secrets.items() if secret not in before] == []
    assert b"SECRET of a deleted" in before

    result = generalised(image, tmp_path / "new.dci")

    raw.write_bytes(raw_of(result.path))
    after = raw.read_bytes()
    assert [name for name, secret in traces.secrets.items() if secret in after] == []
    assert b"SECRET" not in after
    for area in [ROOT, VAR] if with_var else [ROOT]:
        check_filesystem(raw, area)
    check_files(raw, traces, with_var=with_var)
    done = {change.kind for change in result.changes}
    assert done == set(TraceKind) - ({TraceKind.JOURNAL} if kind == "ext2" else set())
    assert result.systems == ("Test GNU/Linux 12",)


def check_files(raw: Path, traces: Traces, *, with_var: bool) -> None:
    """Check that the files of every clone are there, that those of the machine aren't, and the swap's identity."""
    root = files_of(raw, ROOT)
    var = files_of(raw, VAR) if with_var else root

    def content(name: str) -> bytes | None:
        if with_var and name.startswith("var/"):
            return var.read_file_untrusted(name.removeprefix("var/"), MIB)
        return root.read_file_untrusted(name, MIB)

    assert content("etc/machine-id") == b""
    assert [name for name in traces.personal if content(name)] == []
    assert {name: content(name) for name in traces.common} == traces.common
    names = {name for name, _ in root.entries_untrusted(root.inode_untrusted(2))}
    assert names >= {b"tmp", b"etc", b"root", b"var", b"lost+found"}
    report = subprocess.run(
        ["blkid", "-p", "-O", str(SWAP[0]), "-S", str(SWAP[1]), raw],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f'UUID="{SWAP_UUID}"' in report.stdout
    assert 'LABEL="swap"' in report.stdout
    if with_var:
        return
    swap = root.read_file_untrusted("swap.img", MIB)
    assert swap is not None
    assert (len(swap), swap[4086:4096]) == (256 * KIB, b"SWAPSPACE2")


def test_a_second_run_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    disk, first, second = tmp_path / "disk.raw", tmp_path / "first.dci", tmp_path / "second.dci"
    make_linux_disk(disk, make_traces(2))
    image = packed(disk)
    lines = run("generalise", image, "-o", first, "--json")
    changes = [line["path"] for line in lines if line["event"] == "change"]
    assert "/etc/ssh/ssh_host_rsa_key" in changes
    netplan, keys = (line["text"] for line in lines if line["event"] == "remark")
    assert netplan == "/etc/netplan/01-site.yaml names the address of a network card"
    assert "no program of the image makes new SSH host keys at boot: install cloud-init" in keys
    assert lines[-1]["changed"]
    again = run("generalise", first, "-o", second, "--json")
    assert (again[-1]["changed"], again[-1]["change_count"], again[-1]["changed_blocks"]) == (False, 0, 0)
    assert again[-1]["image_id"] == lines[-1]["image_id"]
    assert raw_of(second) == raw_of(first)
    assert "nothing to change" in text_of("generalise", first, "-o", second)
    assert "generalised" in CliRunner().invoke(inspect, [str(first)], catch_exceptions=False).stdout
    assert "generalised" not in CliRunner().invoke(inspect, [str(image)], catch_exceptions=False).stdout
    assert generalised(image, tmp_path / "third.dci").image_id.hex() == lines[-1]["image_id"]


def test_an_image_with_a_system_says_whether_it_was_generalised(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    make_linux_disk(disk, make_traces(8))
    image = packed(disk)
    with ImageFile.open(image) as opened:
        assert read_contents(opened).generalisation is Generalisation.NOT_GENERALISED
    with ImageFile.open(generalised(image, tmp_path / "new.dci").path) as opened:
        assert read_contents(opened).generalisation is Generalisation.GENERALISED


def run(*arguments: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(*arguments).splitlines()]


def text_of(*arguments: str | Path) -> str:
    return CliRunner().invoke(images, [str(each) for each in arguments], catch_exceptions=False).stdout


def test_blocks_of_removed_files_become_unused(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    traces = make_traces(3)
    traces.personal["var/log/large"] = os.urandom(2 * MIB)
    make_linux_disk(disk, traces)
    image = packed(disk)
    result = generalised(image, tmp_path / "new.dci")
    with ImageFile.open(image) as old, ImageFile.open(result.path) as new:
        assert new.manifest.metadata["generalised"] == 1
        newly = (old.manifest.kind != BlockKind.UNUSED) & (new.manifest.kind == BlockKind.UNUSED)
        assert int(newly.sum()) >= 6
        assert result.changed_blocks == int(
            (old.manifest.raw_hash != new.manifest.raw_hash).any(axis=1).sum()
        )
        again = pack_of(result.path, tmp_path)
        with ImageFile.open(again) as repacked:
            assert (repacked.manifest.raw_hash == new.manifest.raw_hash).all()


def pack_of(image: Path, folder: Path) -> Path:
    raw = folder / "again.raw"
    raw.write_bytes(raw_of(image))
    return packed(raw)


def _patch(disk: Path, offset: int, change: Callable[[bytes], bytes], length: int) -> None:
    data = change(_read(disk, offset, length))
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _needs_recovery(disk: Path) -> None:
    part = extract(disk, *ROOT, disk.with_name("part.raw"))
    subprocess.run(["debugfs", "-w", "-R", "feature needs_recovery", part], capture_output=True, check=True)
    _patch(disk, ROOT[0], lambda _: part.read_bytes(), ROOT[1])


def _hibernated(disk: Path) -> None:
    _patch(disk, SWAP[0] + 4086, lambda _: b"S1SUSPEND\0", 10)


def _active_journal(disk: Path) -> None:
    files = files_of(disk, ROOT)
    (start, _), *_ = files.ranges_untrusted(files.inode_untrusted(JOURNAL_INODE))
    _patch(disk, ROOT[0] + start + 0x1C, lambda _: struct.pack(">I", 1), 4)


def _inline_data(disk: Path) -> None:
    make_linux_disk(disk, make_traces(4), mke2fs=("-O", "inline_data"))


def _wrong_bitmap(disk: Path) -> None:
    """Mark blocks in use as free: the data of files would be zeroed."""
    part = extract(disk, *ROOT, disk.with_name("part.raw"))
    commands = "ncheck 2\nfreeb 2 40\n"
    subprocess.run(
        ["debugfs", "-w", "-f", "-", part], input=commands.encode(), capture_output=True, check=True
    )
    _patch(disk, ROOT[0], lambda _: part.read_bytes(), ROOT[1])


def _control_character(disk: Path) -> None:
    part = extract(disk, *ROOT, disk.with_name("part.raw"))
    _rename(part, b"dhclient.eth0.leases", b"dhclient\neth0.leases")
    _patch(disk, ROOT[0], lambda _: part.read_bytes(), ROOT[1])


def _rename(part: Path, old: bytes, new: bytes) -> None:
    data = part.read_bytes()
    assert data.count(old) == 1
    part.write_bytes(data.replace(old, new))


def _no_system(disk: Path) -> None:
    part = extract(disk, *ROOT, disk.with_name("part.raw"))
    subprocess.run(["debugfs", "-w", "-R", "rm /etc/os-release", part], capture_output=True, check=True)
    _patch(disk, ROOT[0], lambda _: part.read_bytes(), ROOT[1])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_needs_recovery, SourceUncleanError, "partition 1: it wasn't unmounted cleanly"),
        (_active_journal, SourceUncleanError, "partition 1: its journal isn't empty"),
        (_hibernated, SourceUncleanError, "partition 2: a machine is hibernated"),
        (_wrong_bitmap, ImageError, "partition 1: its filesystem has errors: run `e2fsck -f`"),
        (_inline_data, ImageError, "a file is encrypted or stored within its inode"),
        (_control_character, ConfigurationError, r"dhclient\\neth0\.leases can't be changed"),
        (_no_system, ConfigurationError, "no operating system that can be generalised"),
    ],
)
def test_a_disk_that_could_be_spoilt_is_refused(
    damage: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.raw"
    # Without checksums, so that a name can be changed in place.
    make_linux_disk(disk, make_traces(4), mke2fs=("-O", "^metadata_csum"))
    damage(disk)
    image = packed(disk)
    with pytest.raises(error, match=message):
        generalised(image, tmp_path / "new.dci")
    assert not (tmp_path / "new.dci").exists()


def test_evidence_and_the_image_itself_are_refused(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    make_linux_disk(disk, make_traces(5))
    image = packed(disk)
    with pytest.raises(ConfigurationError, match="choose another output"):
        generalised(image, image)
    evidence = pack_image(disk, tmp_path / "evidence.dci", PackOptions(every_byte=True)).path
    with pytest.raises(ConfigurationError, match="is evidence"):
        generalised(evidence, tmp_path / "new.dci")


def test_a_file_with_a_further_name_stays_under_it(tmp_path: Path) -> None:
    disk, raw = tmp_path / "disk.raw", tmp_path / "new.raw"
    traces = make_traces(6)
    make_linux_disk(disk, traces)
    part = extract(disk, *ROOT, tmp_path / "part.raw")
    commands = "ln /var/log/syslog /home/ada/kept\nset_inode_field /var/log/syslog links_count 2\n"
    subprocess.run(
        ["debugfs", "-w", "-f", "-", part], input=commands.encode(), capture_output=True, check=True
    )
    _patch(disk, ROOT[0], lambda _: part.read_bytes(), ROOT[1])
    result = generalised(packed(disk), tmp_path / "new.dci")
    raw.write_bytes(raw_of(result.path))
    check_filesystem(raw, ROOT)
    assert files_of(raw, ROOT).read_file_untrusted("home/ada/kept", MIB) == traces.personal["var/log/syslog"]


@pytest.mark.needs_root
@pytest.mark.skipif(shutil.which("ntfs-3g") is None, reason="needs ntfs-3g")
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE", ""),
        (
            "IMAGE_STATE_COMPLETE",
            "the disk: Windows isn't generalised .ImageState IMAGE_STATE_COMPLETE.: run `sysprep",
        ),
        ("", "no operating system that can be generalised"),
    ],
)
def test_windows_is_only_examined(state: str, message: str, tmp_path: Path) -> None:
    disk = tmp_path / "windows.raw"
    with disk.open("wb") as file:
        file.truncate(20 * MIB)
    subprocess.run(["mkntfs", "-q", "-F", disk], capture_output=True, check=True)
    if state:
        with mounted_ntfs(disk) as point:
            folder = point / "Windows/Setup/State"
            folder.mkdir(parents=True)
            (folder / "State.ini").write_text(f"[State]\r\nImageState={state}\r\n")
    image = packed(disk)
    if message:
        with pytest.raises(ConfigurationError, match=message):
            generalised(image, tmp_path / "new.dci")
        return
    result = generalised(image, tmp_path / "new.dci")
    assert (result.systems, result.changes, result.changed_blocks) == (("Windows",), (), 0)
    assert raw_of(result.path) == raw_of(image)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_state_file_has_any_encoding_of_windows(encoding: str) -> None:
    text = "[State]\r\nImageState=IMAGE_STATE_GENERALIZE_RESEAL_TO_AUDIT\r\n"
    assert parse_state_untrusted(text.encode(encoding)).generalised
    assert "unknown" in parse_state_untrusted(b"[State]").problem


def test_the_root_filesystem_keeps_its_identity(tmp_path: Path) -> None:
    disk, raw = tmp_path / "disk.raw", tmp_path / "new.raw"
    make_linux_disk(disk, make_traces(7))
    raw.write_bytes(raw_of(generalised(packed(disk), tmp_path / "new.dci").path))
    part = extract(raw, *ROOT, tmp_path / "part.raw")
    report = subprocess.run(["blkid", "-p", part], capture_output=True, text=True, check=True).stdout
    assert ROOT_UUID in report
