"""Fitting an image to disk and machine: decisions, commands for the tools, and parsing of their output."""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.disk.disk_layout import DiskLayout, Partition, TableKind
from protocol.errors import ConfigurationError, MissingDependencyError
from receiver.disk.fit import efi, programs
from receiver.disk.fit.efi import (
    BootEntries,
    BootEntry,
    WantedEntry,
    create_argv,
    delete_argv,
    has_entry,
    loader_name,
    new_order,
    order_argv,
    parse_entries,
)
from receiver.disk.fit.filesystem import check_size, filesystem_bytes_untrusted, has_driver
from receiver.disk.fit.fit_target import fit_tools
from receiver.disk.fit.programs import (
    StepError,
    UninterruptedWork,
    last_lines,
    require_programs,
    run_program,
)
from receiver.disk.fit.table import (
    growth_obstacle,
    has_backup_at_end_untrusted,
    move_backup_argv,
    plan_growth,
    resize_argv,
    resize_text,
    usable_stop_bytes_untrusted,
)
from tests.support.network.lab import LIMIT_S

GIB = 1024 * MIB
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
DISK = Path("/proc/12/fd/7")


def gpt(*partitions: Partition, sector_bytes: int = 512) -> DiskLayout:
    return DiskLayout(TableKind.GPT, sector_bytes, partitions)


def mbr(*partitions: Partition) -> DiskLayout:
    return DiskLayout(TableKind.MBR, 512, partitions)


ROOT = Partition(2, 100 * MIB, 900 * MIB, LINUX, filesystem="ext4")
SYSTEM = Partition(1, MIB, 99 * MIB, ESP, filesystem="vfat")


# -- growth of the last partition -------------------------------------------------------------------------------


def test_a_partition_grows_to_the_last_whole_mebibyte_before_the_backup_table() -> None:
    growth = plan_growth(gpt(SYSTEM, ROOT), 8 * GIB)
    assert (growth.partition, growth.stop_bytes) == (ROOT, 8 * GIB - MIB)
    assert growth.grows_partition
    assert growth.name == "partition 2 (ext4)"


def test_a_partition_grows_no_further_than_the_table_allows() -> None:
    growth = plan_growth(gpt(SYSTEM, ROOT), 8 * GIB, usable_stop_bytes=6 * GIB + 77)
    assert growth.stop_bytes == 6 * GIB


def test_a_partition_that_already_ends_behind_the_last_whole_mebibyte_is_not_shortened() -> None:
    stop_bytes = GIB - 34 * 512
    last = Partition(2, 100 * MIB, stop_bytes - 100 * MIB, LINUX, filesystem="ext4")
    growth = plan_growth(gpt(last), GIB)
    assert not growth.grows_partition
    assert growth.stop_bytes == stop_bytes


def test_the_last_partition_is_the_one_that_ends_last_whatever_its_number() -> None:
    late = Partition(1, 2 * GIB, GIB, LINUX, filesystem="xfs")
    assert plan_growth(gpt(late, ROOT), 8 * GIB).partition == late


def test_an_mbr_partition_ends_where_its_numbers_do() -> None:
    growth = plan_growth(mbr(Partition(1, MIB, GIB, "0x83", filesystem="ext4")), 4096 * GIB)
    assert growth.stop_bytes == 2048 * GIB


def test_a_logical_partition_takes_the_extended_one_along() -> None:
    extended = Partition(2, GIB, 3 * GIB, "0x05")
    logical = Partition(5, GIB + MIB, 3 * GIB - MIB, "0x83", filesystem="ext4")
    layout = mbr(Partition(1, MIB, GIB - MIB, "0x83", filesystem="ext4"), extended, logical)
    assert growth_obstacle(layout) == ""
    growth = plan_growth(layout, 8 * GIB)
    assert (growth.partition, growth.container, growth.stop_bytes) == (logical, extended, 8 * GIB)


