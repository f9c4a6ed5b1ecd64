"""Join a cast without its secret, as often as this machine can: ``python -m tests.attacks.join_flood URL CAST_ID S``.

Each connection gets a hundred requests at once, before the first answer. Prints how many joins were offered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import urllib.parse

from protocol.control.control_messages import join_to_json
from protocol.model.session_records import JoinRequest
from protocol.program.pinned_tls import unpinned_context

CONNECTIONS = 32
JOINS_PER_CONNECTION = 200


async def flood(url: str, cast_id: str, seconds: float) -> int:
    """Return the number of joins that were offered."""
    address = urllib.parse.urlsplit(url)
    tls = unpinned_context()
    ends_at = time.monotonic() + seconds
    offered = 0

    async def attack(number: int) -> None:
        nonlocal offered
        body = json.dumps(
            join_to_json(JoinRequest(f"fake-{number}", f"fake-{number}", {}, False, None, ""))
        ).encode()
        head = (
            f"POST /api/v1/casts/{cast_id}/receivers HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Authorization: Bearer aaaaaaaaaaaa\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        batch = (head.encode() + body) * JOINS_PER_CONNECTION
        while time.monotonic() < ends_at:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                async with asyncio.timeout(5):
                    _, writer = await asyncio.open_connection(address.hostname, address.port, ssl=tls)
                    offered += JOINS_PER_CONNECTION
                    writer.write(batch)
                    with contextlib.suppress(OSError):
                        await writer.drain()
                        writer.close()
                        await writer.wait_closed()

    await asyncio.gather(*(attack(number) for number in range(CONNECTIONS)))
    return offered


if __name__ == "__main__":
    count = asyncio.run(flood(sys.argv[1], sys.argv[2], float(sys.argv[3])))
    print(json.dumps({"event": "flooded", "offered": count, "seconds": float(sys.argv[3])}))
