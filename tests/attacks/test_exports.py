"""Attacks by the content of an image on the machine that exports it."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.constants import MIB
from sender.export.export_format import QEMU_FORMATS, ExportFormat
from sender.export.export_image import export_image
from sender.imaging.foreign.sniff import ForeignFormat
from sender.imaging.image_file import ImageFile
from sender.imaging.pack import PackOptions, pack_image
from tests.support.network.lab import run
from tests.support.programs.processes import require_program

SECRET = b"the administrator's secret. " * 8192


@pytest.mark.parametrize("kind", [ExportFormat.QCOW2, ExportFormat.VMDK, ExportFormat.RAW])
def test_42_a_disk_that_starts_like_another_image_reads_no_file(kind: ExportFormat, tmp_path: Path) -> None:
    """Otherwise a header that a user wrote to the golden PC's disk puts files of the exporting machine into exports."""
    qemu_img = require_program("qemu-img")
    secret, disk = tmp_path / "secret", tmp_path / "disk"
    secret.write_bytes(SECRET)
    run(qemu_img, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, disk)
    with disk.open("r+b") as file:
        file.truncate(MIB)
    image_path, output, raw = tmp_path / "a.dci", tmp_path / "out", tmp_path / "raw"
    pack_image(disk, image_path, PackOptions(format=ForeignFormat.RAW))
    with ImageFile.open(image_path) as image:
        export_image(image, output, kind)
    name = QEMU_FORMATS[kind].name if kind in QEMU_FORMATS else "raw"
    run(qemu_img, "convert", "-f", name, "-O", "raw", output, raw)
    assert raw.read_bytes() == disk.read_bytes()
    assert SECRET[:64] not in output.read_bytes()
