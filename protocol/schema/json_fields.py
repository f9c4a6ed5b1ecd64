"""Field kinds of the control API's JSON: each encodes a record's value, and decodes it with every check.

``decode_untrusted`` takes input from the network and raises only :class:`protocol.errors.ProtocolError`, whose message
names the field: numbers are in range, text is printable and bounded, addresses are addresses.
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
    """A kind of JSON value."""

    def encode(self, value: object) -> object:
        """Return the JSON value of a record's value."""

    def decode_untrusted(self, name: str, value: object) -> object:
        """Return the record's value of a JSON value; raise :class:`ProtocolError` that names the field."""


@dataclasses.dataclass(frozen=True, slots=True)
class Integer:
    """A JSON number without fraction, ``low <= value <= high < 2^53``."""

    low: int
    high: int

    def encode(self, value: object) -> object:
        """Return the number unchanged."""
        return value

    def decode_untrusted(self, name: str, value: object) -> int:
        """Return an int in range."""
        if type(value) is not int or not self.low <= value <= self.high:
            raise ProtocolError(f"{name}: expected an integer {self.low}..{self.high}")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """A JSON number, ``0 <= value <= high``; NaN is outside every range."""

    high: float

    def encode(self, value: object) -> object:
        """Return the number unchanged."""
        return value

    def decode_untrusted(self, name: str, value: object) -> float:
        """Return a float in range."""
        if type(value) not in (int, float) or not 0 <= value <= self.high:  # type: ignore[operator]
            raise ProtocolError(f"{name}: expected a number 0..{self.high}")
        return float(value)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, slots=True)
class Boolean:
    """``true`` or ``false``."""

    def encode(self, value: object) -> object:
        """Return the truth value unchanged."""
        return value

    def decode_untrusted(self, name: str, value: object) -> bool:
        """Return a bool; numbers and texts are refused."""
        if type(value) is not bool:
            raise ProtocolError(f"{name}: expected true or false")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class PrintableText:
    """Text of at most ``bytes_max`` UTF-8 bytes that a terminal can show: no escapes, no line breaks."""

    bytes_max: int
    bytes_min: int = 0

    def encode(self, value: object) -> object:
        """Return the text as one printable line, cut to the limit: an error message may have any origin."""
        line = " ".join(str(value).split())
        printable = "".join(character if character.isprintable() else "?" for character in line)
        return printable.encode()[: self.bytes_max].decode(errors="ignore")

    def decode_untrusted(self, name: str, value: object) -> str:
        """Return the text, which is safe on a terminal and in metric labels."""
        if type(value) is not str or not value.isprintable():
            raise ProtocolError(f"{name}: expected printable text")
        if not self.bytes_min <= len(value.encode()) <= self.bytes_max:
            raise ProtocolError(f"{name}: expected text of {self.bytes_min}..{self.bytes_max} bytes")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class PrintableLines:
    """Lines of printable text, tabs included, of at most ``bytes_max`` UTF-8 bytes: a signed file, kept as it is."""

    bytes_max: int

    def encode(self, value: object) -> object:
        """Return the text unchanged: a signature covers every byte."""
        assert isinstance(value, str)
        return value

    def decode_untrusted(self, name: str, value: object) -> str:
        """Return the text."""
        if type(value) is not str or not value.replace("\n", " ").replace("\t", " ").isprintable():
            raise ProtocolError(f"{name}: expected lines of printable text")
        if len(value.encode()) > self.bytes_max:
            raise ProtocolError(f"{name}: expected text of at most {self.bytes_max} bytes")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class HexBytes:
    """A fixed number of bytes in hexadecimal."""

    bytes_exact: int

    def encode(self, value: object) -> object:
        """Return two lower-case digits per byte."""
        assert isinstance(value, bytes)
        assert len(value) == self.bytes_exact
        return value.hex()

    def decode_untrusted(self, name: str, value: object) -> bytes:
        """Return the bytes; ``bytes.fromhex`` alone would also accept spaces."""
        if type(value) is not str or len(value) != 2 * self.bytes_exact or not _is_hex(value):
            raise ProtocolError(f"{name}: expected {2 * self.bytes_exact} hexadecimal digits")
        return bytes.fromhex(value)


