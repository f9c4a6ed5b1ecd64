"""The wire format: encoded messages decode to the same, and garbage is rejected for a known reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import (
    CONTROL_DATAGRAM_BYTES_MAX,
    DATA_AHEAD_DATAGRAMS_MAX,
    DATA_HEADER_BYTES,
    ESI_NONE,
    NACK_BLOCKS_MAX,
    TAG_BYTES,
    WIRE_VERSION,
)
from protocol.errors import WireError
from protocol.schema.binary_fields import Rows
from protocol.trust.group_keys import control_key_of
from protocol.wire import batch, codec
from protocol.wire.control_codec import (
    ControlMessage,
    ControlSigner,
    ControlVerifier,
    decode_control_untrusted,
)
from protocol.wire.data_tags import DataTagger
from protocol.wire.feedback_codec import (
    FeedbackMessage,
    check_feedback_mac,
    decode_feedback_untrusted,
    encode_feedback,
)
from protocol.wire.messages import CONTROL_MESSAGES, FEEDBACK_MESSAGES, Nack, SymbolHeader
from tests.support.strategies import messages_of, values_of

KEY = bytes(range(32))
SEED = bytes(range(32, 64))
TAG_KEY = bytes(range(16))
CONTROL = st.one_of(*(messages_of(cls) for cls in CONTROL_MESSAGES))
FEEDBACK = st.one_of(*(messages_of(cls) for cls in FEEDBACK_MESSAGES))


def verifier_of(cast_id: int) -> ControlVerifier:
    return ControlVerifier(cast_id=cast_id, tag_key=KEY, control_key=control_key_of(SEED), next_counter=1)


@given(CONTROL, st.integers(0, 2**32 - 1))
def test_control_messages_survive_the_wire_once_and_in_order(message: ControlMessage, cast_id: int) -> None:
    signer = ControlSigner(cast_id=cast_id, tag_key=KEY, seed=SEED)
    datagrams = [signer.encode(message) for _ in range(3)]
    verifier = verifier_of(cast_id)
    assert verifier.decode_untrusted(datagrams[1]) == message
    for late in datagrams[:2]:
        with pytest.raises(WireError, match="replayed"):
            verifier.decode_untrusted(late)
    assert verifier.decode_untrusted(datagrams[2]) == message
    assert decode_control_untrusted(datagrams[0])[1] == message


@given(CONTROL, st.data())
def test_a_changed_control_message_is_never_believed(message: ControlMessage, data: st.DataObject) -> None:
    """By outsiders it fails at the tag; by members, with the group's key, at the signature."""
    datagram = bytearray(ControlSigner(cast_id=1, tag_key=KEY, seed=SEED).encode(message))
    datagram[data.draw(st.integers(0, len(datagram) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError) as caught:
        verifier_of(1).decode_untrusted(bytes(datagram))
    assert caught.value.reason in codec.REJECT_REASONS
    by_member = ControlSigner(cast_id=1, tag_key=KEY, seed=bytes(32)).encode(message)
    with pytest.raises(WireError, match="bad_signature"):
        verifier_of(1).decode_untrusted(by_member)


@given(FEEDBACK, st.integers(0, 1023), st.integers(1, 2**32 - 1))
def test_feedback_survives_the_wire_and_its_tag_is_checked(
    message: FeedbackMessage, receiver_id: int, counter: int
) -> None:
    datagram = encode_feedback(message, cast_id=1, receiver_id=receiver_id, counter=counter, key=KEY)
    prefix, decoded = decode_feedback_untrusted(datagram)
    assert decoded == message
    assert (prefix.cast_id, prefix.receiver_id, prefix.counter) == (1, receiver_id, counter)
    check_feedback_mac(datagram, KEY)
    with pytest.raises(WireError, match="bad_mac"):
        check_feedback_mac(datagram, bytes(32))


def test_the_largest_nack_fits_its_limit() -> None:
    """Otherwise a receiver with many losses could never NACK them."""
    rows = next(field.kind for field in Nack.FIELDS if field.name == "deficits")
    assert isinstance(rows, Rows)
    block, _count, deficit = (column.high for _, column in rows.columns)
    nack = Nack(1, 2**32 - 1, ((block, rows.sum_max // rows.count_max, deficit),) * rows.count_max)
    datagram = encode_feedback(nack, cast_id=2**32 - 1, receiver_id=1023, counter=2**32 - 1, key=KEY)
    assert len(datagram) <= CONTROL_DATAGRAM_BYTES_MAX


def test_a_nack_of_whole_images_is_refused() -> None:
    """A hundred such rows kept the sender busy for seconds."""
    for rows in (((0, NACK_BLOCKS_MAX + 1, 1),), ((0, NACK_BLOCKS_MAX, 1), (0, 1, 1))):
        with pytest.raises(WireError, match="expected"):
            encode_feedback(Nack(1, 0, rows), cast_id=1, receiver_id=1, counter=1, key=KEY)


DECODERS = (
    decode_control_untrusted,
    decode_feedback_untrusted,
    lambda data: verifier_of(1).decode_untrusted(data),
)


@given(st.binary(max_size=1500))
def test_garbage_is_rejected_by_reason(datagram: bytes) -> None:
    for decode in DECODERS:
        with pytest.raises(WireError) as caught:
            decode(datagram)
        assert caught.value.reason in codec.REJECT_REASONS


@given(st.one_of(CONTROL, FEEDBACK), st.data())
def test_mutated_messages_raise_only_wire_errors(message: object, data: st.DataObject) -> None:
    if isinstance(message, CONTROL_MESSAGES):
        datagram = bytearray(ControlSigner(cast_id=1, tag_key=KEY, seed=SEED).encode(message))
    else:
        datagram = bytearray(encode_feedback(message, cast_id=1, receiver_id=2, counter=3, key=KEY))
    for _ in range(data.draw(st.integers(1, 4))):
        datagram[data.draw(st.integers(0, len(datagram) - 1))] = data.draw(st.integers(0, 255))
    del datagram[data.draw(st.integers(0, len(datagram))) :]
    for decode in DECODERS:
        try:
            decode(bytes(datagram))
        except WireError as error:
            assert error.reason in codec.REJECT_REASONS


def test_deep_nesting_is_refused_before_it_is_parsed() -> None:
    prefix = codec.CONTROL_PREFIX.pack(0xD15C, WIRE_VERSION, 0x12, 1, 2)
    with pytest.raises(WireError, match="nested"):
        decode_control_untrusted(prefix + bytes(TAG_BYTES) + b"\x91" * 1000)


def tagged(count: int, first_sequence: int, **columns: object) -> np.ndarray:
    """Return frames of one run with consecutive numbers, of block 0 with eight symbols unless changed."""
    frames = np.zeros((count, DATA_HEADER_BYTES + 8), np.uint8)
    batch.fill_constant_headers(frames, cast_id=5)
    headers = batch.header_view(frames)
    sequences = first_sequence + np.arange(count)
    headers["k"] = 8
    headers["sequence"] = sequences & 0xFFFFFFFF
    headers["tag"] = DataTagger(TAG_KEY).tags(sequences)
    for name, values in columns.items():
        headers[name] = values
    return frames


def filter_from(next_sequence: int) -> batch.HeaderFilter:
    return batch.HeaderFilter(cast_id=5, tag_key=TAG_KEY, next_sequence=next_sequence)


_FIXED = ("magic", "version", "type", "cast_id", "tag", "sequence")
_FREE_FIELDS = [field for field in SymbolHeader.FIELDS if field.name not in _FIXED]


@given(
    st.lists(st.fixed_dictionaries({f.name: values_of(f.kind) for f in _FREE_FIELDS}), max_size=20),
    st.integers(0, 2**40),
)
def test_symbol_headers_survive_as_columns(headers: list[dict[str, int]], first_sequence: int) -> None:
    columns = {f.name: [header[f.name] for header in headers] for f in _FREE_FIELDS}
    frames = tagged(len(headers), first_sequence, **columns)
    rejects: dict[str, int] = {}
    accepted = filter_from(first_sequence).accept_untrusted(frames, rejects)
    assert accepted.all()
    assert not rejects
    view = batch.header_view(frames)
    for index, header in enumerate(headers):
        assert {name: int(view[name][index]) for name in header} == header


@given(st.integers(0, DATA_HEADER_BYTES - 1), st.integers(1, 255))
def test_a_header_with_one_wrong_byte_is_never_mistaken(position: int, change: int) -> None:
    """Every reason is a known one, and accepted fields are in range."""
    frames = tagged(1, 77)
    frames[0, position] ^= change
    rejects: dict[str, int] = {}
    accepted = filter_from(77).accept_untrusted(frames, rejects)
    header = batch.header_view(frames)[0]
    if accepted[0]:
        assert position >= 20, "prefix, tag and number are authentic"
        assert 1 <= header["k"] <= 224
        assert header["esi"] < ESI_NONE
    else:
        assert sum(rejects.values()) == 1
        assert set(rejects) <= set(codec.REJECT_REASONS)


@given(
    st.integers(0, 2**34),
    st.lists(st.lists(st.integers(-300, 3000), max_size=40), max_size=12),
    st.integers(0, 2**16),
)
def test_every_number_is_accepted_once_in_any_order(first: int, batches: list[list[int]], jump: int) -> None:
    """The oracle is a set of Python integers; a number from before the join never counts."""
    headers = filter_from(first)
    seen: set[int] = set()
    for offset, offsets in enumerate(batches):
        numbers = np.array([first + offset * (jump % 500) + each for each in offsets], np.int64)
        numbers = numbers[numbers >= 0]
        frames = (
            np.concatenate([tagged(1, int(number)) for number in numbers]) if numbers.size else tagged(0, 0)
        )
        accepted = headers.accept_untrusted(frames, {})
        expected = []
        for number in numbers.tolist():
            expected.append(number >= first and number not in seen)
            seen.add(number)
        assert accepted.tolist() == expected


def test_recorded_and_foreign_numbers_are_refused() -> None:
    """Yesterday's cast, numbers from before the join, and those of another run."""
    headers = filter_from(2**32 - 3)
    rejects: dict[str, int] = {}
    frames = tagged(6, 2**32 - 6)
    assert headers.accept_untrusted(frames, rejects).tolist() == [False] * 3 + [True] * 3
    assert rejects == {"replayed": 3}
    assert not headers.accept_untrusted(frames, rejects).any()
    batch.header_view(frames)["sequence"] += 6
    assert not headers.accept_untrusted(frames, rejects).any(), "a tag is valid for one number"
    assert rejects == {"replayed": 9, "bad_tag": 6}


def test_numbers_forged_by_a_member_don_t_shut_out_the_senders() -> None:
    """A member has the key: one datagram with a number far ahead must not make all others look old."""
    headers = filter_from(1000)
    for far in (DATA_AHEAD_DATAGRAMS_MAX, 2**31 - 1):
        headers.accept_untrusted(tagged(1, 1000 + far), {})
        assert headers.accept_untrusted(tagged(50, 1000 + far % 1000), {}).all()


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
