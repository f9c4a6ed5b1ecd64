"""Valid and invalid requests generated from the OpenAPI document, sent over a real socket.

schemathesis generates them and checks the responses: no server error; only documented statuses, types, headers and
bodies; no invalid request accepted, no valid one refused.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from sender.api.application import api_document
from sender.api.request_models.images import URL_CHARACTERS_MAX, URL_PATTERN
from sender.store.records.access import Role
from tests.api.served import Served
from tests.support.network.lab import LIMIT_S

CHECK_NAMES: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
ENDLESS: Final = ("watch_events",)
"""Streams, which have their own tests."""
BEYOND_SCHEMA: Final = {
    "cron",
    "time_zone",
    "plan.cron",
    "since",
    "until",
    "start_at",
    "expires_at",
    "cursor",
    "topics",
    "macs",
    "mac",
    "address",
    "text",
    "variables",
}
"""Fields whose validity a schema can't express."""


@dataclasses.dataclass
class Tally:
    """Counts of requests and statuses."""

    count: int = 0
    statuses: dict[int, int] = dataclasses.field(default_factory=dict)


def operations(document: dict[str, Any] | None = None) -> Iterator[APIOperation[Any, Any, Any]]:
    """Yield the operations whose response ends."""
    document = copy.deepcopy(document or api_document())
    # Tokens have their own tests; each request has a valid one.
    document["components"].pop("securitySchemes")
    for item in document["paths"].values():
        for entry in item.values():
            entry.pop("security")
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        if operation.definition.raw["operationId"] not in ENDLESS:
            yield operation


def fuzz(
    served: Served,
    operation: APIOperation[Any, Any, Any],
    *,
    examples_count: int,
    seed_number: int,
    tally: Tally,
) -> None:
    """Send valid and invalid requests to an operation; on a wrong response raise with the request to repeat."""
    for mode in GenerationMode:
        check = _checker(served, tally)
        drawn = given(case=operation.as_strategy(generation_mode=mode), choice=st.integers(0, 7))(check)
        run = seed(seed_number)(
            settings(
                max_examples=examples_count,
                deadline=None,
                database=None,
                derandomize=False,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
                print_blob=False,
            )(drawn)
        )
        try:
            run()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, f"{operation.label}: no request is right"


def _checker(served: Served, tally: Tally) -> Callable[..., None]:
    load_all_checks()
    checks = CHECKS.get_by_names(CHECK_NAMES)
    session = requests.Session()
    session.trust_env = False
    with served.client() as client:
        real = _real_ids(client.get, served)

    def check(case: Case, choice: int) -> None:
        _keep_to_this_machine(case)
        if (
            choice
            and case.path_parameters
            and case.meta is not None
            and case.meta.generation.mode.is_positive
        ):
            # Generated ids are mostly unknown: replace most of them by known ones.
            case.path_parameters.update({name: real[name] for name in case.path_parameters if name in real})
        role = Role.ENROL if case.path.endswith("/check-in") else Role.OPERATE
        headers = {"Authorization": f"Bearer {served.secrets[role]}"}
        response = case.call(base_url=served.url, session=session, headers=headers, timeout=LIMIT_S)
        tally.count += 1
        tally.statuses[response.status_code] = tally.statuses.get(response.status_code, 0) + 1
        case.validate_response(response, checks=checks, headers=headers)
        _check_refusal(case, response)

    return check


def _check_refusal(case: Case, response: Any) -> None:
    """Check that no request that the document allows is refused for its form."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code < 400:
        return
    assert response.status_code in (401, 403, 404, 409, 422, 429), response.text
    fields = {error["field"].rstrip(".0123456789") for error in response.json().get("errors", ())}
    assert fields <= BEYOND_SCHEMA, f"{case.as_curl_command()}: {response.text}"


def _keep_to_this_machine(case: Case) -> None:
    """Fetch nothing from a generated host, and let no check-in wait."""
    if not isinstance(case.body, dict):
        return
    if case.path.endswith("/check-in"):
        case.body = _plain_numbers(case.body)
    url = case.body.get("url")
    if isinstance(url, str) and 8 <= len(url) <= URL_CHARACTERS_MAX and re.fullmatch(URL_PATTERN, url):
        case.body["url"] = "http://127.0.0.1:9/none.dci"
    if isinstance(case.body.get("wait_s"), int | float) and 0 <= case.body["wait_s"] <= 25:
        case.body["wait_s"] = 0


def _plain_numbers(value: Any) -> Any:
    """Return whole numbers without a fraction, as agents send them and the daemon requires."""
    match value:
        case dict():
            return {key: _plain_numbers(item) for key, item in value.items()}
        case list():
            return [_plain_numbers(item) for item in value]
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case _:
            return value


def _real_ids(get: Callable[..., Any], served: Served) -> dict[str, str]:
    real = {"image_id": served.image.manifest.image_id.hex()}
    for path, name in (
        ("/rooms", "room_id"),
        ("/machines", "machine_id"),
        ("/casts", "cast_id"),
        ("/schedules", "schedule_id"),
    ):
        items = get(path, params={"limit": 1}).json()["items"]
        if items:
            real[name] = items[0][name]
    return real
