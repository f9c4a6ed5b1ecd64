"""Reports of a cast: success must mean that every required receiver verified every byte."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from protocol.errors import NotEnoughReceiversError, ReceiversIncompleteError
from protocol.model.bottleneck import Bottleneck, Cause
from protocol.model.cast_policy import CastPolicy
from protocol.model.session_records import CastId, CastParameters, MachineIdentity, ReceiverId, ReceiverState
from protocol.sending.events import (
    MainGroupFinished,
    ReceiverDemoted,
    ReceiverDropped,
    ReceiverFailed,
    ReceiverJoined,
    ReceiverSlow,
    SenderEvent,
)
from protocol.sending.receiver_record import ReceiverRecord
from sender.cast.reporting.bottleneck_view import BottleneckTime, BottleneckView, bottlenecks_text
from sender.cast.reporting.event_text import EVENT_NAMES, event_text
from sender.cast.reporting.json_reporter import JsonReporter
from sender.cast.reporting.reporter import CastIntroduction
from sender.cast.reporting.snapshot import CastSummary, CastView, ReceiverSummary, ReceiverView
from sender.cast.reporting.terminal_reporters import LiveReporter, PlainReporter
from tests.shell.sender_rig import make_rig
from tests.support.network.completion_reports import completion

PARAMETERS = CastParameters(
    CastId(5),
    100,
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
        ReceiverId(0), name, name, "10.0.0.9", {}, None, bytes(32), joined_at=10.0, heard_at=12.0, state=state,
        verified_count=3, expected_count=1000, received_count=950, finished_at=14.0,
        error="on fire" if state is ReceiverState.FAILED else "",
    )  # fmt: skip


LIMITED = (
    BottleneckTime("network", "pc-1", "the network to pc-1", 3.7),
    BottleneckTime("none", None, "nothing (climbing or idle)", 0.27),
    BottleneckTime("disk", "pc-0", "pc-0's disk", 0.03),
)


def test_the_summary_contains_the_identity_of_machines() -> None:
    receiver = record("pc-1", ReceiverState.COMPLETE)
    receiver.identity = MachineIdentity(("52:54:00:12:34:56",), "PF1XYZ", "")
    told = json.loads(json.dumps(dataclasses.asdict(ReceiverSummary.of(receiver, 1 << 18, 20.0))))
    assert told["identity"] == {"macs": ["52:54:00:12:34:56"], "serial": "PF1XYZ", "asset_tag": ""}


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
        3.0,
        1000,
        250.0,
        LIMITED,
        required_count,
        "every receiver has ended",
        receivers,
    )


def test_every_receiver_complete_is_success() -> None:
    summary(ReceiverState.COMPLETE, ReceiverState.COMPLETE, required_count=2).require_success()


@pytest.mark.parametrize(
    "state",
    [
        ReceiverState.FAILED,
        ReceiverState.LOST,
        ReceiverState.DROPPED,
        ReceiverState.JOINED,
        ReceiverState.RECEIVING,
    ],
)
def test_one_incomplete_receiver_fails_the_cast_and_is_named(state: ReceiverState) -> None:
    with pytest.raises(ReceiversIncompleteError, match=r"1 of 2 receivers aren't complete .pc-1: "):
        summary(ReceiverState.COMPLETE, state).require_success()


def test_fewer_receivers_than_required_are_a_failure_even_if_all_are_complete() -> None:
    with pytest.raises(NotEnoughReceiversError, match="only 1 of 3"):
        summary(ReceiverState.COMPLETE, required_count=3).require_success()
    with pytest.raises(NotEnoughReceiversError, match="no receiver joined"):
        summary(required_count=3).require_success()


def test_a_message_about_a_large_room_stays_readable() -> None:
    with pytest.raises(ReceiversIncompleteError, match="and 80 more") as caught:
        summary(*[ReceiverState.FAILED] * 100).require_success()
    assert len(str(caught.value)) < 1000


def test_the_result_of_a_receiver_without_a_completion_is_from_its_last_report() -> None:
    view = ReceiverSummary.of(record("pc", ReceiverState.LOST), 1 << 18, 20.0)
    assert (view.bytes_verified, view.seconds, view.loss) == (3 << 18, 4.0, 0.05)
    assert view.error == "not complete"
    done = record("pc", ReceiverState.COMPLETE)
    done.completion = completion()
    view = ReceiverSummary.of(done, 1 << 18, 20.0)
    assert (view.bytes_verified, view.loss, view.nacks_count, view.error) == (1000, 0.1, 4, "")


VIEW = CastView(
    "casting", 10.0, 1e8, 9e7, 10**9, 1, 0.5, 30.0,
    BottleneckView("disk", "pc-2[bold]", "pc-2[bold]'s disk"), LIMITED, None,
    tuple(
        ReceiverView(
            f"pc-{index}[bold]", state, progress, 1e7, 0.01, 7, "disk", demoted=index == 2, slow=index in (2, 5),
            sustainable_bytes_per_s=1e6 if index == 2 else None, queue_delay_s=0.002, error="",
        )
        for index, (state, progress) in enumerate([("complete", 1.0), ("lost", 0.2), ("receiving", 0.4)] * 10)
    ),
)  # fmt: skip
INTRODUCTION = CastIntroduction(
    PARAMETERS, "eth7", 3, "segmentation", None, pin="p" * 52, join_code="abcd-efgh"
)


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
    assert lines[3]["receivers"][2]["sustainable_bytes_per_s"] == 1e6
    assert lines[3]["receivers"][5]["sustainable_bytes_per_s"] is None
    assert lines[3]["bottleneck"] == {
        "cause": "disk",
        "receiver": "pc-2[bold]",
        "text": "pc-2[bold]'s disk",
    }
    assert lines[3]["bottleneck_seconds"][0]["seconds"] == 3.7


def test_the_live_table_shows_the_slowest_first_and_no_more_than_fit() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, height=12)
    reporter = LiveReporter(console)
    reporter.started(INTRODUCTION)
    reporter.progress(VIEW)
    reporter.finished(summary(ReceiverState.COMPLETE, ReceiverState.FAILED))
    reporter.close()
    text = output.getvalue()
    drawn = text[text.index("receiver ") :]
    assert drawn.index("pc-2[bold]") < drawn.index("pc-5[bold]")
    assert "pc-0[bold]" not in drawn
    assert "and 25 receivers more" in drawn
    assert "[lab]: 1 of 2 receivers complete" in text
    assert "on fire" in text


def test_plain_lines_name_the_slowest_receiver_and_the_bottleneck(
    capsys: pytest.CaptureFixture[str],
) -> None:
    PlainReporter().progress(VIEW)
    assert capsys.readouterr().err == (
        "casting, 720 Mbit/s, pass 2 at 50%, 10.0 s, ETA 30.0 s; 10 of 30 receivers active, slowest pc-2[bold] 40%; "
        "bottleneck: pc-2[bold]'s disk; 1 slow, 1 in the tail\n"
    )


def live_text(view: CastView, *, width: int) -> str:
    """Return every line drawn on a terminal of ``width`` columns."""
    output = io.StringIO()
    reporter = LiveReporter(
        Console(file=output, force_terminal=True, color_system=None, width=width, height=50)
    )
    reporter.started(INTRODUCTION)
    reporter.progress(view)
    reporter.close()
    return re.sub(r"\x1b\[\??\d*[A-Za-z]", "", output.getvalue())


def test_the_bottleneck_and_stragglers_fit_80_columns() -> None:
    text = live_text(VIEW, width=80)
    assert "bottleneck: pc-2[bold]'s disk; 1 slow, 1 in the tail" in text.splitlines()
    rows = [line.split() for line in text.splitlines() if line.startswith("pc-")]
    marks = {row[0]: (row[1], row[-1]) for row in rows}
    assert marks["pc-2[bold]"] == ("tail", "disk")
    assert marks["pc-5[bold]"] == ("slow", "disk")
    assert marks["pc-8[bold]"] == ("receiving", "disk")


def test_a_long_name_or_error_takes_no_room_from_the_other_columns() -> None:
    long = dataclasses.replace(VIEW.receivers[2], name="a-host-name-" * 3)
    ended = dataclasses.replace(VIEW.receivers[1], error="dropped: it sustains 4 Mbit/s of " * 5)
    text = live_text(dataclasses.replace(VIEW, receivers=(long, ended)), width=80)
    [row] = {line for line in text.splitlines() if line.startswith("pc-1")}
    assert re.search(r"lost +━+ +20\.0% +80 Mbit/s +1\.0% +7 \S+", row)
    assert row.endswith("…")
    assert len(row) <= 80


def test_the_status_shows_the_tail_and_a_gathering_room_shows_no_bottleneck() -> None:
    receivers = VIEW.receivers[:3]
    tail = dataclasses.replace(VIEW, main_group_seconds=9.0, receivers=receivers)
    assert "finishing 1 straggler, 720 Mbit/s" in live_text(tail, width=80)
    gathering = dataclasses.replace(VIEW, state="gathering", receivers=receivers)
    assert "bottleneck: pc-2" not in live_text(gathering, width=80)


def test_the_eta_is_that_of_the_group_without_its_stragglers(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    with rig.image:
        rig.start_casting()
        rig.join("pc-2", "agent-2")
        first, straggler = rig.session.receivers.values()
        started_at = rig.session.statistics.started_at
        assert started_at is not None
        first.needed_at_join_count, first.needed_count = 10, 5
        straggler.needed_at_join_count, straggler.needed_count, straggler.demoted = 10, 9, True
        assert CastView.of(rig.session, started_at + 4.0).eta_s == pytest.approx(4.0)
        first.state = ReceiverState.COMPLETE
        assert CastView.of(rig.session, started_at + 8.0).eta_s == pytest.approx(72.0)


def test_unknown_values_are_null_in_json_and_never_infinity() -> None:
    unknown = record("pc", ReceiverState.RECEIVING)
    assert ReceiverView.of(unknown).sustainable_bytes_per_s is None
    unknown.sustainable_bytes_per_s, unknown.slow_since = 1234.5, 3.0
    view = ReceiverView.of(unknown)
    assert (view.sustainable_bytes_per_s, view.slow, view.standing) == (1234, True, "slow")
    unknown.demoted = True
    assert ReceiverView.of(unknown).standing == "tail"
    unknown.state = ReceiverState.COMPLETE
    assert ReceiverView.of(unknown).standing == "complete"


@pytest.mark.parametrize(
    ("cause", "of_one", "of_nobody"),
    [
        (Cause.NETWORK, "the network to pc-1", "the network"),
        (Cause.SOCKET, "pc-1's socket", "the receivers' sockets"),
        (Cause.DECODE, "pc-1's processor", "the receivers' processors"),
        (Cause.DISK, "pc-1's disk", "the receivers' disks"),
        (Cause.SOURCE, "reading the image", "reading the image"),
        (Cause.SENDER, "this machine's processor", "this machine's processor"),
        (Cause.NONE, "nothing (climbing or idle)", "nothing (climbing or idle)"),
    ],
)
def test_every_bottleneck_has_a_text(tmp_path: Path, cause: Cause, of_one: str, of_nobody: str) -> None:
    rig = make_rig(tmp_path)
    with rig.image:
        grant = rig.join("pc-1")
    view = BottleneckView.of(rig.session, Bottleneck(cause, grant.receiver_id))
    assert view == BottleneckView(cause.value, "pc-1", of_one)
    assert BottleneckView.of(rig.session, Bottleneck(cause)) == BottleneckView(cause.value, None, of_nobody)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (CastPolicy(rate_bytes_per_s=1e7), "--rate"),
        (CastPolicy(rate_max_bytes_per_s=1e7), "--max-rate"),
        (CastPolicy(), "diskcast's own ceiling of 10.00 Gbit/s"),
    ],
)
def test_the_text_of_a_rate_limit_names_its_option(tmp_path: Path, policy: CastPolicy, text: str) -> None:
    rig = make_rig(tmp_path, policy=policy)
    with rig.image:
        assert BottleneckView.of(rig.session, Bottleneck(Cause.CEILING)).text == text


@pytest.mark.parametrize(
    "policy", [CastPolicy(), CastPolicy(rate_bytes_per_s=1e7), CastPolicy(rate_max_bytes_per_s=1e7)]
)
def test_a_share_of_the_daemons_rate_is_named_only_while_it_is_the_limit(
    tmp_path: Path, policy: CastPolicy
) -> None:
    rig = make_rig(tmp_path, policy=policy)
    with rig.image:
        before = BottleneckView.of(rig.session, Bottleneck(Cause.CEILING)).text
        rig.session.set_rate_ceiling(9e6)
        assert BottleneckView.of(rig.session, Bottleneck(Cause.CEILING)).text == "the daemon's rate_ceiling"
        rig.session.set_rate_ceiling(2e9)
        assert BottleneckView.of(rig.session, Bottleneck(Cause.CEILING)).text == before


def test_the_summary_shows_the_bottlenecks_and_the_stragglers() -> None:
    assert bottlenecks_text(LIMITED) == (
        "bottlenecks: the network to pc-1 92%, nothing (climbing or idle) 7%"
    )
    assert bottlenecks_text(()) == ""
    output = io.StringIO()
    reporter = LiveReporter(Console(file=output, width=80))
    account = summary(ReceiverState.COMPLETE, ReceiverState.COMPLETE)
    straggler = dataclasses.replace(account.receivers[1], demoted=True)
    reporter.finished(dataclasses.replace(account, receivers=(account.receivers[0], straggler)))
    lines = output.getvalue().splitlines()
    assert "1 straggler; all others ended after 3.0 s" in lines
    assert any(line.startswith("bottlenecks: the network to pc-1 92%,") for line in lines)
    assert any(line.startswith("pc-1") and "complete, tail" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_errors_are_shown_in_full_on_a_narrow_terminal() -> None:
    output = io.StringIO()
    account = summary(ReceiverState.COMPLETE, ReceiverState.DROPPED)
    error = "dropped: it sustains 4 Mbit/s (network) where the group goes at 53 Mbit/s"
    dropped = dataclasses.replace(account.receivers[1], name="lab-room-204-pc-17", error=error)
    LiveReporter(Console(file=output, width=80)).finished(dataclasses.replace(account, receivers=(dropped,)))
    assert f"lab-room-204-pc-17: {error}" in output.getvalue().replace("\n", " ")
    assert all(len(line) <= 80 for line in output.getvalue().splitlines())


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            ReceiverSlow(ReceiverId(0), 1e6, 1e8, "network"),
            "pc07 is slow: its network link takes 8 Mbit/s, the group 800 Mbit/s",
        ),
        (
            ReceiverDemoted(ReceiverId(0), 1e6, 1e8, "disk"),
            "pc07 is a straggler: its disk takes 8 Mbit/s, the group 800 Mbit/s",
        ),
        (
            ReceiverDropped(ReceiverId(0), 1e6, 1e8, "decode"),
            "pc07 is dropped: its processor takes 8 Mbit/s, the group 800 Mbit/s",
        ),
        (
            MainGroupFinished(7, 1, 20.1),
            "7 receivers complete after 20.1 s; 1 straggler follows at its own rate",
        ),
        (
            MainGroupFinished(7, 2, 20.1),
            "7 receivers complete after 20.1 s; 2 stragglers follow at their own rate",
        ),
    ],
)
def test_events_of_stragglers_have_a_sentence(event: SenderEvent, words: str) -> None:
    assert event_text(event, "pc07") == words
    assert len(words) <= 80


def test_events_of_stragglers_stay_above_the_table() -> None:
    output = io.StringIO()
    reporter = LiveReporter(Console(file=output, width=80))
    reporter.happened(ReceiverSlow(ReceiverId(0), 1e6, 1e8, "disk"), "pc07")
    assert output.getvalue() == ""
    reporter.happened(MainGroupFinished(7, 1, 20.1), None)
    assert output.getvalue().startswith("7 receivers complete after 20.1 s; 1 straggler")


def test_every_event_of_the_session_has_a_unique_name() -> None:
    assert len(set(EVENT_NAMES.values())) == len(EVENT_NAMES)
    assert all(dataclasses.is_dataclass(event) for event in EVENT_NAMES)
