"""Check-ins over real HTTP, with a daemon that answers well, badly, late or not at all.

Lost if these fail: an agent gives up on a daemon that is only restarting, or discloses its token.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator

import pytest
import trio

from protocol.control import check_in as messages
from protocol.errors import ConfigurationError, EnrolmentRefusedError
from protocol.program.peer_trust import PeerTrust
from receiver.reception.network.http_client import Unreachable
from receiver.service.machine_credentials import MachineCredentials
from receiver.service.server_client import ClaimRefused, DaemonRing, SecretRejected, ServerClient
from tests.shell.test_control_client import Server
from tests.support.network.lab import LIMIT_S
from tests.unit.protocol.control.test_check_in import ANSWER, CHECK_IN

PATH = "/api/v1/check-in"
SECRET = "dct_enrol_x"
NO_TOKEN = MachineCredentials("")
QUICK = dataclasses.replace(CHECK_IN, wait_s=0.0)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> ServerClient:
    return ServerClient(server.client.url, MachineCredentials(SECRET), server.trust)


def json_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.trio
async def test_a_check_in_arrives_with_the_token_and_is_answered(
    server: Server, client: ServerClient
) -> None:
    server.answers[PATH] = 200, json_bytes(messages.CHECK_IN_ANSWER.encode(ANSWER))
    assert await client.check_in(QUICK) == ANSWER
    method, _, headers, body = server.requests[0]
    assert (method, headers["Authorization"]) == ("POST", f"Bearer {SECRET}")
    assert messages.CHECK_IN.decode_untrusted("check-in", json.loads(body)) == QUICK


@pytest.mark.trio
@pytest.mark.parametrize("status", [401, 403])
async def test_a_wrong_token_is_reported_with_the_fix_and_without_the_token(
    server: Server, client: ServerClient, status: int
) -> None:
    server.answers[PATH] = status, b'{"title": "x", "detail": "no such token"}'
    with pytest.raises(EnrolmentRefusedError, match=r"no such token.*enrol") as caught:
        await client.check_in(QUICK)
    assert SECRET not in str(caught.value)


@pytest.mark.trio
async def test_a_machine_that_has_its_secret_no_longer_sends_the_token(server: Server) -> None:
    credentials = MachineCredentials(SECRET)
    client = ServerClient(server.client.url, credentials, server.trust)
    server.answers[PATH] = 200, json_bytes(messages.CHECK_IN_ANSWER.encode(ANSWER))
    credentials.keep("dcm_x")
    await client.check_in(QUICK)
    assert server.requests[-1][2]["Authorization"] == "Bearer dcm_x"
    server.answers[PATH] = 401, b"{}"
    with pytest.raises(SecretRejected):
        await client.check_in(QUICK)
    credentials.drop()
    server.answers[PATH] = 409, b'{"detail": "another agent is active"}'
    with pytest.raises(ClaimRefused, match="another agent is active"):
        await client.check_in(QUICK)
    assert server.requests[-1][2]["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.trio
@pytest.mark.parametrize(
    "answer",
    [(500, b""), (503, b"{}"), (404, b""), (422, b"{}"), (200, b"<html>"), (200, b"{}"), (200, b"")],
    ids=repr,
)
async def test_any_other_answer_is_retried(
    server: Server, client: ServerClient, answer: tuple[int, bytes]
) -> None:
    """A proxy in front of a restarting daemon may answer anything."""
    server.answers[PATH] = answer
    with pytest.raises(Unreachable):
        await client.check_in(QUICK)


@pytest.mark.trio
async def test_the_next_daemon_replaces_a_dead_one(server: Server, client: ServerClient) -> None:
    server.answers[PATH] = 200, json_bytes(messages.CHECK_IN_ANSWER.encode(ANSWER))
    dead = ServerClient("https://127.0.0.1:1", MachineCredentials(SECRET), server.trust)
    ring = DaemonRing([dead, client], random.Random(1))
    with pytest.raises(Unreachable):
        await ring.check_in(QUICK)
    assert ring.pause_s(20.0) <= 0.1
    assert await ring.check_in(QUICK) == ANSWER


@pytest.mark.trio
async def test_a_daemon_that_holds_its_answer_is_not_taken_for_dead(
    server: Server, client: ServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the agent wait for a dead daemon much longer than a live one may hold its answer."""
    monkeypatch.setattr("receiver.service.server_client.CHECK_IN_TIMEOUT_S", 0.1)
    silent = trio.socket.socket()
    await silent.bind(("127.0.0.1", 0))
    silent.listen()
    port = silent.getsockname()[1]
    with trio.fail_after(LIMIT_S), pytest.raises(Unreachable, match="timed out"):
        await ServerClient(f"http://127.0.0.1:{port}", NO_TOKEN, PeerTrust()).check_in(
            dataclasses.replace(QUICK, wait_s=0.1)
        )
    silent.close()


@pytest.mark.parametrize("url", ["ftp://x", "https://", "http://x", "https://user@x", "192.0.2.1:7400"])
def test_an_invalid_or_unencrypted_daemon_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"https://192\.0\.2\.1:7400"):
        ServerClient(url, NO_TOKEN, PeerTrust(any_certificate=True))


def test_an_encrypted_daemon_without_a_pin_is_refused() -> None:
    """Trust on first use would mean trust at every boot of a netbooted machine."""
    with pytest.raises(ConfigurationError, match="--pin"):
        ServerClient("https://192.0.2.1:7400", NO_TOKEN, PeerTrust())


@pytest.mark.trio
async def test_a_false_daemon_gets_no_token(server: Server) -> None:
    """The agent tries again later: the false one may be there only for the moment."""
    client = ServerClient(server.client.url, MachineCredentials(SECRET), PeerTrust(pins=("a" * 52,)))
    with pytest.raises(Unreachable, match="isn't trusted"):
        await client.check_in(QUICK)
    assert not server.requests


@pytest.mark.trio
async def test_health_and_token_are_tested_without_checking_in(server: Server, client: ServerClient) -> None:
    server.answers["/healthz"] = 200, b'{"status": "ok", "database": "ok"}'
    server.answers[PATH] = 422, b'{"title": "x", "detail": "agent_id: missing"}'
    assert await client.health() == "ok"
    await client.try_token()
    server.answers[PATH] = 401, b"{}"
    with pytest.raises(EnrolmentRefusedError):
        await client.try_token()
    server.answers["/healthz"] = 200, b"[]"
    with pytest.raises(Unreachable, match="isn't a diskcast daemon"):
        await client.health()
