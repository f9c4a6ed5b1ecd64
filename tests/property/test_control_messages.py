"""The control API's JSON under arbitrary input: only ProtocolError may come out of it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.control import check_in
from protocol.control import control_messages as messages
from protocol.errors import JoinRefusedError, ProtocolError, WireVersionError
from protocol.schema.json_fields import JsonField, JsonRecord


def _json(text: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    scalars = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | text
        | st.text("0123456789abcdef", min_size=64, max_size=64)
    )
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=8,
    )


JSON = _json(st.text(max_size=40))
JSON_OF_LINES = _json(st.text(max_size=40).map(lambda text: " ".join(text.split())))
"""JSON whose texts have single spaces, as they are written: PrintableText.encode folds any others."""


def objects_with(fields: Mapping[str, JsonField], *more: str) -> st.SearchStrategy[object]:
    """Return JSON with the right names and arbitrary values, which reaches every field's check."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys((*fields, *more), JSON)) | JSON


RECORDS: dict[str, JsonRecord[Any]] = {
    "identity": messages.IDENTITY,
    "completion": messages.COMPLETION,
    "check_in": check_in.CHECK_IN,
    "outcome": check_in.CAST_OUTCOME,
    "answer": check_in.CHECK_IN_ANSWER,
    "assignment": check_in.ASSIGNMENT,
}
DECODERS: list[tuple[Callable[[object], object], st.SearchStrategy[object]]] = [
    (messages.cast_from_json_untrusted, objects_with(messages.CAST_FIELDS)),
    (messages.casts_from_json_untrusted, JSON | st.fixed_dictionaries({"casts": st.lists(JSON, max_size=3)})),
    (messages.grant_from_json_untrusted, objects_with(messages.GRANT_FIELDS, "cast")),
    (
        lambda value: messages.join_from_json_untrusted(value, block_count=9, address="::1"),
        objects_with(messages.JOIN_FIELDS, "need"),
    ),
    (lambda value: messages.decode_need_untrusted(value, 9), JSON),
    (messages.heard_sequence_from_json_untrusted, JSON),
    *(
        (functools.partial(record.decode_untrusted, name), objects_with(record.fields))
        for name, record in RECORDS.items()
    ),
]


@pytest.mark.parametrize("index", range(len(DECODERS)))
@given(data=st.data())
def test_any_json_gives_a_record_or_a_protocol_error(index: int, data: st.DataObject) -> None:
    decode, strategy = DECODERS[index]
    with contextlib.suppress(ProtocolError, WireVersionError, JoinRefusedError):
        decode(data.draw(strategy))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{table}.{name}", kind)
        for table, fields in (
            ("cast", messages.CAST_FIELDS),
            ("grant", messages.GRANT_FIELDS),
            ("join", messages.JOIN_FIELDS),
            *((table, record.fields) for table, record in RECORDS.items()),
        )
        for name, kind in fields.items()
    ],
)
@given(value=JSON_OF_LINES)
def test_every_field_accepts_or_refuses_any_value_and_keeps_it(
    name: str, kind: JsonField, value: object
) -> None:
    try:
        decoded = kind.decode_untrusted(name, value)
    except (ProtocolError, WireVersionError, JoinRefusedError):
        return
    assert kind.decode_untrusted(name, kind.encode(decoded)) == decoded


@given(body=st.binary(max_size=200))
def test_any_bytes_give_json_or_a_protocol_error(body: bytes) -> None:
    messages.problem_from_json_untrusted(body)
    with contextlib.suppress(ProtocolError, WireVersionError, JoinRefusedError):
        messages.parse_json_untrusted(body)
