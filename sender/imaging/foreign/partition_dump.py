"""Partition tables as text, as ``sfdisk --dump`` writes them since util-linux 2.20."""

from __future__ import annotations

import dataclasses
import itertools
import re
import uuid
from typing import Final, NoReturn

from protocol.constants import IMAGE_BYTES_MAX
from protocol.disk.partition_table import PARTITIONS_MAX, SECTOR_BYTES_CHOICES, TableKind
from protocol.errors import ForeignImageError

_LINES_MAX: Final = 4096
_LINE: Final = re.compile(r"(?P<device>/\S+?)(?P<number>[0-9]{1,3})\s*:\s*(?P<fields>.*)")
_FIELD: Final = re.compile(r'([A-Za-z-]+)\s*=\s*("[^"]*"|[^,\s]*)')
_ESCAPE: Final = re.compile(rb"\\x([0-9A-Fa-f]{2})")
_NAMED_BITS: Final = {"RequiredPartition": 0, "NoBlockIOProtocol": 1, "LegacyBIOSBootable": 2}
_EXTENDED_TYPES: Final = frozenset({0x05, 0x0F, 0x85})
_FIRST_LOGICAL: Final = 5
_MBR_SECTORS_MAX: Final = (1 << 32) - 1


@dataclasses.dataclass(frozen=True, slots=True)
class DumpedPartition:
    """One partition of the text."""

    number: int
    start_sector: int
    sector_count: int
    type: str
    """GPT: the type's GUID in upper case; MBR: two hexadecimal digits."""
    uuid: str = ""
    name: str = ""
    attributes: int = 0
    is_bootable: bool = False

    @property
    def stop_sector(self) -> int:
        """Return the end of the partition."""
        return self.start_sector + self.sector_count

    @property
    def is_extended(self) -> bool:
        """Return whether it only contains logical partitions."""
        return len(self.type) == 2 and int(self.type, 16) in _EXTENDED_TYPES


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionDump:
    """A partition table."""

    table: TableKind
    sector_bytes: int
    disk_id: str
    """GPT: GUID of the disk; MBR: ``0x`` and eight digits; empty if the text doesn't have it."""
    first_sector: int | None
    """First usable sector; GPT only."""
    last_sector: int | None
    """Last usable sector; GPT only."""
    entry_count: int
    """Entries of a GPT."""
    partitions: tuple[DumpedPartition, ...]
    """By number."""

    @property
    def extended(self) -> DumpedPartition | None:
        """Return the extended partition, if there is one."""
        return next((part for part in self.partitions if part.is_extended), None)

    @property
    def logical(self) -> tuple[DumpedPartition, ...]:
        """Return the logical partitions; a GPT has none."""
        if self.table is TableKind.GPT:
            return ()
        return tuple(part for part in self.partitions if part.number >= _FIRST_LOGICAL)

    @property
    def areas(self) -> tuple[DumpedPartition, ...]:
        """Return the partitions that may have content."""
        return tuple(part for part in self.partitions if not part.is_extended)


def parse_dump_untrusted(data: bytes, name: str) -> PartitionDump:
    """Parse the text of one disk.

    Args:
        data: content of the file.
        name: the file's name for messages.

    Raises:
        ForeignImageError: it isn't such a text, or its partitions contradict each other.
    """
    lines = data.decode("utf-8", "replace").splitlines()[:_LINES_MAX]
    heads: dict[str, str] = {}
    partitions = []
    for line in lines:
        found = _LINE.fullmatch(line.strip())
        if found:
            partitions.append(_parse_partition(int(found["number"]), found["fields"], name))
        elif not line.startswith("#") and ":" in line:
            key, _, value = line.partition(":")
            heads[key.strip()] = value.strip()
    used = sorted((part for part in partitions if part.sector_count), key=lambda part: part.number)
    if not used:
        raise ForeignImageError(f"{name}: no partition: not a partition table of sfdisk")
    is_gpt = heads.get("label", "dos") == "gpt"
    if not is_gpt and heads.get("label", "dos") != "dos":
        raise ForeignImageError(f"{name}: a partition table of an unsupported kind: {heads['label']!r:.40}")
    dump = PartitionDump(
        table=TableKind.GPT if is_gpt else TableKind.MBR,
        sector_bytes=_number(heads.get("sector-size", "512"), name),
        disk_id=_disk_id(heads.get("label-id", ""), name, is_gpt=is_gpt),
        first_sector=_optional(heads, "first-lba", name),
        last_sector=_optional(heads, "last-lba", name),
        entry_count=_number(heads.get("table-length", "128"), name),
        partitions=tuple(used),
    )
    _check(dump, name)
    return dump


