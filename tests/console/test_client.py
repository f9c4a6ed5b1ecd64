"""The API client: requests take effect once or fail with a reason, even over a broken connection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError, ServerRefusedError, ServerUnreachableError
from sender.console.client import ServerEvent, server_events
from tests.console.api_double import (
    BROKEN,
    Answer,
    ApiDouble,
    cast,
    image,
    lines,
    machine,
    page,
    preflight,
    problem,
    refused,
    room,
    succeeded,
)


@pytest.fixture(autouse=True)
def _without_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sender.console.client._RETRY_DELAYS_S", (0.0, 0.0))


def test_a_retried_creation_creates_no_second_cast(api: ApiDouble) -> None:
    """Each attempt sends the same key, by which the daemon recognizes the request."""
    api.answers("POST /casts/preflight", Answer(preflight()))
    api.answers("POST /casts", BROKEN, Answer(b"{", broken=True), Answer(cast("planned"), 201))
    result = succeeded(api.run("casts", "create", "lab", "--room", "lab-1"))
    keys = [request.headers["Idempotency-Key"] for request in api.asked("POST /casts")]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert len({request.body for request in api.asked("POST /casts")}) == 1
    assert "1a2b3c4d" in result.stdout


def test_two_creations_have_two_keys(api: ApiDouble) -> None:
    api.answers("POST /rooms", Answer(room("lab-1"), 201))
    for _ in range(2):
        succeeded(api.run("rooms", "create", "lab-1"))
    assert len({request.headers["Idempotency-Key"] for request in api.asked("POST /rooms")}) == 2


def test_a_command_is_retried_and_fails_after_the_last_attempt(api: ApiDouble) -> None:
    api.answers("POST /casts/1a2b3c4d/pause", BROKEN)
    error = refused(api.run("casts", "pause", "1a2b3c4d"))
    assert isinstance(error, ServerUnreachableError)
    assert len(api.asked("POST /casts/1a2b3c4d/pause")) == 3


def test_a_missing_record_after_a_retried_removal_is_no_error(api: ApiDouble) -> None:
    api.answers("DELETE /rooms/lab-1", BROKEN, problem(404, "there is no room 'lab-1'"))
    succeeded(api.run("rooms", "remove", "lab-1"))


def test_removing_an_unknown_record_is_an_error(api: ApiDouble) -> None:
    assert "lab-1" in str(refused(api.run("rooms", "remove", "lab-1")))


def test_a_missing_daemon_fails_at_once_with_a_fix() -> None:
    double = ApiDouble()
    double._http.server_close()
    error = refused(double.run("rooms", "list"))
    assert isinstance(error, ServerUnreachableError)
    assert error.exit_code == 85
    for words in (double.url, "diskcast serve", "--server"):
        assert words in str(error)


def test_a_refusal_shows_the_daemons_reason_and_the_fields(api: ApiDouble) -> None:
    fields = [{"field": "wait_for", "message": "Input should be less than 3"}]
    api.answers("POST /casts", problem(422, "the plan can't work", errors=fields))
    error = refused(api.run("casts", "create", "lab", "--wait-for", "5"))
    assert isinstance(error, ServerRefusedError)
    assert error.exit_code == 86
    assert str(error) == "the plan can't work; wait_for: Input should be less than 3"
    assert error.details == {"status": 422, "request_id": "r1"}


def test_a_missing_token_fails_with_a_fix(api: ApiDouble) -> None:
    api.answers("GET /rooms", problem(401, "a token is needed"))
    assert "--token-file" in str(refused(api.run("rooms", "list")))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"<html>router</html>", content_type="text/html"),
        Answer(b"<html>router</html>", status=502, content_type="text/html"),
        Answer([1, 2]),
        Answer({"items": [{"room_id": 5}], "next_cursor": None}),
        Answer({"items": None}),
        Answer("", status=302),
    ],
)
def test_another_web_server_is_not_mistaken_for_a_daemon(api: ApiDouble, answer: Answer) -> None:
    api.answers("GET /rooms", answer)
    error = refused(api.run("rooms", "list"))
    assert isinstance(error, ServerUnreachableError)
    assert api.url in str(error)


@pytest.mark.parametrize(
    "server",
    ["127.0.0.1:7400", "ftp://lab", "http://", "http://lab/api/v1", "http://user:secret@lab", "http://[::1"],
)
def test_an_invalid_url_is_refused_before_anything_is_sent(api: ApiDouble, server: str) -> None:
    assert isinstance(refused(api.run("rooms", "list", "--server", server)), ConfigurationError)


def test_the_token_is_read_from_a_file_or_the_environment(
    api: ApiDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answers("GET /rooms", page())
    file = tmp_path / "token"
    file.write_text("dct_view_filed\n")
    succeeded(api.run("rooms", "list", "--token-file", str(file)))
    for name, value in (("DISKCAST_TOKEN", "dct_view_said"), ("DISKCAST_TOKEN_FILE", str(file))):
        with monkeypatch.context() as patch:
            patch.setattr("os.environ", {name: value, "DISKCAST_SERVER": api.url})
            from sender.console.options import find_token

            assert find_token(None) == ("dct_view_said" if name == "DISKCAST_TOKEN" else "dct_view_filed")
    assert [request.headers.get("Authorization") for request in api.requests] == ["Bearer dct_view_filed"]
    assert "--token " not in api.run("rooms", "list", "--help").output


@pytest.mark.parametrize("content", ["", "two words", "two\nlines", "é", "x" * 5000])
def test_a_file_without_a_token_is_named(api: ApiDouble, tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    error = refused(api.run("rooms", "list", "--token-file", str(file)))
    assert isinstance(error, ConfigurationError)
    assert str(file) in str(error)
    assert not content or content not in str(error)


def test_pages_are_requested_only_as_needed(api: ApiDouble) -> None:
    api.answers(
        "GET /rooms",
        lambda request: (
            page(room("a"), room("b"), cursor="2")
            if "cursor" not in request.query
            else page(room("c"), cursor="3")
            if request.query["cursor"] == "2"
            else page(room("d"))
        ),
    )
    result = succeeded(api.run("rooms", "list", "--json", "--limit", "2"))
    *rows, last = lines(result)
    assert [row["room_id"] for row in rows] == ["a", "b"]
    assert last == {"event": "result", "ok": True, "exit_code": 0, "count": 2, "more": True}
    rows = lines(succeeded(api.run("rooms", "list", "--json", "--all")))
    assert [row.get("room_id") for row in rows] == ["a", "b", "c", "d", None]


def test_a_machine_is_found_by_each_of_its_names_and_never_guessed(api: ApiDouble) -> None:
    twins = [machine("pc08", machine_id="m1"), machine("pc08", machine_id="m2")]
    api.answers("GET /machines", page(machine("pc07", macs=["52:54:00:00:00:07"], serial="SN7"), *twins))
    api.answers("GET /machines/m-pc07/history", page())
    for text in ("pc07", "PC07", "52:54:00:00:00:07", "sn7"):
        assert lines(succeeded(api.run("machines", "show", text, "--json")))[-1]["machine_id"] == "m-pc07"
    assert "m1 (pc08), m2 (pc08)" in str(refused(api.run("machines", "remove", "pc08")))
    assert "diskcast machines list" in str(refused(api.run("machines", "show", "pc09")))


def test_parts_of_paths_are_quoted(api: ApiDouble) -> None:
    api.answers("GET /machines", page())
    refused(api.run("machines", "show", "../rooms/lab-1?x=1"))
    asked = [request.path for request in api.requests]
    assert asked == ["/api/v1/machines/..%2Frooms%2Flab-1%3Fx%3D1", "/api/v1/machines"]


def test_events_are_parsed_and_foreign_data_is_ignored() -> None:
    data = json.dumps({"a": 1})
    text = f": hello\n\nretry: 2000\n\nevent: cast\ndata: {data}\nid: 7\n\ndata:{data}\n\ndata: not JSON\n\ndata: 1\n\n"
    found = [event for event in server_events(text.split("\n")) if event is not None]
    assert found == [ServerEvent("cast", {"a": 1}), ServerEvent("message", {"a": 1})]


def test_an_import_error_names_its_line(api: ApiDouble, tmp_path: Path) -> None:
    file = tmp_path / "room.csv"
    file.write_text("name,mac\npc01,5\n")
    counts = {"added": 0, "changed": 0, "unchanged": 0}
    problems = [{"line": 2, "text": "'5' isn't a hardware address"}]
    api.answers(
        "POST /rooms/lab-1/import",
        Answer({**counts, "problems": problems}),
        Answer({**counts, "problems": []}),
    )
    assert "line 2: '5' isn't" in str(refused(api.run("rooms", "import", "lab-1", str(file))))
    succeeded(api.run("rooms", "import", "lab-1", str(file)))
    request = api.requests[-1]
    assert request.body == file.read_bytes()
    assert request.headers["Content-Type"].startswith("text/csv")


def test_an_image_is_found_by_name_file_or_prefix_and_never_guessed(api: ApiDouble) -> None:
    win = image("win", location="s3://images/golden.dci")
    broken = image("win", image_id="ff" * 32, state="damaged", problem="cut short")
    api.answers("GET /images", page(win, broken, image("lab"), image("lab", image_id="ee" * 32)))
    for text in ("win", "golden.dci", win["image_id"][:8], win["image_id"]):
        assert lines(succeeded(api.run("images", "show", text, "--json")))[-1]["image_id"] == win["image_id"]
    assert "by its id" in str(refused(api.run("images", "show", "lab")))
    assert "images list" in str(refused(api.run("images", "show", win["image_id"][:7])))
