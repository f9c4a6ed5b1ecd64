"""The negotiation of one NBD connection: options in, replies and an outcome out.

Fixed newstyle of the specification ("Fixed newstyle negotiation", "Option types"): there is one export, whose name is
also the default.
"""

from __future__ import annotations

import dataclasses
import enum

from sender.export import nbd_protocol as nbd
from sender.export.nbd_protocol import (
    HandshakeFlag,
    Info,
    NbdError,
    NbdOption,
    OptionError,
    OptionReply,
    TransmissionFlag,
)

FLAGS = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.READ_ONLY
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_DF
    | TransmissionFlag.CAN_MULTI_CONN
    | TransmissionFlag.SEND_CACHE
)
"""Flush and cache do nothing, and spare clients a special case."""


class NegotiationState(enum.Enum):
    """The progress of a negotiation."""

    OPTIONS = enum.auto()
    """The client sends options."""
    TRANSMISSION = enum.auto()
    """The client sends requests from now on."""
    ENDED = enum.auto()
    """The client ended the connection."""


@dataclasses.dataclass(frozen=True, slots=True)
class Export:
    """The one export of a server."""

    name: str
    description: str
    size_bytes: int
    preferred_bytes: int
    """Length of reads that cost no more than they must: the image's block."""


class Negotiation:
    """The negotiation of one connection.

    Attributes:
        state: the progress.
        structured_replies: whether the client accepts structured replies.
        allocation_selected: whether the client selected ``base:allocation``.
    """

    def __init__(self, export: Export, flags: HandshakeFlag) -> None:
        """Args:
        export: the export.
        flags: the client's answer to the greeting.
        """
        self._export = export
        self._padded = not flags & HandshakeFlag.NO_ZEROES
        self._options_left = nbd.OPTIONS_MAX
        self.state = NegotiationState.OPTIONS
        self.structured_replies = False
        self.allocation_selected = False

    def receive_option_untrusted(self, option: int, data: bytes) -> bytes:
        """Process one option and return the replies.

        Raises:
            NbdError: the connection can't continue.
        """
        self._options_left -= 1
        if not self._options_left:
            raise NbdError(f"the client sent {nbd.OPTIONS_MAX} options without starting")
        try:
            match option:
                case NbdOption.EXPORT_NAME:
                    return self._export_name(data)
                case NbdOption.ABORT:
                    self.state = NegotiationState.ENDED
                    return nbd.build_option_reply(option, OptionReply.ACK)
                case NbdOption.LIST:
                    return self._list(data)
                case NbdOption.INFO | NbdOption.GO:
                    return self._info(option, data)
                case NbdOption.STRUCTURED_REPLY:
                    return self._structured_reply(data)
                case NbdOption.LIST_META_CONTEXT | NbdOption.SET_META_CONTEXT:
                    return self._contexts(option, data)
        except OptionError as error:
            return self.reject(option, OptionReply.ERROR_INVALID, str(error))
        return self.reject(option, OptionReply.ERROR_UNSUPPORTED, "the option isn't supported")

    def reject(self, option: int, kind: OptionReply, message: str) -> bytes:
        """Return an error reply.

        Raises:
            NbdError: EXPORT_NAME has no error reply: the connection ends.
        """
        if option == NbdOption.EXPORT_NAME:
            raise NbdError(message)
        return nbd.build_option_reply(option, kind, message.encode())

    def _has_export(self, name: str) -> bool:
        return name in ("", self._export.name)

    def _export_name(self, data: bytes) -> bytes:
        if not self._has_export(nbd.decode_name_untrusted(data)):
            raise NbdError("the client asked for an unknown export")
        self.state = NegotiationState.TRANSMISSION
        return nbd.build_export_name_reply(self._export.size_bytes, FLAGS, padded=self._padded)

    def _list(self, data: bytes) -> bytes:
        if data:
            raise OptionError("LIST has no data")
        entry = nbd.build_server_entry(self._export.name)
        return nbd.build_option_reply(NbdOption.LIST, OptionReply.SERVER, entry) + nbd.build_option_reply(
            NbdOption.LIST, OptionReply.ACK
        )

    def _info(self, option: int, data: bytes) -> bytes:
        query = nbd.parse_info_query_untrusted(data)
        if not self._has_export(query.name):
            return self.reject(option, OptionReply.ERROR_UNKNOWN, "there is no such export")
        export = self._export
        infos = [
            nbd.build_export_info(export.size_bytes, FLAGS),
            # Also unasked: the specification allows it, and the limit of a read holds for all clients.
            nbd.build_block_size_info(export.preferred_bytes),
        ]
        if Info.NAME in query.infos:
            infos.append(nbd.build_text_info(Info.NAME, export.name))
        if Info.DESCRIPTION in query.infos:
            infos.append(nbd.build_text_info(Info.DESCRIPTION, export.description))
        if option == NbdOption.GO:
            self.state = NegotiationState.TRANSMISSION
        replies = [nbd.build_option_reply(option, OptionReply.INFO, info) for info in infos]
        return b"".join(replies) + nbd.build_option_reply(option, OptionReply.ACK)

    def _structured_reply(self, data: bytes) -> bytes:
        if data:
            raise OptionError("STRUCTURED_REPLY has no data")
        self.structured_replies = True
        return nbd.build_option_reply(NbdOption.STRUCTURED_REPLY, OptionReply.ACK)

    def _contexts(self, option: int, data: bytes) -> bytes:
        selects = option == NbdOption.SET_META_CONTEXT
        if selects:
            self.allocation_selected = False  # a new selection replaces the last one, also if it fails
        if not self.structured_replies:
            raise OptionError("metadata contexts need structured replies")
        query = nbd.parse_context_query_untrusted(data)
        if not self._has_export(query.name):
            return self.reject(option, OptionReply.ERROR_UNKNOWN, "there is no such export")
        found = nbd.ALLOCATION_CONTEXT in query.queries
        if not selects:  # only a list has wildcards
            found = found or not query.queries or "base:" in query.queries
        self.allocation_selected = self.allocation_selected or (selects and found)
        replies = b""
        if found:
            context = nbd.build_meta_context(nbd.ALLOCATION_CONTEXT_ID, nbd.ALLOCATION_CONTEXT)
            replies = nbd.build_option_reply(option, OptionReply.META_CONTEXT, context)
        return replies + nbd.build_option_reply(option, OptionReply.ACK)
