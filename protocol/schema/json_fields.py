"""Field kinds of the control API's JSON: each writes a record's value and reads it back with every check.

``decode_untrusted`` takes what came from the network and raises only :class:`protocol.errors.ProtocolError`,
whose message names the field: numbers are in range, text is printable and bounded, addresses are addresses.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from protocol.constants import (
    INVENTORY_ENTRIES_MAX,
    INVENTORY_KEY_BYTES_MAX,
    INVENTORY_VALUE_BYTES_MAX,
)
from protocol.errors import ProtocolError

R = TypeVar("R")


class JsonField(Protocol):
    """One kind of JSON value: how a record's value is written, and read back with every check."""

    def encode(self, value: object) -> object:
        """The JSON value of a record's value."""

    def decode_untrusted(self, name: str, value: object) -> object:
        """The record's value of a JSON value; raises :class:`ProtocolError` that names the field."""


@dataclasses.dataclass(frozen=True, slots=True)
class Integer:
    """A JSON number without fraction, ``low <= value <= high < 2^53``."""

    low: int
    high: int

    def encode(self, value: object) -> object:
        """The number as it is."""
        return value

    def decode_untrusted(self, name: str, value: object) -> int:
        """An int in range."""
        if type(value) is not int or not self.low <= value <= self.high:
            raise ProtocolError(f"{name}: an integer {self.low}..{self.high} expected")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """A JSON number, ``0 <= value <= high``; NaN is outside every range."""

    high: float

    def encode(self, value: object) -> object:
        """The number as it is."""
        return value

    def decode_untrusted(self, name: str, value: object) -> float:
        """A float in range."""
        if type(value) not in (int, float) or not 0 <= value <= self.high:  # type: ignore[operator]
            raise ProtocolError(f"{name}: a number 0..{self.high} expected")
        return float(value)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, slots=True)
class Boolean:
    """``true`` or ``false``."""

    def encode(self, value: object) -> object:
        """The truth value as it is."""
        return value

    def decode_untrusted(self, name: str, value: object) -> bool:
        """A bool and nothing that merely looks true."""
        if type(value) is not bool:
            raise ProtocolError(f"{name}: true or false expected")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class PrintableText:
    """Text of at most ``bytes_max`` UTF-8 bytes that a terminal can show: no escapes, no line breaks."""

    bytes_max: int
    bytes_min: int = 0

    def encode(self, value: object) -> object:
        """The text in one printable line, cut to the limit: an error message may have come from anywhere."""
        line = " ".join(str(value).split())
        printable = "".join(character if character.isprintable() else "?" for character in line)
        return printable.encode()[: self.bytes_max].decode(errors="ignore")

    def decode_untrusted(self, name: str, value: object) -> str:
        """The text; it ends up on the operator's terminal and in metric labels."""
        if type(value) is not str or not value.isprintable():
            raise ProtocolError(f"{name}: printable text expected")
        if not self.bytes_min <= len(value.encode()) <= self.bytes_max:
            raise ProtocolError(f"{name}: text of {self.bytes_min}..{self.bytes_max} bytes expected")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class HexBytes:
    """Exactly ``bytes_exact`` bytes in hexadecimal."""

    bytes_exact: int

    def encode(self, value: object) -> object:
        """Two lower-case digits a byte."""
        assert isinstance(value, bytes)
        assert len(value) == self.bytes_exact
        return value.hex()

    def decode_untrusted(self, name: str, value: object) -> bytes:
        """The bytes; ``bytes.fromhex`` alone would also take spaces."""
        if type(value) is not str or len(value) != 2 * self.bytes_exact or not _is_hex(value):
            raise ProtocolError(f"{name}: {2 * self.bytes_exact} hexadecimal digits expected")
        return bytes.fromhex(value)


@dataclasses.dataclass(frozen=True, slots=True)
class HexInteger:
    """An unsigned 32-bit id in eight hexadecimal digits, as it stands in URLs and in messages to people."""

    def encode(self, value: object) -> object:
        """Eight digits."""
        assert isinstance(value, int)
        return f"{value:08x}"

    def decode_untrusted(self, name: str, value: object) -> int:
        """The id."""
        if type(value) is not str or len(value) != 8 or not _is_hex(value):
            raise ProtocolError(f"{name}: eight hexadecimal digits expected")
        return int(value, 16)


