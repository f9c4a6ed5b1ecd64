"""A TCP flow (CUBIC) without a limit: ``python -m tests.bench.tcp_flow take PORT | give ADDRESS PORT``.

The receiving side prints a JSON line ten times a second with the bytes received so far.
"""

from __future__ import annotations

import json
import socket
import sys
import time

CONGESTION_CONTROL = b"cubic"
_PIECE_BYTES = 1 << 18
_INTERVAL_S = 0.1


def take(port: int) -> None:
    """Accept one connection and count its bytes."""
    with socket.create_server(("", port)) as server:
        print(json.dumps({"event": "listening"}), flush=True)
        connection, _ = server.accept()
    buffer = bytearray(_PIECE_BYTES)
    started_s = reported_s = time.monotonic()
    total_bytes = 0
    with connection:
        while count := connection.recv_into(buffer):
            total_bytes += count
            now_s = time.monotonic()
            if now_s - reported_s >= _INTERVAL_S:
                reported_s = now_s
                line = {"event": "taken", "seconds": now_s - started_s, "bytes": total_bytes}
                print(json.dumps(line), flush=True)


def give(address: str, port: int) -> None:
    """Send until the program is stopped."""
    with socket.socket() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL)
        connection.connect((address, port))
        piece = bytes(_PIECE_BYTES)
        while True:
            connection.sendall(piece)


if __name__ == "__main__":
    if sys.argv[1] == "take":
        take(int(sys.argv[2]))
    else:
        give(sys.argv[2], int(sys.argv[3]))
