"""Interfaces between a cast's receiver and its sender: the control API, the data socket, the feedback socket."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.control.control_messages import CastDescription
from protocol.model.session_records import CastId, CastParameters, CompletionReport, JoinGrant, JoinRequest
from protocol.receiving.manifest_reception import ManifestStore
from receiver.reception.network.data_socket import SocketMemory
from receiver.reception.network.recvmmsg import DatagramBatch, SlabCounters


class ControlPort(Protocol):
    """The part of :class:`receiver.reception.network.control_client.ControlClient` that a receiver uses."""

    async def cast(self, cast_id: CastId) -> CastDescription:
        """Describe the cast."""

    async def join(self, cast_id: CastId, request: JoinRequest) -> JoinGrant:
        """Join."""

    async def set_need(self, grant: JoinGrant, need: NDArray[np.bool_], heard_sequence: int | None) -> None:
        """Report the blocks that the target needs."""

    async def complete(self, grant: JoinGrant, report: CompletionReport) -> None:
        """Report the end of the reception."""

    async def block(self, grant: JoinGrant, block: int, cast_bytes: int) -> memoryview:
        """Fetch an image block as cast."""

    async def patch(self, grant: JoinGrant) -> bytes:
        """Fetch this machine's patch."""

    async def patch_set(self, grant: JoinGrant) -> bytes:
        """Fetch the signed set of the patches."""

    async def manifest(self, cast_id: CastId, into: ManifestStore) -> None:
        """Fetch the manifest."""


class DataPort(Protocol):
    """The part of :class:`receiver.reception.network.data_socket.DataSocket` that a receiver uses."""

    poll_interval_max_s: float

    @property
    def counters(self) -> SlabCounters:
        """Counters of datagrams that were dropped before they reached a batch."""

    def receive_batch(self) -> DatagramBatch | None:
        """Return the waiting datagrams, up to one batch; None if there are none."""

    async def wait_readable(self) -> None:
        """Wait until a datagram is in the queue."""

    def memory(self) -> SocketMemory:
        """Return the queue's fill and drop count."""

    def require_mtu(self) -> None:
        """Raise :class:`InterfaceError` if the interface can't carry the cast's datagrams."""

    def accept_any_source(self) -> None:
        """Stop filtering by the sender's address."""

    def close(self) -> None:
        """Leave the group."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastLink:
    """Connections to a cast's sender.

    Attributes:
        control: the sender's control API.
        open_data: joins the group; takes the length of a data datagram.
        send_feedback: unicasts a datagram to the cast's sender; never waits, never raises.
    """

    control: ControlPort
    open_data: Callable[[int], DataPort]
    send_feedback: Callable[[CastParameters, bytes], None]