def test_a_filesystem_without_a_table_takes_the_whole_target() -> None:
    layout = DiskLayout(TableKind.NONE, 512, (), filesystem="xfs")
    growth = plan_growth(layout, GIB + 512)
    assert (growth.partition, growth.start_bytes, growth.size_bytes) == (None, 0, GIB + 512)
    assert not growth.grows_partition


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (gpt(), "no partition"),
        (DiskLayout(TableKind.NONE, 512, ()), "no partition table, and the filesystem is unknown"),
        (DiskLayout(TableKind.NONE, 512, (), filesystem="exfat"), "the filesystem is exfat"),
        (gpt(ROOT, Partition(3, 2 * GIB, GIB, "E6D6D379-F507-44C2-A23C-238F2A3DF928")), "LVM"),
        (gpt(ROOT, Partition(3, 2 * GIB, GIB, "CA7D7CCB-63ED-4C53-861C-1742536059CC")), "LUKS"),
        (
            gpt(ROOT, Partition(3, 2 * GIB, GIB, "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC", filesystem="ntfs")),
            "recovery",
        ),
        (mbr(Partition(1, MIB, GIB, "0x27", filesystem="ntfs")), "recovery"),
        (mbr(Partition(1, MIB, GIB, "0x82", filesystem="swap")), "swap"),
        (
            mbr(Partition(1, MIB, GIB, "0x83", filesystem="ext4"), Partition(2, 2 * GIB, GIB, "0x05")),
            "extended",
        ),
    ],
)
def test_what_must_not_grow_has_a_reason(layout: DiskLayout, reason: str) -> None:
    assert reason in growth_obstacle(layout)


# -- commands for the tools -------------------------------------------------------------------------------------


def test_sfdisk_neither_asks_the_kernel_nor_tells_it_and_wipes_nothing() -> None:
    never = ["--wipe", "never", "--wipe-partitions", "never"]
    quiet = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", *never]
    assert move_backup_argv(DISK) == [*quiet, "--relocate", "gpt-bak-std", "/proc/12/fd/7"]
    assert resize_argv(DISK, 3) == [*quiet, "-N", "3", "/proc/12/fd/7"]


def test_a_partitions_place_is_said_in_the_disks_own_sectors() -> None:
    assert resize_text(MIB, 3 * MIB, 512) == "start=2048, size=4096\n"
    assert resize_text(MIB, 3 * MIB, 4096) == "start=256, size=512\n"


# -- a GPT's ends -------------------------------------------------------------------------------------------------


def _header(own: int, other: int, last_usable: int) -> bytes:
    sectors = (own, other, 34, last_usable)
    fields = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *sectors, bytes(16), 2, 128, 128, 0
    )
    return (fields[:16] + struct.pack("<I", zlib.crc32(fields)) + fields[20:]).ljust(512, b"\0")


def _disk_with(headers: dict[int, bytes], sectors: int) -> Callable[[int, int], bytes]:
    content = bytearray(sectors * 512)
    for sector, header in headers.items():
        content[sector * 512 : sector * 512 + 512] = header
    return lambda offset, length: bytes(content[offset : offset + length])


@pytest.mark.parametrize(
    ("headers", "at_end"),
    [
        ({1: _header(1, 199, 166), 199: _header(199, 1, 166)}, True),
        ({1: _header(1, 99, 66), 99: _header(99, 1, 66)}, False),  # at the image's end
        ({1: _header(1, 99, 66), 199: _header(199, 1, 166)}, False),  # of what was on the disk before
        ({1: _header(1, 199, 166)}, False),
        ({1: _header(1, 199, 166), 199: _header(198, 1, 166)}, False),
        ({1: _header(1, 199, 166), 199: b"EFI PART" + bytes(504)}, False),
        ({199: _header(199, 1, 166)}, False),
    ],
)
def test_a_backup_counts_only_where_it_belongs(headers: dict[int, bytes], at_end: bool) -> None:
    assert has_backup_at_end_untrusted(_disk_with(headers, 200), 200 * 512, 512) is at_end


def test_garbage_says_nothing_of_a_gpt() -> None:
    assert usable_stop_bytes_untrusted(_disk_with({}, 200), 512) is None
    assert usable_stop_bytes_untrusted(lambda _offset, _length: b"", 512) is None
    assert usable_stop_bytes_untrusted(_disk_with({1: _header(1, 199, 166)}, 200), 512) == 167 * 512


