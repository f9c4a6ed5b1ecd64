"""The settings of a cast, from the command line or from the daemon."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from protocol.constants import (
    CONTROL_PORT_DEFAULT,
    DATA_PORT_DEFAULT,
    GROUP_IPV4_DEFAULT,
    MULTICAST_TTL_DEFAULT,
)
from protocol.model.cast_policy import CastPolicy
from protocol.model.session_records import CastId
from sender.imaging.image_signature import ImageSignature


@dataclasses.dataclass(frozen=True, slots=True)
class CastSettings:
    """The settings of one cast.

    Attributes:
        image: path of the image file.
        interface: name of the network interface of the room.
        policy: rate, waiting and straggler rules.
        group: multicast group.
        port: UDP port of the group.
        control: endpoint of the control API, ``HOST:PORT``; without HOST, the interface's address.
        ttl: time to live of the datagrams.
        symbol_bytes: payload of a datagram; None for the largest that the interface's MTU allows.
        cast_id: None to derive it from the image and the addresses.
        encrypt: whether to encrypt every block on the network.
        signature: signature of the image; None for the one in its file.
    """

    image: Path
    interface: str
    policy: CastPolicy
    group: str = GROUP_IPV4_DEFAULT
    port: int = DATA_PORT_DEFAULT
    control: str = f":{CONTROL_PORT_DEFAULT}"
    ttl: int = MULTICAST_TTL_DEFAULT
    symbol_bytes: int | None = None
    cast_id: CastId | None = None
    encrypt: bool = False
    signature: ImageSignature | None = None
