"""The first stage's checks under busybox's shell: if these fail, half a system starts, or none says why.

Each function reads files that the test writes; ``root.sqfs`` is a real squashfs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import receiver.live
from receiver.live.disk_state import DiskState, note_disk_state
from receiver.live.messages import (
    MESSAGES,
    OLD_PROCESSOR,
    PROGRAM_FAILED,
    PROGRAM_KILLED,
    ROOT_CUT,
    ROOT_DAMAGED,
    ROOT_MISSING,
    ROOT_WITHOUT_CHECKSUM,
    TOO_LITTLE_MEMORY,
    BootMessage,
)

CHECKS = Path(receiver.live.__file__).parent / "files/initrd/checks.sh"
ENDING = CHECKS.parents[1] / "root/usr/lib/diskcast/ending.sh"
BUSYBOX = shutil.which("busybox")
pytestmark = pytest.mark.skipif(BUSYBOX is None, reason="busybox isn't installed (busybox-static)")

FLAGS = "fpu sse sse2 pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"


def check(call: str, *arguments: object) -> str:
    """Return the reason that a check gives; empty if it passes."""
    script = f'. "{CHECKS}"; if {call} "$@"; then echo ok; else echo "refused: $reason"; fi'
    done = subprocess.run(
        [str(BUSYBOX), "sh", "-c", script, "sh", *map(str, arguments)],
        env={"BUSYBOX": str(BUSYBOX)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    line = done.stdout.strip()
    return "" if line == "ok" else line.removeprefix("refused: ")


def assert_is(reason: str, message: BootMessage) -> None:
    assert [known for known in MESSAGES if known.matches(reason) and known.template != "{error}"] == [message]


def cpuinfo(folder: Path, flags: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(
        f"processor\t: 0\nmodel name\t: some\nflags\t\t: {flags}\nbugs\t\t: none\n\nflags\t\t: none\n"
    )
    return path


def test_a_processor_with_everything_passes(tmp_path: Path) -> None:
    assert check("check_processor", cpuinfo(tmp_path, FLAGS)) == ""


def test_an_old_processor_is_refused_with_what_it_hasnt(tmp_path: Path) -> None:
    core2duo = "fpu sse sse2 pni ssse3 cx16 lahf_lm"
    reason = check("check_processor", cpuinfo(tmp_path, core2duo))
    assert reason == "this processor is too old: it has no popcnt, sse4_1, sse4_2 (x86-64-v2 needed)"
    assert_is(reason, OLD_PROCESSOR)


def test_a_flag_that_only_starts_alike_doesnt_count(tmp_path: Path) -> None:
    assert "no sse4_1 " in check("check_processor", cpuinfo(tmp_path, FLAGS.replace("sse4_1", "sse4_1x")))


def test_another_architecture_passes(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert check("check_processor", path) == ""


def iomem(folder: Path, memory_mb: int) -> Path:
    """Return a map as a BIOS gives it: the first megabyte has a hole, and the end is the firmware's."""
    end = memory_mb * 2**20 - 0x20000 - 1
    path = folder / "iomem"
    path.write_text(
        "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n000f0000-000fffff : Reserved\n"
        f"00100000-{end:08x} : System RAM\n  01000000-01e00e50 : Kernel code\nb0000000-bfffffff : PCI ECAM\n"
    )
    return path


def squashfs(folder: Path, content_bytes: int = 3 << 20) -> Path:
    source, image = folder / "tree", folder / "root.sqfs"
    source.mkdir()
    (source / "content").write_bytes(hashlib.shake_128(b"seed").digest(content_bytes))
    subprocess.run(
        ["mksquashfs", source, image, "-noappend", "-quiet", "-no-progress", "-processors", "1"], check=True
    )
    return image


needs_mksquashfs = pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="needs squashfs-tools")


def test_little_memory_is_refused_with_both_figures(tmp_path: Path) -> None:
    reason = check("check_memory", iomem(tmp_path, 256), tmp_path / "none", tmp_path / "none")
    assert reason == "too little memory: 256 MB, 320 MB needed"
    assert_is(reason, TOO_LITTLE_MEMORY)


@pytest.mark.parametrize("memory_mb", [320, 384, 512, 16384])
def test_enough_memory_passes(tmp_path: Path, memory_mb: int) -> None:
    assert check("check_memory", iomem(tmp_path, memory_mb), tmp_path / "none", tmp_path / "none") == ""


def test_a_kernel_that_shows_no_memory_map_passes(tmp_path: Path) -> None:
    path = tmp_path / "iomem"
    path.write_text("00000000-00000000 : Reserved\n")
    assert check("check_memory", path, tmp_path / "none", tmp_path / "none") == ""


