"""Messages of the NBD protocol as bytes: pure encoders and decoders for a server of one read-only export.

The source is the specification of the protocol, doc/proto.md of the NBD project: fixed newstyle negotiation, structured
replies, and the metadata context ``base:allocation``. All integers are big-endian.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from protocol.constants import KIB, MIB

REQUEST_BYTES_MAX: Final = 32 * MIB
"""Longest read: the limit that the specification recommends, and that clients expect ("Block size constraints")."""

PREFERRED_BYTES_MIN: Final = 4 * KIB

OPTION_BYTES_MAX: Final = 16 * KIB
"""Data of one option: two names of the longest kind (4096 bytes), and the queries of a client that asks for much."""

NAME_BYTES_MAX: Final = 4096
"""Longest string of the protocol ("Conventions")."""

QUERIES_MAX: Final = 64
"""Metadata contexts of one option: there is one to ask for."""

OPTIONS_MAX: Final = 128
"""Options of one negotiation: clients send about six."""

ALLOCATION_CONTEXT: Final = "base:allocation"
ALLOCATION_CONTEXT_ID: Final = 1

_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
_OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
_OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
_REQUEST_MAGIC: Final = 0x25609513
_SIMPLE_REPLY_MAGIC: Final = 0x67446698
_CHUNK_MAGIC: Final = 0x668E33EF

_GREETING: Final = struct.Struct(">QQH")
_CLIENT_FLAGS: Final = struct.Struct(">I")
_OPTION: Final = struct.Struct(">QII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_REQUEST: Final = struct.Struct(">IHHQQI")
_SIMPLE_REPLY: Final = struct.Struct(">IIQ")
_CHUNK: Final = struct.Struct(">IHHQI")
_EXPORT: Final = struct.Struct(">QH")
_EXPORT_PADDING_BYTES: Final = 124

CLIENT_FLAGS_BYTES: Final = _CLIENT_FLAGS.size
OPTION_HEADER_BYTES: Final = _OPTION.size
REQUEST_HEADER_BYTES: Final = _REQUEST.size


class NbdError(Exception):
    """A message of the client violates the protocol; the connection can't continue."""


class OptionError(Exception):
    """The data of an option is invalid; the negotiation continues."""


class HandshakeFlag(enum.IntFlag):
    """Flags of the greeting, and of the client's answer."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class NbdOption(enum.IntEnum):
    """Options that this server knows."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(enum.IntEnum):
    """Replies to options; those from 2^31 are errors."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERROR_UNSUPPORTED = 0x80000001
    ERROR_INVALID = 0x80000003
    ERROR_UNKNOWN = 0x80000006
    ERROR_TOO_BIG = 0x80000009


class Info(enum.IntEnum):
    """Kinds of information about an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(enum.IntFlag):
    """Features of an export."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10


class NbdCommand(enum.IntEnum):
    """Kinds of requests."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(enum.IntFlag):
    """Flags of requests."""

    FUA = 1
    NO_HOLE = 2
    DONT_FRAGMENT = 4
    REQUEST_ONE = 8
    FAST_ZERO = 16


