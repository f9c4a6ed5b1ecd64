"""Simulate a room of machines in one process: ``python -m tests.load.machines API_URL COUNT SEED LOG``.

Each machine checks in with the real API, holds its long poll, joins the cast, reports the blocks it needs, sends its
own REPORTs and NACKs, and reports its completion. One real receiver session listens to the group for all machines. A
machine has the blocks of that session, except those that it alone lost, requests and waits for. So the sender gets the
messages of a whole room, and two cores are enough to simulate it.

At the end of the cast, LOG has each machine's reported progress with its times.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import json
import os
import random
import socket
import sys
import time
from pathlib import Path

import numpy as np

from protocol.constants import CHECK_IN_WAIT_S_MAX, DATA_HEADER_BYTES, MIB
from protocol.control.check_in import (
    CHECK_IN,
    CHECK_IN_ANSWER,
    CHECK_IN_PATH,
    AgentState,
    Assignment,
    CheckIn,
    CheckInAnswer,
    outcome_of,
)
from protocol.control.control_messages import (
    API_BASE,
    COMPLETION,
    JsonObject,
    encode_need,
    grant_from_json_untrusted,
    join_to_json,
)
from protocol.image.manifest import Manifest
from protocol.model.session_records import CompletionReport, JoinGrant, JoinRequest
from protocol.receiving.events import (
    BlockAssembled,
    CastEnded,
    ManifestReceived,
)
from protocol.receiving.receiver_session import ReceiverSession
from protocol.wire.batch import header_view
from protocol.wire.feedback_codec import decode_feedback_untrusted, encode_feedback
from protocol.wire.messages import CastObject, Nack, Report
from receiver.reception.network.data_socket import DataSocket
from receiver.reception.network.interface import find_interface
from tests.load.kept_connection import KeptConnection

POLL_S = 0.01
"""Seconds between two reads of the group's socket, whose buffer holds a second at 100 Mbit/s."""

LOSS_PER_BLOCK = 0.002
"""Share of blocks that a machine must request: with parity, a room with 0.1 % of random loss."""

NACK_RETRY_S = 1.0
COMPLETION_SPREAD_S = 1.0
"""Spread of the completions: disks don't finish in the same millisecond."""

LONG_POLL_S = CHECK_IN_WAIT_S_MAX
EXCHANGE_LIMIT_S = 60.0
TEMPLATE_S = 0.05


@dataclasses.dataclass(slots=True)
class Machine:
    """A simulated machine."""

    index: int
    name: str
    serial: str
    mac: str
    machine_id: str = ""
    secret: str = dataclasses.field(default="", repr=False)
    grant: JoinGrant | None = None
    assignment: Assignment | None = None
    counter: int = 0
    missing: dict[int, float] = dataclasses.field(default_factory=dict)
    """Blocks that only this machine lost, and the time of its last request for them; 0 for none."""
    lost_count: int = 0
    nacks_sent: int = 0
    needed_at_join: int = 0
    written_lag: int = 0
    connections: dict[str, KeptConnection] = dataclasses.field(default_factory=dict)
    complete: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    joined_at: float = 0.0


def machine_of(index: int) -> Machine:
    """Return the hardware address of a machine, as in the CSV file."""
    octets = (index >> 16 & 255, index >> 8 & 255, index & 255)
    mac = "02:dc:00:" + ":".join(f"{octet:02x}" for octet in octets)
    return Machine(index, f"pc-{index:04}", f"SN-LOAD-{index:04}", mac)


