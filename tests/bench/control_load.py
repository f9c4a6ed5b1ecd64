"""Load on the control API when a whole room joins at once, over real HTTPS.

Each machine requests the cast's description and joins on one connection, as an agent does. Later reports take new ones.

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
from sender.addresses import parse_group
from sender.cast.network.interfaces import find_interface
from sender.cast.network.sockets import bind_control_sockets
from sender.cast.session.admission import OpenAdmission
from sender.cast.session.control_api import ControlApi, ControlServer
from sender.cast.session.locked_session import LockedSession
from tests.load.kept_connection import KeptConnection
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
    """Seconds until the last machine had its response, and CPU seconds of the sender for the joins and for all."""

    receiver_count: int
    joined_s: float
    needs_s: float
    completed_s: float
    join_cpu_s: float
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
            assert clients.stdout is not None
            phases = [(json.loads(line), time.process_time() - cpu_before_s) async for line in clients.stdout]
            await clients.wait()
            stack.close()
            await serving
    assert clients.returncode == 0
    states = [record.state for record in session.receivers.values()]
    assert states == [ReceiverState.COMPLETE] * receiver_count
    (joined_s, join_cpu_s), (needs_s, _), (completed_s, cpu_s) = phases
    return LoadFigures(receiver_count, joined_s, needs_s, completed_s, join_cpu_s, cpu_s)


# -- client process --------------------------------------------------------------------------------------


async def _run_clients(url: str, count: int) -> None:
    """Run the phases of the room, and print the seconds of each."""
    gate = asyncio.Semaphore(_CONCURRENT_MAX)
    path = urllib.parse.urlsplit(url).path

    async def exchange(
        connection: KeptConnection, method: str, what: str, body: bytes, key: str = ""
    ) -> bytes:
        status, content = await connection.exchange(method, path + what, body, key)
        if status >= 300:
            raise RuntimeError(f"{method} {what}: {status} {content.decode(errors='replace')}")
        return content

    async def join(index: int) -> JoinGrant:
        inventory = {
            "serial": f"SN{index:08}",
            "kernel": "6.8.0",
            "memory": "16 GiB",
            "target": "/dev/nvme0n1",
        }
        request = JoinRequest(f"agent-{index}", f"pc-{index:04}", inventory, False, None, "")
        async with gate:
            with contextlib.closing(KeptConnection(url)) as connection:
                await exchange(connection, "GET", "", b"")
                body = json.dumps(join_to_json(request)).encode()
                answer = await exchange(connection, "POST", "/receivers", body)
        return grant_from_json_untrusted(json.loads(answer))

    async def report(grant: JoinGrant, method: str, action: str, body: JsonObject) -> None:
        async with gate:
            with contextlib.closing(KeptConnection(url)) as connection:
                what = f"/receivers/{grant.receiver_id}/{action}"
                await exchange(connection, method, what, json.dumps(body).encode(), grant.key.hex())

    begin = time.monotonic()
    grants = await asyncio.gather(*(join(index) for index in range(count)))
    print(json.dumps(time.monotonic() - begin), flush=True)
    for method, action, body in (
        ("PUT", "need", {"need": encode_need(None)}),
        ("POST", "completion", COMPLETION.encode(_REPORT)),
    ):
        begin = time.monotonic()
        await asyncio.gather(*(report(grant, method, action, body) for grant in grants))
        print(json.dumps(time.monotonic() - begin), flush=True)


if __name__ == "__main__":
    asyncio.run(_run_clients(sys.argv[1], int(sys.argv[2])))