def _parse_partition(number: int, text: str, name: str) -> DumpedPartition:
    fields = {key.lower(): value.strip('"') for key, value in _FIELD.findall(text)}
    kind = fields.get("type", fields.get("id", "0"))
    return DumpedPartition(
        number=number,
        start_sector=_number(fields.get("start", ""), name),
        sector_count=_number(fields.get("size", ""), name),
        type=_type(kind, name),
        uuid=_guid(fields["uuid"], name) if "-" in fields.get("uuid", "") and len(kind) > 2 else "",
        name=_unescape(fields.get("name", "")),
        attributes=_attributes(fields.get("attrs", ""), name),
        is_bootable=bool(re.search(r"(^|,)\s*bootable\s*(,|$)", _FIELD.sub("", text))),
    )


def _type(text: str, name: str) -> str:
    if "-" in text:
        return _guid(text, name)
    if not re.fullmatch(r"[0-9A-Fa-f]{1,2}", text):
        _refuse(name, text)
    return f"{int(text, 16):02x}"


def _guid(text: str, name: str) -> str:
    try:
        return str(uuid.UUID(text)).upper()
    except ValueError:
        _refuse(name, text)


def _disk_id(text: str, name: str, *, is_gpt: bool) -> str:
    if not text:
        return ""
    if is_gpt:
        return _guid(text, name)
    if not re.fullmatch(r"0x[0-9A-Fa-f]{1,8}", text):
        _refuse(name, text)
    return text


def _number(text: str, name: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        _refuse(name, text)
    return int(text)


def _optional(heads: dict[str, str], key: str, name: str) -> int | None:
    return _number(heads[key], name) if key in heads else None


def _refuse(name: str, text: str) -> NoReturn:
    raise ForeignImageError(f"{name}: {text!r:.60} isn't valid in a partition table of sfdisk")


def _unescape(text: str) -> str:
    data = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), text.encode("utf-8", "replace"))
    return data.decode("utf-8", "replace")


def _attributes(text: str, name: str) -> int:
    bits = 0
    for word in text.replace("GUID:", " ").replace(",", " ").split():
        bit = _NAMED_BITS.get(word)
        if bit is None:
            bit = _number(word, name)
        if bit > 63:
            _refuse(name, text)
        bits |= 1 << bit
    return bits


def _check(dump: PartitionDump, name: str) -> None:
    """Check that the partitions fit each other and a disk."""
    if dump.sector_bytes not in SECTOR_BYTES_CHOICES:
        raise ForeignImageError(
            f"{name}: sectors of {dump.sector_bytes} bytes: only 512 and 4096 are possible"
        )
    numbers = [part.number for part in dump.partitions]
    if len(set(numbers)) != len(numbers) or not 1 <= numbers[0] <= numbers[-1] <= PARTITIONS_MAX:
        raise ForeignImageError(f"{name}: partitions with equal numbers, or numbers above {PARTITIONS_MAX}")
    sectors_max = IMAGE_BYTES_MAX // dump.sector_bytes
    if dump.table is TableKind.MBR:
        sectors_max = min(sectors_max, _MBR_SECTORS_MAX)
    elif not dump.entry_count or dump.entry_count > PARTITIONS_MAX or numbers[-1] > dump.entry_count:
        raise ForeignImageError(f"{name}: a GPT of {dump.entry_count} entries isn't supported")
    if any(len(part.type) != (36 if dump.table is TableKind.GPT else 2) for part in dump.partitions):
        raise ForeignImageError(f"{name}: types of another kind of partition table")
    last_sector = dump.last_sector or 0
    if max(last_sector, *(part.stop_sector for part in dump.partitions)) > sectors_max:
        raise ForeignImageError(f"{name}: partitions beyond the largest possible disk")
    areas = sorted(dump.areas, key=lambda part: part.start_sector)
    for part, following in itertools.pairwise(areas):
        if following.start_sector < part.stop_sector:
            raise ForeignImageError(f"{name}: partitions {part.number} and {following.number} overlap")
    if areas and areas[0].start_sector < 1:
        raise ForeignImageError(f"{name}: partition {areas[0].number} overlaps the partition table")
    extended = dump.extended
    primary = sorted(
        (part for part in dump.partitions if part not in dump.logical), key=lambda part: part.start_sector
    )
    if any(following.start_sector < part.stop_sector for part, following in itertools.pairwise(primary)):
        raise ForeignImageError(f"{name}: the extended partition overlaps another one")
    for part in dump.logical:
        if (
            extended is None
            or not extended.start_sector < part.start_sector < part.stop_sector <= extended.stop_sector
        ):
            raise ForeignImageError(
                f"{name}: logical partition {part.number} isn't in the extended partition"
            )