class Room:
    """All machines of the room, as the module describes them."""

    def __init__(self, url: str, count: int, seed: int) -> None:
        self.url = url
        self._token = os.environ["DISKCAST_TOKEN"]
        self.machines = [machine_of(index) for index in range(count)]
        self.progress: list[tuple[float, int, float]] = []
        """Times of progress reports, with the machine's index and its progress."""
        self.errors: list[str] = []
        self.listener: ReceiverSession | None = None
        self._rng = random.Random(seed)
        self._listener_index = -1
        self._manifest: Manifest | None = None
        self._manifest_there = asyncio.Event()
        self._ended = asyncio.Event()
        self._outbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._outbox.setblocking(False)
        self._feedback: tuple[str, int] = ("", 0)
        self._waiting: dict[int, set[int]] = {}
        """Requested blocks, and the machines that requested them."""
        self._due: list[tuple[float, int]] = []
        self._reporting: set[int] = set()
        self._asking: list[tuple[float, int, int]] = []
        self._template: tuple[float, Report] | None = None

    async def run(self) -> None:
        """Run the room from the first check-in to the last recorded result."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._live(machine)) for machine in self.machines]
            listening = group.create_task(self._listen())
            await asyncio.wait(tasks)
            listening.cancel()
        self._outbox.close()

    # -- one machine -------------------------------------------------------------------------------------------

    async def _live(self, machine: Machine) -> None:
        await asyncio.sleep(self._rng.uniform(0, len(self.machines) / 200))
        while machine.assignment is None:
            answer = await self._check_in(machine, AgentState.IDLE, wait_s=LONG_POLL_S)
            machine.machine_id = answer.machine_id
            machine.assignment = answer.assignment
            if machine.assignment is None:
                await asyncio.sleep(answer.check_in_after_s)
        await self._join(machine)
        receiving = asyncio.create_task(self._keep_checking_in(machine))
        await machine.complete.wait()
        await asyncio.sleep(self._rng.uniform(0, COMPLETION_SPREAD_S))
        report = self._completion(machine)
        assert machine.grant is not None
        await self._control(machine, "POST", "completion", COMPLETION.encode(report))
        self.progress.append((time.monotonic(), machine.index, 1.0))
        receiving.cancel()
        outcome = outcome_of(machine.assignment.cast_id, report)
        while True:
            answer = await self._check_in(machine, AgentState.IDLE, last=outcome)
            if answer.recorded_cast_id == outcome.cast_id:
                return
            await asyncio.sleep(answer.check_in_after_s)

    async def _keep_checking_in(self, machine: Machine) -> None:
        while True:
            answer = await self._check_in(machine, AgentState.RECEIVING)
            await asyncio.sleep(answer.check_in_after_s)

    async def _join(self, machine: Machine) -> None:
        assert machine.assignment is not None
        inventory = {"serial": machine.serial, "memory": "16 GiB", "cpus": "8"}
        request = JoinRequest(f"agent-{machine.index}", machine.name, inventory, False, None, "")
        path = f"{API_BASE}/casts/{machine.assignment.cast_id:08x}/receivers"
        answer = await self._exchange(
            machine,
            machine.assignment.control_url,
            "POST",
            path,
            join_to_json(request),
            machine.assignment.ticket,
        )
        machine.grant = grant_from_json_untrusted(answer)
        machine.joined_at = time.monotonic()
        if self.listener is None:
            self._start_listening(machine.grant)
            self._listener_index = machine.index
        await self._manifest_there.wait()
        await self._control(machine, "PUT", "need", {"need": encode_need(None)})
        self._reporting.add(machine.index)
        heapq.heappush(self._due, (time.monotonic() + self._rng.uniform(0, 0.5), machine.index))

    def _completion(self, machine: Machine) -> CompletionReport:
        assert self.listener is not None
        statistics, raw_bytes = self.listener.statistics, self.listener.parameters.raw_bytes
        seconds = time.monotonic() - machine.joined_at
        return CompletionReport(
            success=True,
            error="",
            exit_code=0,
            unsigned_allowed=False,
            raw_bytes_verified=raw_bytes,
            raw_bytes_kept=0,
            blocks_rewritten=0,
            bytes_received=statistics.bytes_received,
            bytes_written=raw_bytes,
            datagrams_expected=self.listener.loss.expected_count,
            datagrams_received=max(0, self.listener.loss.received_count - machine.lost_count),
            socket_drops=0,
            blocks_repaired_by_parity=statistics.blocks_repaired_by_parity_count,
            blocks_repaired_by_nack=machine.lost_count,
            nacks_sent=machine.nacks_sent,
            seconds_receiving=seconds,
            seconds_total=seconds,
        )

    async def _check_in(
        self, machine: Machine, state: str, *, wait_s: float = 0.0, last: object = None
    ) -> CheckInAnswer:
        cast_id = machine.assignment.cast_id if machine.assignment and state == AgentState.RECEIVING else None
        document = CHECK_IN.encode(
            CheckIn(
                agent_id=f"agent-{machine.index}",
                name=machine.name,
                version="0.1.0",
                interface="eth0",
                macs=(machine.mac,),
                serial=machine.serial,
                asset_tag="",
                inventory={"memory": "16 GiB", "cpus": "8"},
                state=state,
                cast_id=cast_id,
                last_result=last,
                wait_s=wait_s,
            )
        )
        path = f"{API_BASE}{CHECK_IN_PATH}"
        if not machine.secret:
            enrolment = await self._exchange(machine, self.url, "POST", path, document, self._token)
            machine.secret = CHECK_IN_ANSWER.decode_untrusted("answer", enrolment).machine_secret
        answer = await self._exchange(machine, self.url, "POST", path, document, machine.secret)
        return CHECK_IN_ANSWER.decode_untrusted("answer", answer)

    async def _control(self, machine: Machine, method: str, what: str, body: JsonObject) -> None:
        assert machine.assignment is not None
        assert machine.grant is not None
        cast = f"{API_BASE}/casts/{machine.assignment.cast_id:08x}"
        path = f"{cast}/receivers/{machine.grant.receiver_id}/{what}"
        await self._exchange(
            machine, machine.assignment.control_url, method, path, body, machine.grant.key.hex()
        )

    async def _exchange(
        self, machine: Machine, url: str, method: str, path: str, body: JsonObject, bearer: str = ""
    ) -> object:
        """Send a request on the machine's connection; retry until there is a response."""
        payload = json.dumps(body).encode()
        connection = machine.connections.setdefault(url, KeptConnection(url))
        pause_s = 0.2
        while True:
            try:
                async with asyncio.timeout(EXCHANGE_LIMIT_S):
                    code, content = await connection.exchange(method, path, payload, bearer)
                if code < 500:
                    break
                self.errors.append(f"{method} {path}: {code}")
            except (OSError, TimeoutError) as error:
                self.errors.append(f"{method} {path}: {type(error).__name__}")
            await asyncio.sleep(pause_s * self._rng.uniform(0.8, 1.2))
            pause_s = min(2 * pause_s, 2.0)
        if code >= 300:
            raise RuntimeError(f"{method} {path}: {code} {content.decode(errors='replace')[:1000]}")
        return json.loads(content) if content else None

    # -- reception for all machines ----------------------------------------------------------------------------

    def _start_listening(self, grant: JoinGrant) -> None:
        parameters = grant.parameters
        self._feedback = (parameters.sender_address, parameters.feedback_port)
        self.listener = ReceiverSession(
            grant, assembly_bytes=64 * MIB, rng=random.Random(self._rng.random()), now=time.monotonic()
        )

    async def _listen(self) -> None:
        while self.listener is None:
            await asyncio.sleep(POLL_S)
        listener, parameters = self.listener, self.listener.parameters
        interface = find_interface("lo", parameters.group)
        frame_bytes = DATA_HEADER_BYTES + parameters.symbol_bytes
        data = DataSocket(interface, parameters.group, parameters.port, source=None, frame_bytes=frame_bytes)
        try:
            while True:
                now = time.monotonic()
                while (batch := data.receive_batch()) is not None:
                    if batch.frames.shape[0]:
                        self._repaired(batch.frames)
                        listener.receive_frames_untrusted(batch.frames, now)
                    for datagram in batch.datagrams:
                        listener.receive_datagram_untrusted(datagram, now)
                    self._take_events(now)
                    if batch.drained:
                        break
                self._send_feedback(time.monotonic())
                await asyncio.sleep(POLL_S)
        finally:
            data.socket.close()

    def _take_events(self, now: float) -> None:
        assert self.listener is not None
        verified: list[int] = []
        for event in self.listener.next_events():
            match event:
                case ManifestReceived():
                    manifest = Manifest.parse_untrusted(event.data)
                    self._manifest = manifest
                    self.listener.set_manifest(manifest, np.ones(manifest.block_count, np.bool_), now)
                    empty = np.flatnonzero(~manifest.stored_mask)
                    if empty.size:
                        self.listener.blocks_verified(empty)
                    self._manifest_there.set()
                case BlockAssembled():
                    block = event.assembled.block
                    self.listener.block_written(block)
                    self.listener.release(event.assembled)
                    verified.append(block)
                case CastEnded():
                    self._ended.set()
        if verified:
            self.listener.blocks_verified(np.array(verified, np.int64))
            for block in verified:
                self._lose(block, now)

    def _lose(self, block: int, now: float) -> None:
        """Let a few machines lose the block."""
        machines = sorted(
            self._reporting - {self._listener_index}
        )  # the session itself reports its missing blocks
        count = sum(self._rng.random() < LOSS_PER_BLOCK for _ in machines)
        for index in self._rng.sample(machines, count):
            machine = self.machines[index]
            machine.missing[block] = 0.0
            machine.lost_count += 1
            heapq.heappush(self._asking, (now + self._rng.uniform(0.01, 0.2), index, block))

    def _repaired(self, frames: np.ndarray) -> None:
        if not self._waiting:
            return
        headers = header_view(frames)
        for block in (
            set(headers["block"][headers["object"] == CastObject.IMAGE].tolist()) & self._waiting.keys()
        ):
            for index in self._waiting.pop(block):
                self.machines[index].missing.pop(block, None)

    # -- messages of each machine ------------------------------------------------------------------------------

    def _send_feedback(self, now: float) -> None:
        assert self.listener is not None
        for datagram in self.listener.datagrams_to_send(now):
            self._transmit(datagram)
        while self._asking and self._asking[0][0] <= now:
            _, index, block = heapq.heappop(self._asking)
            self._nack(self.machines[index], block, now)
        while self._due and self._due[0][0] <= now:
            _, index = heapq.heappop(self._due)
            machine = self.machines[index]
            self._report(machine, now)
            if machine.complete.is_set():
                self._reporting.discard(index)
            else:
                interval_s = self.listener._reports.interval_s
                heapq.heappush(self._due, (now + interval_s * self._rng.uniform(0.95, 1.05), index))

    def _nack(self, machine: Machine, block: int, now: float) -> None:
        if block not in machine.missing:
            return
        assert self.listener is not None
        assert machine.grant is not None
        machine.counter += 1
        machine.nacks_sent += 1
        machine.missing[block] = now
        self._waiting.setdefault(block, set()).add(machine.index)
        sequence = self.listener.loss.next_sequence
        self._send_message(
            machine,
            Nack(CastObject.IMAGE, sequence, ((block, 1, 1),)),
        )
        heapq.heappush(self._asking, (now + NACK_RETRY_S, machine.index, block))

    def _report(self, machine: Machine, now: float) -> None:
        assert self.listener is not None
        assert machine.grant is not None
        if machine.grant.receiver_id == self.listener.grant.receiver_id:
            needed = self.listener.needed_count  # the session sends its own NACKs
        else:
            if self._template is None or now - self._template[0] > TEMPLATE_S:
                self._template = now, decode_feedback_untrusted(self.listener.report(now))[1]
            made_at, template = self._template
            needed = template.blocks_needed_count + len(machine.missing)
            machine.counter += 1
            self._send_message(
                machine,
                dataclasses.replace(
                    template,
                    echo_delay_us=template.echo_delay_us + int((now - made_at) * 1e6),
                    received_count=max(0, template.received_count - machine.lost_count),
                    loss_event_count=template.loss_event_count + machine.lost_count,
                    blocks_verified_count=max(0, template.blocks_verified_count - len(machine.missing)),
                    blocks_needed_count=needed,
                    nacks_sent_count=machine.nacks_sent,
                ),
            )
            assert self._manifest is not None
            # As the sender computes it: of the blocks it first requested, fewer than all if data arrived before.
            machine.needed_at_join = max(machine.needed_at_join, needed)
            self.progress.append((now, machine.index, round(1 - needed / max(1, machine.needed_at_join), 4)))
        if self._manifest is not None and needed == 0:
            machine.complete.set()

    def _send_message(self, machine: Machine, message: Nack | Report) -> None:
        assert machine.grant is not None
        parameters = machine.grant.parameters
        self._transmit(
            encode_feedback(
                message,
                cast_id=parameters.cast_id,
                receiver_id=machine.grant.receiver_id,
                counter=machine.counter,
                key=machine.grant.key,
            )
        )

    def _transmit(self, datagram: bytes) -> None:
        try:
            self._outbox.sendto(datagram, self._feedback)
        except BlockingIOError:
            self.errors.append("a feedback datagram didn't fit into the socket")


def main(url: str, count: str, seed: str, log: str) -> None:
    room = Room(url, int(count), int(seed))
    asyncio.run(room.run())
    assert room.listener is not None
    Path(log).write_text(
        json.dumps(
            {
                "progress": room.progress,
                "names": [machine.name for machine in room.machines],
                "errors": room.errors,
                "nacks": sum(machine.nacks_sent for machine in room.machines),
                "frames_lost": room.listener.loss.expected_count - room.listener.loss.received_count,
                "rejects": room.listener.rejects,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
