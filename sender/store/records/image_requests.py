"""Requests of machines to be imaged."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from protocol.control.image_requests import RequestState


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRequest:
    """The last request of a machine.

    Attributes:
        machine_id: id of the machine.
        machine_name: name of the machine.
        room_id: room of the machine.
        code: code that the machine shows.
        image_id: id of the image.
        image_name: name of the image at the time of the request.
        disk: disk that the technician at the machine confirmed.
        address: network address of the machine.
        asked_at: time of the request.
        state: waiting, approved, declined or expired.
        cast_id: cast of an approved request; empty without one.
        decided_by: operator who approved or declined it.
    """

    machine_id: str
    machine_name: str
    room_id: str | None
    code: str
    image_id: str
    image_name: str
    disk: str
    address: str
    asked_at: datetime
    state: RequestState
    cast_id: str
    decided_by: str
