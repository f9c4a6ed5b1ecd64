"""The service's log. Lost if these fail: an administrator can't find out why a machine isn't imaged."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import pytest

from protocol.control.capture_messages import CaptureAssignment
from protocol.errors import SourceUncleanError, TargetInUseError
from receiver.capture.capture_disk import CapturedImage, CapturePhase, CaptureProgress
from receiver.reception.reporting.metrics import serve_metrics
from receiver.reception.reporting.status import idle_status
from receiver.service.log import JsonServiceLog, PlainServiceLog, ServiceLog
from tests.support.network.lab import LIMIT_S
from tests.support.network.ports import free_port_range
from tests.unit.protocol.control.test_check_in import ASSIGNMENT
from tests.unit.receiver.reception.reporting.test_progress import RECEPTION

CAPTURE = CaptureAssignment("3c4d5e6f", "lab-2026-12", "auto", 1 << 18, 3, every_byte=False, secret="dcc_x")


def log_all(log: ServiceLog) -> None:
    log.waiting("http://10.0.0.1:7400", "m-17", "row 2, seat 5")
    log.unanswered("http://10.0.0.1:7400: connection refused")
    log.assigned(ASSIGNMENT)
    log.moved(ASSIGNMENT)
    log.failed(ASSIGNMENT.cast_id, TargetInUseError("/dev/sda is mounted"))
    log.succeeded(RECEPTION)
    log.capture_assigned(CAPTURE)
    log.capture_progress(CaptureProgress(CapturePhase.UPLOADING, 1 << 30, 4 << 30, 1 << 29))
    log.capture_progress(CaptureProgress(CapturePhase.WAITING, 1 << 30, 4 << 30, 1 << 29, "no answer"))
    log.capture_failed(CAPTURE, SourceUncleanError("/dev/sda: Windows is hibernated"))
    log.captured(CAPTURE, CapturedImage(bytes(32), 4 << 30, 1 << 30, 61.0))
    log.unrecorded([ASSIGNMENT.cast_id])
    log.stopped()


def test_json_lines_name_machine_cast_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    log_all(JsonServiceLog())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [
        "waiting",
        "unanswered",
        "assigned",
        "moved",
        "cast_result",
        "cast_result",
        "capture_assigned",
        "capture_progress",
        "capture_progress",
        "capture_result",
        "capture_result",
        "unrecorded",
        "result",
    ]
    assert [line["event"] for line in lines] == names
    waiting, _, assigned, _, failed, done, _, progress, _, refused, captured, unrecorded, result = lines
    assert (progress["phase"], progress["done_bytes"]) == ("uploading", 1 << 30)
    assert (refused["ok"], refused["exit_code"], refused["capture_id"]) == (False, 27, "3c4d5e6f")
    assert (captured["ok"], captured["image_id"]) == (True, "00" * 32)
    assert (waiting["machine_id"], waiting["server"]) == ("m-17", "http://10.0.0.1:7400")
    assert (assigned["cast_id"], assigned["port"]) == ("1a2b3c4d", 7420)
    assert (failed["ok"], failed["exit_code"], failed["cast_id"]) == (False, 33, "1a2b3c4d")
    assert (done["ok"], done["target"]) == (True, "/dev/sda")
    assert unrecorded["cast_ids"] == ["1a2b3c4d"]
    assert result == {"event": "result", "ok": True, "exit_code": 0}


def test_plain_lines_name_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    log_all(PlainServiceLog())
    text = capsys.readouterr().err
    for words in (
        "checked in with http://10.0.0.1:7400 as row 2, seat 5 (m-17)",
        "no daemon answers, retrying until one does",
        "cast 1a2b3c4d is for this machine: lab Windows 11, 50.0 GiB",
        "continues from http://10.77.0.1:7421",
        "cast 1a2b3c4d failed on this machine: /dev/sda is mounted",
        "every byte read back and verified",
        "capture 3c4d5e6f: this machine's disk becomes the image lab-2026-12",
        "uploading 25% of 4.0 GiB, 512.0 MiB sent",
        "capture waits: no answer",
        "capture 3c4d5e6f failed: /dev/sda: Windows is hibernated",
        "captured lab-2026-12, 4.0 GiB, 1.0 GiB sent",
        "no daemon has recorded this machine's result of cast 1a2b3c4d",
    ):
        assert words in text


@pytest.mark.parametrize("make_log", [JsonServiceLog, PlainServiceLog])
def test_a_casts_result_is_not_the_programs(
    make_log: Callable[[], ServiceLog], capsys: pytest.CaptureFixture[str]
) -> None:
    with make_log().observer() as observer:
        observer.finished(RECEPTION)
    assert '"event": "result"' not in capsys.readouterr().out


def test_an_agent_without_a_cast_has_metrics() -> None:
    [port] = free_port_range(1)
    with (
        serve_metrics(port, idle_status),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LIMIT_S) as answer,
    ):
        text = answer.read().decode()
    assert 'diskcast_agent_state{state="waiting"} 1.0' in text
    assert 'diskcast_agent_state{state="receiving"} 0.0' in text