class Chunk(enum.IntEnum):
    """Kinds of chunks of structured replies; those from 2^15 are errors."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 0x8001
    ERROR_OFFSET = 0x8002


_CHUNK_DONE: Final = 1


class ErrorValue(enum.IntEnum):
    """Values of the field ``error`` ("Error values")."""

    NONE = 0
    NOT_PERMITTED = 1
    INPUT_OUTPUT = 5
    INVALID = 22
    OVERFLOW = 75
    NOT_SUPPORTED = 95
    SHUTDOWN = 108


class Allocation(enum.IntFlag):
    """State of a range in the context ``base:allocation``."""

    DATA = 0
    HOLE = 1
    ZERO = 2


@dataclasses.dataclass(frozen=True, slots=True)
class OptionHeader:
    """The start of an option; ``length`` bytes of data follow."""

    option: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A request of the transmission phase."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class InfoQuery:
    """The data of INFO and GO."""

    name: str
    infos: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ContextQuery:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]


# -- negotiation ----------------------------------------------------------------------------------------------


def build_greeting(flags: HandshakeFlag) -> bytes:
    """Return the first message of the server."""
    return _GREETING.pack(_MAGIC, _OPTION_MAGIC, flags)


def parse_client_flags_untrusted(data: bytes) -> HandshakeFlag:
    """Return the client's answer to the greeting.

    Raises:
        NbdError: a flag is unknown, or the client can't do fixed newstyle: the server must close the connection.
    """
    (flags,) = _CLIENT_FLAGS.unpack(data) if len(data) == _CLIENT_FLAGS.size else (None,)
    if flags is None or flags & ~int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES):
        raise NbdError("the client answers the greeting with unknown flags")
    if not flags & HandshakeFlag.FIXED_NEWSTYLE:
        raise NbdError("the client doesn't support the fixed newstyle negotiation")
    return HandshakeFlag(flags)


def parse_option_header_untrusted(data: bytes) -> OptionHeader:
    """Return the start of an option.

    Raises:
        NbdError: it isn't one, or its data is longer than anything to skip.
    """
    if len(data) != _OPTION.size:
        raise NbdError("an option is truncated")
    magic, option, length = _OPTION.unpack(data)
    if magic != _OPTION_MAGIC:
        raise NbdError("an option doesn't start with its magic number")
    if length > REQUEST_BYTES_MAX:
        raise NbdError(f"an option of {length} bytes")
    return OptionHeader(option, length)


class _Fields:
    """Fields of an option's data, in order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        piece = self._data[self._position : self._position + count]
        if len(piece) < count:
            raise OptionError("the option's data is truncated")
        self._position += count
        return piece

    def integer(self, width: int) -> int:
        """Return the next integer of ``width`` bytes."""
        return int.from_bytes(self.take(width), "big")

    def text(self) -> str:
        """Return the next string, which its length of 32 bits precedes."""
        length = self.integer(4)
        if length > NAME_BYTES_MAX:
            raise OptionError(f"a string of {length} bytes; at most {NAME_BYTES_MAX} are allowed")
        return decode_name_untrusted(self.take(length))

    def end(self) -> None:
        """Require that nothing follows."""
        if self._position != len(self._data):
            raise OptionError("the option's data is longer than its fields")


def decode_name_untrusted(data: bytes) -> str:
    """Return the name of an export.

    Raises:
        OptionError: it isn't UTF-8, or too long.
    """
    if len(data) > NAME_BYTES_MAX:
        raise OptionError(f"a string of {len(data)} bytes; at most {NAME_BYTES_MAX} are allowed")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise OptionError("a string isn't UTF-8") from error


def parse_info_query_untrusted(data: bytes) -> InfoQuery:
    """Return the data of INFO or GO.

    Raises:
        OptionError: it is invalid.
    """
    fields = _Fields(data)
    name = fields.text()
    infos = tuple(fields.integer(2) for _ in range(fields.integer(2)))
    fields.end()
    return InfoQuery(name, infos)


def parse_context_query_untrusted(data: bytes) -> ContextQuery:
    """Return the data of LIST_META_CONTEXT or SET_META_CONTEXT.

    Raises:
        OptionError: it is invalid.
    """
    fields = _Fields(data)
    name = fields.text()
    count = fields.integer(4)
    if count > QUERIES_MAX:
        raise OptionError(f"{count} queries; at most {QUERIES_MAX} are allowed")
    queries = tuple(fields.text() for _ in range(count))
    fields.end()
    return ContextQuery(name, queries)


def build_option_reply(option: int, kind: OptionReply, data: bytes = b"") -> bytes:
    """Return a reply to an option; of errors, ``data`` is a text for people."""
    return _OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def build_export_name_reply(size_bytes: int, flags: TransmissionFlag, *, padded: bool) -> bytes:
    """Return the reply to EXPORT_NAME, which ends the negotiation."""
    return _EXPORT.pack(size_bytes, flags) + bytes(_EXPORT_PADDING_BYTES if padded else 0)


def build_server_entry(name: str) -> bytes:
    """Return the data of a SERVER reply: one export of the list."""
    encoded = name.encode()
    return struct.pack(">I", len(encoded)) + encoded


