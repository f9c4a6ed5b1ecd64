"""Fixed little-endian records of the image file, each packed from one annotated dataclass.

The file is little-endian where the wire is big-endian: its columns are used in place as numpy arrays on
the machines that diskcast runs on.
"""

from __future__ import annotations

import struct
from typing import TypeVar

from protocol.errors import ImageDamagedError, WireError
from protocol.schema.binary_fields import STRUCT_CODES, Field, Octets, UInt

_Record = TypeVar("_Record")


def field_bytes(field: Field) -> int:
    """Return the width of ``field`` in a fixed record; only integers and exact octets have one."""
    kind = field.kind
    assert isinstance(kind, UInt | Octets)
    return kind.bits // 8 if isinstance(kind, UInt) else kind.bytes_exact


def record_struct(fields: tuple[Field, ...]) -> struct.Struct:
    """Return the unpadded little-endian layout of ``fields``."""
    codes = [
        STRUCT_CODES[field.kind.bits] if isinstance(field.kind, UInt) else f"{field_bytes(field)}s"
        for field in fields
    ]
    return struct.Struct("<" + "".join(codes))


def pack_record(record: object, fields: tuple[Field, ...]) -> bytes:
    """Pack ``record``; its values must be in range."""
    values = [getattr(record, field.name) for field in fields]
    for field, value in zip(fields, values, strict=True):
        field.kind.check(field.name, value)
    return record_struct(fields).pack(*values)


def unpack_record_untrusted(
    cls: type[_Record], fields: tuple[Field, ...], data: bytes | memoryview, thing: str
) -> _Record:
    """Unpack a record from the start of ``data`` and check the range of every field.

    Args:
        cls: the dataclass that ``fields`` describe.
        fields: its table.
        data: at least as many bytes as the record has.
        thing: name of the record, for the error message.

    Raises:
        ImageDamagedError: a field is out of its range.
    """
    values = record_struct(fields).unpack_from(data)
    for field, value in zip(fields, values, strict=True):
        try:
            field.kind.check(field.name, value)
        except WireError as error:
            raise ImageDamagedError(f"the {thing} is damaged: {error}, found {value!r}") from error
    return cls(*values)


def fields_table(fields: tuple[Field, ...]) -> str:
    """Return a Markdown table of a record: offset, bytes, field, meaning."""
    rows = ["| offset | bytes | field | meaning |", "|---:|---:|---|---|"]
    offset = 0
    for field in fields:
        width = field_bytes(field)
        kind = field.kind
        limits = ""
        if isinstance(kind, UInt) and (kind.low > 0 or kind.high < (1 << kind.bits) - 1):
            limits = f" ({kind.low})" if kind.low == kind.high else f" ({kind.low}..{kind.high})"
        rows.append(f"| {offset} | {width} | `{field.name}` | {kind.meaning}{limits} |")
        offset += width
    return "\n".join(rows)
