"""The control API's JSON: after a failure receivers couldn't join, or a forged body could crash the sender."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import zlib

import numpy as np
import pytest

from protocol.control import control_messages as messages
from protocol.errors import JoinRefusedError, ProtocolError, WireVersionError
from protocol.model.cast_state import CastState
from protocol.model.session_records import (
    CastId,
    CastParameters,
    JoinGrant,
    JoinRequest,
    MachineIdentity,
    ReceiverId,
)
from tests.support.network.completion_reports import completion

PARAMETERS = CastParameters(
    cast_id=CastId(0x00C0FFEE),
    incarnation=4_000_000_000,
    image_id=bytes(range(32)),
    image_name="lab Windows 11",
    raw_bytes=50 << 30,
    block_bytes=256 << 10,
    manifest_bytes=13_000_000,
    symbol_bytes=1440,
    group="239.255.68.67",
    port=7410,
    sender_address="10.77.0.1",
    feedback_port=7411,
    control_url="http://10.77.0.1:7411",
    encrypted=True,
    statement="diskcast-image-v1\nname: lab\n",
    signature="untrusted comment: x\ntrusted comment: a\tb\n",
    signer="RW" + "x" * 54,
)
GRANT = JoinGrant(
    parameters=PARAMETERS,
    receiver_id=ReceiverId(17),
    key=bytes(32),
    run_secret=bytes(range(100, 132)),
    control_key=bytes(range(1, 33)),
    next_sequence=2**40 + 1,
    next_counter=9,
    manifest_by_multicast=True,
    report_interval_s=0.1,
    grtt_s=0.05,
    receiver_count=3,
)
COMPLETION = completion(success=False, error="/dev/sda: read back differs in block 17")


def through_text(value: object) -> object:
    return messages.parse_json_untrusted(json.dumps(value).encode())


def test_a_grant_arrives_as_it_was_given() -> None:
    document = through_text(messages.grant_to_json(GRANT, state=CastState.CASTING))
    assert messages.grant_from_json_untrusted(document) == GRANT


@pytest.mark.parametrize("byte_count", [16, 799, 816])
def test_hashes_that_do_not_fit_the_manifest_are_refused(byte_count: int) -> None:
    right = dataclasses.replace(GRANT, manifest_hashes=bytes(16 * PARAMETERS.manifest_block_count))
    document = messages.grant_to_json(right, state=CastState.CASTING)
    assert messages.grant_from_json_untrusted(through_text(document)) == right
    with pytest.raises(ProtocolError, match="manifest_hashes"):
        messages.grant_from_json_untrusted(document | {"manifest_hashes": bytes(byte_count).hex()})


def test_a_cast_shows_no_secret() -> None:
    description = messages.cast_description(PARAMETERS, state=CastState.GATHERING, receiver_count=2)
    document = messages.cast_to_json(description)
    assert messages.cast_from_json_untrusted(through_text(document)) == description
    assert GRANT.run_secret.hex() not in json.dumps(document)
    assert document["cast_id"] == "00c0ffee"


def test_statement_and_signature_arrive_byte_for_byte() -> None:
    """A signature covers every byte: a changed line break would refuse the image to a whole room."""
    document = messages.cast_to_json(messages.cast_description(PARAMETERS, state=0, receiver_count=0))
    arrived = messages.cast_from_json_untrusted(through_text(document))
    assert (arrived.statement, arrived.signature) == (PARAMETERS.statement, PARAMETERS.signature)
    signed = arrived.offered_image.signed
    assert signed is not None
    assert signed.statement == PARAMETERS.statement.encode()
    unsigned = dataclasses.replace(arrived, statement="", signature="")
    assert unsigned.offered_image.signed is None


@pytest.mark.parametrize("text", ["\x1b[2J", "\r\n", "a\0", "x" * 1025, 7, None])
def test_a_statement_that_a_terminal_cant_show_is_refused(text: object) -> None:
    document = messages.cast_to_json(messages.cast_description(PARAMETERS, state=0, receiver_count=0))
    with pytest.raises(ProtocolError, match="statement"):
        messages.cast_from_json_untrusted({**document, "statement": text})


def test_a_list_of_casts_arrives_in_order() -> None:
    first = messages.cast_description(PARAMETERS, state=CastState.GATHERING, receiver_count=0)
    second = dataclasses.replace(first, cast_id=CastId(1))
    document = through_text({"casts": [messages.cast_to_json(first), messages.cast_to_json(second)]})
    assert messages.casts_from_json_untrusted(document) == [first, second]


@pytest.mark.parametrize("address", ["fe80::1%eth0", "fd00::7"])
def test_an_ipv6_sender_is_described_without_the_scope_of_its_own_machine(address: str) -> None:
    parameters = dataclasses.replace(PARAMETERS, sender_address=address, group="ff12::d15c")
    document = messages.cast_to_json(messages.cast_description(parameters, state=0, receiver_count=0))
    assert messages.cast_from_json_untrusted(document).sender_address == address.partition("%")[0]


@pytest.mark.parametrize("need", [None, "random", "none", "all"])
def test_a_join_carries_exactly_the_blocks_that_are_needed(need: str | None) -> None:
    block_count = 1003
    wanted = {
        None: None,
        "random": np.random.default_rng(7).random(block_count) < 0.3,
        "none": np.zeros(block_count, np.bool_),
        "all": np.ones(block_count, np.bool_),
    }[need]
    request = JoinRequest(
        agent_id="a1", name="pc-07", inventory={"serial": "X"}, has_manifest=False, need=wanted, address="::1"
    )
    document = through_text(messages.join_to_json(request))
    arrived = messages.join_from_json_untrusted(document, block_count=block_count, address="::1")
    assert dataclasses.replace(arrived, need=None) == dataclasses.replace(request, need=None)
    assert (arrived.need is None) == (wanted is None)
    if wanted is not None:
        assert arrived.need is not None
        np.testing.assert_array_equal(arrived.need, wanted)


IDENTITY = MachineIdentity(("52:54:00:12:34:56",), "PF1XYZ", "LAB-0007")
JOIN = JoinRequest("a1", "pc-07", {}, False, None, "::1", IDENTITY)


def joined(document: object) -> JoinRequest:
    return messages.join_from_json_untrusted(document, block_count=20, address="::1")


@pytest.mark.parametrize("identity", [IDENTITY, MachineIdentity((), "", ""), None])
def test_a_join_includes_the_machines_identity(identity: MachineIdentity | None) -> None:
    document = through_text(messages.join_to_json(dataclasses.replace(JOIN, identity=identity)))
    assert joined(document).identity == identity


def test_an_agent_of_an_earlier_version_joins_without_an_identity() -> None:
    document = messages.join_to_json(JOIN)
    del document["identity"]
    assert joined(document) == dataclasses.replace(JOIN, identity=None)


def test_an_agent_of_a_later_version_may_send_more_fields() -> None:
    document = messages.join_to_json(JOIN)
    more = {**document, "colour": "red", "identity": {**messages.IDENTITY.encode(IDENTITY), "wwn": [7]}}
    assert joined(more) == JOIN


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        (7, "identity"),
        ({"macs": [], "serial": ""}, "asset_tag"),
        ({"macs": ["52:54:00:12:34:56"] * 17, "serial": "", "asset_tag": ""}, "macs"),
        ({"macs": [], "serial": "x" * 65, "asset_tag": ""}, "serial"),
        ({"macs": [], "serial": "\x1b[2J", "asset_tag": ""}, "serial"),
    ],
)
def test_an_identity_out_of_range_is_refused_by_name(identity: object, named: str) -> None:
    with pytest.raises(ProtocolError, match=named):
        joined({**messages.join_to_json(JOIN), "identity": identity})


def test_a_completion_report_arrives_as_it_was_made() -> None:
    document = through_text(messages.COMPLETION.encode(COMPLETION))
    assert messages.COMPLETION.decode_untrusted("completion", document) == COMPLETION


def test_an_error_text_with_terminal_escapes_arrives_as_one_harmless_line() -> None:
    report = dataclasses.replace(COMPLETION, error="\x1b[31mred\nlong " + "é" * 3000)
    arrived = messages.COMPLETION.decode_untrusted("completion", messages.COMPLETION.encode(report))
    assert arrived.error.isprintable()
    assert arrived.error.startswith("?[31mred long éé")
    assert len(arrived.error.encode()) <= 2000


def test_a_bitmap_that_would_inflate_to_gigabytes_is_refused_without_inflating_it() -> None:
    bomb = base64.b64encode(zlib.compress(bytes(64 << 20), 9)).decode()
    with pytest.raises(ProtocolError, match="bitmap of 1000 blocks"):
        messages.decode_need_untrusted(bomb, 1000)


@pytest.mark.parametrize(
    "text",
    ["", "AAAA", "!", 7, base64.b64encode(zlib.compress(b"\xff") + b"x").decode(), "é"],
)
def test_a_malformed_bitmap_is_refused(text: object) -> None:
    with pytest.raises(ProtocolError, match="need"):
        messages.decode_need_untrusted(text, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cast_id", "xyz"),
        ("cast_id", " 0c0ffee"),
        ("incarnation", -1),
        ("incarnation", True),
        ("state", "asleep"),
        ("image_id", "00 " * 21 + "0"),
        ("image_name", "\x1b[2J"),
        ("raw_bytes", 1.5),
        ("symbol_bytes", 10**6),
        ("group", "10.0.0.1"),
        ("group", "239.255.68.67%eth0"),
        ("sender_address", "239.0.0.1"),
        ("sender_address", "localhost"),
        ("port", 0),
        ("block_bytes", 4 << 20),
    ],
)
def test_a_cast_with_a_field_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    document = messages.cast_to_json(messages.cast_description(PARAMETERS, state=0, receiver_count=0))
    with pytest.raises(ProtocolError, match=field):
        messages.cast_from_json_untrusted({**document, field: value})


def test_a_missing_field_is_named() -> None:
    document = messages.COMPLETION.encode(COMPLETION)
    del document["seconds_total"]
    with pytest.raises(ProtocolError, match="seconds_total: missing"):
        messages.COMPLETION.decode_untrusted("completion", document)


def test_a_grant_whose_cast_is_another_run_is_refused() -> None:
    document = messages.grant_to_json(GRANT, state=CastState.CASTING)
    with pytest.raises(ProtocolError, match="incarnation"):
        messages.grant_from_json_untrusted({**document, "incarnation": 1})


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}", b"\xff\xfe\xfa"]
)
def test_invalid_json_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not JSON"):
        messages.parse_json_untrusted(body)


def test_a_problem_document_becomes_one_printable_line() -> None:
    body = json.dumps(messages.problem_to_json("Refused", "the cast is full:\n1024 receivers")).encode()
    assert messages.problem_from_json_untrusted(body) == "the cast is full: 1024 receivers"
    assert messages.problem_from_json_untrusted(b"<html>") == ""


def test_mutated_documents_raise_only_protocol_errors() -> None:
    generator = random.Random(20)
    documents = [
        messages.grant_to_json(GRANT, state=CastState.CASTING),
        messages.COMPLETION.encode(COMPLETION),
        messages.join_to_json(
            JoinRequest("a", "b", {"k": "v"}, True, np.ones(20, np.bool_), "::1", IDENTITY)
        ),
    ]
    for _ in range(2000):
        text = bytearray(json.dumps(generator.choice(documents)).encode())
        for _ in range(generator.randrange(1, 4)):
            text[generator.randrange(len(text))] = generator.randrange(256)
        try:
            value = messages.parse_json_untrusted(bytes(text))
            messages.grant_from_json_untrusted(value)
            messages.COMPLETION.decode_untrusted("completion", value)
            messages.join_from_json_untrusted(value, block_count=20, address="::1")
        except (ProtocolError, WireVersionError, JoinRefusedError):
            pass


def test_programs_of_another_wire_version_get_one_error_that_names_both() -> None:
    """They would otherwise wait for each other's datagrams, and give up without a reason."""
    cast = messages.cast_to_json(
        messages.cast_description(PARAMETERS, state=CastState.CASTING, receiver_count=0)
    )
    join = messages.join_to_json(JoinRequest("a", "b", {}, True, None, "::1"))
    del cast["wire_version"], join["wire_version"]  # as version 1 has them
    with pytest.raises(
        WireVersionError, match="the sender speaks wire version 1, this program speaks version 2"
    ):
        messages.cast_from_json_untrusted(cast)
    with pytest.raises(
        JoinRefusedError, match="the agent speaks wire version 1, this sender speaks version 2"
    ):
        messages.join_from_json_untrusted(join, block_count=1, address="::1")
    with pytest.raises(WireVersionError, match=r"version 3.*upgrade this program"):
        messages.cast_from_json_untrusted(cast | {"wire_version": 3})
