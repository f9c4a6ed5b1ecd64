"""Tokens, roles, and access to every route."""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
from starlette.routing import Route

from protocol.control.control_messages import API_BASE, PROBLEM_TYPE
from protocol.errors import DatabaseUnavailableError
from sender.api.bodies.event_stream import EVENTS_TYPE
from sender.api.guard.auth import Access
from sender.api.guard.guarded_route import Body, Operation
from sender.api.route_table import OPERATIONS
from sender.store.records.access import Role
from tests.api.served import Served, serve
from tests.support.network.lab import LIMIT_S, wait_until

FITTING = {
    Access.OPEN: {None, *Role},
    Access.VIEW: {Role.VIEW, Role.OPERATE},
    Access.METRICS: {Role.VIEW, Role.OPERATE},
    Access.OPERATE: {Role.OPERATE},
    Access.ENROL: {Role.ENROL},
    Access.BOOT: {Role.BOOT, Role.OPERATE},
    Access.MACHINE: set(),
    Access.CAPTURE: set(),
}
KEYS = {
    "image_id": "0" * 64,
    "export_id": "0" * 16,
    "upload_id": "0" * 16,
    "room_id": "nowhere",
    "machine_id": "m0",
    "capture_id": "00000000",
    "cast_id": "00000000",
    "schedule_id": "s0",
    "wake_id": "00000000",
    "token_id": "t0",
    "code": "7KX2QM",
    "name:path": "index.html",
}