def build_export_info(size_bytes: int, flags: TransmissionFlag) -> bytes:
    """Return the data of an INFO reply with size and flags."""
    return struct.pack(">H", Info.EXPORT) + _EXPORT.pack(size_bytes, flags)


def build_text_info(kind: Info, text: str) -> bytes:
    """Return the data of an INFO reply with the name or the description."""
    return struct.pack(">H", kind) + text.encode()


def build_block_size_info(preferred_bytes: int) -> bytes:
    """Return the data of an INFO reply with the sizes of requests: any range may be read."""
    return struct.pack(">HIII", Info.BLOCK_SIZE, 1, preferred_bytes, REQUEST_BYTES_MAX)


def build_meta_context(context_id: int, name: str) -> bytes:
    """Return the data of a META_CONTEXT reply."""
    return struct.pack(">I", context_id) + name.encode()


# -- transmission ---------------------------------------------------------------------------------------------


def parse_request_untrusted(data: bytes) -> Request:
    """Return a request of the transmission phase; commands and flags may be unknown.

    Raises:
        NbdError: it isn't a request.
    """
    if len(data) != _REQUEST.size:
        raise NbdError("a request is truncated")
    magic, flags, command, cookie, offset, length = _REQUEST.unpack(data)
    if magic != _REQUEST_MAGIC:
        raise NbdError("a request doesn't start with its magic number")
    return Request(flags, command, cookie, offset, length)


def build_simple_reply(cookie: int, error: ErrorValue = ErrorValue.NONE) -> bytes:
    """Return a simple reply; the data of a successful read follows."""
    return _SIMPLE_REPLY.pack(_SIMPLE_REPLY_MAGIC, error, cookie)


def build_done(cookie: int) -> bytes:
    """Return the last chunk of a reply, without content."""
    return _CHUNK.pack(_CHUNK_MAGIC, _CHUNK_DONE, Chunk.NONE, cookie, 0)


def build_data_start(cookie: int, offset: int, length: int, *, done: bool = False) -> bytes:
    """Return the start of a chunk of data; ``length`` bytes follow."""
    return _CHUNK.pack(
        _CHUNK_MAGIC, _CHUNK_DONE if done else 0, Chunk.OFFSET_DATA, cookie, 8 + length
    ) + struct.pack(">Q", offset)


def build_hole(cookie: int, offset: int, length: int) -> bytes:
    """Return a chunk of zeros."""
    return _CHUNK.pack(_CHUNK_MAGIC, 0, Chunk.OFFSET_HOLE, cookie, 12) + struct.pack(">QI", offset, length)


def build_error(cookie: int, error: ErrorValue, message: str, offset: int | None = None) -> bytes:
    """Return the last chunk of a reply that failed, at ``offset`` if it is about one."""
    text = message.encode()[:NAME_BYTES_MAX]
    payload = struct.pack(">IH", error, len(text)) + text
    kind = Chunk.ERROR
    if offset is not None:
        kind, payload = Chunk.ERROR_OFFSET, payload + struct.pack(">Q", offset)
    return _CHUNK.pack(_CHUNK_MAGIC, _CHUNK_DONE, kind, cookie, len(payload)) + payload


def build_block_status(cookie: int, extents: Sequence[tuple[int, Allocation]]) -> bytes:
    """Return a reply to BLOCK_STATUS: lengths and states of consecutive ranges."""
    payload = struct.pack(">I", ALLOCATION_CONTEXT_ID) + b"".join(
        struct.pack(">II", length, state) for length, state in extents
    )
    return _CHUNK.pack(_CHUNK_MAGIC, _CHUNK_DONE, Chunk.BLOCK_STATUS, cookie, len(payload)) + payload


def merge_extents(extents: Iterable[tuple[int, Allocation]]) -> list[tuple[int, Allocation]]:
    """Join neighbours of equal state."""
    merged: list[tuple[int, Allocation]] = []
    for length, state in extents:
        if merged and merged[-1][1] is state:
            merged[-1] = merged[-1][0] + length, state
        else:
            merged.append((length, state))
    return merged
