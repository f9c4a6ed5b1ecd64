"""Load on the control API when a whole room joins at once, over real HTTPS, with a connection per request.

The clients run in a separate process: ``python -m tests.bench.control_load URL COUNT``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import time
import urllib.parse

from protocol.control.control_messages import (
    COMPLETION,
    JsonObject,
    encode_need,
    grant_from_json_untrusted,
    join_to_json,
)
from protocol.model.session_records import CompletionReport, JoinGrant, JoinRequest, ReceiverState
from protocol.program.pinned_tls import unpinned_context
from sender.addresses import parse_group
from sender.cast.network.interfaces import find_interface
from sender.cast.network.sockets import bind_control_sockets
from sender.cast.session.admission import OpenAdmission
from sender.cast.session.control_api import ControlApi, ControlServer
from sender.cast.session.locked_session import LockedSession
from tests.simulation.cast import SimulatedCast
from tests.simulation.scale import room
from tests.support.network.tls_peer import shared_certificate

_BLOCK_COUNT = 2000
_CONCURRENT_MAX = 256
"""Joins at the same time: machines that a person switches on don't join in the same millisecond."""
_REPORT = CompletionReport(
    success=True,
    error="",
    exit_code=0,
    unsigned_allowed=False,
    raw_bytes_verified=_BLOCK_COUNT << 18,
    raw_bytes_kept=0,
    blocks_rewritten=0,
    bytes_received=_BLOCK_COUNT << 18,
    bytes_written=_BLOCK_COUNT << 18,
    datagrams_expected=366_000,
    datagrams_received=366_000,
    socket_drops=0,
    blocks_repaired_by_parity=10,
    blocks_repaired_by_nack=1,
    nacks_sent=1,
    seconds_receiving=20.0,
    seconds_total=25.0,
)


@dataclasses.dataclass(frozen=True, slots=True)
class LoadFigures:
    """Seconds until the last machine had its response, and CPU seconds of the sender."""

    receiver_count: int
    joined_s: float
    needs_s: float
    completed_s: float
    sender_cpu_s: float


def measure(receiver_count: int) -> LoadFigures:
    """Let a room join, report the blocks it needs, and report its completion."""
    return asyncio.run(_measure(receiver_count))


async def _measure(receiver_count: int) -> LoadFigures:
    cast = SimulatedCast(room(receiver_count, _BLOCK_COUNT))
    session = cast.make_session(now=time.monotonic())
    lo = find_interface("lo")
    tcp, udp = bind_control_sockets(None, 0, lo, lo.address_for(parse_group("239.1.1.1")))
    api = ControlApi(
        LockedSession(session, lambda: None),
        session.parameters,
        cast.manifest,
        OpenAdmission(None),
        lambda block: cast.image.load(1, block).tobytes(),
    )
    certificate = shared_certificate()
    server = ControlServer(api.application(), tcp, tls=certificate.server_context())
    base = f"https://127.0.0.1:{tcp.getsockname()[1]}/api/v1/casts/{session.parameters.cast_id:08x}"
    with udp, contextlib.ExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.run_until_stopped())
            stack.callback(server.stop)
            cpu_before_s = time.process_time()
            clients = await asyncio.create_subprocess_exec(
                sys.executable, "-m", __spec__.name, base, str(receiver_count), stdout=asyncio.subprocess.PIPE
            )
            output, _ = await clients.communicate()
            cpu_s = time.process_time() - cpu_before_s
            stack.close()
            await serving
    assert clients.returncode == 0
    states = [record.state for record in session.receivers.values()]
    assert states == [ReceiverState.COMPLETE] * receiver_count
    joined_s, needs_s, completed_s = json.loads(output)
    return LoadFigures(receiver_count, joined_s, needs_s, completed_s, cpu_s)


# -- client process --------------------------------------------------------------------------------------


async def _run_clients(url: str, count: int) -> list[float]:
    gate = asyncio.Semaphore(_CONCURRENT_MAX)
    tls = unpinned_context()
    address = urllib.parse.urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None

    async def exchange(method: str, path: str, body: JsonObject, key: bytes | None = None) -> bytes:
        async with gate:
            reader, writer = await asyncio.open_connection(address.hostname, address.port, ssl=tls)
            payload = json.dumps(body).encode()
            head = (
                f"{method} {address.path}{path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
            )
            if key is not None:
                head += f"Authorization: Bearer {key.hex()}\r\n"
            writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
            answer = await reader.read()
            writer.close()
        status, _, content = answer.partition(b"\r\n")
        if status.split(b" ")[1][:1] != b"2":
            raise RuntimeError(f"{method} {path}: {answer.decode(errors='replace')}")
        return content.partition(b"\r\n\r\n")[2]

    async def join(index: int) -> JoinGrant:
        inventory = {
            "serial": f"SN{index:08}",
            "kernel": "6.8.0",
            "memory": "16 GiB",
            "target": "/dev/nvme0n1",
        }
        request = JoinRequest(f"agent-{index}", f"pc-{index:04}", inventory, False, None, "")
        return grant_from_json_untrusted(
            json.loads(await exchange("POST", "/receivers", join_to_json(request)))
        )

    begin = time.monotonic()
    grants = await asyncio.gather(*(join(index) for index in range(count)))
    seconds = [time.monotonic() - begin]
    for method, action, body in (
        ("PUT", "need", {"need": encode_need(None)}),
        ("POST", "completion", COMPLETION.encode(_REPORT)),
    ):
        begin = time.monotonic()
        await asyncio.gather(
            *(exchange(method, f"/receivers/{g.receiver_id}/{action}", body, g.key) for g in grants)
        )
        seconds.append(time.monotonic() - begin)
    return seconds


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(_run_clients(sys.argv[1], int(sys.argv[2])))))
