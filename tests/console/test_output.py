"""What operators and their scripts read: tables that fit, pipes that lose nothing, no tricks of a machine's."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sender.api import request_models
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


def test_a_table_fits_80_columns_and_cuts_only_what_gives_way() -> None:
    head, *rows = table_text(80).splitlines()
    assert "none" not in head
    assert len(rows) == 2
    for row in rows:
        assert len(row) <= 80
        assert "1a2b3c4d" in row
        assert "…" in row


def test_a_pipe_gets_everything(api: ApiDouble) -> None:
    api.answers("GET /rooms", page(room("lab-1", name=LONG, description=LONG)))
    result = succeeded(api.run("rooms", "list"))
    assert result.stdout.count(LONG.strip()) == 2
    assert "\x1b" not in result.stdout


def test_a_machine_cannot_steer_the_terminal_by_its_name(api: ApiDouble) -> None:
    evil = "pc\x1b]0;owned\x07\x1b[2J\r\n"
    api.answers("GET /rooms/lab-1/live", Answer({"room": room("lab-1"), "machines": [live_machine(evil)]}))
    result = succeeded(api.run("rooms", "show", "lab-1"))
    assert "\x1b" not in result.output
    assert "\x07" not in result.output
    assert len(result.stdout.splitlines()) == 3


def test_an_empty_list_says_how_to_fill_it_and_leaves_stdout_empty(api: ApiDouble) -> None:
    api.answers("GET /rooms", page())
    result = succeeded(api.run("rooms", "list"))
    assert result.stdout == ""
    assert "diskcast rooms create" in result.stderr


def test_scripts_get_the_record_as_the_daemon_has_it(api: ApiDouble) -> None:
    api.answers("POST /casts/1a2b3c4d/cancel", Answer(cast("cancelled", ended_at=AT, reason="wrong image")))
    (result,) = lines(succeeded(api.run("casts", "cancel", "1a2b3c4d", "--reason", "wrong image", "--json")))
    assert (result["event"], result["ok"], result["phase"], result["ended_at"]) == (
        "result",
        True,
        "cancelled",
        AT,
    )
    assert api.asked("POST /casts/1a2b3c4d/cancel")[0].body == b'{"reason":"wrong image"}'


def test_what_the_daemon_says_and_this_version_does_not_know_is_no_error(api: ApiDouble) -> None:
    api.answers("GET /rooms", page(room("lab-1", colour="red")))
    succeeded(api.run("rooms", "list"))


def test_a_running_casts_machines_are_shown_as_they_are_now_and_those_in_trouble_first(
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


def test_machines_stand_in_the_order_of_their_places(api: ApiDouble) -> None:
    places = {"a": "row 1 seat 10", "b": "row 1 seat 2", "pc10": "", "pc2": ""}
    machines = [live_machine(name, position=place) for name, place in places.items()]
    api.answers("GET /rooms/lab-1/live", Answer({"room": room("lab-1"), "machines": machines}))
    shown = succeeded(api.run("rooms", "show", "lab-1")).stdout.splitlines()
    assert [row.split()[0] for row in shown[2:]] == ["b", "a", "pc2", "pc10"]


def test_audit_is_asked_for_what_one_did_to_one_thing(api: ApiDouble) -> None:
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
def test_what_cannot_be_an_id_is_said_in_words_before_the_daemon_is_asked(
    api: ApiDouble, arguments: tuple[str, ...], words: str
) -> None:
    result = api.run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not api.requests


def test_what_is_wrong_with_a_field_is_said_once(api: ApiDouble) -> None:
    wrong = problem(422, "name: too long", errors=[{"field": "name", "message": "too long"}])
    api.answers("POST /rooms", wrong)
    assert str(refused(api.run("rooms", "create", "lab-1"))) == "name: too long"


def test_choices_are_those_of_the_records() -> None:
    assert (options.ROOM_PATTERN, options.CAST_PATTERN) == (
        request_models.ROOM_ID_PATTERN,
        request_models.CAST_ID_PATTERN,
    )
    assert tuple(Role) == ROLES
    assert tuple(StartMode) == START_MODES
    assert tuple(CastPhase) == cast_commands.PHASES


def test_a_token_in_a_file_is_for_its_owner_only(api: ApiDouble, tmp_path: Path) -> None:
    token = {"token_id": "t1", "name": "anna", "role": "view", "created_at": AT, "created_by": "local"}
    token |= {"expires_at": None, "last_used_at": None}
    api.answers("POST /tokens", Answer({"token": token, "secret": "dct_view_x"}, 201))
    file = tmp_path / "token"
    result = succeeded(api.run("tokens", "create", "anna", "--role", "view", "--output", str(file)))
    assert file.read_text() == "dct_view_x\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "dct_view_x" not in result.output
    # Nothing is created whose secret couldn't be kept, and no other secret is overwritten.
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


def test_history_of_failures_has_no_successes_and_no_machines_that_are_still_at_it(api: ApiDouble) -> None:
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


def test_history_as_csv_is_the_daemons_own(api: ApiDouble, tmp_path: Path) -> None:
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
def test_help_does_not_wait_for_what_only_commands_need(group: str) -> None:
    code = f"import sys, sender.console.{group}; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & {"httpx", "pydantic", "rich", "fastapi", "sqlalchemy", "numpy"}
