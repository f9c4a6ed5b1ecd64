"""Check-ins as JSON: a failure would keep a machine from its cast, or its result from history."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random

import pytest

from protocol.control import check_in as messages
from protocol.control.control_messages import parse_json_untrusted
from protocol.errors import ProtocolError
from protocol.model.session_records import CastId
from tests.support.network.completion_reports import completion

CAST_ID = CastId(0x1A2B3C4D)
OUTCOME = messages.outcome_of(CAST_ID, completion(success=False, error="/dev/sda: input/output error"))
CHECK_IN = messages.CheckIn(
    agent_id="0123456789abcdef",
    name="pc-07",
    version="1.2.3",
    interface="eth0",
    macs=("52:54:00:12:34:56", "52:54:00:12:34:57"),
    serial="PF1XYZ",
    asset_tag="LAB-0007",
    inventory={"host": "pc-07"},
    state=messages.AgentState.IDLE,
    cast_id=None,
    last_result=OUTCOME,
    wait_s=25.0,
)
ASSIGNMENT = messages.Assignment(
    cast_id=CAST_ID,
    image_name="lab Windows 11",
    image_id=bytes(range(32)),
    raw_bytes=50 << 30,
    control_url="http://10.77.0.1:7421",
    sender_address="10.77.0.1",
    group="239.255.68.80",
    port=7420,
    version_min=2**63 + 1,
)
ANSWER = messages.CheckInAnswer(
    machine_id="m-17",
    name="row 2, seat 5",
    recorded_cast_id=CAST_ID,
    assignment=ASSIGNMENT,
    check_in_after_s=2.0,
)


def through_text(value: object) -> object:
    return parse_json_untrusted(json.dumps(value).encode())


@pytest.mark.parametrize(
    "check_in",
    [
        CHECK_IN,
        dataclasses.replace(CHECK_IN, last_result=None),
        dataclasses.replace(
            CHECK_IN, state=messages.AgentState.RECEIVING, cast_id=CAST_ID, wait_s=0.0, macs=()
        ),
    ],
)
def test_a_check_in_arrives_as_it_was_sent(check_in: messages.CheckIn) -> None:
    document = through_text(messages.CHECK_IN.encode(check_in))
    assert messages.CHECK_IN.decode_untrusted("check-in", document) == check_in


@pytest.mark.parametrize(
    "answer", [ANSWER, dataclasses.replace(ANSWER, assignment=None, recorded_cast_id=None)]
)
def test_an_answer_arrives_as_it_was_given(answer: messages.CheckInAnswer) -> None:
    document = through_text(messages.CHECK_IN_ANSWER.encode(answer))
    assert messages.CHECK_IN_ANSWER.decode_untrusted("answer", document) == answer


def test_the_outcome_of_a_cast_repeats_the_completion_report() -> None:
    report = completion(success=False, error="x")
    outcome = messages.outcome_of(CAST_ID, report)
    for field in dataclasses.fields(outcome):
        if field.name != "cast_id":
            assert getattr(outcome, field.name) == getattr(report, field.name)


def test_a_machines_odd_texts_and_cards_dont_keep_it_from_checking_in() -> None:
    odd = dataclasses.replace(
        CHECK_IN,
        serial="\x1b[2J" + "é" * 200,
        macs=("52-54-00-AB-CD-EF", "80:00:02:08:fe:80:00:00", "", *["52:54:00:00:00:01"] * 40),
        inventory={f"key {index}": "x" * 1000 for index in range(100)},
    )
    arrived = messages.CHECK_IN.decode_untrusted("check-in", through_text(messages.CHECK_IN.encode(odd)))
    assert arrived.macs[0] == "52:54:00:ab:cd:ef"
    assert len(arrived.macs) == 16
    assert arrived.serial.startswith("?[2Jéé")
    assert len(json.dumps(messages.CHECK_IN.encode(odd))) < 16 << 10


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agent_id", ""),
        ("name", "\x1b[2J"),
        ("macs", "52:54:00:12:34:56"),
        ("macs", ["52:54:00:12:34"]),
        ("macs", [7]),
        ("macs", ["52:54:00:12:34:56"] * 17),
        ("inventory", {"host": 7}),
        ("state", "asleep"),
        ("cast_id", 7),
        ("wait_s", 26),
        ("wait_s", float("nan")),
    ],
)
def test_a_check_in_with_a_field_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ProtocolError, match=field):
        messages.CHECK_IN.decode_untrusted("check-in", {**messages.CHECK_IN.encode(CHECK_IN), field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_id", "00"),
        ("raw_bytes", 0),
        ("control_url", ""),
        ("sender_address", "239.0.0.1"),
        ("group", "10.0.0.1"),
        ("port", 70_000),
    ],
)
def test_an_assignment_with_a_field_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    document = {**messages.ASSIGNMENT.encode(ASSIGNMENT), field: value}
    with pytest.raises(ProtocolError, match=field):
        messages.CHECK_IN_ANSWER.decode_untrusted(
            "answer", {**messages.CHECK_IN_ANSWER.encode(ANSWER), "assignment": document}
        )


def test_mutated_check_ins_raise_only_protocol_errors() -> None:
    generator = random.Random(21)
    documents = [messages.CHECK_IN.encode(CHECK_IN), messages.CHECK_IN_ANSWER.encode(ANSWER)]
    for _ in range(2000):
        text = bytearray(json.dumps(generator.choice(documents)).encode())
        for _ in range(generator.randrange(1, 4)):
            text[generator.randrange(len(text))] = generator.randrange(256)
        for record in (messages.CHECK_IN, messages.CHECK_IN_ANSWER):
            with contextlib.suppress(ProtocolError):
                record.decode_untrusted("message", parse_json_untrusted(bytes(text)))
