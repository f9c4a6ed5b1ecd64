"""Attacks on the control API of a cast by machines without its join code."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.routing import APIRoute

from protocol.constants import MIB
from protocol.control.control_messages import API_BASE, grant_from_json_untrusted, join_to_json
from protocol.model.session_records import JoinRequest
from protocol.program.pinned_tls import pinned_context
from protocol.trust.join_code import JoinCode
from tests.shell.sender_rig import make_rig
from tests.shell.test_control_api import join, make_api, with_client
from tests.support.network.lab import INTERFACE, LIMIT_S, Network, Program, diskcast, diskcast_agent, run
from tests.support.network.loopback_cast import LoopbackCast, pack
from tests.support.network.tls_peer import shared_certificate

FLOOD_S = 5.0
FLOOD_JOINS_PER_S = 10_000


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("disk") / "disk.raw"
    source.write_bytes(np.random.default_rng(9).bytes(2 * MIB))
    pack(source, source.with_suffix(".dci"))
    return source


def test_06_joins_without_or_with_a_foreign_join_code_enter_nothing(disk: Path) -> None:
    """A user would lose the cast to fakes that fill its roster, and history to their completion reports."""
    image = disk.with_suffix(".dci")
    with LoopbackCast(image, "--cast-id", "00000001") as cast, LoopbackCast(image) as other:
        code = JoinCode.parse(cast.join_code)
        foreign = JoinCode.parse(other.join_code)
        assert foreign.pin_prefix == code.pin_prefix, "one user's casts have one certificate"
        body = join_to_json(JoinRequest("fake", "fake", {}, False, None, ""))
        with httpx.Client(
            base_url=cast.url + API_BASE, verify=pinned_context([code.pin_prefix]), trust_env=False
        ) as client:
            for bearer in ("", "a" * 12, foreign.secret, code.secret[:-1], "dcj_" + "A" * 80):
                headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
                for method, path in (
                    ("GET", "/casts"),
                    ("GET", "/casts/00000001"),
                    ("GET", "/casts/00000001/manifest"),
                    ("POST", "/casts/00000001/receivers"),
                ):
                    content = json.dumps(body) if method == "POST" else None
                    response = client.request(method, path, headers=headers, content=content)
                    assert response.status_code == 401, (bearer, path)
                    assert code.secret not in response.text
            real = client.post(
                "/casts/00000001/receivers", json=body, headers={"Authorization": f"Bearer {code.secret}"}
            )
        assert grant_from_json_untrusted(real.json()).receiver_id == 0, "no record was made before"
        joined = [event for event in cast.sender.events if event["event"] == "receiver_joined"]
        assert len(joined) <= 1


@pytest.mark.parametrize(
    "bearer", ["", "Bearer", "Bearer abcdefghijk", "Basic abcdefghijkl", "Bearer " + "a" * 64]
)
def test_27_every_cast_route_needs_a_bearer_before_it_reads_a_body(tmp_path: Path, bearer: str) -> None:
    """A user would lose the cast by a route that somebody forgot: they are enumerated."""
    rig = make_rig(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        grant, _ = await join(client)
        api = make_api(rig)
        routes = [route for route in api.application().routes if isinstance(route, APIRoute)]
        assert len(routes) == 9
        for route in routes:
            path = route.path.format(cast_id="1234abcd", receiver_id=grant.receiver_id, block=0)
            for method in route.methods:
                status = await _status_without_body(client.base_url.port, method, path, bearer)
                assert status in (400, 401), (method, path)
        assert len(rig.session.receivers) == 1

    with_client(rig, scenario)


async def _status_without_body(port: int | None, method: str, path: str, bearer: str) -> int:
    """Return the status of a request whose body never arrives: an answer proves that nobody waits for it."""
    tls = pinned_context([shared_certificate().pin])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\nContent-Length: 1000\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(LIMIT_S):
        status = int((await reader.readline()).split()[1])
    writer.close()
    return status


def _interface_bytes(namespace: str) -> tuple[int, int]:
    """Return the bytes that a host has received and sent."""
    [link] = json.loads(run("ip", "-s", "-j", "-n", namespace, "link", "show", "dev", INTERFACE))
    return link["stats64"]["rx"]["bytes"], link["stats64"]["tx"]["bytes"]


@pytest.mark.needs_root
def test_09_a_room_joins_during_a_flood_of_joins_without_the_code(disk: Path, tmp_path: Path) -> None:
    """A user would lose the cast: 1,024 fakes in two seconds would keep every real machine out."""
    with Network(3) as network:
        argv = diskcast(
            "send", disk.with_suffix(".dci"), "--interface", INTERFACE, "--wait-for", "2", "--json"
        )
        sender = network.start(network.sender, argv)
        started = sender.wait_event("cast_started", LIMIT_S)
        attacker = network.receivers[2]
        received_before, sent_before = _interface_bytes(attacker.namespace)
        flood = network.start(
            attacker,
            [
                sys.executable, "-m", "tests.attacks.join_flood",
                started["control_url"], started["cast_id"], str(FLOOD_S),
            ],
        )  # fmt: skip
        targets = [tmp_path / str(index) for index in range(2)]

        def join(index: int) -> Program:
            argv = diskcast_agent("receive", "--target", targets[index], "--interface", INTERFACE, "--json")
            argv += ["--join", started["join_code"]]
            return network.start(network.receivers[index], argv)

        first = join(0)
        sender.wait_event("receiver_joined", LIMIT_S)
        assert flood.exit_code is None, "the machine joined during the flood"
        flooded = flood.wait_event("flooded", LIMIT_S)
        assert flooded["offered"] >= FLOOD_JOINS_PER_S * FLOOD_S
        received, sent = _interface_bytes(attacker.namespace)
        assert received - received_before < 3 * (sent - sent_before)
        for agent in (first, join(1)):
            assert agent.wait(LIMIT_S) == 0, agent.describe()
        assert sender.wait(LIMIT_S) == 0, sender.describe()
        assert len(sender.result["receivers"]) == 2
    content = disk.read_bytes()
    assert all(target.read_bytes()[: len(content)] == content for target in targets)
