"""The network endpoint of a cast, which changes when another daemon takes the cast over."""

from __future__ import annotations

import dataclasses

import trio

from protocol.control.check_in import Assignment
from protocol.model.session_records import CastId
from protocol.program.peer_trust import PeerTrust
from receiver.reception.network.sender_access import SenderAccess


@dataclasses.dataclass(frozen=True, slots=True)
class CastEndpoint:
    """The addresses at which to join a cast.

    Attributes:
        cast_id: the cast.
        control_url: URL of its sender's control API.
        access: the certificate to expect there, and the bearer that admits this machine.
        source: source address of its datagrams; empty if only the control API knows it.
        group: multicast address; empty if only the control API knows it.
        port: UDP port of the group; 0 if only the control API knows it.
        image_id: the only image to accept, as the daemon assigned it; None if no daemon did.
        version_min: lowest signed version to accept.
        patch_id: the machine patch that the daemon assigned; None if it assigned none.
    """

    cast_id: CastId
    control_url: str
    access: SenderAccess
    source: str = ""
    group: str = ""
    port: int = 0
    image_id: bytes | None = None
    version_min: int = dataclasses.field(default=0, compare=False)
    patch_id: bytes | None = dataclasses.field(default=None, compare=False)


def endpoint_of(assignment: Assignment) -> CastEndpoint:
    """Return the endpoint of the cast that a daemon has assigned."""
    return CastEndpoint(
        assignment.cast_id,
        assignment.control_url,
        SenderAccess(PeerTrust(pins=(assignment.pin,)), assignment.ticket),
        assignment.sender_address,
        assignment.group,
        assignment.port,
        assignment.image_id,
        assignment.version_min,
        assignment.patch_id,
    )


class EndpointTracker:
    """The current endpoint of a cast, updated by check-ins and awaited by the receiver.

    Attributes:
        endpoint: the latest endpoint.
    """

    def __init__(self, endpoint: CastEndpoint) -> None:
        """Start at ``endpoint``."""
        self.endpoint = endpoint
        self._changed = trio.Event()

    def update(self, endpoint: CastEndpoint) -> bool:
        """Set the endpoint; return whether it has changed, other than by a renewed bearer."""
        assert endpoint.cast_id == self.endpoint.cast_id
        changed = endpoint != self.endpoint
        self.endpoint = endpoint
        if not changed:
            return False
        self._changed.set()
        self._changed = trio.Event()
        return True

    async def wait_for_change(self, known: CastEndpoint) -> CastEndpoint:
        """Wait until the endpoint differs from ``known``, and return it."""
        while self.endpoint == known:
            await self._changed.wait()
        return self.endpoint
