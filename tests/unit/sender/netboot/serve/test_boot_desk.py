"""Decisions about boots, against a real HTTP server: a failure would hang a room, or give away a token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import Any

import pytest
from structlog.testing import capture_logs

from protocol.control.boot_parameters import LiveMode
from sender.netboot.serve import daemon_client
from sender.netboot.serve.boot_desk import BootDesk
from sender.netboot.serve.boot_files import ServiceAddress
from sender.netboot.serve.boot_query import BootQuery
from sender.netboot.serve.boot_scripts import DiskBoot, LiveBoot
from sender.netboot.serve.daemon_client import BootApiClient
from sender.netboot.serve.statistics import BootStatistics
from sender.store.records.boots import BootFirmware, BootReport
from tests.support.network.dhcp_messages import MAC, UUID

PEER = IPv4Address("10.99.0.101")
SERVICE = ServiceAddress(IPv4Address("10.99.0.2"))
QUERY = BootQuery(MAC, UUID, "PF1XYZ", uefi=True, arm64=False, menu=False)
TOKEN = "dcb_" + "a" * 43
LIVE = {
    "action": "live",
    "mode": "run",
    "machine": "pc-07",
    "machine_id": "m-7",
    "reason": "cast",
    "text": "the cast of win11",
    "boot_token": TOKEN,
    "servers": ["https://10.99.0.2:7400"],
    "pins": ["a" * 52],
    "menu_offered": True,
}
DISK = {
    **LIVE,
    "action": "disk",
    "reason": "nothing_planned",
    "text": "nothing is planned",
    "boot_token": "",
    "servers": [],
    "pins": [],
}

Handler = Callable[[dict[str, Any], dict[str, str]], Awaitable[tuple[int, bytes]]]


@asynccontextmanager
async def daemon(handler: Handler) -> AsyncIterator[str]:
    """Serve one HTTP answer per connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        headers["request"] = lines[0]
        status, content = await handler(body, headers)
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(content))
        )
        writer.write(content)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.ensure_future(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*serving, return_exceptions=True)


def decide(
    url: str, query: BootQuery = QUERY, *, neighbour: str = MAC, statistics: BootStatistics | None = None
) -> Awaitable[LiveBoot | DiskBoot]:
    async def ask() -> LiveBoot | DiskBoot:
        async with BootApiClient(url, "dct_boot_secret") as client:
            desk = BootDesk(
                client,
                initrds=("initrd",),
                kernel_arguments="quiet",
                room="lab-1",
                statistics=statistics or BootStatistics(),
                find_mac=lambda _address: neighbour,
            )
            return await desk.decide(query, PEER, SERVICE, BootFirmware.UEFI)

    return ask()


def test_a_room_that_is_switched_on_together_waits_for_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_client, "ANSWER_S", 2.0)
    asked: list[int] = []
    open_count = 0

    async def handler(_body: dict[str, Any], _headers: dict[str, str]) -> tuple[int, bytes]:
        nonlocal open_count
        open_count += 1
        asked.append(open_count)
        await asyncio.sleep(0.8)  # a daemon that is slow: four turns take longer than an answer may
        open_count -= 1
        return 200, json.dumps(LIVE).encode()

    async def run() -> list[object]:
        async with daemon(handler) as url, BootApiClient(url, "dct_boot_secret") as client:
            report = BootReport(mac=MAC, address=str(PEER), firmware=BootFirmware.UEFI)
            return await asyncio.gather(*(client.decide(report) for _ in range(60)), return_exceptions=True)

    answers = asyncio.run(run())
    assert len(asked) == 60
    assert max(asked) <= 16
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []


def test_the_daemon_learns_the_machine_and_its_answer_becomes_the_boot() -> None:
    seen: list[tuple[dict[str, Any], dict[str, str]]] = []

    async def handler(body: dict[str, Any], headers: dict[str, str]) -> tuple[int, bytes]:
        seen.append((body, headers))
        return 200, json.dumps(LIVE).encode()

    async def run() -> LiveBoot | DiskBoot:
        async with daemon(handler) as url:
            return await decide(url)

    boot = asyncio.run(run())
    ((body, headers),) = seen
    assert body == {
        "mac": MAC,
        "uuid": UUID,
        "serial": "PF1XYZ",
        "address": str(PEER),
        "firmware": "uefi",
        "architecture": "x86_64",
        "room_id": "lab-1",
        "menu": False,
    }
    assert headers["request"] == "POST /api/v1/boots HTTP/1.1"
    assert headers["authorization"] == "Bearer dct_boot_secret"
    assert isinstance(boot, LiveBoot)
    assert boot.parameters.boot_token == TOKEN
    assert boot.parameters.mode is LiveMode.RUN
    assert boot.parameters.boot_mac == MAC
    assert boot.parameters.servers == ("https://10.99.0.2:7400",)
    assert TOKEN not in repr(boot)


