"""The receivers of a cast: joins, rejoins and the recognition of returning machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from protocol.constants import RECEIVER_COUNT_MAX, RECEIVER_KEY_BYTES, REPORT_INTERVAL_S
from protocol.errors import JoinRefusedError
from protocol.model.session_records import JoinRequest, ReceiverId
from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.transitions import RECEIVER_TRANSITIONS, ReceiverTrigger

_REPORTS_MISSED = 3
_RESTART_S_MIN = 0.5
"""An agent that is started again needs this long to join; one that still runs reports five times meanwhile."""


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
        self._by_proof: dict[tuple[str, str], ReceiverRecord] = {}
        self._by_machine: dict[tuple[str, str], list[ReceiverRecord]] = {}
        self._machine_of: dict[ReceiverId, tuple[str, str]] = {}
        self._names: set[str] = set()
        self.active_count = 0

    @property
    def active(self) -> Iterator[ReceiverRecord]:
        """Return the receivers that the cast still serves."""
        return (record for record in self.records.values() if record.state.active)

    def admit(
        self,
        request: JoinRequest,
        now: float,
        address_count_max: int | None = None,
        *,
        report_interval_s: float = REPORT_INTERVAL_S,
    ) -> tuple[ReceiverRecord, bool]:
        """Return a new record, or the earlier one of the same ticket's machine, agent's run or restarted machine.

        In a cast with a limit for each address, a new receiver takes the place of one that isn't ready if there is no
        other left: an invention never becomes ready, a machine within seconds.

        Args:
            request: the request to join.
            now: monotonic seconds.
            address_count_max: most receivers at one address; None for no limit.
            report_interval_s: time between two reports of one receiver.

        Returns:
            The record in state JOINED with a fresh key, and whether it is an earlier one.

        Raises:
            JoinRefusedError: the cast is full, or the address has too many receivers.
        """
        record = self._earlier(request, now - max(_RESTART_S_MIN, _REPORTS_MISSED * report_interval_s))
        rejoined = record is not None
        if record is None and address_count_max is not None:
            record = self._evict_unready(request, address_count_max)
        if record is None:
            record = self._enter(request, now)
        else:
            self._by_proof.pop(_proof(record), None)
            record.agent_id = request.agent_id
            record.inventory = request.inventory
            record.identity = request.identity
            record.forget_counts()
        self._by_proof[_proof(record)] = record
        record.key = self._secrets(RECEIVER_KEY_BYTES)
        self.advance(record, ReceiverTrigger.JOINED)
        record.heard_at = now
        record.unserved_s = 0.0
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

    def _earlier(self, request: JoinRequest, silent_since: float) -> ReceiverRecord | None:
        proved = self._by_proof.get(_proof(request))
        if proved is not None or request.machine_id is not None:
            return proved
        same_machine = self._by_machine.get((request.name, request.address), [])
        return next(
            (
                record
                for record in same_machine
                if record.state.reclaimable
                or (
                    record.state.active and record.heard_at < silent_since and _same_hardware(record, request)
                )
            ),
            None,
        )

    def _evict_unready(self, request: JoinRequest, address_count_max: int) -> ReceiverRecord | None:
        """Return the record whose place a new receiver takes; None if there is room for a new one.

        Raises:
            JoinRefusedError: all receivers of its address are ready, or all of a full cast.
        """
        neighbours = [record for record in self.records.values() if record.address == request.address]
        if len(neighbours) >= address_count_max:
            rivals = neighbours
        elif len(self.records) >= RECEIVER_COUNT_MAX:
            rivals = list(self.records.values())
        else:
            return None
        unready = [
            record
            for record in rivals
            if not record.ready and (record.state.active or record.state.reclaimable)
        ]
        if not unready:
            raise JoinRefusedError(
                f"{address_count_max} receivers at {request.address} have joined this open cast already, or it is "
                "full: give machines the join code of a cast without --open"
            )
        record = min(unready, key=lambda record: record.heard_at)
        self._by_machine[self._machine_of[record.receiver_id]].remove(record)
        self._names.discard(record.name)
        record.name, record.address = self._unique_name(request.name), request.address
        self._names.add(record.name)
        self._index(record, request)
        return record

    def _index(self, record: ReceiverRecord, request: JoinRequest) -> None:
        machine = (request.name, request.address)
        self._machine_of[record.receiver_id] = machine
        self._by_machine.setdefault(machine, []).append(record)

    def _enter(self, request: JoinRequest, now: float) -> ReceiverRecord:
        if len(self.records) >= RECEIVER_COUNT_MAX:
            raise JoinRefusedError(
                f"the cast is full: {RECEIVER_COUNT_MAX} receivers; image this machine in another cast"
            )
        record = ReceiverRecord(
            receiver_id=ReceiverId(len(self.records)),
            agent_id=request.agent_id,
            machine_id=request.machine_id,
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
        self._index(record, request)
        self._names.add(record.name)
        return record

    def _unique_name(self, name: str) -> str:
        if name not in self._names:
            return name
        return next(
            f"{name}-{n}" for n in range(2, RECEIVER_COUNT_MAX + 2) if f"{name}-{n}" not in self._names
        )


def _proof(one: JoinRequest | ReceiverRecord) -> tuple[str, str]:
    """Return the proof of a receiver's identity: its ticket's machine, or else the random id of its agent's run.

    A member of a daemon's cast that learns an agent id can take over nobody's place with it.
    """
    return ("agent", one.agent_id) if one.machine_id is None else ("machine", one.machine_id)


def _same_hardware(record: ReceiverRecord, request: JoinRequest) -> bool:
    """Return whether both name the same hardware; a machine that names none is like no other."""
    first, second = record.identity, request.identity
    return first is not None and first == second and bool(first.macs or first.serial)