# -- size of a filesystem --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "ntfs", "vfat"])
@pytest.mark.parametrize("content", [b"", bytes(128 * 1024), b"\xff" * 128 * 1024])
def test_a_size_is_read_from_any_bytes(kind: str, content: bytes) -> None:
    assert filesystem_bytes_untrusted(lambda at, n: content[at : at + n], kind) >= 0


def test_a_filesystem_that_does_not_fill_its_place_is_not_grown() -> None:
    block = bytearray(2048)
    struct.pack_into("<I", block, 1024 + 4, 10 * 1024)  # blocks of 1 KiB
    with pytest.raises(StepError, match=r"has 10\.0 MiB instead of 100\.0 MiB"):
        check_size(lambda at, n: bytes(block[at : at + n]), "ext4", 100 * MIB)
    assert check_size(lambda at, n: bytes(block[at : at + n]), "ext4", 11 * MIB) == 10 * MIB


def test_a_driver_is_found_in_the_kernel_or_among_its_modules(tmp_path: Path) -> None:
    proc, modules = tmp_path / "proc", tmp_path / "modules"
    (proc / "sys/kernel").mkdir(parents=True)
    (proc / "sys/kernel/osrelease").write_text("6.1.0\n")
    (proc / "filesystems").write_text("nodev\tsysfs\n\text4\n")
    assert has_driver("ext4", proc=proc, modules=modules)
    assert not has_driver("xfs", proc=proc, modules=modules)
    (modules / "6.1.0").mkdir(parents=True)
    (modules / "6.1.0/modules.dep").write_text("kernel/fs/xfs/xfs.ko.xz: kernel/lib/libcrc32c.ko.xz\n")
    (modules / "6.1.0/modules.builtin").write_text("kernel/fs/btrfs/btrfs.ko\n")
    assert has_driver("xfs", proc=proc, modules=modules)
    assert has_driver("btrfs", proc=proc, modules=modules)
    assert not has_driver("fs", proc=proc, modules=modules)


# -- the firmware's entries -----------------------------------------------------------------------------------------

GUID = "2191e1b3-de22-f643-9be8-c2de5e6ec5fd"

VERSION_17 = rf"""BootCurrent: 0003
Timeout: 1 seconds
BootOrder: 0003,0001,0000
Boot0000* UEFI: Built-in EFI Shell	VenMedia(5023b95c-db26-429b-a648-bd47664c8012)..BO
Boot0001* My lab	HD(1,GPT,{GUID},0x800,0x8000)/File(\EFI\BOOT\BOOTX64.EFI)
Boot0002  Floppy	BBS(Floppy,,0x0)
Boot0003* UEFI: PXE IPv4 Intel(R)	PciRoot(0x0)/Pci(0x1f,0x6)/MAC(525400123456,0)/IPv4(0.0.0.0:0<->0.0.0.0:0,0,0)..BO
"""
r"""Version 17 (Debian 12), ``--verbose``."""

VERSION_18 = rf"""BootCurrent: 0003
Timeout: 1 seconds
BootOrder: 0003,0001
Boot0001* My lab	HD(1,GPT,{GUID},0x800,0x8000)/\EFI\BOOT\BOOTX64.EFI
      dp: 04 01 2a 00 01 00 00 00 00 08 00 00 00 00 00 00 00 80 00 00 00 00 00 00
    data: 00
Boot0003* UEFI: PXE IPv4 Intel(R)	PciRoot(0x0)/Pci(0x1f,0x6)/MAC(525400123456,0)
"""
r"""Version 18, which leaves ``File()`` out and adds the raw path."""

WANTED = WantedEntry(
    "My lab", Partition(1, MIB, 16 * MIB, ESP, filesystem="vfat"), GUID.upper(), r"\EFI\BOOT\BOOTX64.EFI", 512
)


@pytest.mark.parametrize("output", [VERSION_17, VERSION_18])
def test_the_entry_that_is_there_is_recognised(output: str) -> None:
    listing = parse_entries(output)
    assert listing.order[:2] == ("0003", "0001")
    entry = next(entry for entry in listing.entries if entry.number == "0001")
    assert (entry.label, entry.active) == ("My lab", True)
    assert has_entry(WANTED, listing)


