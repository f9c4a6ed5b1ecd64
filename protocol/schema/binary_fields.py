"""Field kinds of the wire tables: range, struct code and meaning for the documentation.

A message is a frozen dataclass whose annotations carry these kinds::

    block: Annotated[int, uint(32, "block number")]

The codec, the numpy dtype, the range checks, the property tests' strategies and ``docs/reference/wire-format.md``
all read that one annotation.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from protocol.errors import WireError

STRUCT_CODES = {8: "B", 16: "H", 32: "I", 64: "Q"}


@dataclasses.dataclass(frozen=True, slots=True)
class UInt:
    """An unsigned integer of ``bits`` bits, ``low <= value <= high``."""

    bits: int
    meaning: str
    low: int
    high: int
    members: type[enum.IntEnum] | None = None
    """The enumeration whose members the numbers are; None for plain numbers."""

    def check(self, name: str, value: object) -> None:
        """Raise :class:`WireError` unless ``value`` is an int, or a member of the enumeration, in range."""
        if type(value) not in (int, self.members) or not self.low <= value <= self.high:  # type: ignore[operator]
            raise WireError("bad_field", f"{name}: expected {self.low}..{self.high}")


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """UTF-8 text of at most ``bytes_max`` encoded bytes."""

    bytes_max: int
    meaning: str

    def check(self, name: str, value: object) -> None:
        """Raise :class:`WireError` unless ``value`` is text within its limit."""
        if type(value) is not str or len(value.encode("utf-8", "surrogatepass")) > self.bytes_max:
            raise WireError("bad_field", f"{name}: expected text of at most {self.bytes_max} bytes")


@dataclasses.dataclass(frozen=True, slots=True)
class Octets:
    """A fixed number of bytes."""

    bytes_exact: int
    meaning: str

    def check(self, name: str, value: object) -> None:
        """Raise :class:`WireError` unless ``value`` is bytes of the exact length."""
        if type(value) is not bytes or len(value) != self.bytes_exact:
            raise WireError("bad_field", f"{name}: expected {self.bytes_exact} bytes")


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """A list of at most ``count_max`` tuples of unsigned integers; ``columns`` are their kinds.

    The numbers of ``sum_column`` may together be at most ``sum_max``; None for no such limit.
    """

    columns: tuple[tuple[str, UInt], ...]
    count_max: int
    meaning: str
    sum_column: str | None = None
    sum_max: int = 0

    def check(self, name: str, value: object) -> None:
        """Raise :class:`WireError` unless every row has every column in range."""
        if type(value) is not tuple or len(value) > self.count_max:
            raise WireError("bad_field", f"{name}: expected at most {self.count_max} rows")
        for row in value:
            if type(row) is not tuple or len(row) != len(self.columns):
                raise WireError("bad_field", f"{name}: expected rows of {len(self.columns)}")
            for (column_name, kind), cell in zip(self.columns, row, strict=True):
                kind.check(column_name, cell)
        if self.sum_column is not None:
            column_index = [column_name for column_name, _ in self.columns].index(self.sum_column)
            if sum(row[column_index] for row in value) > self.sum_max:
                raise WireError("bad_field", f"{name}: expected a sum of at most {self.sum_max}")


@dataclasses.dataclass(frozen=True, slots=True)
class Bitmap:
    """A set of numbers below ``bit_count_max``: bit ``i % 8`` of byte ``i // 8``, without trailing zero bytes."""

    bit_count_max: int
    meaning: str

    @property
    def bytes_max(self) -> int:
        """Return the length of the longest encoding."""
        return -(-self.bit_count_max // 8)

    def check(self, name: str, value: object) -> None:
        """Raise :class:`WireError` unless ``value`` is bytes within the limit."""
        if type(value) is not bytes or len(value) > self.bytes_max:
            raise WireError("bad_field", f"{name}: expected at most {self.bytes_max} bytes")


FieldKind = UInt | Text | Octets | Bitmap | Rows


def uint(bits: int, meaning: str, *, low: int = 0, high: int | None = None) -> UInt:
    """Return the kind of an unsigned integer field; ``high`` defaults to the largest number of ``bits``."""
    return UInt(bits, meaning, low, (1 << bits) - 1 if high is None else high)


def enumeration(bits: int, members: type[enum.IntEnum], meaning: str) -> UInt:
    """Return the kind of a field that holds one of ``members``, whose numbers have no gaps."""
    return UInt(bits, meaning, min(members), max(members), members)


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One row of a message's or record's table."""

    name: str
    kind: FieldKind


MessageClass = TypeVar("MessageClass", bound=type)


def fields_of(message: type) -> tuple[Field, ...]:
    """Return the table of ``message``: its annotated fields in wire order."""
    hints: dict[str, Any] = get_type_hints(message, include_extras=True)
    return tuple(Field(item.name, hints[item.name].__metadata__[0]) for item in dataclasses.fields(message))


def message(wire_type: int) -> Callable[[MessageClass], MessageClass]:
    """Set the wire type and the field table of a frozen dataclass."""

    def decorate(cls: MessageClass) -> MessageClass:
        cls.WIRE_TYPE = wire_type  # type: ignore[attr-defined]
        cls.FIELDS = fields_of(cls)  # type: ignore[attr-defined]
        return cls

    return decorate