@needs_mksquashfs
def test_firmware_and_a_large_live_system_need_more(tmp_path: Path) -> None:
    image = squashfs(tmp_path)
    (tmp_path / "firmware").mkdir()
    with (tmp_path / "firmware/big").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 100 << 20)  # blocks without writing them
    reason = check("check_memory", iomem(tmp_path, 320), image, tmp_path / "firmware")
    assert reason == "too little memory: 320 MB, 384 MB needed"


@needs_mksquashfs
def test_an_intact_root_passes_by_either_checksum(tmp_path: Path) -> None:
    image = squashfs(tmp_path)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    (tmp_path / "root.sha256").write_text(f"{digest}  root.sqfs\n")
    (tmp_path / "cmdline").write_text("quiet\n")
    (tmp_path / "given").write_text(f"quiet diskcast.sha256={'0' * 64} diskcast.sha256={digest}\n")
    assert check("check_root", image, tmp_path / "root.sha256", tmp_path / "cmdline") == ""
    assert check("check_root", image, tmp_path / "missing", tmp_path / "given") == ""


@needs_mksquashfs
def test_one_flipped_bit_is_named(tmp_path: Path) -> None:
    image = squashfs(tmp_path)
    content = bytearray(image.read_bytes())
    digest = hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1
    image.write_bytes(content)
    (tmp_path / "root.sha256").write_text(f"{digest}  root.sqfs\n")
    (tmp_path / "cmdline").write_text("quiet\n")
    reason = check("check_root", image, tmp_path / "root.sha256", tmp_path / "cmdline")
    assert reason == (
        f"root.sqfs is damaged: SHA-256 {hashlib.sha256(content).hexdigest()[:16]}, expected {digest[:16]}"
    )
    assert_is(reason, ROOT_DAMAGED)


@needs_mksquashfs
def test_a_cut_root_is_named_with_both_sizes(tmp_path: Path) -> None:
    image = squashfs(tmp_path)
    (tmp_path / "cmdline").write_text("quiet\n")
    with image.open("r+b") as file:
        file.truncate(1 << 20)
    reason = check("check_root", image, tmp_path / "missing", tmp_path / "cmdline")
    assert reason.startswith("the initrd is cut short: 1048576 of 3")
    assert_is(reason, ROOT_CUT)


@needs_mksquashfs
def test_a_root_with_a_hole_instead_of_its_end_is_cut_too(tmp_path: Path) -> None:
    """The kernel unpacks a cut cpio so: the file has its full size, and zeros behind what arrived."""
    image = squashfs(tmp_path)
    size_bytes = image.stat().st_size
    (tmp_path / "cmdline").write_text("quiet\n")
    with image.open("r+b") as file:
        file.truncate(1 << 20)
        file.truncate(size_bytes)
    assert_is(check("check_root", image, tmp_path / "missing", tmp_path / "cmdline"), ROOT_CUT)


def test_a_missing_or_empty_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_text("quiet\n")
    for name in ("missing", "empty"):
        (tmp_path / "empty").touch()
        reason = check("check_root", tmp_path / name, tmp_path / "root.sha256", tmp_path / "cmdline")
        assert_is(reason, ROOT_MISSING)


@needs_mksquashfs
def test_a_root_without_a_checksum_isnt_started(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_text("quiet diskcast.sha256=\n")
    reason = check("check_root", squashfs(tmp_path), tmp_path / "missing", tmp_path / "cmdline")
    assert_is(reason, ROOT_WITHOUT_CHECKSUM)


def test_the_scripts_are_executable_and_parse() -> None:
    files = CHECKS.parents[1]
    scripts = [files / "initrd/init", files / "root/init", files / "root/usr/lib/diskcast/udhcpc.sh"]
    for script in (*scripts, CHECKS, ENDING):
        subprocess.run([str(BUSYBOX), "sh", "-n", script], check=True)
    assert all(script.stat().st_mode & 0o111 for script in scripts)


# -- the end of the program -----------------------------------------------------------------------------------------


def end_lines(code: int, state_file: Path) -> list[str]:
    """Return the lines that process 1 prints when the program has ended."""
    script = f'say() {{ echo "$@"; }}; . "{ENDING}"; say_end {code} "{state_file}"'
    done = subprocess.run([str(BUSYBOX), "sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(("code", "message"), [(1, PROGRAM_FAILED), (137, PROGRAM_KILLED)])
def test_a_crash_is_named_and_what_it_means_for_the_disk(
    code: int, message: BootMessage, disk_state_file: Path
) -> None:
    """The program isn't started again: its boot token is used up, and a new boot gets a new one."""
    reason, following = end_lines(code, disk_state_file)
    assert_is(reason, message)
    assert following == "nothing was written; restart in 60 s"
    note_disk_state(DiskState.INCOMPLETE)
    assert end_lines(code, disk_state_file)[1] == "a disk may be incomplete; restart in 60 s"


def test_a_program_that_ended_by_itself_has_said_why(disk_state_file: Path) -> None:
    assert end_lines(0, disk_state_file) == ["nothing was written; restart in 60 s"]