def test_labels_and_inactive_entries_are_read_as_they_are() -> None:
    entries = parse_entries(VERSION_17).entries
    assert [entry.label for entry in entries] == [
        "UEFI: Built-in EFI Shell", "My lab", "Floppy", "UEFI: PXE IPv4 Intel(R)",
    ]  # fmt: skip
    assert [entry.active for entry in entries] == [True, True, False, True]


def test_firmware_without_any_entry() -> None:
    assert parse_entries("No BootOrder is set; firmware will attempt recovery\n") == BootEntries((), ())


@pytest.mark.parametrize(
    "change",
    [
        ("BootOrder: 0003,0001,0000", "BootOrder: 0003,0000"),
        ("Boot0001* ", "Boot0001  "),
        (GUID, GUID.replace("2", "3")),
        ("0x800,0x8000", "0x800,0x9000"),
        ("HD(1,", "HD(2,"),
        ("BOOTX64", "SHIMX64"),
        ("Boot0002  Floppy", "Boot0002* My lab"),
    ],
)
def test_an_entry_that_boots_something_else_or_nothing_is_made_anew(change: tuple[str, str]) -> None:
    assert change[0] in VERSION_17
    assert not has_entry(WANTED, parse_entries(VERSION_17.replace(*change)))


def test_an_entry_of_an_mbr_is_always_made_anew() -> None:
    """An MBR's signature doesn't distinguish the partitions of cloned disks."""
    wanted = WantedEntry(WANTED.label, WANTED.partition, "", WANTED.loader, 512)
    assert not has_entry(wanted, parse_entries(VERSION_17))


def test_efibootmgr_is_told_disk_partition_label_and_loader_without_a_shell() -> None:
    assert create_argv(DISK, WANTED) == [
        "efibootmgr", "--create", "--disk", "/proc/12/fd/7", "--part", "1", "--label", "My lab",
        "--loader", r"\EFI\BOOT\BOOTX64.EFI",
    ]  # fmt: skip
    assert delete_argv("00A1") == ["efibootmgr", "--bootnum", "00A1", "--delete-bootnum"]
    assert order_argv(("0003", "0001")) == ["efibootmgr", "--bootorder", "0003,0001"]


def _entries(labels: dict[str, str], *order: str) -> BootEntries:
    return BootEntries(tuple(BootEntry(number, True, label, "") for number, label in labels.items()), order)


def test_a_replaced_entry_keeps_its_place_behind_the_network() -> None:
    before = _entries(
        {"0001": "net", "0002": "lab", "0003": "lab", "0004": "cd"}, "0001", "0002", "0004", "0003"
    )
    after = _entries({"0001": "net", "0005": "lab", "0004": "cd"}, "0005", "0001", "0004")
    assert new_order(before, after, "lab") == ("0001", "0005", "0004")


def test_a_new_entry_stays_where_efibootmgr_puts_it() -> None:
    before = _entries({"0001": "net"}, "0001")
    assert new_order(before, _entries({"0001": "net", "0002": "lab"}, "0002", "0001"), "lab") is None


def test_an_order_that_is_right_is_not_written_again() -> None:
    before = _entries({"0001": "lab", "0002": "net"}, "0001", "0002")
    assert new_order(before, _entries({"0002": "net", "0003": "lab"}, "0003", "0002"), "lab") is None


def test_the_loader_is_the_one_this_kind_of_firmware_looks_for() -> None:
    assert loader_name("x86_64", 64) == "BOOTX64.EFI"
    assert loader_name("x86_64", 32) == "BOOTIA32.EFI"
    assert loader_name("aarch64", 64) == "BOOTAA64.EFI"
    with pytest.raises(ConfigurationError, match="vax"):
        loader_name("vax", 32)


@pytest.mark.parametrize("label", ["", " ", "two\nlines", "tab\there", "x" * 65, " padded"])
def test_a_label_that_no_firmware_could_show_is_refused(label: str) -> None:
    with pytest.raises(ConfigurationError, match="label"):
        efi.check_label(label)


