"""The account of a cast: exit code 0 must mean that every required receiver verified every byte, and nothing less."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from protocol.errors import NotEnoughReceiversError, ReceiversIncompleteError
from protocol.events import ReceiverFailed, ReceiverJoined
from protocol.receiver_record import ReceiverRecord
from protocol.session_records import CastId, CastParameters, ReceiverId, ReceiverState
from sender.cast_view import CastSummary, CastView, ReceiverSummary, ReceiverView
from sender.progress import EVENT_NAMES, CastIntroduction, JsonReporter, LiveReporter, PlainReporter
from tests.shell.sender_rig import completion

PARAMETERS = CastParameters(
    CastId(5),
    100,
    1,
    bytes(32),
    "[lab]",
    1 << 30,
    1 << 18,
    1000,
    1440,
    "239.1.1.1",
    7410,
    "10.0.0.1",
    7411,
    "http://x",
)


def record(name: str, state: ReceiverState) -> ReceiverRecord:
    return ReceiverRecord(
        ReceiverId(0), name, name, name, "10.0.0.9", {}, bytes(32), joined_at=10.0, heard_at=12.0, state=state,
        verified_count=3, expected_count=1000, received_count=950, finished_at=14.0,
        error="on fire" if state is ReceiverState.FAILED else "",
    )  # fmt: skip


def summary(*states: ReceiverState, required_count: int = 1) -> CastSummary:
    receivers = tuple(
        ReceiverSummary.of(record(f"pc-{index}", state), 1 << 18, 20.0) for index, state in enumerate(states)
    )
    return CastSummary(
        "00000005",
        "[lab]",
        "00" * 32,
        1 << 30,
        4.0,
        1000,
        250.0,
        required_count,
        "every receiver has ended",
        receivers,
    )


def test_every_receiver_complete_is_success() -> None:
    summary(ReceiverState.COMPLETE, ReceiverState.COMPLETE, required_count=2).require_success()


@pytest.mark.parametrize(
    "state", [ReceiverState.FAILED, ReceiverState.LOST, ReceiverState.JOINED, ReceiverState.RECEIVING]
)
def test_one_receiver_that_is_not_complete_fails_the_cast_and_is_named(state: ReceiverState) -> None:
    with pytest.raises(ReceiversIncompleteError, match=r"1 of 2 receivers aren't complete .pc-1: "):
        summary(ReceiverState.COMPLETE, state).require_success()


def test_fewer_than_were_waited_for_is_no_success_though_all_are_complete() -> None:
    with pytest.raises(NotEnoughReceiversError, match="only 1 of 3"):
        summary(ReceiverState.COMPLETE, required_count=3).require_success()
    with pytest.raises(NotEnoughReceiversError, match="no receiver joined"):
        summary(required_count=3).require_success()


def test_a_message_about_a_large_room_stays_readable() -> None:
    with pytest.raises(ReceiversIncompleteError, match="and 80 more") as caught:
        summary(*[ReceiverState.FAILED] * 100).require_success()
    assert len(str(caught.value)) < 1000


def test_a_receiver_without_a_completion_is_accounted_for_by_its_last_report() -> None:
    view = ReceiverSummary.of(record("pc", ReceiverState.LOST), 1 << 18, 20.0)
    assert (view.bytes_verified, view.seconds, view.loss) == (3 << 18, 4.0, 0.05)
    assert view.error == "not complete"
    done = record("pc", ReceiverState.COMPLETE)
    done.completion = completion()
    view = ReceiverSummary.of(done, 1 << 18, 20.0)
    assert (view.bytes_verified, view.loss, view.nacks_count, view.error) == (1000, 0.1, 4, "")


VIEW = CastView(
    "casting", 10.0, 1e8, 9e7, 10**9, 1, 0.5, 30.0,
    tuple(
        ReceiverView(f"pc-{index}[bold]", state, progress, 1e7, 0.01, 7, "disk", "")
        for index, (state, progress) in enumerate([("complete", 1.0), ("lost", 0.2), ("receiving", 0.4)] * 10)
    ),
)  # fmt: skip
INTRODUCTION = CastIntroduction(PARAMETERS, "eth7", 3, "segmentation", None)


def test_json_lines_name_the_event_and_the_receiver(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = JsonReporter()
    reporter.started(INTRODUCTION)
    reporter.happened(ReceiverJoined(ReceiverId(0), rejoined=True), "pc-0")
    reporter.happened(ReceiverFailed(ReceiverId(0), "on fire"), "pc-0")
    reporter.progress(VIEW)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == [
        "cast_started",
        "receiver_joined",
        "receiver_failed",
        "progress",
    ]
    assert lines[1] == {"event": "receiver_joined", "receiver": "pc-0", "rejoined": True}
    assert lines[2]["error"] == "on fire"
    assert lines[3]["receivers"][2]["progress"] == 0.4
    assert str(PARAMETERS.session_token) not in lines[0].values()


def test_the_live_table_shows_the_slowest_first_and_no_more_than_fit() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, height=12)
    reporter = LiveReporter(console)
    reporter.started(INTRODUCTION)
    reporter.progress(VIEW)
    reporter.finished(summary(ReceiverState.COMPLETE, ReceiverState.FAILED))
    reporter.close()
    text = output.getvalue()
    drawn = text[text.index("limited by") :]
    assert drawn.index("pc-2[bold]") < drawn.index("pc-5[bold]")
    assert "pc-0[bold]" not in drawn
    assert "and 24 receivers more" in drawn
    assert "[lab]: 1 of 2 receivers complete" in text
    assert "on fire" in text


def test_plain_lines_name_the_slowest_receiver_and_what_limits_it(capsys: pytest.CaptureFixture[str]) -> None:
    PlainReporter().progress(VIEW)
    line = capsys.readouterr().err
    assert line.startswith(
        "casting, 720 Mbit/s, pass 2 at 50%, 10.0 s, 30.0 s to go; 10 of 30 receivers active"
    )
    assert "slowest pc-2[bold] 40%, limited by its disk" in line


def test_every_event_of_the_session_has_a_name_of_its_own() -> None:
    assert len(set(EVENT_NAMES.values())) == len(EVENT_NAMES)
    assert all(dataclasses.is_dataclass(event) for event in EVENT_NAMES)
