"""Fuzz targets of the NBD server: a whole negotiation, and requests of the transmission phase."""

from __future__ import annotations

import struct

from sender.export import nbd_protocol as nbd
from sender.export.nbd_negotiation import Export, Negotiation, NegotiationState
from sender.export.nbd_protocol import NbdError, NbdOption
from tests.fuzz.target import Target

EXPORT = Export("golden", "an image", 1 << 30, 1 << 18)


def text(value: str) -> bytes:
    """Return a string as options contain it."""
    return struct.pack(">I", len(value.encode())) + value.encode()


def option(number: int, data: bytes = b"") -> bytes:
    """Return an option as clients send it."""
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data


def request(command: int, offset: int, length: int, *, flags: int = 0, cookie: int = 7) -> bytes:
    """Return a request as clients send it."""
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def info_query(name: str, *infos: int) -> bytes:
    """Return the data of INFO and GO."""
    return text(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def context_query(name: str, *queries: str) -> bytes:
    """Return the data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    return text(name) + struct.pack(">I", len(queries)) + b"".join(map(text, queries))


def _negotiate(data: bytes) -> object:
    """Negotiate as the server does, which reads no more than an option at a time."""
    stream = memoryview(data)

    def take(count: int) -> bytes:
        nonlocal stream
        piece, stream = bytes(stream[:count]), stream[count:]
        return piece

    negotiation = Negotiation(EXPORT, nbd.parse_client_flags_untrusted(take(nbd.CLIENT_FLAGS_BYTES)))
    while negotiation.state is NegotiationState.OPTIONS and stream:
        header = nbd.parse_option_header_untrusted(take(nbd.OPTION_HEADER_BYTES))
        negotiation.receive_option_untrusted(header.option, take(min(header.length, nbd.OPTION_BYTES_MAX)))
    return negotiation.state


def _negotiation_seeds() -> list[bytes]:
    fixed = struct.pack(">I", 3)
    return [
        fixed + option(NbdOption.EXPORT_NAME, b"golden"),
        fixed + option(NbdOption.LIST) + option(NbdOption.ABORT),
        fixed
        + option(NbdOption.STRUCTURED_REPLY)
        + option(NbdOption.LIST_META_CONTEXT, context_query("", "base:"))
        + option(NbdOption.SET_META_CONTEXT, context_query("golden", "base:allocation", "qemu:dirty"))
        + option(NbdOption.INFO, info_query("golden", 1, 2, 3))
        + option(99, b"unknown")
        + option(NbdOption.GO, info_query("golden", 3)),
    ]


TARGETS = (
    Target("NBD negotiation", _negotiate, (NbdError,), _negotiation_seeds),
    Target(
        "NBD request",
        nbd.parse_request_untrusted,
        (NbdError,),
        lambda: [request(0, 0, 4096), request(7, 1 << 20, 1 << 31, flags=8)],
    ),
)
