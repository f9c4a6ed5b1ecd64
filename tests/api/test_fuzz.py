"""Generated requests to every operation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.fuzzing import Tally, fuzz, operations
from tests.api.served import Served, serve

EXAMPLES = 4
SEED = 20260101


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        serve(tmp_path_factory.mktemp("fuzzed")) as served,
        served.client() as client,
    ):
        for index in range(3):
            client.post("/rooms", json={"name": f"Room {index}"}).raise_for_status()
            client.post("/machines", json={"name": f"pc-{index}", "serial": f"S{index}"}).raise_for_status()
            cast = {"image": "made", "wait_for": 1, "room_id": f"room-{index}"}
            client.post("/casts", json=cast).raise_for_status()
        yield served


@pytest.mark.parametrize("operation", list(operations()), ids=lambda operation: operation.label)
def test_every_response_is_as_documented(fuzzed: Served, operation: object) -> None:
    fuzz(fuzzed, operation, examples_count=EXAMPLES, seed_number=SEED, tally=Tally())  # type: ignore[arg-type]