@dataclasses.dataclass(frozen=True, slots=True)
class DecimalText:
    """An unsigned 64-bit number in decimal digits: many JSON readers would round it to 53 bits."""

    def encode(self, value: object) -> object:
        """The digits."""
        return str(value)

    def decode_untrusted(self, name: str, value: object) -> int:
        """The number."""
        if type(value) is not str or not value.isascii() or not value.isdigit() or len(value) > 20:
            raise ProtocolError(f"{name}: decimal digits expected")
        number = int(value)
        if number >= 1 << 64:
            raise ProtocolError(f"{name}: more than 64 bits")
        return number


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 or IPv6 address in its usual text form, without a scope: interfaces are local."""

    multicast: bool

    def encode(self, value: object) -> object:
        """The address without the scope that only this machine understands."""
        return str(value).partition("%")[0]

    def decode_untrusted(self, name: str, value: object) -> str:
        """The address, multicast or not as the field asks."""
        try:
            address = ipaddress.ip_address(value if type(value) is str and "%" not in value else "")
        except ValueError as error:
            raise ProtocolError(f"{name}: an IP address expected") from error
        if address.is_multicast is not self.multicast:
            raise ProtocolError(f"{name}: a {'multicast' if self.multicast else 'unicast'} address expected")
        return str(address)


@dataclasses.dataclass(frozen=True, slots=True)
class InventoryField:
    """What a machine tells about itself: a small map of text to text."""

    def encode(self, value: object) -> object:
        """The map, every text made printable and cut to its limit."""
        assert isinstance(value, Mapping)
        entries = list(value.items())[:INVENTORY_ENTRIES_MAX]
        return {_INVENTORY_KEY.encode(key): _INVENTORY_VALUE.encode(text) for key, text in entries}

    def decode_untrusted(self, name: str, value: object) -> dict[str, str]:
        """The map, bounded in entries and lengths."""
        if not isinstance(value, dict) or len(value) > INVENTORY_ENTRIES_MAX:
            raise ProtocolError(f"{name}: an object of at most {INVENTORY_ENTRIES_MAX} texts expected")
        return {
            _INVENTORY_KEY.decode_untrusted(name, key): _INVENTORY_VALUE.decode_untrusted(name, text)
            for key, text in value.items()
        }


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceField:
    """One of a few values, each with its text in JSON."""

    choices: Mapping[str, object]

    def encode(self, value: object) -> str:
        """Return the text of ``value``, which is one of the choices."""
        return next(text for text, choice in self.choices.items() if choice == value)

    def decode_untrusted(self, name: str, value: object) -> object:
        """Return the choice of a text."""
        if type(value) is not str or value not in self.choices:
            raise ProtocolError(f"{name}: one of {', '.join(self.choices)} expected")
        return self.choices[value]


@dataclasses.dataclass(frozen=True, slots=True)
class Optional:
    """``null``, or what ``kind`` takes. In a table such a field may be missing: an earlier version didn't know it."""

    kind: JsonField

    def encode(self, value: object) -> object:
        """``null`` for None."""
        return None if value is None else self.kind.encode(value)

    def decode_untrusted(self, name: str, value: object) -> object:
        """None for ``null``."""
        return None if value is None else self.kind.decode_untrusted(name, value)


@dataclasses.dataclass(frozen=True, slots=True)
class HardwareAddresses:
    """MAC addresses, six bytes each, at most ``count_max`` of them."""

    count_max: int

    def encode(self, value: object) -> object:
        """In lower case with colons; what isn't one, such as InfiniBand's twenty bytes, is left out."""
        assert isinstance(value, tuple)
        normal = [str(address).strip().lower().replace("-", ":") for address in value]
        return [address for address in normal if _HARDWARE_ADDRESS.fullmatch(address)][: self.count_max]

    def decode_untrusted(self, name: str, value: object) -> tuple[str, ...]:
        """In lower case with colons, in their order."""
        if not isinstance(value, list) or len(value) > self.count_max:
            raise ProtocolError(f"{name}: a list of at most {self.count_max} MAC addresses expected")
        for address in value:
            if type(address) is not str or not _HARDWARE_ADDRESS.fullmatch(address.lower()):
                raise ProtocolError(f"{name}: MAC addresses such as 52:54:00:12:34:56 expected")
        return tuple(address.lower() for address in value)


_HARDWARE_ADDRESS = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_INVENTORY_KEY = PrintableText(INVENTORY_KEY_BYTES_MAX, bytes_min=1)
_INVENTORY_VALUE = PrintableText(INVENTORY_VALUE_BYTES_MAX)


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdefABCDEF" for character in text)


# -- records --------------------------------------------------------------------------------------------------


def encode_fields(table: Mapping[str, JsonField], values: Mapping[str, object]) -> dict[str, object]:
    """The JSON object of a table of fields, each with its value."""
    return {name: kind.encode(values[name]) for name, kind in table.items()}


def decode_fields_untrusted(table: Mapping[str, JsonField], value: object) -> dict[str, object]:
    """The values of a JSON object's fields; names that the table doesn't have are ignored, for later versions.

    Raises:
        ProtocolError: it isn't an object, or a field is out of range, or missing though it isn't optional.
    """
    if not isinstance(value, dict):
        raise ProtocolError("a JSON object expected")
    decoded = {}
    for name, kind in table.items():
        if name not in value and not isinstance(kind, Optional):
            raise ProtocolError(f"{name}: missing")
        decoded[name] = kind.decode_untrusted(name, value.get(name))
    return decoded


@dataclasses.dataclass(frozen=True, slots=True)
class JsonRecord(Generic[R]):
    """Records of one class, as JSON objects with a table of fields; a record can be a field of another one.

    Attributes:
        record_class: takes the fields by their names.
    """

    record_class: Callable[..., R]
    fields: Mapping[str, JsonField]

    def encode(self, value: object) -> dict[str, object]:
        """The JSON object; texts are cut to their limits."""
        return encode_fields(self.fields, {name: getattr(value, name) for name in self.fields})

    def decode_untrusted(self, name: str, value: object) -> R:
        """The record; raises :class:`ProtocolError` that names the first field that is missing or out of range."""
        if not isinstance(value, dict):
            raise ProtocolError(f"{name}: a JSON object expected")
        return self.record_class(**decode_fields_untrusted(self.fields, value))