async def _answer(status: int, content: object) -> tuple[int, bytes]:
    return status, content if isinstance(content, bytes) else json.dumps(content).encode()


@pytest.mark.parametrize(
    ("status", "content", "reason", "menu_offered"),
    [
        (200, DISK, "nothing is planned", True),
        (200, {**LIVE, "servers": []}, "can't reach the daemon", False),
        (200, {**LIVE, "servers": ["https://[::1]/$(reboot)"]}, "diskcast.server", False),
        (401, {"detail": "wrong token"}, "no answer from the daemon", False),
        (500, b"", "no answer from the daemon", False),
        (200, b"not JSON", "no answer from the daemon", False),
        (200, b"x" * 100_000, "no answer from the daemon", False),
    ],
    ids=["disk", "loopback daemon", "hostile URL", "refused", "error", "garbage", "too long"],
)
def test_without_a_usable_answer_it_is_the_disk(
    status: int, content: object, reason: str, menu_offered: bool
) -> None:
    async def run() -> LiveBoot | DiskBoot:
        async with daemon(lambda _body, _headers: _answer(status, content)) as url:
            return await decide(url)

    boot = asyncio.run(run())
    assert isinstance(boot, DiskBoot)
    assert reason in boot.reason
    assert boot.menu_offered is menu_offered


def test_a_daemon_that_hangs_or_is_gone_means_the_disk_and_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A room must not hang because the daemon does."""
    monkeypatch.setattr("sender.netboot.serve.daemon_client.ANSWER_S", 0.2)

    async def hang(_body: dict[str, Any], _headers: dict[str, str]) -> tuple[int, bytes]:
        await asyncio.sleep(1)
        return 200, json.dumps(LIVE).encode()

    async def run() -> tuple[LiveBoot | DiskBoot, LiveBoot | DiskBoot]:
        async with daemon(hang) as url:
            hung = await decide(url)
        return hung, await decide(url)

    with capture_logs() as logs:
        boots = asyncio.run(run())
    assert all(isinstance(boot, DiskBoot) for boot in boots)
    assert [line["event"] for line in logs] == ["boot_undecided", "boot_undecided"]
    assert "check that `diskcast serve` runs" in logs[1]["error"]
    assert "dct_boot_secret" not in str(logs)


@pytest.mark.parametrize(
    ("mac", "neighbour", "reason"),
    [(MAC, "52:54:00:66:66:66", "for another machine"), ("", "", "gave no MAC address")],
)
def test_a_token_is_only_for_the_machine_that_asks(mac: str, neighbour: str, reason: str) -> None:
    """Otherwise one request would end the enrolment of any machine of the room."""

    async def never(_body: dict[str, Any], _headers: dict[str, str]) -> tuple[int, bytes]:
        raise AssertionError("the daemon isn't asked")

    async def run() -> LiveBoot | DiskBoot:
        async with daemon(never) as url:
            return await decide(
                url, BootQuery(mac, "", "", uefi=True, arm64=False, menu=False), neighbour=neighbour
            )

    boot = asyncio.run(run())
    assert isinstance(boot, DiskBoot)
    assert reason in boot.reason


def test_a_boot_loader_without_a_mac_address_is_known_by_its_frames() -> None:
    macs = []

    async def handler(body: dict[str, Any], _headers: dict[str, str]) -> tuple[int, bytes]:
        macs.append(body["mac"])
        return 200, json.dumps(DISK).encode()

    async def run() -> None:
        async with daemon(handler) as url:
            await decide(url, BootQuery("", "", "", uefi=True, arm64=False, menu=False))

    asyncio.run(run())
    assert macs == [MAC]


def test_decisions_are_counted_without_any_machine() -> None:
    statistics = BootStatistics()

    async def run() -> None:
        async with daemon(lambda _body, _headers: _answer(200, LIVE)) as url:
            await decide(url, statistics=statistics)

    asyncio.run(run())
    text = statistics.render().decode()
    assert 'diskcast_netboot_boots_total{result="live"} 1.0' in text
    assert MAC not in text
