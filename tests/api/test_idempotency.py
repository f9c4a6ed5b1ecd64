"""Idempotency keys of creations."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from protocol.errors import DatabaseUnavailableError
from sender.store.records.access import Role
from tests.api.served import Served
from tests.api.test_refusals import check_problem


def _create(client: httpx.Client, key: str, name: str, path: str = "/rooms") -> httpx.Response:
    return client.post(path, json={"name": name}, headers={"Idempotency-Key": key})


def test_a_repeated_creation_creates_once_and_returns_the_same_response(operator: httpx.Client) -> None:
    first, second = (_create(operator, "again-1", "Once only") for _ in range(2))
    assert first.status_code == second.status_code == 201
    assert first.content == second.content
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["content-type"] == "application/json"
    assert second.headers["x-request-id"] != first.headers["x-request-id"]


def test_twenty_simultaneous_requests_with_one_key_create_one_machine(guarded: Served) -> None:
    body = {"name": "at-once", "serial": "AT-ONCE-1"}
    with guarded.client() as client, ThreadPoolExecutor(20) as threads:
        answers = list(
            threads.map(
                lambda _: client.post("/machines", json=body, headers={"Idempotency-Key": "storm"}), range(20)
            )
        )
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.content for answer in answers}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        machines = client.get("/machines", params={"limit": 500}).json()["items"]
    assert len([machine for machine in machines if machine["name"] == "at-once"]) == 1


def test_a_key_is_refused_for_a_second_request(operator: httpx.Client) -> None:
    _create(operator, "two-things", "First thing").raise_for_status()
    check_problem(_create(operator, "two-things", "Second thing"), 422)
    check_problem(
        operator.post(
            "/machines", json={"name": "x", "serial": "X9"}, headers={"Idempotency-Key": "two-things"}
        ),
        422,
    )


def test_a_refused_request_can_be_repeated_with_the_same_key(operator: httpx.Client) -> None:
    check_problem(operator.post("/rooms", json={"name": 5}, headers={"Idempotency-Key": "refused"}), 422)
    assert _create(operator, "refused", "Refused at first").status_code == 201
    _create(operator, "", "x")
    check_problem(_create(operator, "conflict", "Refused at first"), 409)
    operator.delete("/rooms/refused-at-first").raise_for_status()
    assert _create(operator, "conflict", "Refused at first").status_code == 201


def test_a_success_is_reported_even_if_its_response_cannot_be_stored(
    guarded: Served, operator: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise DatabaseUnavailableError("it went away")

    monkeypatch.setattr(guarded.services.store.idempotency, "finish", fail)
    assert _create(operator, "unkept", "Unkept answer").status_code == 201
    again = _create(operator, "unkept", "Unkept answer")
    check_problem(again, 409)
    assert int(again.headers["retry-after"]) > 0


def test_keys_of_different_clients_do_not_collide(guarded: Served, operator: httpx.Client) -> None:
    secret = operator.post("/tokens", json={"name": "another", "role": "operate"}).json()["secret"]
    with guarded.client(None, headers={"Authorization": f"Bearer {secret}"}) as other:
        assert _create(operator, "shared", "Of the first").status_code == 201
        assert _create(other, "shared", "Of the second").status_code == 201


def test_a_tokens_secret_is_returned_once_and_not_stored(guarded: Served, operator: httpx.Client) -> None:
    body = {"name": "secretive", "role": "view"}
    first = operator.post("/tokens", json=body, headers={"Idempotency-Key": "token-1"})
    secret = first.json()["secret"]
    again = operator.post("/tokens", json=body, headers={"Idempotency-Key": "token-1"})
    assert secret not in str(check_problem(again, 409))
    for path in (guarded.folder / "state").rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_an_invalid_key_is_refused(operator: httpx.Client) -> None:
    for key in ("", "x" * 65, "ä".encode()):
        headers: dict[str | bytes, str | bytes] = {"Idempotency-Key": key}
        check_problem(operator.post("/rooms", json={"name": "Never"}, headers=headers), 422)
    assert operator.get("/rooms/never").status_code == 404


def test_a_viewer_gets_no_response_by_an_operators_key(guarded: Served, operator: httpx.Client) -> None:
    _create(operator, "private", "Private").raise_for_status()
    with guarded.client(Role.VIEW) as viewer:
        check_problem(_create(viewer, "private", "Private"), 403)
