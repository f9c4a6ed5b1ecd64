"""The control API over real HTTP: if it failed, no receiver could join, or anyone could impersonate a receiver."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.routing import APIRoute

from protocol.constants import CONTROL_BODY_BYTES_MAX
from protocol.control import control_messages as messages
from protocol.errors import DiskcastError, ImageChangedError
from protocol.image.image_format import PAGE_BYTES
from protocol.image.stored_manifest import StoredManifest
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.model.session_records import JoinGrant, JoinRequest, ReceiverState
from protocol.program.pinned_tls import pinned_context
from protocol.shared.token_bucket import TokenBucket
from sender.addresses import parse_group
from sender.cast.network.interfaces import find_interface
from sender.cast.network.sockets import bind_control_sockets
from sender.cast.session import control_api
from sender.cast.session.admission import Admission, JoinSecret, OpenAdmission
from sender.cast.session.control_api import ControlApi, ControlServer
from sender.cast.session.machine_patches import MachinePatches
from sender.cast.transmission.block_loader import BlockLoader
from tests.shell.sender_rig import Rig, make_rig
from tests.support.network.completion_reports import completion
from tests.support.network.lab import LIMIT_S
from tests.support.network.tls_peer import shared_certificate

CAST = "/api/v1/casts/1234abcd"
SECRET = "abcdefghijkl"
JOIN_SECRET = JoinSecret(SECRET)


def make_api(
    rig: Rig,
    admission: Admission = JOIN_SECRET,
    on_failure: Callable[[DiskcastError], None] = lambda _: None,
    patches: MachinePatches | None = None,
) -> ControlApi:
    read_block = BlockLoader(rig.image, rig.parameters).read_cast_bytes
    return ControlApi(
        rig.locked_session,
        rig.parameters,
        rig.image.manifest,
        admission,
        read_block,
        on_failure,
        patches=patches,
    )


@contextlib.asynccontextmanager
async def served(
    rig: Rig,
    on_failure: Callable[[DiskcastError], None] = lambda _: None,
    admission: Admission = JOIN_SECRET,
    patches: MachinePatches | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield an admitted client of a real server, which stops with the context."""
    lo = find_interface("lo")
    tcp, udp = bind_control_sockets(None, 0, lo, lo.address_for(parse_group("239.1.1.1")))
    api = make_api(rig, admission, on_failure, patches)
    certificate = shared_certificate()
    server = ControlServer(api.application(), tcp, tls=certificate.server_context())
    with rig.image, udp:
        url = f"https://127.0.0.1:{tcp.getsockname()[1]}"
        tls = pinned_context([certificate.pin])
        bearer = {"Authorization": f"Bearer {SECRET}"}
        async with asyncio.TaskGroup() as group:
            group.create_task(server.run_until_stopped())
            try:
                async with httpx.AsyncClient(
                    base_url=url, timeout=LIMIT_S, verify=tls, headers=bearer
                ) as client:
                    yield client
            finally:
                server.stop()


def with_client(
    rig: Rig,
    test: Callable[[httpx.AsyncClient], Awaitable[None]],
    on_failure: Callable[[DiskcastError], None] = lambda _: None,
    admission: Admission = JOIN_SECRET,
    patches: MachinePatches | None = None,
) -> None:
    async def run() -> None:
        async with served(rig, on_failure, admission, patches) as client:
            await test(client)

    asyncio.run(run())


def join_body(**changes: object) -> bytes:
    request = JoinRequest("agent-1", "pc-1", {"serial": "X1"}, False, None, "")
    return json.dumps({**messages.join_to_json(request), **changes}).encode()


