"""The mount table of a system in an image: where its ``/etc/fstab`` mounts which partition."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from protocol.disk.partition_table import Partition
from sender.imaging.contents.filesystem_labels import FilesystemLabel

_DEVICE_NUMBER = re.compile(r"/dev/(?:[hsv]d[a-z]+|xvd[a-z]+|(?:nvme\d+n|mmcblk)\d+p)(\d{1,3})\Z")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclasses.dataclass(frozen=True, slots=True)
class FstabMount:
    """One line of a mount table."""

    source: str
    point: str
    filesystem: str


def parse_fstab_untrusted(text: bytes) -> list[FstabMount]:
    """Return the lines of a mount table; those that aren't complete are left out."""
    mounts = []
    for line in text.decode("utf-8", "replace").splitlines():
        fields = [_unescaped(field) for field in line.split("#", 1)[0].split()] if line.strip() else []
        if len(fields) >= 3:
            mounts.append(FstabMount(fields[0].strip('"'), fields[1], fields[2]))
    return mounts


def _unescaped(field: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), field)


def find_partition(
    mount: FstabMount, parts: Sequence[Partition], labels: Mapping[int, FilesystemLabel]
) -> Partition | None:
    """Return the partition that ``mount`` names; None if it names none of the disk's, or several."""
    found = [part for part in parts if _names(mount.source, part, labels[part.number])]
    return found[0] if len(found) == 1 else None


def _names(source: str, part: Partition, label: FilesystemLabel) -> bool:
    kind, equals, value = source.partition("=")
    if not equals:
        for prefix, name in (("/dev/disk/by-uuid/", "UUID"), ("/dev/disk/by-label/", "LABEL")):
            if source.startswith(prefix):
                kind, value = name, source.removeprefix(prefix)
    value = value.strip('"')
    if kind == "UUID":
        return bool(label.uuid) and value.lower() == label.uuid.lower()
    if kind == "LABEL":
        return bool(label.label) and value == label.label
    if kind == "PARTLABEL":
        return bool(part.name) and value == part.name
    number = _DEVICE_NUMBER.match(source)
    return number is not None and int(number[1]) == part.number
