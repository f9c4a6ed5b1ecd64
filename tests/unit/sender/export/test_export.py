"""Exports, judged by the tools of the other formats."""

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.constants import TIB
from protocol.errors import ConfigurationError, ImageDamagedError, MissingDependencyError, StorageError
from protocol.packing.source_hash import SourceHash
from sender.export.export_command import export
from sender.export.export_format import ExportFormat, check_disk_bytes, export_format
from sender.export.export_image import digest_line, export_image
from sender.imaging.image_commands import pack
from sender.imaging.image_file import ImageFile
from tests.support.disks.devices import mounted
from tests.support.disks.disk_images import allocated_bytes, make_image
from tests.support.network.lab import LIMIT_S, Program, diskcast, run, wait_until
from tests.support.programs.processes import require_program

KINDS = "drzzuddurzd"
MADE = make_image(KINDS, tail_bytes=4096)
BLOCK_BYTES = MADE.manifest.block_bytes
QEMU_NAMES = {"vhd": "vpc"}
FIVE = ("qcow2", "vmdk", "vhdx", "vdi", "vhd")


def shown_raw() -> bytes:
    raw = bytearray(MADE.raw)
    for block, letter in enumerate(KINDS):
        if letter == "u":
            raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = bytes(BLOCK_BYTES)
    return bytes(raw)


@pytest.fixture
def image_path(tmp_path: Path) -> Path:
    return MADE.write(tmp_path / "a.dci")


def invoke(command: Any, *arguments: str | Path) -> str:
    result = CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", FIVE)