def check_problem(response: httpx.Response, status: int, words: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert words in messages.problem_from_json_untrusted(response.content)


async def join(client: httpx.AsyncClient) -> tuple[JoinGrant, dict[str, str]]:
    response = await client.post(f"{CAST}/receivers", content=join_body())
    assert response.status_code == 201
    grant = messages.grant_from_json_untrusted(response.json())
    return grant, {"Authorization": f"Bearer {grant.key.hex()}"}


def stored_rig(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """The control API of an image whose manifest is too large for memory."""
    monkeypatch.setattr("sender.imaging.image_file.MANIFEST_IN_MEMORY_BYTES_MAX", 0)
    return make_rig(folder)


def test_a_manifest_read_from_disk_is_served_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = stored_rig(tmp_path, monkeypatch)

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get(f"{CAST}/manifest")).content == bytes(rig.made.manifest.data)

    with_client(rig, scenario)


def test_an_altered_manifest_ends_the_cast_and_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = stored_rig(tmp_path, monkeypatch)
    assert isinstance(rig.image.manifest.data, StoredManifest)
    rig.image.manifest.data._slots = [None] * 16
    os.truncate(tmp_path / "image.dci", PAGE_BYTES + 100)

    async def scenario(client: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"{CAST}/manifest")

    failures: list[DiskcastError] = []
    with_client(rig, scenario, failures.append)
    assert [type(error) for error in failures] == [ImageChangedError]
    assert not caplog.records, "the cast says it itself"


def test_a_receiver_joins_sends_its_need_and_reports_completion(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        casts = messages.casts_from_json_untrusted((await client.get("/api/v1/casts")).json())
        assert [cast.cast_id for cast in casts] == [rig.parameters.cast_id]
        grant, authorization = await join(client)
        assert grant.parameters == rig.parameters
        assert grant.manifest_by_multicast
        record = rig.session.receivers[grant.receiver_id]
        assert (record.name, record.address, record.inventory) == ("pc-1", "127.0.0.1", {"serial": "X1"})

        need = np.array([True, False, True, True, True, True])
        path = f"{CAST}/receivers/{grant.receiver_id}"
        body = json.dumps(messages.need_to_json(need, None)).encode()
        response = await client.put(f"{path}/need", content=body, headers=authorization)
        assert response.status_code == 204
        assert record.state is ReceiverState.RECEIVING
        assert rig.session.image_demand.wanted_count == 3  # blocks 0, 4 and 5 are stored and needed

        body = json.dumps(messages.COMPLETION.encode(completion())).encode()
        response = await client.post(f"{path}/completion", content=body, headers=authorization)
        assert response.status_code == 204
        assert record.state is ReceiverState.COMPLETE

        description = messages.cast_from_json_untrusted((await client.get(CAST)).json())
        assert description.state == CastState.GATHERING
        assert description.receiver_count == 0

    with_client(rig, scenario)


def test_the_manifest_is_served_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_api, "MANIFEST_PIECE_BYTES", 100)  # several pieces, the last one shorter
    rig = make_rig(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        response = await client.get(f"{CAST}/manifest")
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["content-length"] == str(len(rig.image.manifest.data))
        assert response.content == bytes(rig.image.manifest.data)

    with_client(rig, scenario)


def test_the_error_of_an_unknown_cast_names_the_running_one(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for method, path in (("GET", ""), ("GET", "/manifest"), ("POST", "/receivers")):
            response = await client.request(method, f"/api/v1/casts/ffffffff{path}")
            check_problem(response, 404, "1234abcd")
        check_problem(await client.get("/nothing"), 404, "Not Found")
        check_problem(await client.delete(CAST), 405, "Method Not Allowed")

    with_client(make_rig(tmp_path), scenario)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b"{}", "agent_id: missing"),
        (join_body(name="\x1b[31m"), "name: expected printable"),
        (join_body(need="AAAA"), "need"),
        (join_body(need=messages.encode_need(np.ones(7, np.bool_))), "bitmap of 6 blocks"),
        (join_body(inventory={"k": 1}), "inventory"),
    ],
)
def test_a_malformed_join_is_refused_by_field(tmp_path: Path, body: bytes, words: str) -> None:
    rig = make_rig(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        check_problem(await client.post(f"{CAST}/receivers", content=body), 400, words)
        assert not rig.session.receivers

    with_client(rig, scenario)


def test_bodies_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        huge = b" " * (CONTROL_BODY_BYTES_MAX + 4096)
        check_problem(await client.post(f"{CAST}/receivers", content=huge), 413, "at most")

        async def endless() -> AsyncIterator[bytes]:
            yield b"{"

        check_problem(await client.post(f"{CAST}/receivers", content=endless()), 411, "Content-Length")

    with_client(make_rig(tmp_path), scenario)


def test_requests_of_a_receiver_need_its_key(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        grant, authorization = await join(client)
        body = json.dumps(messages.COMPLETION.encode(completion())).encode()
        path = f"{CAST}/receivers/{grant.receiver_id}/completion"
        check_problem(await client.post(path, content=body, headers={"Authorization": ""}), 401, "Bearer")
        for key in ("00" * 32, "zz"):
            response = await client.post(path, content=body, headers={"Authorization": f"Bearer {key}"})
            assert response.status_code in (400, 401)
        other = f"{CAST}/receivers/{grant.receiver_id + 1}/completion"
        check_problem(
            await client.post(other, content=body, headers=authorization), 401, "join the cast again"
        )
        check_problem(await client.post(f"{CAST}/receivers/x/completion", content=body), 400, "path")
        assert rig.session.receivers[grant.receiver_id].state is ReceiverState.JOINED
        # A rejoin gives a new key, and the old one becomes invalid.
        await join(client)
        check_problem(
            await client.post(path, content=body, headers=authorization), 401, "join the cast again"
        )

    with_client(rig, scenario)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_member_fetches_blocks_within_its_share(tmp_path: Path, encrypted: bool) -> None:
    """For a machine from which forged symbols keep a block; without the limit TLS would carry the whole image."""
    rig = make_rig(tmp_path, "drzudr", encrypted=encrypted)
    blocks = BlockLoader(rig.image, rig.parameters)

    async def scenario(client: httpx.AsyncClient) -> None:
        grant, authorization = await join(client)
        path = f"{CAST}/receivers/{grant.receiver_id}/blocks"
        for block in np.flatnonzero(rig.image.manifest.stored_mask).tolist():
            response = await client.get(f"{path}/{block}", headers=authorization)
            assert response.status_code == 200
            assert response.content == blocks.read_cast_bytes(rig.session.keys, block)
        check_problem(await client.get(f"{path}/2", headers=authorization), 409, "stores no block 2")
        check_problem(await client.get(f"{path}/-1", headers=authorization), 409, "stores no block -1")
        check_problem(await client.get(f"{path}/999", headers=authorization), 409, "stores no block 999")
        check_problem(await client.get(f"{path}/0", headers={"Authorization": ""}), 401, "key is missing")
        check_problem(
            await client.get(f"{path}/0", headers={"Authorization": f"Bearer {'0' * 64}"}), 401, "wrong key"
        )
        rig.session.receivers[grant.receiver_id].limits.fetched_bytes = TokenBucket(per_s=0.0, burst=0.0)
        refused = await client.get(f"{path}/0", headers=authorization)
        check_problem(refused, 429, "try again")
        assert refused.headers["retry-after"] == "1"
        other = await client.post(f"{CAST}/receivers", content=join_body(agent_id="agent-2"))
        grant = messages.grant_from_json_untrusted(other.json())
        path = f"{CAST}/receivers/{grant.receiver_id}/blocks/0"
        response = await client.get(path, headers={"Authorization": f"Bearer {grant.key.hex()}"})
        assert response.status_code == 200, "another member's share is its own"

    with_client(rig, scenario)


def test_the_application_has_no_other_routes(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    with rig.image:
        api = make_api(rig)
        assert all(isinstance(route, APIRoute) for route in api.application().routes)


def test_an_open_cast_admits_a_few_strangers_of_each_address(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        client.headers.pop("Authorization")
        for index in range(100):
            body = join_body(agent_id=f"invented-{index}", name=f"pc-{index}")
            assert (await client.post(f"{CAST}/receivers", content=body)).status_code == 201
        names = {record.name for record in rig.session.receivers.values()}
        assert names == {f"pc-{index}" for index in range(96, 100)}

    with_client(rig, scenario, admission=OpenAdmission())


def test_an_ended_cast_refuses_joins(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        with rig.locked_session.update() as (session, now):
            session.end(SessionOutcome.CANCELLED, "test", now)
        check_problem(await client.post(f"{CAST}/receivers", content=join_body()), 409, "has ended")

    with_client(rig, scenario)


def test_a_hundred_receivers_can_join_at_once(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        bodies = [join_body(agent_id=f"agent-{index}", name="classroom") for index in range(100)]
        posts = (client.post(f"{CAST}/receivers", content=body) for body in bodies)
        grants = [messages.grant_from_json_untrusted(r.json()) for r in await asyncio.gather(*posts)]
        assert {grant.receiver_id for grant in grants} == set(range(100))
        assert len({grant.key for grant in grants}) == 100
        assert len({record.name for record in rig.session.receivers.values()}) == 100

    with_client(rig, scenario)


def test_the_server_keeps_the_programs_signal_handlers(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        before = signal.getsignal(signal.SIGTERM)
        await client.get(CAST)
        assert signal.getsignal(signal.SIGTERM) is before is signal.SIG_DFL

    with_client(make_rig(tmp_path), scenario)