def _name(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


def _ask(served: Served, operation: Operation, headers: dict[str, str]) -> httpx.Response:
    """Send a request that, with the right role, fails only after authorisation."""
    path = re.sub(r"\{([^}]+)\}", lambda match: KEYS[match[1]], operation.path)
    url = served.url + ("" if operation.own_path else API_BASE) + path
    content = None
    if operation.body is not Body.NONE:
        kind = operation.body.value if operation.body in (Body.CSV, Body.BATCH) else Body.JSON.value
        headers = headers | {"Content-Type": kind}
        content = b"{}"
    with (
        httpx.Client(timeout=LIMIT_S, trust_env=False, verify=False) as client,
        client.stream(operation.method, url, headers=headers, content=content) as response,
    ):
        if not response.headers.get("content-type", "").startswith(EVENTS_TYPE):
            response.read()
        return response


@pytest.mark.parametrize("operation", OPERATIONS, ids=_name)
def test_no_route_can_be_used_without_its_role(guarded: Served, operation: Operation) -> None:
    fitting = FITTING[operation.access]
    for role in (None, *Role):
        headers = {} if role is None else {"Authorization": f"Bearer {guarded.secrets[role]}"}
        response = _ask(guarded, operation, headers)
        if role in fitting:
            assert response.status_code not in (401, 403), f"{role} should be let in: {response.text}"
            assert response.status_code < 500, response.text
            continue
        assert response.status_code == (401 if role is None else 403), role
        assert response.headers["content-type"] == PROBLEM_TYPE
        problem = response.json()
        assert problem["status"] == response.status_code
        assert problem["instance"] == response.headers["x-request-id"]
        assert ("www-authenticate" in response.headers) == (role is None)


@pytest.mark.parametrize("operation", OPERATIONS, ids=_name)
def test_an_unknown_token_is_refused_everywhere(guarded: Served, operation: Operation) -> None:
    if operation.access is Access.OPEN:
        return
    for value in (
        "Bearer dct_operate_nonsense",
        "Bearer",
        "Basic b3BlcmF0b3I6eA==",
        "Bearer \x7f",
        f"bearer {'x' * 5000}",
    ):
        assert _ask(guarded, operation, {"Authorization": value}).status_code in (401, 429), value


def test_the_table_has_every_route(guarded: Served) -> None:
    """A route outside of the table would have no access check."""
    served = {
        (method, route.path)
        for route in guarded.application.router.routes
        for method in getattr(route, "methods", None) or {"?"}
        if isinstance(route, Route)
    }
    table = {
        (operation.method, operation.path if operation.own_path else API_BASE + operation.path)
        for operation in OPERATIONS
    }
    table |= {("HEAD", operation.path) for operation in OPERATIONS if operation.tag == ""}
    assert served == table
    assert len(guarded.application.router.routes) == len(OPERATIONS)


def test_every_change_requires_more_than_the_role_view() -> None:
    for operation in OPERATIONS:
        if operation.method != "GET" and not operation.path.startswith("/session"):
            changing = (Access.OPERATE, Access.ENROL, Access.BOOT, Access.MACHINE, Access.CAPTURE)
            assert operation.access in changing, _name(operation)


def test_only_metrics_can_be_made_public(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with (
        serve(tmp_path_factory.mktemp("public"), metrics__public=True) as served,
        served.client(None) as client,
    ):
        assert client.get(f"{served.url}/metrics").status_code == HTTPStatus.OK
        assert client.get("/server").status_code == HTTPStatus.UNAUTHORIZED


def test_wrong_tokens_are_rate_limited_and_right_ones_are_not(guarded: Served) -> None:
    """Otherwise one wrong client behind a proxy locks out everybody there."""
    with guarded.client(Role.VIEW) as right, guarded.client(None) as wrong:
        statuses = [
            wrong.get("/rooms", headers={"Authorization": f"Bearer dct_view_{index:043}"}).status_code
            for index in range(20)
        ]
        assert statuses[0] in (401, 429)
        assert statuses[-1] == HTTPStatus.TOO_MANY_REQUESTS
        last = wrong.get("/rooms", headers={"Authorization": f"Bearer dct_view_{99:043}"})
        assert int(last.headers["retry-after"]) >= 1
        assert right.get("/rooms").status_code == HTTPStatus.OK, "though it wasn't used before"
    guarded.application.state.authenticator._failures._buckets.clear()


def test_clients_of_a_trusted_proxy_do_not_share_a_rate_limit(tmp_path: Path) -> None:
    def ask(client: httpx.Client, forwarded: str) -> int:
        headers = {"Authorization": f"Bearer dct_view_{'x' * 43}", "X-Forwarded-For": forwarded}
        return client.get("/rooms", headers=headers).status_code

    with serve(tmp_path, server__trusted_proxies=("127.0.0.1",)) as served, served.client(None) as client:
        for _ in range(20):
            last = ask(client, "10.9.9.9, 10.0.0.7")
        assert last == HTTPStatus.TOO_MANY_REQUESTS
        assert ask(client, "10.0.0.8") == HTTPStatus.UNAUTHORIZED
        assert ask(client, "10.0.0.8, 10.0.0.7") == HTTPStatus.TOO_MANY_REQUESTS, "a client can't choose"


def test_another_clients_forwarded_address_is_not_believed(guarded: Served) -> None:
    with guarded.client(None) as client:
        for number in range(20):
            headers = {"Authorization": f"Bearer dct_view_{'x' * 43}", "X-Forwarded-For": f"10.0.0.{number}"}
            last = client.get("/rooms", headers=headers).status_code
        assert last == HTTPStatus.TOO_MANY_REQUESTS
    guarded.application.state.authenticator._failures._buckets.clear()


def test_a_deleted_token_stops_working_at_once(guarded: Served, operator: httpx.Client) -> None:
    created = operator.post("/tokens", json={"name": "passing", "role": "view"})
    assert created.status_code == HTTPStatus.CREATED
    headers = {"Authorization": f"Bearer {created.json()['secret']}"}
    with guarded.client(None, headers=headers) as client:
        assert client.get("/rooms").status_code == HTTPStatus.OK
        operator.delete(f"/tokens/{created.json()['token']['token_id']}").raise_for_status()
        assert client.get("/rooms").status_code == HTTPStatus.UNAUTHORIZED
    assert created.json()["secret"] not in operator.get("/tokens").text


def test_a_browser_signs_in_with_a_cookie_that_scripts_cannot_read(guarded: Served) -> None:
    with guarded.client(None) as browser:
        assert (
            browser.post("/session", json={"token": "dct_view_wrong"}).status_code == HTTPStatus.UNAUTHORIZED
        )
        refused = browser.post("/session", json={"token": guarded.secrets[Role.ENROL]})
        assert refused.status_code == HTTPStatus.FORBIDDEN
        answer = browser.post("/session", json={"token": guarded.secrets[Role.VIEW]})
        assert answer.json() == {"role": "view", "name": "test-view"}
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie, "plain HTTP: the browser would drop it"
        assert browser.get("/server").json()["role"] == "view"
        assert browser.post("/rooms", json={"name": "x"}).status_code == HTTPStatus.FORBIDDEN
        assert browser.delete("/session").status_code == HTTPStatus.NO_CONTENT
        assert browser.get("/server").status_code == HTTPStatus.UNAUTHORIZED
        behind_tls = browser.post(
            "/session", json={"token": guarded.secrets[Role.VIEW]}, headers={"X-Forwarded-Proto": "https"}
        )
        assert "secure" in behind_tls.headers["set-cookie"].lower()


def _cookie(client: httpx.Client) -> dict[str, str]:
    return {"Cookie": f"diskcast_session={client.cookies['diskcast_session']}"}


def _sign_in(guarded: Served, secret: str) -> dict[str, str]:
    """Return the header of a new session."""
    with guarded.client(None) as browser:
        browser.post("/session", json={"token": secret}).raise_for_status()
        return _cookie(browser)


def test_the_cookie_is_not_the_token_and_ends_with_the_session(guarded: Served) -> None:
    """Otherwise a stolen cookie works after its owner has logged out."""
    secret = guarded.secrets[Role.VIEW]
    stolen, other = _sign_in(guarded, secret), _sign_in(guarded, secret)
    assert secret not in stolen["Cookie"]
    with guarded.client(None) as client:
        assert client.get("/server", headers=stolen).status_code == HTTPStatus.OK
        assert client.delete("/session", headers=stolen).status_code == HTTPStatus.NO_CONTENT
        assert client.get("/server", headers=stolen).status_code == HTTPStatus.UNAUTHORIZED
        assert client.get("/server", headers=other).status_code == HTTPStatus.OK
        bearer = other["Cookie"].removeprefix("diskcast_session=")
        answer = client.get("/server", headers={"Authorization": f"Bearer {bearer}"})
        assert answer.status_code == HTTPStatus.UNAUTHORIZED, "a cookie's secret works only as a cookie"
        answer = client.get("/server", headers={"Cookie": f"diskcast_session={secret}"})
        assert answer.status_code == HTTPStatus.UNAUTHORIZED, "a token works only as a token"


def test_a_revoked_token_ends_its_sessions_at_once(guarded: Served, operator: httpx.Client) -> None:
    made = operator.post("/tokens", json={"name": "two browsers", "role": "view"}).json()
    sessions = [_sign_in(guarded, made["secret"]) for _ in range(2)]
    with guarded.client(None) as client:
        for session in sessions:
            assert client.get("/server", headers=session).status_code == HTTPStatus.OK
        operator.delete(f"/tokens/{made['token']['token_id']}").raise_for_status()
        for session in sessions:
            assert client.get("/server", headers=session).status_code == HTTPStatus.UNAUTHORIZED


def test_logging_in_and_out_is_audited(guarded: Served, operator: httpx.Client) -> None:
    session = _sign_in(guarded, guarded.secrets[Role.VIEW])
    with guarded.client(None) as client:
        client.delete("/session", headers=session).raise_for_status()
    entries = operator.get("/audit", params={"actor": "test-view"}).json()["items"][:2]
    assert [entry["action"] for entry in entries] == ["session.remove", "session.create"]
    assert entries[0]["subject"] == entries[1]["subject"]


def test_a_login_code_works_once(guarded: Served, operator: httpx.Client) -> None:
    """Otherwise a link in a browser's history opens the dashboard for ever."""
    code = operator.post("/session/codes").json()["code"]
    with guarded.client(None) as browser, guarded.client(None) as late:
        assert browser.post("/session", json={"code": code}).json() == {
            "role": "operate",
            "name": "test-operate",
        }
        assert browser.get("/tokens").status_code == HTTPStatus.OK
        assert late.post("/session", json={"code": code}).status_code == HTTPStatus.UNAUTHORIZED
        assert late.post("/session", json={"code": code, "token": code}).status_code == 422
        assert late.post("/session", json={}).status_code == 422


def test_a_login_code_of_a_revoked_token_is_worthless(guarded: Served, operator: httpx.Client) -> None:
    made = operator.post("/tokens", json={"name": "gone", "role": "view"}).json()
    with guarded.client(None, headers={"Authorization": f"Bearer {made['secret']}"}) as client:
        code = client.post("/session/codes").json()["code"]
    operator.delete(f"/tokens/{made['token']['token_id']}").raise_for_status()
    with guarded.client(None) as browser:
        assert browser.post("/session", json={"code": code}).status_code == HTTPStatus.UNAUTHORIZED


def test_an_open_route_reads_only_a_short_body(guarded: Served) -> None:
    with guarded.client(None) as client:
        assert client.post("/session", json={"token": "x" * 8192}).status_code == 413


def _fail(*_args: object, **_options: object) -> None:
    raise DatabaseUnavailableError("database: no answer; check it")


def _without_database(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    """Let every method of the repositories fail that logins and revocations use."""
    store = served.services.store
    for method in ("all", "find", "add_session", "remove_session"):
        monkeypatch.setattr(store.credentials, method, _fail)
    monkeypatch.setattr(store.tokens, "remove", _fail)


def test_without_the_database_a_revocation_works_at_once_and_is_not_forgotten(
    guarded: Served, operator: httpx.Client
) -> None:
    """Otherwise a stolen token is good for as long as the database is broken."""
    made = operator.post("/tokens", json={"name": "stolen", "role": "operate"}).json()
    token_id, headers = made["token"]["token_id"], {"Authorization": f"Bearer {made['secret']}"}
    with guarded.client(None) as client:
        assert client.get("/server", headers=headers).status_code == HTTPStatus.OK
        with pytest.MonkeyPatch.context() as monkeypatch:
            _without_database(monkeypatch, guarded)
            assert client.get("/server", headers=headers).status_code == HTTPStatus.OK, "known before"
            assert operator.delete(f"/tokens/{token_id}").status_code == HTTPStatus.NO_CONTENT
            assert client.get("/server", headers=headers).status_code in (401, 503)
        assert client.get("/server", headers=headers).status_code == HTTPStatus.UNAUTHORIZED
    wait_until("the database knows", lambda: guarded.services.store.tokens.get(token_id) is None)


def test_without_the_database_an_operator_can_log_in_and_out(guarded: Served, operator: httpx.Client) -> None:
    """Otherwise nobody can watch the repair."""
    operator.get("/server").raise_for_status()
    with guarded.client(None) as browser, pytest.MonkeyPatch.context() as monkeypatch:
        _without_database(monkeypatch, guarded)
        browser.post("/session", json={"token": guarded.secrets[Role.OPERATE]}).raise_for_status()
        cookie = _cookie(browser)
        assert browser.get("/server").status_code == HTTPStatus.OK
        browser.delete("/session").raise_for_status()
        assert browser.get("/server", headers=cookie).status_code in (401, 503)


def test_another_daemons_revocation_works_within_five_seconds(
    guarded: Served, operator: httpx.Client
) -> None:
    made = operator.post("/tokens", json={"name": "elsewhere", "role": "view"}).json()
    with guarded.client(None, headers={"Authorization": f"Bearer {made['secret']}"}) as client:
        assert client.get("/server").status_code == HTTPStatus.OK
        guarded.store(lambda store: store.tokens.remove, made["token"]["token_id"])
        started_s = time.monotonic()
        wait_until("it is refused", lambda: client.get("/server").status_code == HTTPStatus.UNAUTHORIZED)
        assert time.monotonic() - started_s < 5