def test_qemu_reads_the_same_disk_from_each_format(kind: str, image_path: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(shown_raw())
    output = tmp_path / f"a.{kind}"
    said = invoke(export, image_path, "-o", output)
    assert "of free space, which the image doesn't hold, read as zeros" in said
    name = QEMU_NAMES.get(kind, kind)
    compared = run(require_program("qemu-img"), "compare", "-f", "raw", "-F", name, raw, output)
    assert "Images are identical." in compared
    described = json.loads(run("qemu-img", "info", "--output=json", "-f", name, output))
    assert described["virtual-size"] == len(MADE.raw)
    assert output.stat().st_mode & 0o007 == 0
    assert leftovers(tmp_path) == ["a.dci", output.name, "raw"]


def test_raw_is_sparse_and_packs_into_the_same_image(tmp_path: Path) -> None:
    """Nobody is locked in: pack, export and pack again lose nothing."""
    source = tmp_path / "disk"
    with source.open("wb") as file:
        file.truncate(64 << 20)
    run(require_program("mkfs.ext4"), "-q", "-d", Path(__file__).parent, source)
    first, second, output = tmp_path / "1.dci", tmp_path / "2.dci", tmp_path / "out.raw"
    invoke(pack, source, "-o", first, "--no-sign", "--name", "n")
    invoke(export, first, "-o", output)
    assert allocated_bytes(output) < 16 << 20
    run(require_program("e2fsck"), "-fn", output)
    invoke(pack, output, "-o", second, "--no-sign", "--name", "n")
    assert first.read_bytes() == second.read_bytes()


def test_qcow2_packs_into_the_same_disk(tmp_path: Path) -> None:
    """A virtual machine's disk that came from an image becomes the same image again."""
    source, exported = tmp_path / "disk", tmp_path / "out.qcow2"
    with source.open("wb") as file:
        file.truncate(64 << 20)
    run(require_program("mkfs.ext4"), "-q", "-d", Path(__file__).parent, source)
    first, second = tmp_path / "1.dci", tmp_path / "2.dci"
    invoke(pack, source, "-o", first, "--no-sign", "--name", "n")
    invoke(export, first, "-o", exported)
    invoke(pack, exported, "-o", second, "--no-sign", "--name", "n")
    for image in (first, second):
        invoke(export, image, "-o", image.with_suffix(".raw"))
    again = second.with_suffix(".raw")
    compared = run(require_program("qemu-img"), "compare", "-f", "raw", "-F", "qcow2", again, exported)
    assert "Images are identical." in compared
    assert again.read_bytes() == first.with_suffix(".raw").read_bytes()
    run(require_program("e2fsck"), "-fn", again)
    with ImageFile.open(first) as before, ImageFile.open(second) as after:
        assert after.header.payload_bytes == before.header.payload_bytes
        assert after.manifest.raw_hash.tobytes() == before.manifest.raw_hash.tobytes()


def test_compressed_raw_is_one_frame_that_zstd_checks(image_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.raw.zst"
    events = [json.loads(line) for line in invoke(export, image_path, "-o", output, "--json").splitlines()]
    assert events[-1]["format"] == "raw.zst"
    assert events[-1]["unused_bytes"] == 2 * BLOCK_BYTES
    zstd = require_program("zstd")
    assert subprocess.run([zstd, "-dc", output], capture_output=True, check=True).stdout == shown_raw()
    assert "XXH64" in run(zstd, "-lv", output)


@pytest.mark.parametrize("kind", ["qcow2", "raw", "raw.zst"])
def test_damaged_block_leaves_no_output(kind: str, image_path: Path, tmp_path: Path) -> None:
    with image_path.open("r+b") as file:
        file.seek(MADE.stored_offset(5) + 10)
        file.write(b"\xff\x00\xff")
    with ImageFile.open(image_path) as image, pytest.raises(ImageDamagedError, match="block 5"):
        export_image(image, tmp_path / "out", ExportFormat(kind))
    assert leftovers(tmp_path) == ["a.dci"]


def test_existing_output_is_replaced_only_on_demand(image_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.raw"
    output.write_text("precious")
    with ImageFile.open(image_path) as image:
        with pytest.raises(ConfigurationError, match="exists: choose another output"):
            export_image(image, output, ExportFormat.RAW)
        assert output.read_text() == "precious"
        with pytest.raises(ConfigurationError, match="is the image itself"):
            export_image(image, image_path, ExportFormat.RAW, replace=True)
        export_image(image, output, ExportFormat.RAW, replace=True)
    assert output.read_bytes() == shown_raw()
    with ImageFile.open(image_path):
        pass


@pytest.mark.needs_root
@pytest.mark.parametrize("kind", ["qcow2", "raw", "raw.zst"])
def test_full_disk_is_named_and_leaves_nothing(kind: str, image_path: Path, tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "small", "-t", "tmpfs", "-o", "size=128k") as point:
        with ImageFile.open(image_path) as image, pytest.raises(StorageError, match="free some space"):
            export_image(image, point / "out", ExportFormat(kind))
        assert leftovers(point) == []


def test_killed_export_leaves_no_output_and_no_tool(tmp_path: Path) -> None:
    """SIGTERM ends qemu-img too, which would otherwise fill the disk of nobody's file."""
    image_path = make_image("r" * 800).write(tmp_path / "big.dci")
    with Program(diskcast("export", image_path, "-o", tmp_path / "a.qcow2", "--json")) as program:
        wait_until("the output exists", (tmp_path / ".a.qcow2.partial").exists)
        os.kill(program.pid, signal.SIGTERM)
        assert program.wait(LIMIT_S) == 130
    assert leftovers(tmp_path) == ["big.dci"]


def test_missing_tool_is_named_with_its_package(
    image_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sender.export.qemu_export.find_tool", lambda _name: None)
    with (
        ImageFile.open(image_path) as image,
        pytest.raises(MissingDependencyError, match="apt install qemu-utils"),
    ):
        export_image(image, tmp_path / "a.qcow2", ExportFormat.QCOW2)
    assert leftovers(tmp_path) == ["a.dci"]


def test_recorded_sha256_is_proved_by_sha256sum_alone(tmp_path: Path) -> None:
    source = tmp_path / "disk"
    source.write_bytes(MADE.raw)
    image_path, output = tmp_path / "a.dci", tmp_path / "odd\n\\name.raw"
    invoke(pack, source, "-o", image_path, "--no-sign", "--every-byte")
    invoke(export, image_path, "-o", output)
    digest_file = tmp_path / f"{output.name}.sha256"
    assert digest_file.read_bytes() == digest_line(hashlib.sha256(MADE.raw).digest(), output.name)
    checked = subprocess.run(
        ["sha256sum", "--strict", "--check", digest_file.name], cwd=tmp_path, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    output.unlink()
    with ImageFile.open(image_path) as image, pytest.raises(ConfigurationError, match="sha256 exists"):
        export_image(image, output, ExportFormat.RAW)


def test_altered_sha256_is_noticed(tmp_path: Path) -> None:
    image_path = make_image("dz", metadata={"source_sha256": SourceHash().digest()}).write(tmp_path / "a.dci")
    with (
        ImageFile.open(image_path) as image,
        pytest.raises(ImageDamagedError, match="SHA-256 of the disk differs"),
    ):
        export_image(image, tmp_path / "a.raw", ExportFormat.RAW)
    assert leftovers(tmp_path) == ["a.dci"]


def test_format_is_the_ending_unless_named() -> None:
    for name, kind in (
        ("a.qcow2", "qcow2"),
        ("a.b.RAW.ZST", "raw.zst"),
        ("v1.2.vhdx", "vhdx"),
        ("a.img", "raw"),
        ("a.vpc", "vhd"),
    ):
        assert export_format(Path(name), None) == kind
    assert export_format(Path("a.qcow2"), "vdi") is ExportFormat.VDI
    for name in ("a", "a.zst", "a.iso", "qcow2"):
        with pytest.raises(ConfigurationError, match="--format"):
            export_format(Path(name), None)


def test_disk_beyond_the_format_is_refused_at_once() -> None:
    check_disk_bytes(ExportFormat.QCOW2, 60 * TIB)
    with pytest.raises(ConfigurationError, match="vhd holds disks of at most"):
        check_disk_bytes(ExportFormat.VHD, 3 * TIB)
