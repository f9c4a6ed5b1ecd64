"""Parts of the live system: paths of packages, shared libraries, firmware, baked-in values."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

import pytest

from protocol.packing.filesystems.free_space import METHODS
from sender.netboot.build.elf import missing_libraries, unneeded_libraries
from sender.netboot.build.firmware import find_firmware, kernel_reads_xz, write_firmware
from sender.netboot.build.live_packages import PACKAGES, is_wanted
from sender.netboot.build.root_filesystem import BakedIn
from sender.netboot.build.unpack import merged_path
from tests.support.programs.processes import require_program


@pytest.mark.parametrize(
    ("name", "merged"),
    [
        ("./bin/busybox", "usr/bin/busybox"),
        ("./usr/bin/env", "usr/bin/env"),
        ("./lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
        ("./", ""),
        ("./etc/passwd", "etc/passwd"),
    ],
)
def test_packages_land_in_a_merged_usr(name: str, merged: str) -> None:
    assert merged_path(name) == merged


def test_a_path_out_of_the_root_is_refused() -> None:
    with pytest.raises(ValueError, match="leads outside"):
        merged_path("./usr/../../etc/passwd")


@pytest.mark.parametrize(
    "path",
    [
        "usr/bin/busybox",
        "usr/sbin/resize2fs",
        "usr/bin/python3.11",
        "usr/lib/python3.11/ssl.py",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/systemd/systemd-udevd",
        "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so",
        "usr/lib/udev/rules.d/80-net-setup-link.rules",
    ],
)
def test_parts_that_the_agent_needs_stay(path: str) -> None:
    assert is_wanted(path)


def test_the_live_system_finds_the_free_space_of_every_filesystem() -> None:
    """Without a tool, a capture uploads everything that was ever deleted."""
    for method in METHODS.values():
        assert all(is_wanted(f"usr/sbin/{tool}") for tool in method.tools)
        assert set(method.packages.split()) <= set(PACKAGES)


@pytest.mark.parametrize(
    "path",
    [
        "usr/share/doc/busybox/copyright",
        "usr/sbin/xfs_scrub",
        "usr/lib/python3.11/idlelib/pyshell.py",
        "usr/lib/python3.11/lib-dynload/_sqlite3.cpython-311-x86_64-linux-gnu.so",
        "usr/lib/systemd/system/udev.service",
        "usr/lib/systemd/systemd",
        "usr/lib/x86_64-linux-gnu/systemd/libsystemd-core-257.so",
        "usr/lib/x86_64-linux-gnu/gconv/UTF-7.so",
        "var/lib/dpkg/info",
    ],
)
def test_parts_that_nothing_needs_go(path: str) -> None:
    assert not is_wanted(path)


def test_libraries_stay_as_long_as_a_program_needs_them(tmp_path: Path) -> None:
    tmp_path = tmp_path.resolve()
    libraries = {name: tmp_path / name for name in ("liba.so", "libb.so", "libunused.so", "libdeep.so")}
    program = tmp_path / "program"
    needs = {
        program: ("liba.so",),
        tmp_path / "liba.so": ("libb.so",),
        tmp_path / "libunused.so": ("libdeep.so",),
    }
    assert unneeded_libraries(libraries, needs, [program]) == {"libunused.so", "libdeep.so"}
    assert missing_libraries({"liba.so"}, {program: ("liba.so", "libz.so")}) == {"libz.so": [program]}


def test_firmware_is_found_by_name_and_by_pattern(tmp_path: Path) -> None:
    for name in ("rtl_nic/rtl8168.fw", "ice/ddp/ice-1.pkg", "bnx2.fw.xz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"firmware")
    found = find_firmware(
        tmp_path, {"rtl_nic/rtl8168.fw", "ice/ddp/*.pkg", "bnx2.fw", "none.bin", "../../etc/passwd"}
    )
    assert found.found == ("bnx2.fw.xz", "ice/ddp/ice-1.pkg", "rtl_nic/rtl8168.fw")
    assert found.missing == ("../../etc/passwd", "none.bin")


def test_firmware_is_compressed_only_if_the_kernel_reads_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a/large.bin").write_bytes(bytes(100_000))
    (source / "a/small.bin").write_bytes(b"small")
    listings = {}
    for compress in (False, True):
        target = tmp_path / f"firmware-{compress}"
        write_firmware(source, ["a/large.bin", "a/small.bin"], target, 0, compress=compress)
        unpacked = tmp_path / f"unpacked-{compress}"
        unpacked.mkdir()
        command = [require_program("cpio"), "--extract", "--quiet", "--no-preserve-owner"]
        subprocess.run(command, input=target.read_bytes(), cwd=unpacked, check=True)
        folder = unpacked / "lib/firmware/a"
        listings[compress] = sorted(path.name for path in folder.iterdir())
    assert listings == {False: ["large.bin", "small.bin"], True: ["large.bin.xz", "small.bin"]}
    packed = (tmp_path / "unpacked-True/lib/firmware/a/large.bin.xz").read_bytes()
    assert lzma.decompress(packed) == bytes(100_000)
    assert kernel_reads_xz("CONFIG_A=y\nCONFIG_FW_LOADER_COMPRESS_XZ=y\n")
    assert not kernel_reads_xz("# CONFIG_FW_LOADER_COMPRESS_XZ is not set\n")


def test_the_boot_configuration_has_servers_and_pins_and_nothing_else() -> None:
    baked_in = BakedIn(("https://10.0.0.5:7400", "https://10.0.0.6:7400"), ("a" * 20,), ())
    assert baked_in.boot_configuration() == (
        f"diskcast.server=https://10.0.0.5:7400,https://10.0.0.6:7400\ndiskcast.pin={'a' * 20}\n"
    )
    assert BakedIn((), (), ()).boot_configuration() == ""
