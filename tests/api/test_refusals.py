"""Refused requests, and errors of the daemon."""

from __future__ import annotations

import json
import socket
import sqlite3
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest

from protocol.control.control_messages import PROBLEM_TYPE
from protocol.errors import DatabaseDamagedError, DatabaseFullError, DatabaseUnavailableError
from sender.api.guard import guarded_route
from sender.http import body as request_body
from sender.store.records.access import Role
from tests.api.served import PREFIX, Served, serve
from tests.support.network.lab import LIMIT_S


def check_problem(response: httpx.Response, status: int) -> dict[str, object]:
    """Check that a response is a problem document (RFC 9457); return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM_TYPE
    problem: dict[str, object] = response.json()
    assert problem["status"] == status
    assert problem["title"] == HTTPStatus(status).phrase
    assert problem["detail"]
    assert problem["instance"] == response.headers["x-request-id"]
    return problem


def test_an_unknown_path_gets_a_problem_document(operator: httpx.Client, guarded: Served) -> None:
    for path in ("/nothing", "/rooms/", "/rooms/a/b", "/casts/00000000", "/rooms/none", "/machines/none"):
        check_problem(operator.get(path), 404)
    for path in ("/nothing", "/assets/nothing.js", "/favicon.ico", "/api", "//api/v1/rooms"):
        check_problem(operator.get(guarded.url + path), 404)


def test_a_wrong_method_gets_the_allowed_methods(operator: httpx.Client) -> None:
    answer = operator.put("/rooms")
    assert "GET, POST" in str(check_problem(answer, 405)["detail"])
    assert answer.headers["allow"] == "GET, POST"
    assert operator.post("/rooms/x").headers["allow"] == "DELETE, GET, PATCH"
    for method in ("GET", "PUT", "DELETE"):
        assert operator.request(method, "/images/scan").headers["allow"] == "POST"


def test_a_large_body_is_refused_before_it_is_read(operator: httpx.Client) -> None:
    large = b" " * (guarded_route.JSON_BODY_BYTES_MAX + 1)
    headers = {"Content-Type": "application/json"}
    check_problem(operator.post("/rooms", content=large, headers=headers), 413)
    pieces = (b" " * 65536 for _ in range(1 + guarded_route.JSON_BODY_BYTES_MAX // 65536))
    assert operator.post("/rooms", content=pieces, headers=headers).status_code == 411
    table = b"name,mac\n" + b"x" * guarded_route.CSV_BODY_BYTES_MAX
    check_problem(operator.post("/rooms/x/import", content=table, headers={"Content-Type": "text/csv"}), 413)


def test_a_body_of_the_wrong_type_is_refused(operator: httpx.Client) -> None:
    body = json.dumps({"name": "x"})
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json; charset=utf-16",
    ):
        check_problem(operator.post("/rooms", content=body, headers={"Content-Type": kind}), 415)
    check_problem(operator.post("/rooms", content=body), 415)
    check_problem(
        operator.post("/rooms/x/import", content="name\nx\n", headers={"Content-Type": "application/json"}),
        415,
    )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"name": ' + b"9" * 10_000 + b"}", 400),
        (b"", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'{"name": 5}', 422),
        (b'{"name": ""}', 422),
        (b'{"name": "  "}', 422),
        (b'{"name": "a\\u0000b"}', 422),
        (b'{"name": "a\\u202eb"}', 422),
        (b'{"name": "\\ud800"}', 422),
        (b'{"name": "x", "\\ud800": 1}', 422),
        (b'{"name": "x", "machine_count": 1}', 422),
        (b'{"name": "x", "room_id": "No Such Id"}', 422),
        (b'{"name": NaN}', 422),
    ],
)
def test_an_invalid_body_is_refused_with_its_field(operator: httpx.Client, body: bytes, status: int) -> None:
    problem = check_problem(
        operator.post("/rooms", content=body, headers={"Content-Type": "application/json"}), status
    )
    if status == 422:
        assert problem["errors"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"image": "lab", "wait_for": 0}, "wait_for"),
        ({"image": "lab", "wait_for": "3"}, "wait_for"),
        ({"image": "lab", "rate_bytes_per_s": 1}, "rate_bytes_per_s"),
        ({"image": "lab", "slow": "sometimes"}, "slow"),
        ({"image": "lab", "start_at": 0}, "start_at"),
        ({"image": "lab", "start_at": "2030-01-01T00:00:00"}, "start_at"),
        ({"image": "lab", "start_at": "9999-12-31T23:59:59-12:00"}, "start_at"),
        ({"image": "lab", "owner": "me"}, "owner"),
        ({"room_id": "x"}, "image"),
    ],
)
def test_an_invalid_plan_is_refused(operator: httpx.Client, fields: dict[str, object], field: str) -> None:
    before = operator.get("/casts").content
    problem = check_problem(operator.post("/casts", json=fields), 422)
    assert isinstance(problem["errors"], list)
    assert [error["field"] for error in problem["errors"]] == [field]
    assert operator.get("/casts").content == before


@pytest.mark.parametrize(
    ("cron", "zone"),
    [
        ("x y z a b", "UTC"),
        ("0 3 * *", "UTC"),
        ("0 3 30 2 *", "UTC"),
        ("61 3 * * *", "UTC"),
        ("0 3 * * *", "Mars/Olympus"),
        ("0 3 * * *", "../../etc/passwd"),
    ],
)
def test_a_schedule_that_never_occurs_is_refused(operator: httpx.Client, cron: str, zone: str) -> None:
    body = {"name": "nightly", "cron": cron, "time_zone": zone, "plan": {"image": "lab"}}
    check_problem(operator.post("/schedules", json=body), 422)


def test_an_internal_error_reveals_no_details(
    operator: httpx.Client, guarded: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(guarded.services.library, "images", fail)
    answer = operator.get("/images", headers={"X-Request-Id": "mine-1"})
    check_problem(answer, 500)
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "mine-1"


def test_each_request_is_counted_once_under_its_route(operator: httpx.Client, guarded: Served) -> None:
    """Series per path would grow without bound."""

    def counts() -> dict[str, float]:
        lines = operator.get(f"{guarded.url}/metrics").text.splitlines()
        rows = [line.rpartition(" ") for line in lines if line.startswith("diskcast_api_requests_total{")]
        return {name: float(value) for name, _, value in rows if "/metrics" not in name}

    before = counts()
    operator.get("/rooms/made-up")
    operator.get("/rooms/made-up-too")
    operator.get("/nothing")
    grown = {
        name: value - before.get(name, 0) for name, value in counts().items() if value != before.get(name, 0)
    }
    assert grown == {
        'diskcast_api_requests_total{method="GET",route="/api/v1/rooms/{room_id}",status="4xx"}': 2,
        'diskcast_api_requests_total{method="GET",route="none",status="4xx"}': 1,
    }


def test_a_valid_request_id_of_the_client_is_kept(operator: httpx.Client) -> None:
    assert (
        operator.get("/rooms", headers={"X-Request-Id": "ci.job-7_1"}).headers["x-request-id"] == "ci.job-7_1"
    )
    for unfit in ("x" * 65, "a b", "a;b", ""):
        assert operator.get("/rooms", headers={"X-Request-Id": unfit}).headers["x-request-id"] != unfit


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DatabaseUnavailableError("database db.example: the server doesn't answer; start it"), 503),
        (DatabaseDamagedError("database x.db is damaged; restore it"), 503),
        (DatabaseFullError("database x.db: its disk is full; make space"), 507),
    ],
)
def test_database_errors_are_reported_with_their_fix(
    operator: httpx.Client, guarded: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(guarded.services.store.rooms, "list", fail)
    answer = operator.get("/rooms")
    assert check_problem(answer, status)["detail"] == str(error)
    assert int(answer.headers["retry-after"]) > 0


def test_a_locked_database_fails_only_the_requests_that_need_it(tmp_path: Path) -> None:
    with serve(tmp_path) as served, served.client() as client:
        client.post("/rooms", json={"name": "Before"}).raise_for_status()
        with sqlite3.connect(served.folder / "state" / "diskcast.db", timeout=LIMIT_S) as other:
            other.execute("BEGIN IMMEDIATE")
            problem = check_problem(client.post("/rooms", json={"name": "During"}), 503)
            assert "lock" in str(problem["detail"])
            assert client.get(f"{served.url}/healthz").json() == {"status": "ok", "database": "failing"}
            assert client.get("/images").status_code == 200, "images lie in memory, the token is known"
            other.rollback()
        client.post("/rooms", json={"name": "After"}).raise_for_status()
        assert client.get(f"{served.url}/healthz").json()["database"] == "ok"
        assert {room["name"] for room in client.get("/rooms").json()["items"]} >= {"Before", "After"}


def test_a_peer_that_speaks_no_http_is_harmless(operator: httpx.Client, guarded: Served) -> None:
    for rubbish in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100_000 + b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", guarded.port), timeout=LIMIT_S) as peer:
            peer.sendall(rubbish)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(65536):
                pass
    assert operator.get("/rooms").status_code == 200


def test_a_body_that_never_ends_times_out(
    guarded: Served, operator: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "BODY_S", 0.2)
    secret = guarded.secrets[Role.OPERATE]
    head = f"POST {PREFIX}/rooms HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {secret}\r\n"
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=LIMIT_S) as peer:
        peer.sendall(head.encode() + b"Content-Length: 99\r\n\r\n{")
        assert b" 408 " in peer.recv(65536).split(b"\r\n")[0]
    assert operator.get("/rooms").status_code == 200
