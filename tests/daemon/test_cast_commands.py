"""What an operator asks of a cast at the moment at which it begins or ends: a cancelled cast would write disks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sender.actors import Actor
from sender.daemon import cast_commands
from sender.daemon.cast_commands import CastCommands
from sender.daemon.cast_job import CastJob
from sender.daemon.leases import Owner
from sender.refusals import RequestRefusedError
from sender.store.records.casts import Cast, CastPhase, Command
from sender.store.store import Store
from sender.store.write_behind import Recorder
from tests.store.samples import add_cast

HERE = Owner("here", "d1", "r1")
OPERATOR = Actor("anna")


class OneDaemon:
    """As much of a daemon as steering knows; ``live`` are its runs."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.live: dict[str, CastJob] = {}
        self.recorder = Recorder(store, directory)
        self.supervisor = SimpleNamespace(
            owner=HERE,
            runs=self.live,
            unfinished={},
            live_run=self.live.get,
            note_change=lambda: None,
            changes=SimpleNamespace(tell=lambda: None),
            stop_waiting=lambda _cast_id: None,
        )
        self.steering = CastCommands(self)  # type: ignore[arg-type]

    async def find_cast(self, cast_id: str) -> Cast | None:
        return self.store.casts.get(cast_id)

    def lease(self) -> list[Cast]:
        return self.store.leases.acquire(str(HERE), datetime.now(UTC), (), 1)

    def begin(self, cast: Cast) -> CastJob:
        self.live[cast.cast_id] = CastJob(cast, self.recorder, owner=str(HERE))
        return self.live[cast.cast_id]


@pytest.fixture
def daemon(store: Store, tmp_path: Path) -> OneDaemon:
    return OneDaemon(store, tmp_path)


def first(daemon: OneDaemon, happens: Callable[[], object]) -> Callable[..., Awaitable[Any]]:
    """The store's ``run``, before whose next call something ``happens``."""
    run, waiting = daemon.store.run, [happens]

    async def after_that(function: Callable[..., object], *args: object, **kwargs: object) -> object:
        while waiting:
            waiting.pop()()
        return await run(function, *args, **kwargs)

    return after_that


def test_a_cast_that_is_cancelled_while_a_daemon_takes_it_does_not_run(
    daemon: OneDaemon, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast = add_cast(store)
    monkeypatch.setattr(store, "run", first(daemon, daemon.lease))

    async def cancel() -> CastJob:
        await daemon.steering.command(cast.cast_id, Command.CANCEL, OPERATOR, "the wrong image")
        await daemon.steering.obey_requests()  # of a look at which it is leased and hasn't begun
        live = daemon.begin(cast)
        await daemon.steering.obey_requests()
        return live

    live = asyncio.run(cancel())
    assert live.cancel_reason == "cancelled by anna: the wrong image"
    assert store.casts.requests(str(HERE)) == []


def test_a_cast_that_has_ended_while_its_pause_was_audited_stays_as_it_ended(
    daemon: OneDaemon, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_cast(store)
    [cast] = daemon.lease()
    live = daemon.begin(cast)

    async def pause() -> None:
        live.change(phase=CastPhase.CASTING)
        monkeypatch.setattr(store, "run", first(daemon, lambda: live.end(CastPhase.DONE, "")))
        monkeypatch.setattr(daemon, "find_cast", found)
        await daemon.steering.command(cast.cast_id, Command.PAUSE, OPERATOR)

    async def found(_cast_id: str) -> Cast:
        return live.cast

    with pytest.raises(RequestRefusedError, match="has ended: done"):
        asyncio.run(pause())
    assert not live.cast.paused


def test_a_cast_is_cancelled_though_the_database_hangs_and_the_audit_says_by_whom(
    daemon: OneDaemon, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_cast(store)
    [cast] = daemon.lease()
    live = daemon.begin(cast)
    before = daemon.recorder.pending_count

    async def hangs(*_args: object, **_kwargs: object) -> None:
        await asyncio.Event().wait()

    async def found(_cast_id: str) -> Cast:
        return live.cast

    monkeypatch.setattr(store, "run", hangs)
    monkeypatch.setattr(daemon, "find_cast", found)
    monkeypatch.setattr(cast_commands, "AUDIT_S", 0.01)
    asyncio.run(daemon.steering.command(cast.cast_id, Command.CANCEL, OPERATOR))
    assert live.cancel_reason == "cancelled by anna"
    assert daemon.recorder.pending_count == before + 2, "the entry and the event"