def test_unreachable_firmware_variables_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efi, "FIRMWARE", tmp_path)
    (tmp_path / "efivars").mkdir()
    with pytest.raises(ConfigurationError, match="mount -t efivarfs"):
        efi.check_firmware()


# -- running tools ---------------------------------------------------------------------------------------------------


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_tool_that_fails_is_named_with_its_last_lines() -> None:
    with pytest.raises(StepError, match=r"failed \(exit code 3\): two / three$"):
        run_program(
            _python("import sys; print('two', flush=True); print('three', file=sys.stderr); sys.exit(3)"),
            time_limit_s=60,
        )


def test_a_tool_that_hangs_is_ended() -> None:
    with pytest.raises(StepError, match=r"didn't finish within 0\.1 s: "):
        run_program(_python("import time; print('begun', flush=True); time.sleep(600)"), time_limit_s=0.1)


def test_a_tool_ended_by_a_signal_has_failed() -> None:
    with pytest.raises(StepError, match="signal 9"):
        run_program(_python("import os; os.kill(os.getpid(), 9)"), time_limit_s=60)


def test_a_tool_that_prints_without_end_costs_no_memory() -> None:
    output = run_program(_python("print('x' * 4_000_000); print('end')"), time_limit_s=60)
    assert output.endswith("end\n")
    assert len(output) <= 256 * 1024


def test_a_tool_reads_its_input_and_speaks_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    code = "import os, sys; print(sys.stdin.read(), os.environ['LC_ALL'])"
    assert run_program(_python(code), text="start=1", time_limit_s=60) == "start=1 C\n"


def test_a_tool_that_does_not_read_its_input_is_judged_by_its_exit_code() -> None:
    assert run_program(_python("pass"), text="x" * 200_000, time_limit_s=60) == ""


def test_a_tool_is_out_of_reach_of_the_terminals_ctrl_c() -> None:
    assert run_program(_python("import os; print(os.getsid(0))"), time_limit_s=60) != f"{os.getsid(0)}\n"


def test_a_tool_goes_on_when_its_reader_was_killed() -> None:
    """Printing into a closed pipe would kill the tool in the middle of its work."""
    ignored = run_program(["grep", "SigIgn", "/proc/self/status"], time_limit_s=60).split()[1]
    assert int(ignored, 16) >> (signal.SIGPIPE - 1) & 1


def test_a_tool_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_SYSTEM_PATH", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StepError, match=r"sgdisk isn't installed \(Debian package gdisk\)"):
        run_program(["sgdisk", "--version"], time_limit_s=60)
    with pytest.raises(MissingDependencyError, match="apt install fdisk gdisk"):
        require_programs(["sfdisk", "sgdisk"], "looking")


def test_last_lines_are_those_a_person_can_read() -> None:
    output = "1 percent\r2 percent\r\n\x1b[1mbold\x1b[0m\n\n  end\b\b \n"
    assert last_lines(output) == "1 percent / 2 percent / bold / end"
    assert last_lines("\n\n") == "no output"
    assert len(last_lines("x" * 10_000)) == 400


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_work_between_two_steps() -> None:
    steps = []

    def work(check: Callable[[], None]) -> None:
        steps.append("one")
        os.kill(os.getpid(), signal.SIGINT)
        while time.monotonic() < give_up_at:  # the main thread takes it when it does
            check()

    give_up_at = time.monotonic() + LIMIT_S
    with pytest.raises(KeyboardInterrupt):
        UninterruptedWork(work).run()
    assert steps == ["one"]


def test_work_hands_back_its_result_and_its_errors() -> None:
    assert UninterruptedWork(lambda _check: 5).run() == 5

    def fails(_check: Callable[[], None]) -> None:
        raise StepError("why")

    with pytest.raises(StepError, match="why"):
        UninterruptedWork(fails).run()


def test_the_doctor_is_told_every_purpose_with_its_package() -> None:
    tools = fit_tools()
    assert {package for _, _, package in tools} == {
        "fdisk", "gdisk", "e2fsprogs", "xfsprogs", "btrfs-progs", "ntfs-3g", "efibootmgr", "mtools",
    }  # fmt: skip
    assert all(purpose and isinstance(installed, bool) for purpose, installed, _ in tools)
