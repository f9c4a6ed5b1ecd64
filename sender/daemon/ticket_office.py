"""Tickets for machines, issued at their check-ins for any cast of the database's daemons."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from typing import Final

from protocol.model.session_records import CastId
from protocol.trust.tickets import JOIN_KEY_BYTES, TICKET_S, Ticket, issue_ticket
from sender.store.store import Store

_KEYS_MAX: Final = 1024
"""Join keys in memory: more casts than can be unfinished at the same time."""


class TicketOffice:
    """The join keys of casts. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: OrderedDict[str, bytes] = OrderedDict()

    async def join_key(self, cast_id: str) -> bytes:
        """Return the key of a cast's tickets, read once.

        Raises:
            DatabaseError: it isn't known yet and the database is unavailable.
        """
        key = self._keys.get(cast_id)
        if key is None:
            fresh = secrets.token_bytes(JOIN_KEY_BYTES)
            key = await self._store.run(self._store.casts.join_key, cast_id, fresh)
            self._keys[cast_id] = key
            while len(self._keys) > _KEYS_MAX:
                self._keys.popitem(last=False)
        self._keys.move_to_end(cast_id)
        return key

    async def issue(self, cast_id: str, machine_id: str) -> str:
        """Return a ticket for a machine that is assigned to a cast.

        Raises:
            DatabaseError: as :meth:`join_key`.
        """
        key = await self.join_key(cast_id)
        expires_at = int(time.time()) + TICKET_S
        return issue_ticket(key, Ticket(CastId(int(cast_id, 16)), machine_id, expires_at))
