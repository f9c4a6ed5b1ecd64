"""Partition tables as text: as ``sfdisk --dump`` and ``parted unit s print`` write them."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from typing import Final

from protocol.disk.gpt import read_entries_untrusted, read_header_untrusted
from protocol.disk.partition_table import DiskLayout, Partition, TableKind

_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_ENTRY_COUNT_USUAL: Final = 128
_ATTRIBUTES: Final = ("RequiredPartition", "NoBlockIOProtocol", "LegacyBIOSBootable")
_GUID_BITS: Final = range(48, 64)
_PLAIN: Final = frozenset(map(chr, range(0x20, 0x7F))) - set('"\\`$')
_SECTOR_BYTES: Final = 512

Read = Callable[[int, int], bytes]


def dump_text(layout: DiskLayout, read: Read, raw_bytes: int, device: str) -> str:
    """Return the partition table as sfdisk dumps it.

    Args:
        layout: the disk's partitions, in sectors of 512 bytes.
        read: reads the disk.
        raw_bytes: size of the disk.
        device: name of the disk in the text, such as ``sda``.
    """
    is_gpt = layout.table is TableKind.GPT
    heads, lines = _gpt(layout, read, raw_bytes) if is_gpt else _mbr(layout, read)
    head = [f"label: {'gpt' if is_gpt else 'dos'}", *heads[:1], f"device: /dev/{device}", "unit: sectors"]
    body = [f"/dev/{device}{number} : {fields}" for number, fields in lines]
    return "\n".join([*head, *heads[1:], f"sector-size: {_SECTOR_BYTES}", "", *body]) + "\n"


def _gpt(layout: DiskLayout, read: Read, raw_bytes: int) -> tuple[list[str], list[tuple[int, str]]]:
    header = read_header_untrusted(read, 1, _SECTOR_BYTES)
    entries = header and read_entries_untrusted(read, header, raw_bytes, _SECTOR_BYTES)
    if header is None or not entries:  # only the backup is intact
        return [], [(part.number, f"{_place(part)}, type={part.type}") for part in layout.partitions]
    first, last = struct.unpack_from("<QQ", header.sector, 40)
    heads = [f"label-id: {_guid(header.sector[56:72])}"]
    if header.entry_count != _ENTRY_COUNT_USUAL:
        heads.append(f"table-length: {header.entry_count}")
    heads += [f"first-lba: {first}", f"last-lba: {last}"]
    lines = []
    for part in layout.partitions:
        kind, own, _, _, attributes, name = _ENTRY.unpack_from(
            entries, (part.number - 1) * header.entry_bytes
        )
        fields = [f"{_place(part)}, type={_guid(kind)}, uuid={_guid(own)}"]
        text = name.decode("utf-16-le", "replace").split("\0", 1)[0]
        if text:
            fields.append(f'name="{_quoted(text)}"')
        words = [word for bit, word in enumerate(_ATTRIBUTES) if attributes >> bit & 1]
        bits = ",".join(str(bit) for bit in _GUID_BITS if attributes >> bit & 1)
        if words or bits:
            fields.append(f'attrs="{" ".join([*words, *([f"GUID:{bits}"] if bits else [])])}"')
        lines.append((part.number, ", ".join(fields)))
    return heads, lines


def _mbr(layout: DiskLayout, read: Read) -> tuple[list[str], list[tuple[int, str]]]:
    record = read(0, _SECTOR_BYTES)
    flags = {number + 1: bool(record[446 + 16 * number] & 0x80) for number in range(4)}
    lines = []
    for part in layout.partitions:
        flag = ", bootable" if flags.get(part.number) else ""
        lines.append((part.number, f"{_place(part)}, type={int(part.type, 16):x}{flag}"))
    return [f"label-id: 0x{int.from_bytes(record[440:444], 'little'):08x}"], lines


def _place(part: Partition) -> str:
    return f"start={part.start_bytes // _SECTOR_BYTES:12}, size={part.size_bytes // _SECTOR_BYTES:12}"


def _guid(data: bytes) -> str:
    return str(uuid.UUID(bytes_le=data)).upper()


def _quoted(text: str) -> str:
    return "".join(
        letter
        if letter in _PLAIN
        else "".join(f"\\x{octet:02x}" for octet in letter.encode("utf-8", "replace"))
        for letter in text
    )


def parted_text(layout: DiskLayout, raw_bytes: int, device: str) -> str:
    """Return the table as parted prints it; Clonezilla reads the disk's size and the kind of table."""
    kind = "gpt" if layout.table is TableKind.GPT else "msdos"
    lines = [
        f"Model: diskcast (file)\nDisk /dev/{device}: {raw_bytes // _SECTOR_BYTES}s",
        f"Sector size (logical/physical): {_SECTOR_BYTES}B/{_SECTOR_BYTES}B\nPartition Table: {kind}\nDisk Flags: \n",
        "Number  Start  End  Size  File system  Name  Flags",
    ]
    for part in layout.partitions:
        start, stop = part.start_bytes // _SECTOR_BYTES, part.stop_bytes // _SECTOR_BYTES
        lines.append(f" {part.number}  {start}s  {stop - 1}s  {stop - start}s  {part.filesystem}")
    return "\n".join(lines) + "\n"
