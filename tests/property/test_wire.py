"""The wire format: encoded messages decode to the same, and garbage is rejected for a known reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import CONTROL_DATAGRAM_BYTES_MAX, DATA_HEADER_BYTES, ESI_NONE
from protocol.errors import WireError
from protocol.wire import batch, codec
from protocol.wire.messages import CONTROL_MESSAGES, FEEDBACK_MESSAGES, Nack, SymbolHeader
from tests.support.strategies import messages_of, values_of

KEY = bytes(range(32))
CONTROL = st.one_of(*(messages_of(cls) for cls in CONTROL_MESSAGES))
FEEDBACK = st.one_of(*(messages_of(cls) for cls in FEEDBACK_MESSAGES))


@given(CONTROL, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_control_messages_survive_the_wire(message: object, cast_id: int, token: int) -> None:
    datagram = codec.encode_control(message, cast_id=cast_id, session_token=token)
    prefix, decoded = codec.decode_control_untrusted(datagram)
    assert decoded == message
    assert (prefix.cast_id, prefix.session_token) == (cast_id, token)


@given(FEEDBACK)
def test_feedback_survives_the_wire_and_its_tag_is_checked(message: object) -> None:
    datagram = codec.encode_feedback(message, cast_id=1, session_token=2, key=KEY)
    assert codec.decode_feedback_untrusted(datagram)[1] == message
    codec.check_feedback_mac(datagram, KEY)
    with pytest.raises(WireError, match="bad_mac"):
        codec.check_feedback_mac(datagram, bytes(32))


def test_the_largest_nack_fits_its_limit() -> None:
    """Otherwise a receiver with many losses could never NACK them."""
    rows = next(field.kind for field in Nack.FIELDS if field.name == "deficits")
    largest = tuple(column.high for _, column in rows.columns)
    nack = Nack(1023, 2**32 - 1, 1, 2**32 - 1, (largest,) * rows.count_max)
    datagram = codec.encode_feedback(nack, cast_id=2**32 - 1, session_token=2**64 - 1, key=KEY)
    assert len(datagram) <= CONTROL_DATAGRAM_BYTES_MAX


@given(st.binary(max_size=1500))
def test_garbage_is_rejected_by_reason(datagram: bytes) -> None:
    for decode in (codec.decode_control_untrusted, codec.decode_feedback_untrusted):
        with pytest.raises(WireError) as caught:
            decode(datagram)
        assert caught.value.reason in codec.REJECT_REASONS


@given(st.one_of(CONTROL, FEEDBACK), st.data())
def test_mutated_messages_raise_only_wire_errors(message: object, data: st.DataObject) -> None:
    if isinstance(message, CONTROL_MESSAGES):
        datagram = bytearray(codec.encode_control(message, cast_id=1, session_token=2))
    else:
        datagram = bytearray(codec.encode_feedback(message, cast_id=1, session_token=2, key=KEY))
    for _ in range(data.draw(st.integers(1, 4))):
        datagram[data.draw(st.integers(0, len(datagram) - 1))] = data.draw(st.integers(0, 255))
    del datagram[data.draw(st.integers(0, len(datagram))) :]
    for decode in (codec.decode_control_untrusted, codec.decode_feedback_untrusted):
        try:
            decode(bytes(datagram))
        except WireError as error:
            assert error.reason in codec.REJECT_REASONS


def test_deep_nesting_is_refused_before_it_is_parsed() -> None:
    prefix = codec.PREFIX.pack(0xD15C, 1, 0x12, 1, 2)
    with pytest.raises(WireError, match="nested"):
        codec.decode_control_untrusted(prefix + b"\x91" * 1000)


@given(st.lists(st.fixed_dictionaries({f.name: values_of(f.kind) for f in SymbolHeader.FIELDS}), max_size=20))
def test_symbol_headers_survive_as_columns(headers: list[dict[str, int]]) -> None:
    frames = np.zeros((len(headers), DATA_HEADER_BYTES + 8), np.uint8)
    view = batch.header_view(frames)
    for index, header in enumerate(headers):
        for name, value in header.items():
            view[name][index] = value
        header["cast_id"], header["session_token"] = 5, 6
    batch.fill_constant_headers(frames, cast_id=5, session_token=6)
    rejects: dict[str, int] = {}
    accepted = batch.HeaderFilter(cast_id=5, session_token=6).accept_untrusted(frames, rejects)
    assert accepted.all()
    assert not rejects
    for index, header in enumerate(headers):
        assert {name: int(view[name][index]) for name in header} == header


@given(st.integers(0, DATA_HEADER_BYTES - 1), st.integers(1, 255))
def test_a_header_with_one_wrong_byte_is_never_mistaken(position: int, change: int) -> None:
    """Every reason is a known one, and accepted fields are in range."""
    frames = np.zeros((1, DATA_HEADER_BYTES + 8), np.uint8)
    batch.fill_constant_headers(frames, cast_id=5, session_token=6)
    batch.header_view(frames)["k"] = 8
    frames[0, position] ^= change
    rejects: dict[str, int] = {}
    accepted = batch.HeaderFilter(cast_id=5, session_token=6).accept_untrusted(frames, rejects)
    header = batch.header_view(frames)[0]
    if accepted[0]:
        assert position >= 16
        assert 1 <= header["k"] <= 224
        assert header["esi"] < ESI_NONE
    else:
        assert sum(rejects.values()) == 1
        assert set(rejects) <= set(codec.REJECT_REASONS)


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 254), st.integers(1, 20)), max_size=8
    )
)
def test_runs_cover_every_row_once(segments: list[tuple[int, int, int, int]]) -> None:
    rows = [
        (obj, block, esi + i) for obj, block, esi, count in segments for i in range(count) if esi + i < 255
    ]
    frames = np.zeros((len(rows), DATA_HEADER_BYTES), np.uint8)
    view = batch.header_view(frames)
    for index, (obj, block, esi) in enumerate(rows):
        view["object"][index], view["block"][index], view["esi"][index] = obj, block, esi
    covered = []
    for start, stop in batch.block_runs(view):
        assert start < stop
        covered += range(start, stop)
        assert len({rows[i][:2] for i in range(start, stop)}) == 1
    assert covered == list(range(len(rows)))
