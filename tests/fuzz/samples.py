"""Valid values drawn from the field tables, from which the encoders make seeds."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

from protocol.schema import json_fields as fields
from protocol.schema.binary_fields import Bitmap, FieldKind, Octets, Rows, Text, UInt

_TEXTS = ("a", "pc-07", "Prüfraum 3", "0123456789abcdef")


def sample_field(kind: FieldKind, pick: random.Random) -> object:
    """Return a value that a field of a datagram or an image may hold."""
    match kind:
        case UInt():
            if kind.members is not None:
                return pick.choice(list(kind.members))
            return pick.choice((kind.low, kind.high, pick.randint(kind.low, kind.high)))
        case Text():
            return pick.choice(_TEXTS)[: kind.bytes_max // 2]
        case Octets():
            return pick.randbytes(kind.bytes_exact)
        case Bitmap():
            return pick.randbytes(pick.randrange(min(kind.bytes_max, 40) + 1))
        case Rows():
            return _sample_rows(kind, pick)
    raise TypeError(f"no samples for {kind}")


def _sample_rows(kind: Rows, pick: random.Random) -> tuple[object, ...]:
    rows: list[tuple[object, ...]] = []
    left = kind.sum_max
    for _ in range(pick.choice((0, 1, kind.count_max))):
        row = {name: sample_field(column, pick) for name, column in kind.columns}
        if kind.sum_column is not None:
            column = dict(kind.columns)[kind.sum_column]
            number = pick.randint(column.low, min(column.high, 40))
            if number > left:
                break
            left -= number
            row[kind.sum_column] = number
        rows.append(tuple(row.values()))
    return tuple(rows)


def sample_message(message: type, pick: random.Random) -> object:
    """Return an instance of a wire message or an image record."""
    return message(**{field.name: sample_field(field.kind, pick) for field in message.FIELDS})  # type: ignore[attr-defined]


def sample_json(kind: object, pick: random.Random) -> object:
    """Return a JSON value that a field of the control API may hold."""
    match kind:
        case fields.Integer():
            return pick.choice((kind.low, kind.high))
        case fields.Number():
            return pick.choice((0, kind.high, 0.25))
        case fields.Boolean():
            return pick.random() < 0.5
        case fields.PrintableText():
            return "https://10.0.0.1:7400/x"[: kind.bytes_max].ljust(kind.bytes_min, "x")
        case fields.PrintableLines():
            return "first line\nsecond\tline\n"[: kind.bytes_max]
        case fields.DecimalText():
            return str(pick.getrandbits(64))
        case fields.HexData():
            return pick.randbytes(pick.randrange(min(kind.bytes_max, 40) + 1)).hex()
        case fields.HexBytes():
            return pick.randbytes(kind.bytes_exact).hex()
        case fields.HexInteger():
            return f"{pick.getrandbits(32):08x}"
        case fields.Address():
            return pick.choice(("239.1.1.1", "ff15::1") if kind.multicast else ("10.0.0.7", "fe80::1"))
        case fields.HardwareAddresses():
            return ["00:11:22:33:44:55"][: kind.count_max]
        case fields.InventoryField():
            return {"serial": "X1", "cpu": "1"}
        case fields.ChoiceField():
            return pick.choice(list(kind.choices))
        case fields.Optional():
            return None if pick.random() < 0.3 else sample_json(kind.kind, pick)
        case fields.Listed():
            return [sample_json(kind.kind, pick) for _ in range(pick.choice((0, 1, min(3, kind.count_max))))]
        case fields.JsonRecord():
            return sample_object(kind.fields, pick)
    raise TypeError(f"no samples for {kind}: add its class here")


def sample_object(table: Mapping[str, object], pick: random.Random, **more: object) -> dict[str, object]:
    """Return a JSON object with all fields of ``table``."""
    return {name: sample_json(kind, pick) for name, kind in table.items()} | more


def json_bytes(value: object) -> bytes:
    """Return the text of a JSON value."""
    return json.dumps(value).encode()
