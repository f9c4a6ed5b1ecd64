"""A machine that an operator moves or removes is what it is now, whichever daemon was told so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from protocol.check_in import STATE_IDLE, CheckIn
from protocol.errors import DatabaseUnavailableError
from sender.daemon import check_in as module
from sender.daemon.check_in import CheckInDesk
from sender.daemon.config import load_config
from sender.daemon.signals import Changes
from sender.store.database import Store, open_store
from sender.store.records import Room

SAID = CheckIn(
    agent_id="0f" * 16,
    name="pc07",
    version="1.0",
    interface="eth0",
    macs=("52:54:00:00:00:07",),
    serial="SN7",
    asset_tag="",
    inventory={},
    state=STATE_IDLE,
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
def desk(store: Store, monkeypatch: pytest.MonkeyPatch) -> CheckInDesk:
    monkeypatch.setattr(module, "_READ_AGAIN_S", 0.0)
    return CheckInDesk(SimpleNamespace(store=store, supervisor=SimpleNamespace(changes=Changes())))  # type: ignore[arg-type]


def test_a_machine_moved_through_another_daemon_is_in_its_new_room(desk: CheckInDesk, store: Store) -> None:
    async def meet() -> tuple[str | None, str | None]:
        before = await desk._machine(SAID, "10.0.0.7")
        store.machines.change(before.machine_id, room_id="lab-1")
        return before.room_id, (await desk._machine(SAID, "10.0.0.7")).room_id

    assert asyncio.run(meet()) == (None, "lab-1")


def test_a_machine_removed_through_another_daemon_is_enrolled_anew(desk: CheckInDesk, store: Store) -> None:
    async def meet() -> bool:
        before = await desk._machine(SAID, "10.0.0.7")
        store.machines.remove(before.machine_id)
        after = await desk._machine(SAID, "10.0.0.7")
        return store.machines.get(after.machine_id) is not None

    assert asyncio.run(meet())


def test_a_machine_that_is_known_takes_part_though_the_database_is_away(
    desk: CheckInDesk, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(machine_id: str) -> None:
        raise DatabaseUnavailableError(f"no answer about {machine_id}")

    async def meet() -> bool:
        before = await desk._machine(SAID, "10.0.0.7")
        monkeypatch.setattr(store.machines, "get", away)
        return await desk._machine(SAID, "10.0.0.7") == before

    assert asyncio.run(meet())
