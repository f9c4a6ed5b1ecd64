"""The preflight in the terminal: if these fail, an operator casts to machines that can't start, without a word."""

from __future__ import annotations

import json

import pytest

from protocol.errors import ConfigurationError, PreflightRefusedError
from tests.console.api_double import (
    Answer,
    ApiDouble,
    cast,
    image,
    lines,
    page,
    preflight,
    refused,
    succeeded,
)


@pytest.fixture
def room(api: ApiDouble) -> ApiDouble:
    """Return an API with an image; each test adds its matrix."""
    api.answers("GET /images", page(image("lab")))
    api.answers("POST /casts", Answer(cast("planned"), 201))
    return api


def plan(api: ApiDouble, *options: str) -> list[str]:
    return ["casts", "create", "lab", "--room", "lab-1", *options]


def test_the_matrix_shows_each_machine_with_reasons_and_fixes(room: ApiDouble) -> None:
    room.answers(
        "POST /casts/preflight", Answer(preflight(pc01="ok", pc02="refuse", pc03="warn", pc04="unknown"))
    )
    result = room.run("casts", "preflight", "--image", "lab", "--room", "lab-1")
    error = refused(result)
    assert isinstance(error, PreflightRefusedError)
    assert "1 of 4 machines refused, 1 with warnings, 2 without either" in str(error)
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        ["machine", "disk"],
        ["pc01", "ok"],
        ["pc02", "refuse"],
        ["pc03", "warn"],
        ["pc04", "unknown"],
    ]
    assert "pc02: disk: disk of pc02: replace it" in result.stderr
    assert "pc03: disk: disk of pc03: replace it" in result.stderr
    assert "pc01:" not in result.stderr


def test_scripts_get_the_whole_matrix(room: ApiDouble) -> None:
    room.answers("POST /casts/preflight", Answer(preflight(pc01="warn")))
    *rows, result = lines(
        succeeded(room.run("casts", "preflight", "--image", "lab", "--room", "lab-1", "--json"))
    )
    assert [(row["name"], row["grade"], len(row["checks"])) for row in rows] == [("pc01", "warn", 8)]
    assert (result["ok"], result["refused_count"], result["warned_count"]) == (True, 0, 1)
    [asked] = room.asked("POST /casts/preflight")
    assert json.loads(asked.body)["room_id"] == "lab-1"


def test_a_cast_names_the_excluded_machines(room: ApiDouble) -> None:
    room.answers("POST /casts/preflight", Answer(preflight(pc01="ok", pc02="refuse")))
    result = succeeded(room.run(*plan(room)))
    assert "excluded: pc02: disk: disk of pc02: replace it" in result.stderr


def test_warnings_need_consent(room: ApiDouble) -> None:
    room.answers("POST /casts/preflight", *[Answer(preflight(pc01="ok", pc02="warn"))] * 2)
    error = refused(room.run(*plan(room)))
    assert isinstance(error, ConfigurationError)
    assert "pc02: disk" in str(error)
    assert "--accept-warnings" in str(error)
    assert not room.asked("POST /casts")
    succeeded(room.run(*plan(room, "--accept-warnings")))
    assert len(room.asked("POST /casts")) == 1


def test_a_room_in_which_no_machine_fits_gets_no_cast(room: ApiDouble) -> None:
    grades = {f"pc{number:02}": "refuse" for number in range(9)}
    room.answers("POST /casts/preflight", Answer(preflight(**grades)))
    error = refused(room.run(*plan(room, "--accept-warnings")))
    assert isinstance(error, PreflightRefusedError)
    assert "and 4 more machines" in str(error)
    assert not room.asked("POST /casts")
