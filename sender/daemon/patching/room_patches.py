"""The machine patches of one cast, held until it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from protocol.constants import MIB
from protocol.errors import ConfigurationError, JoinRefusedError
from protocol.model.session_records import JoinRequest
from sender.blocking_calls import start_blocking_call
from sender.daemon.patching.patch_sources import PatchSource
from sender.store.records.machines import Machine
from sender.store.store import Store

PATCHES_BYTES_MAX: Final = 64 * MIB
"""All patches of one cast, held in memory: 64 KiB for each of a thousand machines, and a usual one has 2 KiB."""

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class MachineOutcome:
    """The patch of one machine, or the reason why it has none.

    Attributes:
        patch_id: id of its patch; None for the image alone.
        problem: reason why no patch could be made, for people; empty without one.
    """

    patch_id: bytes | None = None
    problem: str = ""


class RoomPatches:
    """The patches of one cast's machines. Not thread-safe: use it on the event loop.

    Equal inputs give equal patches, so that another daemon continues a cast with the same ones.
    """

    def __init__(self, store: Store, source: PatchSource) -> None:
        """Prepare; :meth:`build` builds.

        Args:
            store: has machines and variables.
            source: makes or has the patches.
        """
        self._store = store
        self._source = source
        self._outcomes: dict[str, MachineOutcome] = {}
        self._patches: dict[bytes, bytes] = {}
        self._held_bytes = 0
        self._building = asyncio.Lock()

    async def build(self, machine_ids: Sequence[str]) -> None:
        """Build the patches of machines that have none yet, in a thread; a machine's problem affects no other one.

        Raises:
            DatabaseError: the machines can't be read.
        """
        async with self._building:
            wanted = [machine_id for machine_id in machine_ids if machine_id not in self._outcomes]
            if not wanted:
                return
            started_s = time.monotonic()
            store = self._store
            machines = await store.run(store.machines.get_many, wanted)
            known = await store.run(store.patch_inputs.variables, wanted)
            variables = {machine_id: one.variables for machine_id, one in known.items()}
            outcomes = await start_blocking_call(lambda: self._built(machines, variables), "patches")
            gone = MachineOutcome(problem="the machine was removed: add it again, then cast again")
            self._outcomes |= dict.fromkeys(wanted, gone) | outcomes
            problem_count = sum(bool(outcome.problem) for outcome in outcomes.values())
            seconds = round(time.monotonic() - started_s, 3)
            _log.info("patches_built", machines=len(machines), problems=problem_count, seconds=seconds)

    def outcome_of(self, machine_id: str) -> MachineOutcome | None:
        """Return the outcome for a machine; None if its patch hasn't been built yet."""
        return self._outcomes.get(machine_id)

    def problems(self) -> dict[str, str]:
        """Return the problems of machines without a patch, by machine."""
        return {key: outcome.problem for key, outcome in self._outcomes.items() if outcome.problem}

    async def find(self, request: JoinRequest) -> bytes | None:
        """Return the patch of the machine whose ticket the receiver has, also of one that came to the room later.

        Raises:
            JoinRefusedError: none can be made: the machine would become a clone of the golden image.
        """
        machine_id = request.machine_id
        if machine_id is None:
            raise JoinRefusedError(
                f"{request.name} has no ticket of a machine, so it gets no machine patch: enrol it"
            )
        await self.build([machine_id])
        outcome = self._outcomes[machine_id]
        if outcome.problem:
            raise JoinRefusedError(f"no machine patch for {request.name}: {outcome.problem}")
        return outcome.patch_id

    async def read(self, patch_id: bytes) -> bytes:
        """Return a patch."""
        return self._patches[patch_id]

    async def signed_set(self) -> bytes:
        """Return the signed set; nothing for patches of the daemon's own."""
        return self._source.set_file

    # -- in a thread, one at a time -------------------------------------------------------------------------------

    def _built(
        self, machines: Sequence[Machine], variables: Mapping[str, Mapping[str, str]]
    ) -> dict[str, MachineOutcome]:
        return {
            machine.machine_id: self._outcome(machine, variables.get(machine.machine_id, {}))
            for machine in machines
        }

    def _outcome(self, machine: Machine, variables: Mapping[str, str]) -> MachineOutcome:
        try:
            patch = self._source.patch_of(machine, variables)
        except ConfigurationError as error:
            return MachineOutcome(problem=str(error))
        if patch is None:
            return MachineOutcome()
        if self._held_bytes + len(patch.data) > PATCHES_BYTES_MAX:
            return MachineOutcome(
                problem=f"the patches of this cast have more than {PATCHES_BYTES_MAX >> 20} MiB: put large files into "
                "the image, or cast to fewer machines at once"
            )
        self._held_bytes += len(patch.data)
        self._patches[patch.patch_id] = patch.data
        return MachineOutcome(patch.patch_id)
