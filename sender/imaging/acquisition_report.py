"""The report of a forensic acquisition: the source, times, tool, digests and unreadable ranges, as JSON and as text."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Final

from protocol.image.bad_ranges import BadRange
from protocol.packing.source_identity import SourceIdentity
from protocol.shared.units import format_bytes
from protocol.trust.secret_key import SecretKey
from sender.imaging.partial_file import PartialFile

REPORT_VERSION: Final = 1

_LABELS: Final = (
    ("path", "path"),
    ("vendor", "vendor"),
    ("model", "model"),
    ("serial", "serial number"),
    ("firmware", "firmware"),
    ("wwid", "WWID"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Acquisition:
    """The facts of one acquisition, apart from the image's."""

    source: SourceIdentity
    started: datetime.datetime
    """In UTC, as :attr:`ended`."""
    ended: datetime.datetime
    sha256: bytes
    """Of the whole disk, with unreadable ranges as zeros."""
    bad_ranges: tuple[BadRange, ...]
    retried_count: int
    """Sectors that were readable only on a further try."""


@dataclasses.dataclass(frozen=True, slots=True)
class AcquisitionReport:
    """An acquisition and the image that it made."""

    acquisition: Acquisition
    image_path: Path
    image_id: bytes
    name: str

    def to_json(self) -> dict[str, object]:
        """Return the report as plain values."""
        facts = self.acquisition
        return {
            "report": "diskcast acquisition",
            "version": REPORT_VERSION,
            "tool": {"name": "diskcast", "version": importlib.metadata.version("diskcast")},
            "host": {"name": platform.node(), "kernel": platform.release()},
            "source": dataclasses.asdict(facts.source),
            "started": facts.started.isoformat(timespec="seconds"),
            "ended": facts.ended.isoformat(timespec="seconds"),
            "image": {"file": self.image_path.name, "name": self.name, "image_id": self.image_id.hex()},
            "sha256": facts.sha256.hex(),
            "bad_bytes": sum(bad.length for bad in facts.bad_ranges),
            "bad_ranges": [dataclasses.asdict(bad) for bad in facts.bad_ranges],
            "retried_sectors": facts.retried_count,
        }

    def to_text(self) -> str:
        """Return the report for people."""
        facts, fields = self.acquisition, dataclasses.asdict(self.acquisition.source)
        version = importlib.metadata.version("diskcast")
        lines = [
            "ACQUISITION REPORT",
            "",
            f"tool              diskcast {version} on {platform.node()}, Linux {platform.release()}",
            f"started           {facts.started.isoformat(timespec='seconds')}",
            f"ended             {facts.ended.isoformat(timespec='seconds')}",
            "",
            "Source",
            *(f"  {label:<16}{fields[key]}" for key, label in _LABELS if fields[key]),
            f"  {'size':<16}{facts.source.raw_bytes} bytes ({format_bytes(facts.source.raw_bytes)})",
            (
                f"  {'sectors':<16}{facts.source.logical_sector_bytes} bytes logical, "
                f"{facts.source.physical_sector_bytes} bytes physical"
            ),
            "",
            "Image",
            f"  {'file':<16}{self.image_path.name}",
            f"  {'name':<16}{self.name}",
            f"  {'image id':<16}{self.image_id.hex()} (BLAKE3 of the manifest)",
            f"  {'SHA-256':<16}{facts.sha256.hex()} (of the whole disk)",
            "",
            (
                f"Unreadable: {len(facts.bad_ranges)} ranges, "
                f"{sum(bad.length for bad in facts.bad_ranges)} bytes, zero in the image and in its SHA-256"
            ),
            *(f"  {bad.length} bytes at offset {bad.offset}" for bad in facts.bad_ranges),
            f"Readable on a further try: {facts.retried_count} sectors",
            "",
            "To prove a copy without diskcast, export the image and compare the SHA-256:",
            f"  diskcast export {self.image_path.name} -o disk.raw && sha256sum disk.raw",
            "",
        ]
        return "\n".join(lines)


def report_path(image_path: Path) -> Path:
    """Return the path of the JSON report of an image."""
    return image_path.with_name(f"{image_path.name}.acquisition.json")


def write_acquisition_report(report: AcquisitionReport, key: SecretKey | None) -> list[Path]:
    """Write the report beside the image, as JSON and text, each signed as minisign does if there is a key.

    Returns:
        The files; existing ones are replaced.

    Raises:
        ConfigurationError: a file can't be created there.
        StorageError: the disk is full or failed.
    """
    json_path = report_path(report.image_path)
    contents = {
        json_path: (json.dumps(report.to_json(), indent=2) + "\n").encode(),
        json_path.with_suffix(".txt"): os.fsencode(report.to_text()),
    }
    if key is not None:
        comment = f"diskcast acquisition of {report.image_id.hex()}"
        for path, content in list(contents.items()):
            signature = key.sign(content, trusted_comment=comment)
            signed_path = path.with_name(f"{path.name}.minisig")
            contents[signed_path] = signature.file_text("signature of a diskcast acquisition report").encode()
    for path, content in contents.items():
        with PartialFile(path, noun="the report") as file:
            file.write_at(0, content)
            file.commit()
    return list(contents)
