"""``casts watch``: it continues through outages of the daemon until the cast ends, and returns its exit code."""

from __future__ import annotations

import io

import pydantic
import pytest
from rich.console import Console

from protocol.errors import CastNotDoneError, ServerRefusedError, ServerUnreachableError
from sender.console.watch import _LiveView
from sender.store.records.live import CastLive
from tests.console.api_double import (
    AT,
    BROKEN,
    Answer,
    ApiDouble,
    cast,
    cast_machine,
    events,
    lines,
    live_cast,
    live_machine,
    page,
    problem,
    refused,
    succeeded,
)

LIVE = "GET /casts/1a2b3c4d/live"


@pytest.fixture(autouse=True)
def _without_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sender.console.client._RETRY_DELAYS_S", (0.0,))
    monkeypatch.setattr("sender.console.watch._RECONNECT_INTERVAL_S", 0.0)
    monkeypatch.setattr("sender.console.watch.JSON_INTERVAL_S", 0.0)


def now(phase: str, **fields: object) -> Answer:
    return Answer({"live": live_cast(phase, **fields), "machines": [live_machine("pc07")]})


def change(phase: str, *happened: str, full: bool = True) -> tuple[str, dict[str, object]]:
    rows = [{"at": AT, "kind": kind, "machine": "pc07", "text": f"pc07: {kind}"} for kind in happened]
    machines = [live_machine("pc07")]
    data = {"cast_id": "1a2b3c4d", "full": full, "live": live_cast(phase), "machines": machines, "points": []}
    return "cast", {**data, "events": rows}


def test_watching_survives_a_restart_and_repeats_no_event(api: ApiDouble) -> None:
    starting = problem(503, "the database doesn't answer")
    api.answers(LIVE, now("casting"), BROKEN, BROKEN, starting, now("casting"), now("done"))
    api.answers(
        "GET /events",
        events(change("casting", "receiver_joined"), broken=True),
        events(change("casting", "receiver_joined", "taken_over"), change("done", full=False)),
    )
    rows = lines(succeeded(api.run("casts", "watch", "1a2b3c4d", "--json")))
    assert [row["event"] for row in rows if row["event"] != "progress"] == [
        "receiver_joined",
        "daemon_away",
        "taken_over",
        "result",
    ]
    assert rows[-1]["ok"]
    assert rows[-1]["phase"] == "done"
    assert {"machines", "cast", "eta_s"} <= rows[0].keys() | rows[1].keys()


def test_an_outage_is_reported_once(api: ApiDouble) -> None:
    api.answers(LIVE, now("casting"), BROKEN, BROKEN, problem(503, "starting"), now("done"))
    api.answers("GET /events", events(change("casting"), broken=True))
    api.answers("GET /casts/1a2b3c4d/machines", page())
    shown = succeeded(api.run("casts", "watch", "1a2b3c4d")).stderr
    assert shown.count("daemon unavailable, retrying for 120 s: no response from the daemon") == 1, (
        "once per outage"
    )


def test_only_done_is_success(api: ApiDouble) -> None:
    api.answers(LIVE, now("failed", reason="1 of 2 machines failed", complete_count=1))
    api.answers(
        "GET /casts/1a2b3c4d/machines", page(cast_machine("pc07", "failed", error="disk full", exit_code=50))
    )
    result = api.run("casts", "watch", "1a2b3c4d")
    error = refused(result)
    assert isinstance(error, CastNotDoneError)
    assert error.exit_code == 87
    assert "1 of 2 machines failed" in str(error)
    assert error.details["phase"] == "failed"
    assert "disk full" in result.stdout


def test_an_unknown_cast_fails_at_once(api: ApiDouble) -> None:
    assert isinstance(refused(api.run("casts", "watch", "00000000")), ServerRefusedError)


def test_a_daemon_that_never_responded_fails_at_once(api: ApiDouble) -> None:
    api.answers(LIVE, BROKEN)
    assert isinstance(refused(api.run("casts", "watch", "1a2b3c4d")), ServerUnreachableError)


def test_without_an_id_the_running_cast_is_watched(api: ApiDouble) -> None:
    running = cast("casting")
    api.answers("GET /casts", page(), page(running), page())
    api.answers(LIVE, now("done"))
    assert "1a2b3c4d" in succeeded(api.run("casts", "watch", "--json")).stdout


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "no cast is running: name one"), (2, "2 casts are running: name one, such as 1a2b3c40 (lab)")],
)
def test_without_an_id_exactly_one_cast_must_run(api: ApiDouble, count: int, said: str) -> None:
    several = [cast("casting", cast_id=f"1a2b3c4{index}") for index in range(count)]
    api.answers("GET /casts", page(), page(*several), page())
    assert said in str(refused(api.run("casts", "watch")))


def test_a_long_outage_ends_the_watching(api: ApiDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sender.console.watch._SILENT_MAX_S", 0.0)
    api.answers(LIVE, now("casting"), BROKEN)
    api.answers("GET /events", BROKEN)
    assert isinstance(refused(api.run("casts", "watch", "1a2b3c4d")), ServerUnreachableError)


def test_plain_output_has_a_line_per_event(api: ApiDouble) -> None:
    api.answers(LIVE, now("gathering"), now("done", complete_count=2))
    api.answers("GET /events", events(change("casting", "receiver_joined"), change("done", full=False)))
    api.answers("GET /casts/1a2b3c4d/machines", page(cast_machine("pc07"), cast_machine("pc08")))
    result = succeeded(api.run("casts", "watch", "1a2b3c4d"))
    assert "pc07: receiver_joined" in result.stderr
    assert "casting, 800 Mbit/s, pass 1 at 40%" in result.stderr
    assert "lab: done, 2 of 2 machines complete" in result.stdout
    assert result.stdout.count("complete") == 3


def test_the_live_table_shows_the_same_states_as_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**live_machine("pc07"), "state": state} for state in ("tail", "complete")]
    found = pydantic.TypeAdapter(CastLive).validate_python({"live": live_cast("casting"), "machines": rows})
    shown = io.StringIO()
    terminal = Console(file=shown, width=100, height=25, force_terminal=True)
    monkeypatch.setattr("sender.console.watch.new_console", lambda **_options: terminal)
    monkeypatch.setattr("sender.console.watch.LIVE_INTERVAL_S", 0.0)
    with _LiveView() as view:
        view.show_progress(found.live, found.machines)
    assert "straggler" in shown.getvalue()
    assert "tail" not in shown.getvalue()
