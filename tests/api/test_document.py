"""The OpenAPI document and the reference page made from it."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from docs import api_reference
from protocol.control.control_messages import API_BASE, PROBLEM_TYPE
from sender.api.guard.auth import Access
from sender.api.guard.guarded_route import Repeat
from sender.api.route_table import OPERATIONS


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    from sender.api.application import api_document

    return api_document()


def test_the_daemon_serves_the_document(operator: httpx.Client, document: dict[str, Any]) -> None:
    answer = operator.get("/openapi.json")
    assert answer.json() == json.loads(json.dumps(document))
    assert answer.json()["openapi"].startswith("3.1")


def test_each_operation_is_documented(document: dict[str, Any]) -> None:
    seen = set()
    for operation in OPERATIONS:
        if not operation.tag:
            continue
        path = operation.path if operation.own_path else API_BASE + operation.path
        entry = document["paths"][path][operation.method.lower()]
        assert entry["operationId"] not in seen
        seen.add(entry["operationId"])
        assert re.fullmatch(r"[A-Z].*[^.]", entry["summary"])
        assert entry["tags"] == [operation.tag]
        assert "Role:" in entry["description"]
        assert entry["security"] == (
            [] if operation.access is Access.OPEN else [{"token": []}, {"session": []}]
        )
        assert str(int(operation.status)) in entry["responses"]
        if operation.access is not Access.OPEN:
            assert {"401", "403", "429", "500", "503"} <= entry["responses"].keys()
        keys = [parameter["name"] for parameter in entry.get("parameters", ())]
        assert ("Idempotency-Key" in keys) == (operation.repeat is not Repeat.UNGUARDED)
        assert ("limit" in keys) == ("cursor" in keys)
    for response in document["components"]["responses"].values():
        assert list(response["content"]) == [PROBLEM_TYPE]


def test_every_reference_resolves_and_every_component_is_used(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    for reference in set(re.findall(r'"#/components/(\w+)/(\w+)"', text)):
        assert reference[1] in document["components"][reference[0]]
    for kind in ("schemas", "responses"):
        for name in document["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, f"{name} is used nowhere"
    assert "HTTPValidationError" not in text


def test_the_reference_page_has_every_operation_and_record(document: dict[str, Any]) -> None:
    page = api_reference.render()
    anchors = {line.removeprefix("### ").lower() for line in page.splitlines() if line.startswith("### ")}
    for target in re.findall(r"\]\(#([^)]+)\)", page):
        assert target in anchors
    for path in document["paths"]:
        assert f"`{path}`" in page
    assert "None" not in page
