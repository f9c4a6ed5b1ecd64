"""The output of commands: tables that fit, complete pipes, and no control characters from names."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sender.api.request_models.field_types import CAST_ID_PATTERN, ROOM_ID_PATTERN
from sender.console import casts as cast_commands
from sender.console import options
from sender.console.output import Column, Output
from sender.console.plan import START_MODES
from sender.console.tokens import ROLES
from sender.store.records.access import Role
from sender.store.records.casts import CastPhase, StartMode
from tests.console.api_double import (
    AT,
    Answer,
    ApiDouble,
    cast,
    cast_machine,
    history_line,
    lines,
    live_cast,
    live_machine,
    page,
    problem,
    refused,
    room,
    succeeded,
)

LONG = "a name that nobody would ever type but that somebody pasted " * 3


def table_text(width: int) -> str:
    output = Output(json_lines=False)
    text = io.StringIO()
    output.console = Console(file=text, width=width)
    columns: list[Column[str]] = [
        Column("name", lambda row: row * 60, cut=True),
        Column("id", lambda _row: "1a2b3c4d"),
        Column("none", lambda _row: ""),
        Column("error", lambda row: row * 90, cut=True),
    ]
    output.table(["x", "y"], columns)
    return text.getvalue()


def test_a_table_fits_80_columns_and_cuts_only_some_columns() -> None:
    head, *rows = table_text(80).splitlines()
    assert "none" not in head
    assert len(rows) == 2
    for row in rows:
        assert len(row) <= 80
        assert "1a2b3c4d" in row
        assert "…" in row


def test_output_to_a_pipe_is_not_cut(api: ApiDouble) -> None:
    api.answers("GET /rooms", page(room("lab-1", name=LONG, description=LONG)))
    result = succeeded(api.run("rooms", "list"))
    assert result.stdout.count(LONG.strip()) == 2
    assert "\x1b" not in result.stdout


def test_control_characters_in_a_name_are_replaced(api: ApiDouble) -> None:
    evil = "pc\x1b]0;owned\x07\x1b[2J\r\n"
    api.answers("GET /rooms/lab-1/live", Answer({"room": room("lab-1"), "machines": [live_machine(evil)]}))
    result = succeeded(api.run("rooms", "show", "lab-1"))
    assert "\x1b" not in result.output
    assert "\x07" not in result.output
    assert len(result.stdout.splitlines()) == 3


def test_an_empty_list_prints_a_hint_to_stderr(api: ApiDouble) -> None:
    api.answers("GET /rooms", page())
    result = succeeded(api.run("rooms", "list"))
    assert result.stdout == ""
    assert "diskcast rooms create" in result.stderr


def test_json_output_is_the_daemons_record(api: ApiDouble) -> None:
    api.answers("POST /casts/1a2b3c4d/cancel", Answer(cast("cancelled", ended_at=AT, reason="wrong image")))
    (result,) = lines(succeeded(api.run("casts", "cancel", "1a2b3c4d", "--reason", "wrong image", "--json")))
    assert (result["event"], result["ok"], result["phase"], result["ended_at"]) == (
        "result",
        True,
        "cancelled",
        AT,
    )
    assert api.asked("POST /casts/1a2b3c4d/cancel")[0].body == b'{"reason":"wrong image"}'


def test_unknown_fields_of_a_newer_daemon_are_ignored(api: ApiDouble) -> None:
    api.answers("GET /rooms", page(room("lab-1", colour="red")))
    succeeded(api.run("rooms", "list"))


def test_a_running_casts_machines_have_their_live_state_failures_first(
    api: ApiDouble,
) -> None:
    path = "GET /casts/1a2b3c4d"
    kept = [cast_machine(name, "joined", progress=0.0, ended_at=None) for name in ("pc10", "pc2", "pc3")]
    states = {"pc10": "complete", "pc2": "receiving", "pc3": "failed"}
    machines = [live_machine(name, state, progress=0.25) for name, state in states.items()]
    api.answers(f"{path}/machines", page(*kept))
    api.answers(f"{path}/live", Answer({"live": live_cast(), "machines": machines}))
    shown = succeeded(api.run("casts", "machines", "1a2b3c4d")).stdout.splitlines()
    assert [row.split()[:3] for row in shown[1:]] == [
        ["pc2", "receiving", "25%"],
        ["pc3", "failed", "25%"],
        ["pc10", "complete", "25%"],
    ]
    ended = cast("failed", ended_at=AT)
    api.answers(f"{path}/live", Answer({"live": live_cast() | {"cast": ended}, "machines": machines}))
    assert "joined" in succeeded(api.run("casts", "machines", "1a2b3c4d")).stdout


def test_machines_are_sorted_by_position(api: ApiDouble) -> None:
    places = {"a": "row 1 seat 10", "b": "row 1 seat 2", "pc10": "", "pc2": ""}
    machines = [live_machine(name, position=place) for name, place in places.items()]
    api.answers("GET /rooms/lab-1/live", Answer({"room": room("lab-1"), "machines": machines}))
    shown = succeeded(api.run("rooms", "show", "lab-1")).stdout.splitlines()
    assert [row.split()[0] for row in shown[2:]] == ["b", "a", "pc2", "pc10"]


def test_the_audit_is_filtered_by_actor_and_subject(api: ApiDouble) -> None:
    entry = {
        "entry_id": 1,
        "at": AT,
        "actor": "anna",
        "action": "image.forget",
        "request_id": "",
        "detail": {},
    }
    api.answers("GET /audit", page(entry | {"subject": f"image {'ab' * 32}"}))
    shown = succeeded(api.run("history", "audit", "--who", "anna", "--subject", "room lab-1")).stdout
    asked = api.requests[-1].query
    assert (asked["actor"], asked["subject"]) == ("anna", "room lab-1")
    assert "image abababababab" in shown
    assert "ab" * 7 not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("casts", "show", "zz"), "eight hexadecimal digits"),
        (("history", "--cast", "1a2b3c4"), "eight hexadecimal digits"),
        (("rooms", "create", "Lab 1"), "lower case letters, digits and hyphens"),
        (("casts", "create", "lab", "--room", "Lab 1"), "lower case letters, digits and hyphens"),
    ],
)
def test_an_invalid_id_is_refused_without_a_request(
    api: ApiDouble, arguments: tuple[str, ...], words: str
) -> None:
    result = api.run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not api.requests


def test_a_field_error_is_shown_once(api: ApiDouble) -> None:
    wrong = problem(422, "name: too long", errors=[{"field": "name", "message": "too long"}])
    api.answers("POST /rooms", wrong)
    assert str(refused(api.run("rooms", "create", "lab-1"))) == "name: too long"


def test_choices_equal_the_enums_of_the_records() -> None:
    assert (options.ROOM_PATTERN, options.CAST_PATTERN) == (
        ROOM_ID_PATTERN,
        CAST_ID_PATTERN,
    )
    assert tuple(Role) == ROLES
    assert tuple(StartMode) == START_MODES
    assert tuple(CastPhase) == cast_commands.PHASES


def test_a_token_file_is_readable_by_its_owner_only(api: ApiDouble, tmp_path: Path) -> None:
    token = {"token_id": "t1", "name": "anna", "role": "view", "created_at": AT, "created_by": "local"}
    token |= {"expires_at": None, "last_used_at": None}
    api.answers("POST /tokens", Answer({"token": token, "secret": "dct_view_x"}, 201))
    file = tmp_path / "token"
    result = succeeded(api.run("tokens", "create", "anna", "--role", "view", "--output", str(file)))
    assert file.read_text() == "dct_view_x\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "dct_view_x" not in result.output
    # No token is created whose secret can't be saved, and no existing file is overwritten.
    count = len(api.requests)
    assert "exists" in str(
        refused(api.run("tokens", "create", "bert", "--role", "view", "--output", str(file)))
    )
    assert len(api.requests) == count
    shown = succeeded(api.run("tokens", "create", "anna", "--role", "view"))
    assert shown.stdout == "dct_view_x\n"


def test_a_refused_token_leaves_no_file(api: ApiDouble, tmp_path: Path) -> None:
    file = tmp_path / "token"
    refused(api.run("tokens", "create", "anna", "--role", "view", "--output", str(file)))
    assert not file.exists()


def test_failed_history_excludes_successes_and_running_machines(api: ApiDouble) -> None:
    rows = b"cast_id,state,error,ended_at\r\n"
    rows += b'a,complete,,T\r\nb,failed,"disk ""x"", full",T\r\nc,receiving,,\r\nd,lost,\xc3\xa9,T'
    api.answers("GET /history.csv", Answer(rows, content_type="text/csv"))
    result = succeeded(api.run("history", "--csv", "-", "--failed"))
    kept = b'cast_id,state,error,ended_at\r\nb,failed,"disk ""x"", full",T\r\nd,lost,\xc3\xa9,T\r\n'
    assert result.stdout_bytes == kept
    lines_of = [
        history_line("pc01", "complete"),
        history_line("pc02", "failed"),
        history_line("pc03", "joined"),
    ]
    lines_of[2]["ended_at"] = None
    api.answers("GET /history", page(*lines_of))
    found = lines(succeeded(api.run("history", "--failed", "--json")))
    assert [row.get("machine_name") for row in found] == ["pc02", None]


def test_csv_history_is_copied_from_the_daemon(api: ApiDouble, tmp_path: Path) -> None:
    api.answers(
        "GET /history.csv", Answer(b"cast_id,state\r\n1a2b3c4d,complete\r\n", content_type="text/csv")
    )
    result = succeeded(api.run("history", "--csv", "-", "--room", "lab-1"))
    assert result.stdout_bytes == b"cast_id,state\r\n1a2b3c4d,complete\r\n"
    query = api.requests[-1].query
    assert query["room_id"] == "lab-1"
    succeeded(api.run("history", "--csv", str(tmp_path / "h.csv")))
    assert (tmp_path / "h.csv").read_bytes() == result.stdout_bytes


@pytest.mark.parametrize("group", ["images", "rooms", "machines", "casts", "schedules", "tokens", "history"])
def test_help_imports_nothing_heavy(group: str) -> None:
    code = f"import sys, sender.console.{group}; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & {"httpx", "pydantic", "rich", "fastapi", "sqlalchemy", "numpy"}
