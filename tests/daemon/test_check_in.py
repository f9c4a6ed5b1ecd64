"""Check-ins: changes by other daemons are seen, and results of a whole room are recorded."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocol.control.check_in import AgentState, CastOutcome, CheckIn, CheckInAnswer
from protocol.errors import (
    DatabaseUnavailableError,
    DiskcastError,
    PreflightRefusedError,
    RollbackError,
    SessionError,
    TrustError,
    UnsignedImageError,
)
from protocol.model.hardware import Hardware
from protocol.model.session_records import CastId
from sender.config.config_file import load_config
from sender.daemon import check_in as module
from sender.daemon.check_in import CheckInHandler
from sender.daemon.enrolment_desk import EnrolmentDesk, EnrolmentGrant
from sender.daemon.jobs.awaited_casts import AwaitedCasts
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.ended_machines import EndedMachines
from sender.daemon.machine_access import MachineAccess
from sender.daemon.preflight_desk import PreflightDesk
from sender.daemon.presence import Presence
from sender.daemon.ticket_office import TicketOffice
from sender.library.library import Library
from sender.metrics.boot_metrics import IMAGE_REFUSALS
from sender.refusals import RequestRefusedError
from sender.store.machines.claims import secret_hash
from sender.store.machines.machine_report import MachineReport
from sender.store.open_store import open_store
from sender.store.records.boots import BootAction, BootReport, BootToken
from sender.store.records.casts import CastPhase
from sender.store.records.machines import EnrolmentMode, Room
from sender.store.repositories.audit import AuditNote
from sender.store.repositories.boots import TOKEN_LIFETIME, DecidedBoot, new_boot_token
from sender.store.store import Store
from sender.store.write_behind import Recorder
from tests.store.samples import add_cast
from tests.support.hardware import sample_disk, sample_hardware
from tests.support.idle_captures import idle_captures

REPORTED = CheckIn(
    agent_id="0f" * 16,
    name="pc07",
    version="1.0",
    interface="eth0",
    macs=("52:54:00:00:00:07",),
    serial="SN7",
    asset_tag="",
    inventory={},
    state=AgentState.IDLE,
    cast_id=None,
    last_result=None,
    wait_s=0.0,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(load_config(None, {"server.state_directory": tmp_path}), upkeep=False)
    opened.rooms.add(Room("lab-1", "Lab 1", "", "", "", datetime.now(UTC)))
    yield opened
    opened.close()


@pytest.fixture
def desk(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckInHandler:
    monkeypatch.setattr(module, "_READ_AGAIN_S", 0.0)
    return make_handler(store, tmp_path)


def make_handler(store: Store, tmp_path: Path, mode: EnrolmentMode = EnrolmentMode.TOKEN) -> CheckInHandler:
    recorder, registry, presence = Recorder(store, tmp_path), CastRegistry(ended_kept_s=0.0), Presence()
    access = MachineAccess(store, recorder, registry)
    ended = EndedMachines(store, registry)
    return CheckInHandler(
        store,
        recorder,
        registry,
        presence,
        EnrolmentDesk(store, presence, access, mode),
        TicketOffice(store),
        ended,
        AwaitedCasts(registry, ended),
        idle_captures(store, registry.changes),
        PreflightDesk(store, Library(load_config(None, {"server.state_directory": tmp_path}).library, store)),
    )


async def enrolled(handler: CheckInHandler, check_in: CheckIn = REPORTED) -> str:
    """Return the id of a machine that has enrolled."""
    answer = await handler.answer(check_in, EnrolmentGrant("lab-agents"), "10.0.0.7")
    assert answer.machine_secret
    return answer.machine_id


def outcome(cast_id: int, *, success: bool = True) -> CastOutcome:
    return CastOutcome(
        cast_id=CastId(cast_id),
        success=success,
        error="" if success else "the disk failed",
        exit_code=0 if success else 5,
        unsigned_allowed=False,
        raw_bytes_verified=1,
        raw_bytes_kept=0,
        blocks_rewritten=0,
        datagrams_expected=1,
        datagrams_received=1,
        socket_drops=0,
        nacks_sent=0,
        seconds_receiving=1.0,
        seconds_total=1.0,
    )


def test_a_machine_moved_through_another_daemon_is_in_its_new_room(
    desk: CheckInHandler, store: Store
) -> None:
    async def meet() -> tuple[str | None, str | None]:
        machine_id = await enrolled(desk)
        before = await desk._machine(REPORTED, machine_id, "10.0.0.7")
        store.machines.change(before.machine_id, room_id="lab-1")
        return before.room_id, (await desk._machine(REPORTED, machine_id, "10.0.0.7")).room_id

    assert asyncio.run(meet()) == (None, "lab-1")


def test_hardware_is_recorded_when_it_is_reported_and_kept_when_it_is_left_out(
    desk: CheckInHandler, store: Store
) -> None:
    """An agent reports it once: the machine must not lose it with the next check-in."""

    async def meet() -> list[Hardware]:
        machine_id = await enrolled(desk)
        found = []
        for hardware in (sample_hardware(), None, sample_hardware(disks=()), None):
            await desk.answer(dataclasses.replace(REPORTED, hardware=hardware), machine_id, "10.0.0.7")
            found.append(store.hardware.of_machines([machine_id])[machine_id].hardware)
        return found

    known = [sample_hardware()] * 2 + [sample_hardware(disks=())] * 2
    assert asyncio.run(meet()) == known


def test_a_machine_whose_disk_is_too_small_gets_no_ticket_and_is_on_record(
    desk: CheckInHandler, store: Store
) -> None:
    """A cast on another daemon: this one only answers the check-in."""

    async def meet() -> list[CheckInAnswer]:
        answers = []
        for number, size_bytes in ((7, 2 << 30), (8, 1 << 20)):
            mac = f"52:54:00:00:00:{number:02}"
            small = sample_hardware(disks=(sample_disk(size_bytes=size_bytes),))
            own = dataclasses.replace(
                REPORTED,
                agent_id=f"{number:032}",
                name=f"pc{number:02}",
                macs=(mac,),
                serial="",
                hardware=small,
            )
            machine_id = await enrolled(desk, own)
            store.machines.change(machine_id, room_id="lab-1")
            await desk.answer(own, machine_id, "10.0.0.7")
            planned = store.casts.get("00000001") or add_cast(store, room_id="lab-1")
            live = dataclasses.replace(
                planned,
                phase=CastPhase.GATHERING,
                control_url="http://10.0.0.1:7421",
                group="239.1.1.1",
                port=7420,
            )
            desk._registry.unfinished[live.cast_id] = live
            desk.forget(machine_id)
            later = dataclasses.replace(own, hardware=None)
            answers += [await desk.answer(later, machine_id, "10.0.0.7") for _ in range(2)]
        return answers

    assigned = [answer.assignment is not None for answer in asyncio.run(meet())]
    assert assigned == [True, True, False, False]
    [row] = store.casts.machines("00000001")
    assert (row.name, row.exit_code) == ("pc08", PreflightRefusedError.exit_code)
    assert "is smaller than the image" in row.error


def test_check_ins_without_a_change_write_nothing(
    desk: CheckInHandler, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def meet() -> int:
        machine_id = await enrolled(desk)
        check_in = dataclasses.replace(REPORTED, hardware=sample_hardware())
        await desk.answer(check_in, machine_id, "10.0.0.7")
        written: list[MachineReport] = []
        monkeypatch.setattr(desk._updating, "submit", written.append)
        for again in (REPORTED, check_in, REPORTED):
            await desk.answer(again, machine_id, "10.0.0.7")
        return len(written)

    assert asyncio.run(meet()) == 0


def test_a_machine_removed_through_another_daemon_must_enrol_again(
    desk: CheckInHandler, store: Store
) -> None:
    async def meet() -> bool:
        machine_id = await enrolled(desk)
        await desk._machine(REPORTED, machine_id, "10.0.0.7")
        store.machines.remove(machine_id)
        with pytest.raises(RequestRefusedError) as refused:
            await desk.answer(REPORTED, machine_id, "10.0.0.7")
        assert refused.value.status == 401
        return store.machines.get(await enrolled(desk)) is not None

    assert asyncio.run(meet())


def test_a_known_machine_takes_part_while_the_database_is_unavailable(
    desk: CheckInHandler, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(machine_ids: list[str]) -> None:
        raise DatabaseUnavailableError(f"no answer about {machine_ids}")

    async def meet() -> bool:
        machine_id = await enrolled(desk)
        before = await desk._machine(REPORTED, machine_id, "10.0.0.7")
        monkeypatch.setattr(store.machines, "get_many", unavailable)
        return await desk._machine(REPORTED, machine_id, "10.0.0.7") == before

    assert asyncio.run(meet())


def test_the_machines_of_a_room_are_read_again_in_one_query(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = make_handler(store, tmp_path)
    room = [
        dataclasses.replace(
            REPORTED, name=f"pc{index}", macs=(f"52:54:00:00:01:{index:02x}",), serial=f"SN1{index}"
        )
        for index in range(9)
    ]
    asked: list[int] = []
    read_many = store.machines.get_many

    def counted(machine_ids: list[str]) -> object:
        asked.append(len(machine_ids))
        return read_many(machine_ids)

    async def meet() -> None:
        ids = [await enrolled(handler, check_in) for check_in in room]
        for check_in, machine_id in zip(room, ids, strict=True):
            await handler.answer(check_in, machine_id, "10.0.0.7")
        monkeypatch.setattr(store.machines, "get_many", counted)
        for known in handler._known.values():
            known.read_at -= module._READ_AGAIN_S
        answers = (
            handler.answer(check_in, machine_id, "10.0.0.7")
            for check_in, machine_id in zip(room, ids, strict=True)
        )
        assert [answer.machine_id for answer in await asyncio.gather(*answers)] == ids

    asyncio.run(meet())
    assert asked == [9]


def test_a_token_records_no_result(desk: CheckInHandler, store: Store) -> None:
    """Or whoever has a token for enrolment writes history for machines that were never switched on."""
    add_cast(store, "00000001")
    posted = dataclasses.replace(REPORTED, last_result=outcome(1))

    async def meet() -> CheckInAnswer:
        return await desk.answer(posted, EnrolmentGrant("lab-agents"), "10.0.0.7")

    answer = asyncio.run(meet())
    assert (answer.recorded_cast_id, answer.assignment) == (None, None)
    assert store.casts.machines("00000001") == []


def test_a_second_claim_is_refused_and_needs_attention(desk: CheckInHandler) -> None:
    async def meet() -> list[str]:
        machine_id = await enrolled(desk)
        await desk.answer(REPORTED, machine_id, "10.0.0.7")
        with pytest.raises(RequestRefusedError) as refused:
            await enrolled(desk, dataclasses.replace(REPORTED, agent_id="0e" * 16))
        assert refused.value.status == 409
        watching = asyncio.create_task(desk._desk.run())
        while not desk._desk.problems():
            await asyncio.sleep(0)
        watching.cancel()
        return [problem.text for problem in desk._desk.problems()]

    [text] = asyncio.run(meet())
    assert "pc07" in text
    assert "10.0.0.7" in text


def test_an_agent_that_leaves_may_come_back_as_another_run(desk: CheckInHandler) -> None:
    """A machine that boots over the network forgets its secret at each boot, and must not wait for that."""

    async def meet() -> str:
        machine_id = await enrolled(desk)
        await desk.answer(REPORTED, machine_id, "10.0.0.7")
        leaving = dataclasses.replace(REPORTED, state=AgentState.LEAVING)
        await desk.answer(leaving, machine_id, "10.0.0.7")
        again = await enrolled(desk, dataclasses.replace(REPORTED, agent_id="0e" * 16))
        assert again == machine_id
        return again

    assert asyncio.run(meet())


def test_simultaneous_results_of_a_room_are_recorded_for_each_machine(
    desk: CheckInHandler, store: Store
) -> None:
    for cast_id in (1, 2):
        add_cast(store, f"{cast_id:08x}")
    machines = store.machines.record(
        [
            MachineReport(f"pc{n}", (f"52:54:00:00:01:{n:02x}",), f"SN{n}", "", "10.0.0.9", "1", {})
            for n in range(9)
        ]
    )
    results = [(machine, outcome(1 + n % 3, success=n != 4)) for n, machine in enumerate(machines) if machine]

    async def report() -> list[bool]:
        return await asyncio.gather(*(desk._record(machine, result) for machine, result in results))

    assert asyncio.run(report()) == [True] * 9, "also of a cast that was removed from history"
    assert asyncio.run(report()) == [True] * 9
    rows = {cast_id: store.casts.machines(f"{cast_id:08x}") for cast_id in (1, 2)}
    assert {row.name: row.state for row in rows[1]} == dict.fromkeys(("pc0", "pc3", "pc6"), "complete")
    assert {row.name: (row.state, row.error) for row in rows[2]} == {
        "pc1": ("complete", ""),
        "pc4": ("failed", "the disk failed"),
        "pc7": ("complete", ""),
    }


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrustError, "untrusted"),
        (UnsignedImageError, "unsigned"),
        (RollbackError, "rollback"),
        (SessionError, ""),
    ],
)
def test_a_refused_image_is_counted_once_for_a_machine_and_cast(
    desk: CheckInHandler, store: Store, error: type[DiskcastError], reason: str
) -> None:
    """Agents repeat a result until it is recorded; an alert must not see a room where one machine refuses."""

    def counted() -> dict[str, float]:
        [family] = IMAGE_REFUSALS.collect()
        return {
            sample.labels["reason"]: sample.value
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    add_cast(store, "00000001")
    refusal = dataclasses.replace(outcome(1, success=False), exit_code=error.exit_code)

    async def report() -> None:
        machine = await desk._machine(REPORTED, await enrolled(desk), "10.0.0.7")
        for _ in range(3):
            await desk._record(machine, refusal)

    before = counted()
    asyncio.run(report())
    assert {name: value - before[name] for name, value in counted().items() if value != before[name]} == (
        {reason: 1.0} if reason else {}
    )


# -- machines that boot over the network and have nothing to do -----------------------------------------------------


async def boots(
    handler: CheckInHandler, store: Store, machine_id: str | None, *, decided: str = ""
) -> CheckInAnswer:
    """Return the answer to the first check-in after a boot for which the daemon issued a token."""
    now, secret = store.now(), new_boot_token()
    token = BootToken(
        token_hash=secret_hash(secret),
        mac=REPORTED.macs[0],
        machine_id=machine_id,
        room_id=None,
        needs_approval=False,
        issued_at=now,
        expires_at=now + TOKEN_LIFETIME,
        issued_by="boot server",
    )
    boot = DecidedBoot(
        report=BootReport(REPORTED.macs[0]),
        machine_id=machine_id,
        action=BootAction.LIVE,
        text=decided,
        token=token,
        audit=AuditNote("boot server"),
    )
    assert store.boots.record([boot]) == [True]
    check_in = dataclasses.replace(REPORTED, agent_id=secret[-32:])
    return await handler.answer(
        check_in, EnrolmentGrant("boot server", boot_hash=secret_hash(secret)), "10.0.0.7"
    )


def test_a_machine_that_booted_for_a_cast_soon_restarts_when_there_is_none(
    desk: CheckInHandler, store: Store
) -> None:
    """Otherwise it stays in the live system until somebody switches it off, and its user can't work."""

    async def meet() -> tuple[CheckInAnswer, CheckInAnswer]:
        machine_id = await enrolled(desk)
        first = await boots(desk, store, machine_id)
        return first, await desk.answer(REPORTED, machine_id, "10.0.0.7")

    first, second = asyncio.run(meet())
    assert first.idle_restart_s == module.IDLE_RESTART_S
    assert second.cast_planned is False


