"""``diskcast netboot build``, for real: Debian's packages and the agent become a medium that is complete and small."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from protocol.constants import MIB
from sender.netboot.build.lock_part import parse_lock
from sender.netboot.build.wheels import lock_text
from sender.netboot.medium import BILL_OF_MATERIALS, INITRD, KERNEL, RECORD, BootMedium, Loader
from tests.support.machines.built_medium import QUICK, build_medium
from tests.support.network.lab import run
from tests.support.programs.processes import require_program

pytestmark = pytest.mark.needs_root

_SIGNATURE_DIRECTORY = 4
"""Index of the certificate table among a PE image's data directories."""
_UNWANTED = (
    "/dist-packages/sender",
    "/protocol/sending",
    "/pygments",
    "/numpy/f2py",
    "/idlelib",
    "/site-packages",
    "/usr/share/doc",
)


@pytest.fixture(scope="module")
def listing(boot_medium: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the paths of the medium's root filesystem with their sizes, one a line."""
    image = _extract_root(boot_medium, tmp_path_factory.mktemp("root"))
    return run(require_program("unsquashfs"), "-lln", "-d", "", image)


def _extract_root(medium: Path, folder: Path) -> Path:
    cpio = require_program("cpio")
    with (medium / INITRD).open("rb") as initrd:
        subprocess.run(
            [cpio, "--extract", "--quiet", "root.sqfs", "root.sha256"], stdin=initrd, cwd=folder, check=True
        )
    subprocess.run(["sha256sum", "--check", "--quiet", "root.sha256"], cwd=folder, check=True)
    return folder / "root.sqfs"


def _listed_file(line: str) -> tuple[str, int]:
    """Return path and size of a line of unsquashfs: mode, owner, size, date, time, path."""
    _, _, size, _, _, path = line.split(None, 5)
    return path, int(size)


def _is_signed(path: Path) -> bool:
    """Return whether a PE image has a certificate table (Microsoft PE format, optional header)."""
    content = path.read_bytes()
    header = int.from_bytes(content[0x3C:0x40], "little")
    assert content[header : header + 4] == b"PE\0\0", path
    directories = header + 24 + 112  # PE32+
    entry = directories + 8 * _SIGNATURE_DIRECTORY
    return int.from_bytes(content[entry + 4 : entry + 8], "little") > 0


def test_the_medium_is_whole_and_its_loaders_and_kernel_are_signed(boot_medium: Path) -> None:
    medium = BootMedium.open(boot_medium)
    medium.verify()
    for name in (KERNEL, Loader.SHIM, Loader.GRUB, Loader.GRUB_DISK):
        assert _is_signed(medium.path(name)), name
    for name in (Loader.BIOS, Loader.UEFI):
        assert medium.path(name).stat().st_size > 50_000
    assert medium.path(INITRD).stat().st_size < 70 * MIB, (
        "quickly compressed, even without the drivers of real hardware"
    )


def test_the_live_system_has_only_what_an_agent_needs(listing: str) -> None:
    sizes = dict(map(_listed_file, filter(lambda line: line.startswith("-"), listing.splitlines())))
    paths = [line.split(None, 5)[-1] for line in listing.splitlines()]
    for needed in (
        "/usr/bin/diskcast-agent",
        "/usr/sbin/xfs_repair",
        "/etc/diskcast/trusted-keys.d",
        "/init",
    ):
        assert any(path.startswith(needed) for path in paths), needed
    for unwanted in _UNWANTED:
        assert not [path for path in paths if unwanted in path], unwanted
    [stand_in] = [size for path, size in sizes.items() if "openblas" in path]
    assert stand_in < 100_000, "OpenBLAS has 25 MB"


def test_the_bill_of_materials_lists_every_package_and_wheel(boot_medium: Path) -> None:
    document = json.loads((boot_medium / BILL_OF_MATERIALS).read_text())
    components = {component["name"]: component for component in document["components"]}
    assert {"busybox-static", "python3.11-minimal", "libc6", "ipxe", "shim-signed"} & components.keys()
    assert components.keys() >= {package.name for package in parse_lock(lock_text())}
    kernel = f"linux-image-{BootMedium.open(boot_medium).record.kernel_release}"
    assert kernel in components
    for component in components.values():
        assert component["purl"].startswith(("pkg:deb/debian/", "pkg:pypi/"))
        assert component["hashes"]


def test_another_user_without_root_builds_the_same_bytes(boot_medium: Path, tmp_path: Path) -> None:
    """Reproducible: an operator can check a medium by building it elsewhere."""
    another_user = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
    medium = tmp_path / "medium"
    result = build_medium(medium, *QUICK, prefix=another_user)
    assert BootMedium.open(medium).record.files == BootMedium.open(boot_medium).record.files
    assert result["files"] == json.loads((boot_medium / RECORD).read_text())["files"]
