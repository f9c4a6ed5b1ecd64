"""Options of a reception, as the commands pass them on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from protocol.model.session_records import MachineIdentity
from receiver.reception.network.discovery import CastChoice
from receiver.reception.network.sender_access import SenderAccess
from receiver.target.options import TargetOptions
from receiver.trust.image_gate import ImageGate


@dataclasses.dataclass(frozen=True, slots=True)
class CastReceiverOptions:
    """Options of a :class:`receiver.reception.cast_receiver.CastReceiver`."""

    name: str
    inventory: Mapping[str, str]
    assembly_bytes: int
    join_timeout_s: float
    sender_timeout_s: float
    injected_loss: float = 0.0
    """Share of arriving datagrams to drop, 0..1."""
    injected_loss_seed: int = 0
    identity: MachineIdentity | None = None
    """Identity to match against a daemon's list of machines; None if the inventory already names the machine."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiveOptions:
    """Options that are the same for every cast."""

    target: str
    target_options: TargetOptions
    interface: str
    receiver: CastReceiverOptions
    gate: ImageGate


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiveRequest:
    """An operator's request: the options, and the cast to look for."""

    options: ReceiveOptions
    access: SenderAccess
    sender_url: str | None
    group: str
    port: int
    choice: CastChoice
    wait_s: float
