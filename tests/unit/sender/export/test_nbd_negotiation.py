"""The negotiation of an NBD connection, option by option."""

import struct

import pytest

from sender.export.nbd_negotiation import Negotiation, NegotiationState
from sender.export.nbd_protocol import (
    NAME_BYTES_MAX,
    OPTION_BYTES_MAX,
    OPTIONS_MAX,
    HandshakeFlag,
    NbdError,
    NbdOption,
    OptionReply,
    parse_client_flags_untrusted,
)
from tests.fuzz.export_targets import EXPORT, context_query, info_query

FIXED = HandshakeFlag.FIXED_NEWSTYLE


def replies(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        magic, _, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x3E889045565A9
        found.append((kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def kinds(data: bytes) -> list[int]:
    return [kind for kind, _ in replies(data)]


def test_export_name_ends_the_negotiation_without_a_reply_header() -> None:
    for flags, padding in ((FIXED, 124), (FIXED | HandshakeFlag.NO_ZEROES, 0)):
        negotiation = Negotiation(EXPORT, flags)
        reply = negotiation.receive_option_untrusted(NbdOption.EXPORT_NAME, b"golden")
        size_bytes, transmission_flags = struct.unpack_from(">QH", reply)
        assert (size_bytes, len(reply)) == (EXPORT.size_bytes, 10 + padding)
        assert transmission_flags & 3 == 3  # flags are valid; read-only
        assert negotiation.state is NegotiationState.TRANSMISSION


def test_unknown_export_is_refused_and_another_may_be_asked_for() -> None:
    negotiation = Negotiation(EXPORT, FIXED)
    for option in (NbdOption.INFO, NbdOption.GO):
        reply = negotiation.receive_option_untrusted(option, info_query("other"))
        assert kinds(reply) == [OptionReply.ERROR_UNKNOWN]
    assert negotiation.state is NegotiationState.OPTIONS
    with pytest.raises(NbdError, match="unknown export"):  # EXPORT_NAME has no error reply
        negotiation.receive_option_untrusted(NbdOption.EXPORT_NAME, b"other")


def test_metadata_context_needs_structured_replies_and_the_last_selection_counts() -> None:
    negotiation = Negotiation(EXPORT, FIXED)
    select = context_query("", "base:allocation")
    assert kinds(negotiation.receive_option_untrusted(NbdOption.SET_META_CONTEXT, select)) == [
        OptionReply.ERROR_INVALID
    ]
    negotiation.receive_option_untrusted(NbdOption.STRUCTURED_REPLY, b"")
    assert kinds(negotiation.receive_option_untrusted(NbdOption.SET_META_CONTEXT, select)) == [
        OptionReply.META_CONTEXT,
        OptionReply.ACK,
    ]
    assert negotiation.allocation_selected
    # "base:" lists all contexts of the namespace, and selects none.
    wildcard = context_query("", "base:")
    assert OptionReply.META_CONTEXT in kinds(
        negotiation.receive_option_untrusted(NbdOption.LIST_META_CONTEXT, wildcard)
    )
    assert negotiation.allocation_selected
    negotiation.receive_option_untrusted(NbdOption.SET_META_CONTEXT, wildcard)
    assert not negotiation.allocation_selected


@pytest.mark.parametrize(
    ("option", "data"),
    [
        (NbdOption.LIST, b"x"),
        (NbdOption.STRUCTURED_REPLY, b"x"),
        (NbdOption.GO, info_query("golden")[:-1]),
        (NbdOption.GO, info_query("golden") + b"x"),
        (NbdOption.GO, struct.pack(">I", NAME_BYTES_MAX + 1) + bytes(OPTION_BYTES_MAX)),
        (NbdOption.GO, struct.pack(">I", 2) + b"\xff\xff\0\0"),
        (NbdOption.INFO, info_query("golden")[:-2] + struct.pack(">H", 9)),
    ],
)
def test_invalid_data_is_an_error_reply(option: NbdOption, data: bytes) -> None:
    negotiation = Negotiation(EXPORT, FIXED)
    assert kinds(negotiation.receive_option_untrusted(option, data)) == [OptionReply.ERROR_INVALID]
    assert negotiation.state is NegotiationState.OPTIONS


def test_endless_negotiation_ends() -> None:
    negotiation = Negotiation(EXPORT, FIXED)
    for _ in range(OPTIONS_MAX - 1):
        assert kinds(negotiation.receive_option_untrusted(77, b"")) == [OptionReply.ERROR_UNSUPPORTED]
    with pytest.raises(NbdError, match="without starting"):
        negotiation.receive_option_untrusted(77, b"")


def test_client_of_the_old_negotiation_is_refused() -> None:
    for flags in (0, 2, 4 | 1):
        with pytest.raises(NbdError):
            parse_client_flags_untrusted(struct.pack(">I", flags))
