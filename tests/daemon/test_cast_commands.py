"""Commands at the moment at which a cast starts or ends. Without them a cancelled cast would write disks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from sender.actors import Actor
from sender.daemon import cast_commands
from sender.daemon.cast_commands import CastCommands
from sender.daemon.jobs.cast_job import CastJob
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.owner import Owner
from sender.daemon.patching.patch_maker import PatchMaker
from sender.library.library import Library
from sender.refusals import RequestRefusedError
from sender.store.records.casts import Cast, CastPhase, Command
from sender.store.store import Store
from sender.store.write_behind import Recorder
from tests.store.samples import add_cast

HERE = Owner("here", "d1", "r1")
OPERATOR = Actor("anna")


class OneDaemon:
    """The parts of a daemon that commands need."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.registry = CastRegistry(ended_kept_s=0.0)
        self.recorder = Recorder(store, directory)
        library = cast("Library", None)
        patches = PatchMaker(store, library)
        self.commands = CastCommands(store, library, self.recorder, self.registry, patches, HERE)

    def lease(self) -> list[Cast]:
        return self.store.leases.acquire(str(HERE), datetime.now(UTC), (), 1)

    def start(self, leased: Cast) -> CastJob:
        job = self.registry.jobs[leased.cast_id] = CastJob(leased, self.recorder, owner=HERE)
        return job


@pytest.fixture
def daemon(store: Store, tmp_path: Path) -> OneDaemon:
    return OneDaemon(store, tmp_path)


def first(daemon: OneDaemon, happens: Callable[[], object]) -> Callable[..., Awaitable[Any]]:
    """Return the store's ``run``; ``happens`` is called once before its next call."""
    run, waiting = daemon.store.run, [happens]

    async def after_that(function: Callable[..., object], *args: object, **kwargs: object) -> object:
        while waiting:
            waiting.pop()()
        return await run(function, *args, **kwargs)

    return after_that


def test_a_cast_that_is_cancelled_while_a_daemon_takes_it_does_not_run(
    daemon: OneDaemon, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = add_cast(store)
    monkeypatch.setattr(store, "run", first(daemon, daemon.lease))

    async def cancel() -> CastJob:
        await daemon.commands.command(planned.cast_id, Command.CANCEL, OPERATOR, "the wrong image")
        await daemon.commands.carry_out_requests()  # it is leased and hasn't started
        live = daemon.start(planned)
        await daemon.commands.carry_out_requests()
        return live

    live = asyncio.run(cancel())
    assert live.cancel_reason == "cancelled by anna: the wrong image"
    assert store.casts.requests(str(HERE)) == []


def test_a_cast_that_has_ended_while_its_pause_was_audited_stays_as_it_ended(
    daemon: OneDaemon, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_cast(store)
    [leased] = daemon.lease()
    live = daemon.start(leased)

    async def pause() -> None:
        live.records.change(phase=CastPhase.CASTING)
        monkeypatch.setattr(store, "run", first(daemon, lambda: live.end(CastPhase.DONE, "")))
        await daemon.commands.command(leased.cast_id, Command.PAUSE, OPERATOR)

    with pytest.raises(RequestRefusedError, match="has ended: done"):
        asyncio.run(pause())
    assert not live.cast.paused


def test_a_cast_is_cancelled_and_audited_while_the_database_hangs(
    daemon: OneDaemon, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_cast(store)
    [leased] = daemon.lease()
    live = daemon.start(leased)
    before = daemon.recorder.pending_count

    async def hangs(*_args: object, **_kwargs: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(store, "run", hangs)
    monkeypatch.setattr(cast_commands, "AUDIT_S", 0.01)
    asyncio.run(daemon.commands.command(leased.cast_id, Command.CANCEL, OPERATOR))
    assert live.cancel_reason == "cancelled by anna"
    assert daemon.recorder.pending_count == before + 2, "the entry and the event"
