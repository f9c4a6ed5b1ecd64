"""Tokens, roles, and access to every route."""

from __future__ import annotations

import re
from http import HTTPStatus

import httpx
import pytest
from starlette.routing import Route

from protocol.control.control_messages import API_BASE, PROBLEM_TYPE
from sender.api.bodies.event_stream import EVENTS_TYPE
from sender.api.guard.auth import Access
from sender.api.guard.guarded_route import Body, Operation
from sender.api.route_table import OPERATIONS
from sender.store.records.access import Role
from tests.api.served import Served, serve
from tests.support.network.lab import LIMIT_S

FITTING = {
    Access.OPEN: {None, *Role},
    Access.VIEW: {Role.VIEW, Role.OPERATE},
    Access.METRICS: {Role.VIEW, Role.OPERATE},
    Access.OPERATE: {Role.OPERATE},
    Access.ENROL: {Role.ENROL},
}
KEYS = {
    "image_id": "0" * 64,
    "room_id": "nowhere",
    "machine_id": "m0",
    "cast_id": "00000000",
    "schedule_id": "s0",
    "token_id": "t0",
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
        headers = headers | {"Content-Type": "text/csv" if operation.body is Body.CSV else "application/json"}
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
        if operation.method != "GET" and operation.path != "/session":
            assert operation.access in (Access.OPERATE, Access.ENROL), _name(operation)


def test_only_metrics_can_be_made_public(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with (
        serve(tmp_path_factory.mktemp("public"), server__require_tokens=True, metrics__public=True) as served,
        served.client(None) as client,
    ):
        assert client.get(f"{served.url}/metrics").status_code == HTTPStatus.OK
        assert client.get("/server").status_code == HTTPStatus.UNAUTHORIZED


def test_on_the_open_loopback_every_route_is_allowed(open_api: Served) -> None:
    for operation in OPERATIONS:
        response = _ask(open_api, operation, {})
        assert response.status_code not in (401, 403), _name(operation)


def test_a_token_names_its_actor_on_an_open_daemon(open_api: Served) -> None:
    with open_api.client(Role.VIEW) as client:
        client.post("/rooms", json={"name": "Named by its token"}).raise_for_status()
        entries = client.get("/audit", params={"subject": "room named-by-its-token"}).json()["items"]
    assert [entry["actor"] for entry in entries] == ["test-view"]


def test_wrong_tokens_are_rate_limited_and_known_ones_are_not(guarded: Served) -> None:
    with guarded.client(Role.VIEW) as right, guarded.client(None) as wrong:
        right.get("/rooms").raise_for_status()
        statuses = [
            wrong.get("/rooms", headers={"Authorization": f"Bearer dct_view_{index:043}"}).status_code
            for index in range(20)
        ]
        assert statuses[0] in (401, 429)
        assert statuses[-1] == HTTPStatus.TOO_MANY_REQUESTS
        last = wrong.get("/rooms", headers={"Authorization": f"Bearer dct_view_{99:043}"})
        assert int(last.headers["retry-after"]) >= 1
        assert right.get("/rooms").status_code == HTTPStatus.OK
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
