"""``machines wake``: shows each machine as it wakes, and fails if one doesn't."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocol.errors import MachinesNotAwakeError
from tests.console.api_double import AT, Answer, ApiDouble, lines, machine, page, refused, succeeded

CALLED_AT, AWAKE_AT = "2026-11-21T10:00:01Z", "2026-11-21T10:00:42.300000Z"


@pytest.fixture(autouse=True)
def _without_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sender.console.waking._POLL_INTERVAL_S", 0.0)


def woken(name: str, state: str, wave: int = 1) -> dict[str, Any]:
    times = {"called_at": CALLED_AT, "awake_at": AWAKE_AT if state == "woke" else None}
    return {"machine_id": f"m-{name}", "name": name, "state": state, "wave": wave, **times}


def wake(*machines: dict[str, Any], **fields: Any) -> Answer:
    record = {
        "wake_id": "5e6f7a8b", "room_id": "lab-1", "cast_id": None, "created_at": AT, "created_by": "local",
        "wave_size": 1, "pause_s": 5.0, "machines": list(machines), "interfaces": ["eth1"], "problem": "",
        "ended_at": None,
    }  # fmt: skip
    return Answer({**record, **fields})


def script(api: ApiDouble, last: Answer) -> None:
    api.answers("POST /wakes", wake(woken("pc01", "called"), woken("pc02", "queued", 2)))
    api.answers("GET /wakes/5e6f7a8b", wake(woken("pc01", "woke"), woken("pc02", "called", 2)), last)


def test_each_machine_is_shown_once_when_it_wakes(api: ApiDouble) -> None:
    script(api, wake(woken("pc01", "woke"), woken("pc02", "woke", 2), ended_at=AT))
    result = succeeded(api.run("machines", "wake", "--room", "lab-1"))
    assert result.stderr.splitlines() == [
        "waking 2 machines, 1 every 5 s",
        "pc01: awake after 41.3 s (1 of 2)",
        "pc02: awake after 41.3 s (2 of 2)",
    ]
    assert "all 2 machines are awake" in result.stdout
    [request] = api.asked("POST /wakes")
    assert json.loads(request.body) == {"room_id": "lab-1", "machine_ids": []}
    assert request.headers["Idempotency-Key"], "a repeated request must not wake the room twice"


def test_a_silent_machine_is_named_with_its_reason_and_an_exit_code(api: ApiDouble) -> None:
    script(api, wake(woken("pc01", "woke"), woken("pc02", "silent", 2), ended_at=AT))
    result = api.run("machines", "wake", "--room", "lab-1")
    error = refused(result)
    assert isinstance(error, MachinesNotAwakeError)
    assert error.exit_code == 88
    assert "1 of 2 machines aren't awake (pc02)" in str(error)
    assert "pc02: silent: no sign of life within 3 minutes" in result.stderr


def test_json_has_a_line_for_each_machine_and_the_whole_record(api: ApiDouble) -> None:
    script(api, wake(woken("pc01", "was_on"), woken("pc02", "woke", 2), ended_at=AT))
    rows = lines(succeeded(api.run("machines", "wake", "--room", "lab-1", "--json")))
    assert [row["event"] for row in rows] == ["machine", "machine", "result"]
    assert [(row["name"], row["state"]) for row in rows[:2]] == [("pc01", "woke"), ("pc02", "woke")]
    assert rows[-1]["machines"][1]["awake_at"] == AWAKE_AT


def test_machines_are_found_by_name_and_not_waited_for_on_request(api: ApiDouble) -> None:
    script(api, wake(ended_at=AT))
    api.answers("GET /machines", page(machine("pc01"), machine("pc02")))
    assert "waking 2 machines" in succeeded(api.run("machines", "wake", "pc01", "--no-wait")).stdout
    [request] = api.asked("POST /wakes")
    assert json.loads(request.body)["machine_ids"] == ["m-pc01"]
    assert api.asked("GET /wakes/5e6f7a8b") == []


@pytest.mark.parametrize("arguments", [(), ("pc01", "--room", "lab-1")])
def test_either_machines_or_a_room_are_named(api: ApiDouble, arguments: tuple[str, ...]) -> None:
    assert "name machines, or a room" in api.run("machines", "wake", *arguments).output
