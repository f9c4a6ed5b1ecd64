"""Fuzz targets of the boot service and its doctor: datagrams and names of machines that nobody has authenticated."""

from __future__ import annotations

import struct

from protocol.errors import ProtocolError
from sender.netboot.doctor.frames import decode_packet_untrusted
from sender.netboot.serve.boot_query import parse_grub_file_untrusted, parse_ipxe_query_untrusted
from sender.netboot.serve.dhcp_codec import MessageType, Option, decode_dhcp_untrusted, encode_dhcp
from sender.netboot.serve.dhcp_probe import _offer_untrusted
from sender.netboot.serve.tftp_codec import decode_tftp_untrusted
from tests.fuzz.target import Target
from tests.support.network.dhcp_messages import MAC, UUID, UUID_OPTION, client_message, ipxe_message

_TRANSACTION = 0x12345678


def _dhcp_seeds() -> list[bytes]:
    return [
        encode_dhcp(message)
        for message in (
            client_message(more={Option.CLIENT_UUID: UUID_OPTION}),
            client_message(MessageType.REQUEST, server="10.0.0.1", requested="10.0.0.7"),
            client_message(more={Option.OVERLOAD: b"\x03"}),
            ipxe_message(),
        )
    ]


def _decode_dhcp(data: bytes) -> object:
    message = decode_dhcp_untrusted(data)
    return (
        message.mac,
        message.uuid,
        message.architecture,
        message.message_type,
        message.boot_file_name,
        message.next_server,
        message.is_ipxe,
    )


def _packet(payload: bytes) -> bytes:
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0, b"\x0a\0\0\1", b"\x0a\0\0\2"
    )
    return header + struct.pack("!HHHH", 67, 68, 8 + len(payload), 0) + payload


TARGETS = (
    Target("DHCP message", _decode_dhcp, (ProtocolError,), _dhcp_seeds),
    Target(
        "DHCP offer to a probe", lambda data: _offer_untrusted(data, _TRANSACTION), (), _dhcp_seeds, share=5
    ),
    Target(
        "TFTP packet",
        decode_tftp_untrusted,
        (ProtocolError,),
        lambda: [
            b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0",
            b"\0\x04\0\x07",
            b"\0\x05\0\x08refused\0",
        ],
    ),
    Target(
        "query of iPXE",
        lambda data: parse_ipxe_query_untrusted(data.decode("latin-1")),
        (ProtocolError,),
        lambda: [f"mac={MAC}&uuid={UUID}&serial=PF%201&platform=efi&arch=x86_64&menu=1".encode()],
        share=5,
    ),
    Target(
        "file name of GRUB",
        lambda data: parse_grub_file_untrusted(data.decode("latin-1")),
        (),
        lambda: [f"boot/{MAC}/{UUID}/run.cfg".encode(), b"boot/-/-/menu.cfg"],
        share=5,
    ),
    Target(
        "captured packet",
        decode_packet_untrusted,
        (ProtocolError,),
        lambda: [_packet(b""), _packet(b"x" * 40)],
    ),
)
