"""Send invalid datagrams to an address: ``python -m tests.netns.garbage ADDRESS PORT COUNT SIGN``.

The datagrams come from a seed: random bytes of every size, and valid prefixes followed by random bytes. Multicast
leaves through the interface of its route. The program prints that it is ready, waits for the file SIGN, sends, and
prints the number of datagrams of each kind, as JSON lines.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from pathlib import Path

from protocol.constants import WIRE_MAGIC, WIRE_VERSION
from protocol.wire.codec import CONTROL_PREFIX
from tests.support.network.lab import wait_until

FRAME_BYTES = 1472
DATAGRAM_INTERVAL_S = 0.0005
KINDS = ("empty", "random", "frame_sized", "newer_version", "unknown_type", "bad_payload", "foreign_symbol")


def datagram(kind: str, rng: random.Random) -> bytes:
    """Return one datagram of ``kind``."""
    match kind:
        case "empty":
            return b""
        case "random":
            return rng.randbytes(rng.randrange(1, FRAME_BYTES))
        case "frame_sized":
            return rng.randbytes(FRAME_BYTES)
        case "newer_version":
            return CONTROL_PREFIX.pack(WIRE_MAGIC, WIRE_VERSION + 1, 0x10, 7, 7) + rng.randbytes(100)
        case "unknown_type":
            return CONTROL_PREFIX.pack(WIRE_MAGIC, WIRE_VERSION, 0xEE, 7, 7) + rng.randbytes(100)
        case "bad_payload":
            wire_type = rng.choice((0x10, 0x11, 0x12, 0x20, 0x21))
            return CONTROL_PREFIX.pack(WIRE_MAGIC, WIRE_VERSION, wire_type, 7, 7) + b"\x91" * rng.randrange(
                1, 200
            )
        case _:
            return CONTROL_PREFIX.pack(WIRE_MAGIC, WIRE_VERSION, 0x01, 7, 7) + rng.randbytes(
                FRAME_BYTES - CONTROL_PREFIX.size
            )


def main(address: str, port: int, count: int, sign: Path) -> None:
    """Send ``count`` datagrams, two thousand a second."""
    rng = random.Random(1)
    sent = dict.fromkeys(KINDS, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        print(json.dumps({"event": "ready"}), flush=True)
        wait_until(f"{sign} is there", sign.exists)
        for index in range(count):
            kind = KINDS[index % len(KINDS)]
            sender.sendto(datagram(kind, rng), (address, port))
            sent[kind] += 1
            time.sleep(DATAGRAM_INTERVAL_S)  # a flood would test the socket's buffer, not the parser
    print(json.dumps({"event": "result", "sent": sent}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
