"""The receivers of a cast: joins, rejoins and the recognition of returning machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from protocol.constants import RECEIVER_COUNT_MAX, RECEIVER_KEY_BYTES
from protocol.errors import JoinRefusedError
from protocol.model.session_records import JoinRequest, ReceiverId
from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.transitions import RECEIVER_TRANSITIONS, ReceiverTrigger


class Roster:
    """Records of receivers by id, by agent and by machine.

    Attributes:
        records: all receivers that ever joined.
        active_count: receivers that the cast still serves.
    """

    def __init__(self, secrets: Callable[[int], bytes]) -> None:
        """Start empty; ``secrets`` returns unpredictable bytes for the receivers' keys."""
        self.records: dict[ReceiverId, ReceiverRecord] = {}
        self._secrets = secrets
        self._by_agent: dict[str, ReceiverRecord] = {}
        self._by_machine: dict[tuple[str, str], list[ReceiverRecord]] = {}
        self._names: set[str] = set()
        self.active_count = 0

    @property
    def active(self) -> Iterator[ReceiverRecord]:
        """Return the receivers that the cast still serves."""
        return (record for record in self.records.values() if record.state.active)

    def admit(self, request: JoinRequest, now: float) -> tuple[ReceiverRecord, bool]:
        """Return a new record, or the earlier one of the same run of the agent or of a restarted machine.

        Returns:
            The record in state JOINED with a fresh key, and whether it is an earlier one.

        Raises:
            JoinRefusedError: the cast is full.
        """
        record = self._earlier(request)
        rejoined = record is not None
        if record is None:
            record = self._enter(request, now)
        else:
            del self._by_agent[record.agent_id]
            record.agent_id = request.agent_id
            record.inventory = request.inventory
            record.identity = request.identity
            record.forget_counts()
        self._by_agent[record.agent_id] = record
        record.key = self._secrets(RECEIVER_KEY_BYTES)
        self.advance(record, ReceiverTrigger.JOINED)
        record.heard_at = now
        record.ready = False
        record.finished_at = None
        record.error = ""
        return record, rejoined

    def advance(self, record: ReceiverRecord, trigger: ReceiverTrigger) -> bool:
        """Take a step of the transition table; return False, and stay, if the state has none for ``trigger``."""
        state = RECEIVER_TRANSITIONS[record.state].get(trigger)
        if state is None:
            return False
        self.active_count += state.active - record.state.active
        record.state = state
        return True

    def _earlier(self, request: JoinRequest) -> ReceiverRecord | None:
        same_run = self._by_agent.get(request.agent_id)
        if same_run is not None:
            return same_run
        same_machine = self._by_machine.get((request.name, request.address), [])
        return next((record for record in same_machine if record.state.reclaimable), None)

    def _enter(self, request: JoinRequest, now: float) -> ReceiverRecord:
        if len(self.records) >= RECEIVER_COUNT_MAX:
            raise JoinRefusedError(
                f"the cast is full: {RECEIVER_COUNT_MAX} receivers; image this machine in another cast"
            )
        record = ReceiverRecord(
            receiver_id=ReceiverId(len(self.records)),
            agent_id=request.agent_id,
            name=self._unique_name(request.name),
            address=request.address,
            inventory=request.inventory,
            identity=request.identity,
            key=b"",
            joined_at=now,
            heard_at=now,
        )
        self.active_count += record.state.active
        self.records[record.receiver_id] = record
        self._by_machine.setdefault((request.name, request.address), []).append(record)
        self._names.add(record.name)
        return record

    def _unique_name(self, name: str) -> str:
        if name not in self._names:
            return name
        return next(
            f"{name}-{n}" for n in range(2, RECEIVER_COUNT_MAX + 2) if f"{name}-{n}" not in self._names
        )
