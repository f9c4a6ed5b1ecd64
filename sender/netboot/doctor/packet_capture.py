"""Capture of the DHCP and TFTP datagrams on an interface, those of other machines and our own."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Final

from protocol.errors import ConfigurationError, ProtocolError
from sender.netboot.doctor.frames import UDP, decode_packet_untrusted
from sender.netboot.doctor.wire_watch import WATCHED_PORTS, WireWatch

_ETH_P_ALL: Final = 0x0003
"""Other values of if_ether.h don't capture what this machine sends, such as the offers of its boot service."""
_ETH_P_IP: Final = 0x0800
_SO_ATTACH_FILTER: Final = 26
"""asm-generic/socket.h; the socket module has no name for it."""
_PACKET_BYTES_MAX: Final = 2048
_RECEIVE_BUFFER_BYTES: Final = 1 << 20

_LOAD_BYTE, _LOAD_HALF, _LOAD_HALF_INDEXED, _LOAD_HEADER_LENGTH = 0x30, 0x28, 0x48, 0xB1
_JUMP_EQUAL, _RETURN = 0x15, 0x06
"""Instructions of classic BPF (linux/bpf_common.h)."""
_ETHERTYPE: Final = 0xFFFFF000
"""SKF_AD_OFF + SKF_AD_PROTOCOL (linux/filter.h): the packet's type, which is in no byte of it."""


async def watch_wire(interface_name: str, watch: WireWatch, seconds: float) -> None:
    """Pass the datagrams of booting machines to ``watch`` for some seconds.

    Raises:
        ConfigurationError: this user may not capture.
    """
    loop = asyncio.get_running_loop()
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        raise ConfigurationError(
            "cannot watch the network without CAP_NET_RAW: run diskcast netboot doctor as root"
        ) from error
    with sock:
        _attach_filter(sock, port_filter(WATCHED_PORTS))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        # Bound after the filter: no packet passes without it.
        sock.bind((interface_name, _ETH_P_ALL))
        try:
            async with asyncio.timeout(seconds):
                while True:
                    packet = await loop.sock_recv(sock, _PACKET_BYTES_MAX)
                    try:
                        watch.observe(decode_packet_untrusted(packet))
                    except ProtocolError:
                        continue
        except TimeoutError:
            return


def port_filter(ports: Sequence[int]) -> bytes:
    """Return a BPF program that passes UDP in IPv4 from or to one of ``ports``; offsets count from the IP header.

    Without it a cast on the same interface would send every datagram through Python.
    """
    program: list[tuple[int, int, int, int]] = [
        (_LOAD_HALF, 0, 0, _ETHERTYPE),
        (_JUMP_EQUAL, 0, 2 * len(ports) + 5, _ETH_P_IP),
        (_LOAD_BYTE, 0, 0, 9),
        (_JUMP_EQUAL, 0, 2 * len(ports) + 3, UDP),
        (_LOAD_HEADER_LENGTH, 0, 0, 0),
    ]
    for offset in (0, 2):
        program.append((_LOAD_HALF_INDEXED, 0, 0, offset))
        for port in ports:
            # To the accepting instruction, which is last; the rejecting one is before it.
            remaining = (2 * len(ports) + 7) - len(program)
            program.append((_JUMP_EQUAL, remaining, 0, port))
    program.append((_RETURN, 0, 0, 0))
    program.append((_RETURN, 0, 0, _PACKET_BYTES_MAX))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _attach_filter(sock: socket.socket, program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: number of instructions, and their address.
    description = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, description)
