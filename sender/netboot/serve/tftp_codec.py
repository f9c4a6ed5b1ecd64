"""TFTP packets as bytes: RFC 1350, options of RFC 2347, 2348, 2349 and 7440. Pure: no socket and no clock."""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Mapping
from typing import Final

from protocol.errors import ProtocolError

REQUEST_BYTES_MAX: Final = 1024
"""RFC 2347 allows 512; GRUB's and iPXE's paths with their options fit twice."""
FILE_NAME_CHARS_MAX: Final = 255
BLOCK_BYTES_DEFAULT: Final = 512
BLOCK_BYTES_MIN: Final = 8
BLOCK_BYTES_LIMIT: Final = 65464
"""Largest block of RFC 2348."""
BLOCK_NUMBERS: Final = 1 << 16

_OPTION_COUNT_MAX: Final = 8


class Opcode(enum.IntEnum):
    """Kind of a packet."""

    READ = 1
    WRITE = 2
    DATA = 3
    ACK = 4
    ERROR = 5
    OPTION_ACK = 6


class TftpError(enum.IntEnum):
    """Code of an error packet."""

    UNDEFINED = 0
    FILE_NOT_FOUND = 1
    ACCESS_VIOLATION = 2
    ILLEGAL_OPERATION = 4
    UNKNOWN_TRANSFER = 5
    OPTION_REFUSED = 8


@dataclasses.dataclass(frozen=True, slots=True)
class ReadRequest:
    """A request for a file.

    Attributes:
        file_name: as the client wrote it: never a path to open.
        options: values by lower-case name.
    """

    file_name: str
    options: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Acknowledgement:
    """All blocks up to ``block`` have arrived; modulo 2^16."""

    block: int


@dataclasses.dataclass(frozen=True, slots=True)
class ErrorPacket:
    """The end of a transfer."""

    code: int
    text: str


ClientPacket = ReadRequest | Acknowledgement | ErrorPacket


def decode_tftp_untrusted(data: bytes) -> ClientPacket:
    """Decode a packet of a client.

    Raises:
        ProtocolError: it isn't a packet that a reading client sends.
    """
    if len(data) < 4 or len(data) > REQUEST_BYTES_MAX:
        raise ProtocolError(f"{len(data)} bytes aren't a TFTP packet of a client")
    opcode, number = struct.unpack_from("!HH", data)
    match opcode:
        case Opcode.READ:
            return _decode_read_untrusted(data[2:])
        case Opcode.WRITE:
            raise ProtocolError("write request: this server only reads")
        case Opcode.ACK:
            return Acknowledgement(number)
        case Opcode.ERROR:
            return ErrorPacket(number, _printable(data[4:].partition(b"\0")[0]))
    raise ProtocolError(f"unexpected opcode {opcode}")


def _decode_read_untrusted(data: bytes) -> ReadRequest:
    # Some ROMs pad the request, and some leave out the last NUL.
    words = data.split(b"\0")
    if len(words) < 2 or not words[0]:
        raise ProtocolError("read request without a file name")
    if words[1].lower() not in (b"octet", b"netascii"):
        raise ProtocolError(f"read request with mode {_printable(words[1])!r}")
    try:
        file_name = words[0].decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("file name that isn't UTF-8") from error
    if len(file_name) > FILE_NAME_CHARS_MAX or not file_name.isprintable():
        raise ProtocolError("file name that is too long or unprintable")
    pairs = list(zip(words[2::2], words[3::2], strict=False))[:_OPTION_COUNT_MAX]
    return ReadRequest(
        file_name, {_printable(name).lower(): _printable(value) for name, value in pairs if name}
    )


def encode_data(block: int, content: bytes) -> bytes:
    """Return the packet of block ``block``, counted from 1; its number wraps to 0 after 65535, as clients expect."""
    return struct.pack("!HH", Opcode.DATA, block % BLOCK_NUMBERS) + content


def encode_option_ack(options: Mapping[str, int]) -> bytes:
    """Return the acknowledgement of accepted options."""
    words = b"".join(b"%s\0%d\0" % (name.encode(), value) for name, value in options.items())
    return struct.pack("!H", Opcode.OPTION_ACK) + words


def encode_error(code: TftpError, text: str) -> bytes:
    """Return an error packet."""
    return struct.pack("!HH", Opcode.ERROR, code) + text.encode() + b"\0"


def _printable(data: bytes) -> str:
    text = data[:FILE_NAME_CHARS_MAX].decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in text)
