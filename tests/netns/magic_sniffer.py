"""A sleeping network card: prints a JSON line for each magic packet that an interface receives by broadcast."""

from __future__ import annotations

import json
import socket
import sys

from sender.daemon.waking.magic_packet import MAGIC_PACKET_PORT, magic_packet


def main(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.bind(("", MAGIC_PACKET_PORT))
        print(json.dumps({"event": "ready"}), flush=True)
        while True:
            packet, (source, _port) = sock.recvfrom(2048)
            mac = packet[6:12].hex(":")
            assert packet == magic_packet(mac)
            print(json.dumps({"event": "packet", "mac": mac, "source": source}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