def test_a_machine_that_registers_by_booting_waits_for_the_rooms_cast(
    desk: CheckInHandler, store: Store
) -> None:
    answer = asyncio.run(boots(desk, store, None))
    assert answer.machine_secret
    assert answer.idle_restart_s == module.IDLE_RESTART_UNPLANNED_S


def test_a_machine_that_an_operator_asked_for_waits_for_the_operator(
    desk: CheckInHandler, store: Store
) -> None:
    async def meet() -> CheckInAnswer:
        machine_id = await enrolled(desk)
        store.machines.change(machine_id, next_boot="live")
        return await boots(desk, store, machine_id)

    assert asyncio.run(meet()).idle_restart_s == module.IDLE_RESTART_UNPLANNED_S


def test_a_machine_with_a_token_for_enrolment_never_restarts(desk: CheckInHandler) -> None:
    answer = asyncio.run(desk.answer(REPORTED, EnrolmentGrant("lab-agents"), "10.0.0.7"))
    assert answer.machine_secret
    assert answer.idle_restart_s is None


def test_a_machine_learns_of_the_cast_that_would_boot_the_live_system_again(
    store: Store, tmp_path: Path
) -> None:
    """A restart then would be one of a loop."""
    handler = make_handler(store, tmp_path)

    async def meet() -> bool | None:
        machine_id = await enrolled(handler)
        cast = add_cast(
            store, "00000001", machine_ids=(machine_id,), start_at=datetime.now(UTC) + timedelta(minutes=5)
        )
        handler._registry.unfinished[cast.cast_id] = cast
        return (await handler.answer(REPORTED, machine_id, "10.0.0.7")).cast_planned

    assert asyncio.run(meet()) is True
