"""Attacks by the filesystems in an image: the image is signed, but was made from a disk that an attacker could write.

Each test uses the real tools on a real claimed disk, as after a cast with ``--grow`` or ``--efi-entry``.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import FitError
from receiver.disk.fit import efi
from receiver.disk.fit.fit_target import FitOptions
from sender.imaging.pack import PackOptions, pack_image
from tests.support.disks.devices import loop_device
from tests.support.disks.larger_disk import (
    ESP,
    GROW,
    LINUX,
    Disk,
    Part,
    make_disk,
    make_filesystem,
    opened,
    partition_of,
    place,
)
from tests.support.network.lab import LIMIT_S, Program, diskcast_agent, run
from tests.support.programs.tool_folder import tool_folder

pytestmark = pytest.mark.needs_root


@pytest.fixture
def tools() -> Iterator[Path]:
    """Provide a folder of tools that every user can reach, as that of the system."""
    with tool_folder() as folder:
        yield folder


@pytest.fixture
def mounts(tools: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Record each mount of a device; the record exists only after the first."""
    record = tools / "mounted"
    script = tools / "mount"
    # Confined tools can't write files, but root may create an empty one.
    script.write_text(f'#!/bin/sh\n[ "$1" = -t ] && : >> {record}\nexec {shutil.which("mount")} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return record


def damage(disk: Disk, number: int, offset_bytes: int, content: bytes) -> None:
    with disk.backing.open("r+b") as file:
        file.seek(disk.span(number)[0] + offset_bytes)
        file.write(content)


OTHER = b"another disk\n" * (4 * MIB // 16)

EXPLOIT = """#!/bin/bash
# Each line that succeeds adds a word.
exec 4>&2 2>/dev/null
done=
(printf owned > {other}) && done+=" wrote-other-disk"
head -c 512 {other} | grep -qa . && done+=" read-other-disk"
(exec 3<>/dev/tcp/127.0.0.1/{port}) && done+=" called-home"
(printf owned > {canary}) && done+=" wrote-file"
(: > {canary}.new) && done+=" made-file"
kill -0 {agent} && done+=" signalled-agent"
(head -c 1 < /proc/{agent}/environ) >/dev/null && done+=" read-agent"
[ -n "$DISKCAST_TOKEN" ] && done+=" read-token"
exec 2>&4
echo "exploit:$done end" {where}
exit 9
"""


def put_exploit(path: Path, other: Path, server: socket.socket, canary: Path, where: str = "") -> None:
    port = server.getsockname()[1]
    path.write_text(EXPLOIT.format(other=other, port=port, canary=canary, agent=os.getpid(), where=where))
    path.chmod(0o755)


@pytest.mark.parametrize(("kind", "tool"), [("ext4", "e2fsck"), ("ntfs", "ntfsresize"), ("btrfs", "btrfs")])
def test_code_that_a_filesystem_runs_in_its_tool_reaches_nothing_else(
    tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tool: str
) -> None:
    """A flaw in a filesystem tool would give an image the machine: its other disks, its network, the agent's token."""
    disk = make_disk(tmp_path, [partition_of(kind)], size_mib=300)
    (tmp_path / "other").write_bytes(OTHER)
    canary = tools / "canary"
    canary.touch()
    canary.chmod(0o666)
    with loop_device(tmp_path / "other") as other, socket.create_server(("127.0.0.1", 0)) as server:
        put_exploit(tools / tool, other, server, canary)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        monkeypatch.setenv("DISKCAST_TOKEN", "dct_enrol_secret")
        with pytest.raises(FitError, match=r"failed with code 9: exploit: end; the image on it is complete"):
            disk.fit(GROW)
    assert (tmp_path / "other").read_bytes() == OTHER
    assert sorted(path.name for path in tools.iterdir()) == sorted(["canary", tool])
    assert not canary.read_bytes()


def test_a_source_that_is_packed_is_read_by_tools_that_reach_nothing_else(
    tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden disk comes from a classroom: packing it as root must not give it the operator's machine."""
    disk = make_disk(tmp_path, [partition_of("xfs")], size_mib=310)
    (tmp_path / "other").write_bytes(OTHER)
    canary = tools / "canary"
    canary.touch()
    canary.chmod(0o666)
    with loop_device(tmp_path / "other") as other, socket.create_server(("127.0.0.1", 0)) as server:
        put_exploit(tools / "xfs_logprint", other, server, canary, where=">&2")
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        (area,) = pack_image(disk.backing, tmp_path / "image.dci", PackOptions()).areas
    assert area.kept_because.endswith("failed with code 9: exploit: end")
    assert (tmp_path / "other").read_bytes() == OTHER


@pytest.mark.parametrize("kind", ["ext4", "ntfs"])
def test_a_filesystem_that_its_own_tools_grow_is_never_mounted(
    tmp_path: Path, mounts: Path, kind: str
) -> None:
    """The kernel's filesystem drivers aren't made for hostile disks: a flaw there is a flaw of the whole machine."""
    disk = make_disk(tmp_path, [partition_of(kind)], size_mib=120)
    assert "was grown" in disk.fit(GROW)[-1]
    assert not mounts.exists()


@pytest.mark.parametrize(
    ("kind", "offset_bytes", "content", "reason"),
    [
        ("xfs", 8, b"\xff" * 8, "xfs_logprint|xfs_repair"),  # the number of blocks
        ("xfs", 512, b"\xff" * 128, "xfs_repair failed"),  # the header of the first group's free space
        ("btrfs", 65536 + 0x50, b"\xff" * 8, "btrfs failed"),  # the place of the root tree
        ("btrfs", 65536, b"\0" * 32, "btrfs failed"),  # the checksum
    ],
)
def test_a_corrupt_filesystem_is_refused_by_its_check_and_not_by_the_kernel(
    tmp_path: Path, mounts: Path, kind: str, offset_bytes: int, content: bytes, reason: str
) -> None:
    """A superblock made to crash the kernel would take down a room of machines, each after its cast."""
    disk = make_disk(tmp_path, [partition_of(kind)], size_mib=400)
    damage(disk, 1, offset_bytes, content)
    before = disk.span(1)
    with pytest.raises(FitError, match=f"{reason}.*the image on it is complete and verified"):
        disk.fit(GROW)
    assert not mounts.exists()
    assert disk.span(1) == before


def test_an_xfs_whose_log_has_changes_is_not_replayed(tmp_path: Path, mounts: Path) -> None:
    """The log is replayed by the kernel before any check: it can name any block of the filesystem."""
    disk = make_disk(tmp_path, [partition_of("xfs")], size_mib=400)
    start, size = disk.span(1)
    point = tmp_path / "look"
    point.mkdir()
    with loop_device(disk.backing, "--offset", str(start), "--sizelimit", str(size)) as device:
        run("mount", "-t", "xfs", device, point)
        try:
            (point / "file").write_text("content")
            run("xfs_io", "-x", "-c", "shutdown -f", point)
        finally:
            run("umount", point)
    mounts.unlink(missing_ok=True)
    with pytest.raises(FitError, match=r"its log has changes to replay.*complete and verified"):
        disk.fit(GROW)
    assert not mounts.exists()
    assert disk.span(1) == (start, size)


def test_a_label_cannot_write_to_the_operators_terminal(tmp_path: Path) -> None:
    """A label with escape sequences would set titles, fill the clipboard, or hide the error that names the disk."""
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    start, size = disk.span(1)
    with loop_device(disk.backing, "--offset", str(start), "--sizelimit", str(size)) as device:
        run("tune2fs", "-L", "\x1b]52;c;cm0=\x07\x1b[", device)
        run("debugfs", "-w", "-R", "clri <2>", device)
    with pytest.raises(FitError, match="e2fsck failed with code 4") as caught:
        disk.fit(GROW)
    assert str(caught.value).isprintable()


@pytest.fixture
def firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "efi"
    (directory / "efivars").mkdir(parents=True)
    (directory / "efivars/Lang-8be4df61-93ca-11d2-aa0d-00e098032b8c").touch()
    (directory / "fw_platform_size").write_text("64\n")
    monkeypatch.setattr(efi, "FIRMWARE", directory)
    monkeypatch.setenv("EFIVARFS_PATH", f"{directory}/efivars/")


@pytest.mark.usefixtures("firmware")
@pytest.mark.parametrize("link", ["EFI", "EFI/BOOT", "EFI/BOOT/BOOTX64.EFI"])
def test_a_symlink_in_an_efi_partition_leads_nowhere(tmp_path: Path, mounts: Path, link: str) -> None:
    """A link in the partition to the machine's own files would have them read, or taken for the image's loader."""
    disk = make_disk(tmp_path, [Part(34, ESP, "ext4"), Part(8, LINUX)], size_mib=60)
    outside = tmp_path / "outside/EFI/BOOT"
    outside.mkdir(parents=True)
    (outside / efi.local_loader_name()).touch()
    with opened(disk, "ext4", 1, tmp_path / "look", write=True) as point:
        (point / link).parent.mkdir(parents=True, exist_ok=True)
        (point / link).symlink_to(tmp_path / "outside" / link)
    mounts.unlink(missing_ok=True)
    with pytest.raises(FitError, match=r"EFI system partition \(1\) can't be read as FAT"):
        disk.fit(FitOptions(efi_label="Room"))
    assert not mounts.exists()


@pytest.mark.usefixtures("firmware")
def test_an_efi_partition_with_a_loop_of_clusters_ends_the_look(tmp_path: Path) -> None:
    """A directory whose clusters form a circle would keep the machine from ever being finished."""
    disk = make_disk(tmp_path, [Part(34, ESP), Part(8, LINUX)], size_mib=60)
    path = tmp_path / "part"
    make_filesystem(path, "vfat", 34 * MIB, 512)
    for name in ("::/EFI", "::/EFI/BOOT"):
        run("mmd", "-i", path, name)
    boot = path.read_bytes()
    sector_bytes, reserved = int.from_bytes(boot[11:13], "little"), int.from_bytes(boot[14:16], "little")
    with path.open("r+b") as file:
        file.seek(reserved * sector_bytes + 4)
        file.write(b"".join(number.to_bytes(2, "little") for number in (2, 3)))  # each its own successor
    place(path, disk.backing, MIB)
    with pytest.raises(FitError, match="isn't on the EFI system partition"):
        disk.fit(FitOptions(efi_label="Room"))


def test_31_no_tool_of_a_crashing_filesystem_leaves_a_core_dump(
    tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A core dump has parts of the image: a domain's secrets in a file that anyone may find."""
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    tool = tools / "e2fsck"
    tool.write_text("#!/bin/bash\necho core file of $(ulimit -Hc) blocks; kill -SEGV $$\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    usual = resource.getrlimit(resource.RLIMIT_CORE)
    before = set(Path("/").iterdir())
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        with pytest.raises(
            FitError, match="e2fsck was killed by signal 11: core file of 0 blocks; the image on it"
        ):
            disk.fit(GROW)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, usual)
        left = set(Path("/").iterdir()) - before
        for path in left:
            path.unlink()
    assert not left


def test_the_agent_that_grows_a_hostile_disk_ends_with_an_error_and_everything_else_intact(
    tmp_path: Path, tools: Path
) -> None:
    """The whole way: a hostile disk is packed, restored and grown by the real programs."""
    golden = make_disk(tmp_path, [partition_of("ext4")], size_mib=42)
    image, larger = tmp_path / "golden.dci", tmp_path / "larger"
    pack_image(golden.backing, image, PackOptions(every_byte=True))
    larger.write_bytes(b"\xa5" * MIB)
    os.truncate(larger, 120 * MIB)
    (tmp_path / "other").write_bytes(OTHER)
    canary = tools / "canary"
    canary.touch()
    canary.chmod(0o666)
    with (
        loop_device(larger) as target,
        loop_device(tmp_path / "other") as other,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        put_exploit(tools / "e2fsck", other, server, canary)
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", "DISKCAST_TOKEN": "dct_enrol_secret"}
        command = diskcast_agent("restore", image, "--target", target, "--grow")
        with Program(command, environment=environment) as program:
            assert program.wait(LIMIT_S) == FitError.exit_code, program.describe()
            assert "e2fsck failed with code 9: exploit: end; the image on it is complete" in " ".join(
                program.describe().split()
            )
    assert (tmp_path / "other").read_bytes() == OTHER
    assert not canary.read_bytes()
    with golden.backing.open("rb") as wanted, larger.open("rb") as written:
        start, size = golden.span(1)
        wanted.seek(start)
        written.seek(start)
        assert written.read(size) == wanted.read(size)