@dataclasses.dataclass(frozen=True, slots=True)
class HexData:
    """At most ``bytes_max`` bytes in hexadecimal."""

    bytes_max: int

    def encode(self, value: object) -> object:
        """Return two lower-case digits per byte."""
        assert isinstance(value, bytes)
        assert len(value) <= self.bytes_max
        return value.hex()

    def decode_untrusted(self, name: str, value: object) -> bytes:
        """Return the bytes; ``bytes.fromhex`` alone would also accept spaces."""
        if type(value) is not str or len(value) > 2 * self.bytes_max or len(value) % 2:
            raise ProtocolError(f"{name}: expected at most {2 * self.bytes_max} hexadecimal digits")
        return HexBytes(len(value) // 2).decode_untrusted(name, value)


@dataclasses.dataclass(frozen=True, slots=True)
class HexInteger:
    """An unsigned 32-bit id in eight hexadecimal digits, as in URLs and messages."""

    def encode(self, value: object) -> object:
        """Return eight digits."""
        assert isinstance(value, int)
        return f"{value:08x}"

    def decode_untrusted(self, name: str, value: object) -> int:
        """Return the id."""
        if type(value) is not str or len(value) != 8 or not _is_hex(value):
            raise ProtocolError(f"{name}: expected eight hexadecimal digits")
        return int(value, 16)


@dataclasses.dataclass(frozen=True, slots=True)
class DecimalText:
    """An unsigned 64-bit number in decimal digits: many JSON readers would round it to 53 bits."""

    def encode(self, value: object) -> object:
        """Return the digits."""
        return str(value)

    def decode_untrusted(self, name: str, value: object) -> int:
        """Return the number."""
        if type(value) is not str or not value.isascii() or not value.isdigit() or len(value) > 20:
            raise ProtocolError(f"{name}: expected decimal digits")
        number = int(value)
        if number >= 1 << 64:
            raise ProtocolError(f"{name}: more than 64 bits")
        return number


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 or IPv6 address in its usual text form, without a scope, since interface names are local."""

    multicast: bool

    def encode(self, value: object) -> object:
        """Return the address without its scope."""
        return str(value).partition("%")[0]

    def decode_untrusted(self, name: str, value: object) -> str:
        """Return the address, which is multicast exactly if the field is."""
        try:
            address = ipaddress.ip_address(value if type(value) is str and "%" not in value else "")
        except ValueError as error:
            raise ProtocolError(f"{name}: expected an IP address") from error
        if address.is_multicast is not self.multicast:
            raise ProtocolError(f"{name}: expected a {'multicast' if self.multicast else 'unicast'} address")
        return str(address)


@dataclasses.dataclass(frozen=True, slots=True)
class InventoryField:
    """A machine's description of itself: a small map of text to text."""

    def encode(self, value: object) -> object:
        """Return the map, every text made printable and cut to its limit."""
        assert isinstance(value, Mapping)
        entries = list(value.items())[:INVENTORY_ENTRIES_MAX]
        return {_INVENTORY_KEY.encode(key): _INVENTORY_VALUE.encode(text) for key, text in entries}

    def decode_untrusted(self, name: str, value: object) -> dict[str, str]:
        """Return the map, bounded in entries and lengths."""
        if not isinstance(value, dict) or len(value) > INVENTORY_ENTRIES_MAX:
            raise ProtocolError(f"{name}: expected an object of at most {INVENTORY_ENTRIES_MAX} texts")
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
            raise ProtocolError(f"{name}: expected one of {', '.join(self.choices)}")
        return self.choices[value]


@dataclasses.dataclass(frozen=True, slots=True)
class Optional:
    """``null``, or a value of ``kind``. In a table the field may be missing: earlier versions don't send it."""

    kind: JsonField

    def encode(self, value: object) -> object:
        """Return ``null`` for None."""
        return None if value is None else self.kind.encode(value)

    def decode_untrusted(self, name: str, value: object) -> object:
        """Return None for ``null``."""
        return None if value is None else self.kind.decode_untrusted(name, value)


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """At most ``count_max`` values of one kind."""

    kind: JsonField
    count_max: int

    def encode(self, value: object) -> object:
        """Return the list."""
        assert isinstance(value, tuple)
        assert len(value) <= self.count_max
        return [self.kind.encode(one) for one in value]

    def decode_untrusted(self, name: str, value: object) -> tuple[object, ...]:
        """Return the values, in their order."""
        if not isinstance(value, list) or len(value) > self.count_max:
            raise ProtocolError(f"{name}: expected a list of at most {self.count_max}")
        return tuple(self.kind.decode_untrusted(name, one) for one in value)


@dataclasses.dataclass(frozen=True, slots=True)
class HardwareAddresses:
    """At most ``count_max`` MAC addresses of six bytes."""

    count_max: int

    def encode(self, value: object) -> object:
        """Return them in lower case with colons, without other addresses such as InfiniBand's twenty bytes."""
        assert isinstance(value, tuple)
        normal = [str(address).strip().lower().replace("-", ":") for address in value]
        return [address for address in normal if _HARDWARE_ADDRESS.fullmatch(address)][: self.count_max]

    def decode_untrusted(self, name: str, value: object) -> tuple[str, ...]:
        """Return them in lower case with colons, in their order."""
        if not isinstance(value, list) or len(value) > self.count_max:
            raise ProtocolError(f"{name}: expected a list of at most {self.count_max} MAC addresses")
        for address in value:
            if type(address) is not str or not _HARDWARE_ADDRESS.fullmatch(address.lower()):
                raise ProtocolError(f"{name}: expected MAC addresses such as 52:54:00:12:34:56")
        return tuple(address.lower() for address in value)


_HARDWARE_ADDRESS = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_INVENTORY_KEY = PrintableText(INVENTORY_KEY_BYTES_MAX, bytes_min=1)
_INVENTORY_VALUE = PrintableText(INVENTORY_VALUE_BYTES_MAX)


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdefABCDEF" for character in text)


# -- records --------------------------------------------------------------------------------------------------


def encode_fields(table: Mapping[str, JsonField], values: Mapping[str, object]) -> dict[str, object]:
    """Return the JSON object of a table of fields and their values."""
    return {name: kind.encode(values[name]) for name, kind in table.items()}


def decode_fields_untrusted(table: Mapping[str, JsonField], value: object) -> dict[str, object]:
    """Return the values of a JSON object's fields; names outside the table are ignored, for later versions.

    Raises:
        ProtocolError: it isn't an object, or a field is out of range, or missing though it isn't optional.
    """
    if not isinstance(value, dict):
        raise ProtocolError("expected a JSON object")
    decoded = {}
    for name, kind in table.items():
        if name not in value and not isinstance(kind, Optional):
            raise ProtocolError(f"{name}: missing")
        decoded[name] = kind.decode_untrusted(name, value.get(name))
    return decoded


@dataclasses.dataclass(frozen=True, slots=True)
class JsonRecord(Generic[R]):
    """Records of one class as JSON objects with a table of fields; a record can be a field of another one.

    Attributes:
        record_class: constructor that takes the fields by name.
    """

    record_class: Callable[..., R]
    fields: Mapping[str, JsonField]

    def encode(self, value: object) -> dict[str, object]:
        """Return the JSON object; texts are cut to their limits."""
        return encode_fields(self.fields, {name: getattr(value, name) for name in self.fields})

    def decode_untrusted(self, name: str, value: object) -> R:
        """Return the record; raise :class:`ProtocolError` that names a missing or wrong field."""
        if not isinstance(value, dict):
            raise ProtocolError(f"{name}: expected a JSON object")
        return self.record_class(**decode_fields_untrusted(self.fields, value))
