"""Requests of machines to be imaged: one for each machine, decided once, each step with its audit entry."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from protocol.control.image_requests import RequestState
from sender.store.database import tables
from sender.store.database.errors import ConflictError
from sender.store.machines.claims import new_approval_code
from sender.store.records.image_requests import ImageRequest
from sender.store.repositories.audit import AuditedRepository, AuditNote
from sender.store.repositories.transactions import reading, writing

REQUEST_LIFETIME: Final = timedelta(minutes=30)
"""Time for a decision: a request that nobody saw must not start a cast on the next day."""

REQUEST_INTERVAL: Final = timedelta(seconds=5)
"""Shortest interval between two requests of one machine: each has an audit entry."""

WAITING_MAX: Final = 256
"""Requests that wait: many more than there are technicians."""

_REQUEST = tables.image_requests.c
_MACHINE = tables.machines.c
_ROOM = tables.rooms.c
_DECISIONS: Final = {
    RequestState.APPROVED: "machine.approve_request",
    RequestState.DECLINED: "machine.decline_request",
}


class ImageRequests(AuditedRepository):
    """Repository of requests."""

    @writing
    def ask(
        self, machine_id: str, *, image_id: str, image_name: str, disk: str, address: str
    ) -> ImageRequest | None:
        """Record a request in place of the machine's earlier one; return None if the machine doesn't exist.

        Raises:
            ConflictError: the machine has just made another request, too many machines wait, or the room has no menu.
        """
        now = self._now()
        before = self._get(machine_id)
        if before is not None and now - before.asked_at < REQUEST_INTERVAL:
            raise ConflictError(
                f"this machine made another request less than {REQUEST_INTERVAL.total_seconds():g} s ago: wait a moment"
            )
        if len(self._waiting(now)) >= WAITING_MAX:
            raise ConflictError(f"{WAITING_MAX} machines wait for an operator already: try again later")
        query = sa.select(_MACHINE.name, _ROOM.room_id, _ROOM.boot_menu).select_from(tables.machines)
        query = query.outerjoin(tables.rooms, _ROOM.room_id == _MACHINE.room_id)
        machine = self._connection.execute(query.where(_MACHINE.machine_id == machine_id)).one_or_none()
        if machine is None:
            return None
        if machine.boot_menu is False:
            raise ConflictError(
                f"room {machine.room_id!r} doesn't let its machines request an image: an operator can cast to "
                f"{machine.name}, or change the room's menu at boot"
            )
        values: dict[str, Any] = {
            "code": new_approval_code(),
            "image_id": image_id,
            "image_name": image_name,
            "disk": disk,
            "address": address,
            "asked_at": now,
            "state": RequestState.WAITING.value,
            "cast_id": "",
            "decided_by": "",
        }
        insert = self._database.insert(tables.image_requests).values(machine_id=machine_id, **values)
        self._connection.execute(insert.on_conflict_do_update(index_elements=["machine_id"], set_=values))
        detail = {"image": image_name, "image_id": image_id, "disk": disk, "address": address}
        self._audit.note(
            AuditNote(f"machine {machine.name}"), "machine.request_image", f"machine {machine_id}", detail
        )
        return self._get(machine_id)

    @reading
    def get(self, machine_id: str) -> ImageRequest | None:
        """Return a machine's last request, or None."""
        return self._get(machine_id)

    @reading
    def waiting(self) -> builtins.list[ImageRequest]:
        """Return the requests that wait for a decision, the oldest first."""
        return self._waiting(self._now())

    @writing
    def decide(
        self, machine_id: str, code: str, state: RequestState, *, audit: AuditNote
    ) -> ImageRequest | None:
        """Approve or decline the request with ``code``, once; return None if the machine has no request.

        Raises:
            ConflictError: the request was decided, has expired, or has another code.
        """
        request = self._get(machine_id)
        if request is None:
            return None
        if request.code != code.strip().upper():
            raise ConflictError(
                f"{request.machine_name} shows another code: look at its screen, and decline the request if it shows "
                "none"
            )
        if request.state is not RequestState.WAITING:
            by = f" by {request.decided_by}" if request.decided_by else ""
            raise ConflictError(
                f"the request of {request.machine_name} was {request.state.value}{by} already"
            )
        # The state is compared again: another daemon may decide at the same time.
        query = sa.update(tables.image_requests).where(
            _REQUEST.machine_id == machine_id,
            _REQUEST.code == request.code,
            _REQUEST.state == RequestState.WAITING,
        )
        if self._connection.execute(query.values(state=state.value, decided_by=audit.actor)).rowcount != 1:
            raise ConflictError(f"the request of {request.machine_name} was decided at this moment")
        detail = {"name": request.machine_name, "image": request.image_name, "disk": request.disk}
        self._audit.note(audit, _DECISIONS[state], f"machine {machine_id}", detail)
        return self._get(machine_id)

    @writing
    def settle(self, machine_id: str, code: str, cast_id: str) -> None:
        """Record the cast of an approved request; an empty id lets the request wait again, since there is none."""
        values: dict[str, Any] = {"cast_id": cast_id}
        if not cast_id:
            values |= {"state": RequestState.WAITING.value, "decided_by": ""}
        query = sa.update(tables.image_requests).where(
            _REQUEST.machine_id == machine_id, _REQUEST.code == code
        )
        self._connection.execute(query.values(**values))

    def _get(self, machine_id: str) -> ImageRequest | None:
        found = self._read(_REQUEST.machine_id == machine_id)
        return found[0] if found else None

    def _waiting(self, now: datetime) -> builtins.list[ImageRequest]:
        return self._read(
            _REQUEST.state == RequestState.WAITING.value, _REQUEST.asked_at > now - REQUEST_LIFETIME
        )

    def _read(self, *conditions: sa.ColumnElement[bool]) -> builtins.list[ImageRequest]:
        query = (
            sa.select(tables.image_requests, _MACHINE.name.label("machine_name"), _MACHINE.room_id)
            .join(tables.machines, _MACHINE.machine_id == _REQUEST.machine_id)
            .where(*conditions)
            .order_by(_REQUEST.asked_at, _REQUEST.machine_id)
        )
        rows: Sequence[sa.RowMapping] = self._connection.execute(query).mappings().all()
        oldest = self._now() - REQUEST_LIFETIME
        return [_request(row, oldest) for row in rows]


def _request(row: sa.RowMapping, oldest: datetime) -> ImageRequest:
    state = RequestState(row["state"])
    if state is RequestState.WAITING and row["asked_at"] <= oldest:
        state = RequestState.EXPIRED
    return ImageRequest(**{**row, "state": state})
