"""Output of a reception for people, programs and Prometheus."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.request

import pytest
from click.testing import CliRunner

from protocol.errors import AddressInUseError
from protocol.model.bottleneck import Cause
from protocol.model.session_records import CastId, CastParameters
from protocol.wire.codec import REJECT_REASONS
from receiver.cli import cli
from receiver.reception.reporting.metrics import METRICS, serve_metrics
from receiver.reception.reporting.progress import JsonObserver, PlainObserver, RateMeter, TerminalObserver
from receiver.reception.reporting.status import Reception, ReceptionState, ReceptionStatus
from tests.support.network.completion_reports import completion
from tests.support.network.lab import LIMIT_S
from tests.support.network.ports import free_port_range

PARAMETERS = CastParameters(
    cast_id=CastId(0xABCD),
    incarnation=9,
    image_id=bytes(32),
    image_name="lab",
    raw_bytes=1 << 30,
    block_bytes=1 << 18,
    manifest_bytes=5000,
    symbol_bytes=1440,
    group="239.255.68.67",
    port=7410,
    sender_address="192.0.2.1",
    feedback_port=7411,
    control_url="http://192.0.2.1:7411",
)
STATUS = ReceptionStatus(
    state=ReceptionState.RECEIVING,
    target="/dev/sda",
    seconds=12.3456789,
    raw_bytes=1 << 30,
    raw_bytes_used=1 << 30,
    raw_bytes_verified=1 << 29,
    raw_bytes_kept=1 << 20,
    scanned_share=1.0,
    blocks_needed=2048,
    blocks_verified=2048,
    blocks_rejected=1,
    blocks_rewritten=11,
    blocks_repaired_by_parity=2,
    blocks_repaired_by_nack=3,
    bytes_received=4000,
    bytes_written=5000,
    datagrams_expected=1000,
    datagrams_received=950,
    socket_drops=6,
    pool_drops=7,
    nacks_sent=8,
    rejoins=1,
    rejects={"bad_magic": 9},
    fill=0.5,
    socket_queued_bytes=10,
    bottleneck=Cause.DISK,
    bottleneck_seconds={Cause.NETWORK: 2.0, Cause.SOCKET: 0.0, Cause.DECODE: 0.0, Cause.DISK: 6.0000004},
    demoted=True,
    grtt_s=0.01,
    unsigned_allowed=False,
)
RECEPTION = Reception(
    PARAMETERS,
    STATUS,
    dataclasses.replace(completion(), seconds_receiving=10.0),
    reported=False,
    fitted=("the backup GPT moved",),
)


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonObserver() as observer:
        observer.joined(PARAMETERS, rejoined=False)
        observer.joined(PARAMETERS, rejoined=True)
        observer.silent(3.04)
        observer.demoted(Cause.DISK)
        observer.reinstated()
        observer.progress(STATUS)
        observer.finished(RECEPTION)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == [
        "joined", "rejoined", "silent", "demoted", "reinstated", "progress", "result",
    ]  # fmt: skip
    assert (lines[0]["cast_id"], lines[0]["image_name"]) == ("0000abcd", "lab")
    assert lines[3]["bottleneck"] == "disk"
    progress, result = lines[5:]
    assert (progress["state"], progress["bottleneck"], progress["seconds"]) == (
        "receiving",
        "disk",
        12.345679,
    )
    assert progress["demoted"] is True
    assert result["bottleneck_seconds"] == {"network": 2.0, "socket": 0.0, "decode": 0.0, "disk": 6.0}
    assert (result["ok"], result["exit_code"], result["target"]) == (True, 0, "/dev/sda")
    assert (result["seconds_receiving"], result["reported"]) == (10.0, False)
    assert "12345" not in json.dumps(lines), "the session token is a secret"


@pytest.mark.parametrize("observer_class", [PlainObserver, TerminalObserver])
def test_lines_on_stderr(observer_class: type[PlainObserver], capsys: pytest.CaptureFixture[str]) -> None:
    with observer_class() as observer:
        observer.joined(PARAMETERS, rejoined=True)
        observer.silent(65.0)
        observer.demoted(Cause.DISK)
        observer.reinstated()
        observer.progress(STATUS)
        observer.finished(RECEPTION)
    captured = capsys.readouterr()
    assert captured.out == ""
    text = " ".join(captured.err.split())
    for words in (
        "joined cast 0000abcd again: lab, 1.0 GiB",
        "nothing heard from the sender for 1:05",
        "512.0 MiB of 1.0 GiB verified",
        "1.0 MiB were already there",
        "the backup GPT moved",
        "much slower than the others because of its disk; the sender will finish it after them",
        "keeps up with the others again",
        "5.0% lost, bottleneck: disk",
        "bottlenecks: disk 75%, network 25%",
        "lab (1.0 GiB) is on /dev/sda, every byte read back and verified",
        "the sender didn't accept this machine's report",
    ):
        assert words in text


def test_the_scans_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainObserver() as observer:
        observer.progress(dataclasses.replace(STATUS, scanned_share=0.25))
    assert "512.0 MiB of 1.0 GiB verified, 25% of the target scanned" in capsys.readouterr().err


def test_the_rate_is_since_the_last_call() -> None:
    times = iter([0.0, 2.0, 3.0])
    meter = RateMeter(clock=lambda: next(times))
    assert meter.per_s(200) == 100.0
    assert meter.per_s(500) == 300.0


def test_metrics_have_base_units_and_every_sample() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"diskcast_agent_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        for labels, value in metric.read(STATUS):
            assert len(labels) == len(metric.labels)
            assert value == float(value)


def test_metrics_are_scraped() -> None:
    [port] = free_port_range(1)
    with serve_metrics(port, lambda: STATUS):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LIMIT_S) as response:
            text = response.read().decode()
        with (
            pytest.raises(AddressInUseError, match=f"{port}.*--metrics-port"),
            serve_metrics(port, lambda: STATUS),
        ):
            pass
    for line in (
        "diskcast_agent_verified_bytes 5.36870912e+08",
        'diskcast_agent_state{state="receiving"} 1.0',
        'diskcast_agent_bottleneck{bottleneck="disk"} 1.0',
        'diskcast_agent_limited_seconds_total{bottleneck="network"} 2.0',
        "diskcast_agent_demoted 1.0",
        'diskcast_agent_rejected_datagrams_total{reason="bad_magic"} 9.0',
        'diskcast_agent_repaired_blocks_total{by="nack"} 3.0',
    ):
        assert line in text
    assert text.count("diskcast_agent_rejected_datagrams_total{") == len(REJECT_REASONS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rehearse-loss", "101%"], "isn't a share"),
        (["--rehearse-loss", "x"], "isn't a share"),
        (["--cast", "12"], "eight hexadecimal digits"),
        (["--port", "0"], "1<=x<=65535"),
        (["--sender-timeout", "0"], "at least 1.0 s"),
    ],
)
def test_invalid_options_are_refused(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["receive", "--target", "t", "--interface", "lo", "--open", *arguments])
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--group", "192.0.2.1"], "isn't a multicast address"),
        (["--group", "everyone"], "isn't an IP address"),
        (["--memory", "1MiB"], "at least 4MiB"),
        (["--memory", "much"], "isn't a size"),
        (["--sender", "ftp://x"], "isn't the URL of a sender"),
        (["--interface", "gone0"], "no interface 'gone0'"),
    ],
)
def test_impossible_options_are_refused(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["receive", "--target", "t", "--interface", "lo", "--open", *arguments])
    assert words in str(result.exception)
