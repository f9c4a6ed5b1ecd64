"""``diskcast serve``: everything it is made of, begun in order, ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import os
import signal
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from protocol.errors import AddressInUseError, ConfigurationError, DiskcastError, leaf_errors
from sender.api.application import create_application
from sender.api.server import ApiServer
from sender.daemon.cast_commands import CastCommands
from sender.daemon.check_in import CheckInDesk
from sender.daemon.context import Services
from sender.daemon.descriptor_limit import raise_descriptor_limit
from sender.daemon.event_feed import LiveFeed
from sender.daemon.leases import StateDirectory
from sender.daemon.live_state import RoomsNow
from sender.daemon.presence import Presence
from sender.daemon.scheduler import run_retention, run_schedules
from sender.daemon.supervisor import Supervisor
from sender.daemon.systemd_notify import ServiceManager, Watchdog
from sender.library.library import Library
from sender.metrics.daemon_metrics import watch_daemon
from sender.store.open_store import open_store
from sender.store.records.access import Role
from sender.store.repositories.audit import AuditNote
from sender.store.write_behind import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sender.config.server_config import ServerConfig
    from sender.daemon.cast_job import CastJob
    from sender.store.store import Store

_DRAIN_S: Final = 5.0
"""What the database gets to take the last records; what it doesn't take waits in a file for the next start."""
_OPENING_MAX_S: Final = 1800.0
"""The service manager waits so long for the database: years of history are checked and migrated in minutes."""
_BACKLOG: Final = 1024
FIRST_OPERATOR_FILE: Final = "operator-token"
FIRST_OPERATOR_NAME: Final = "first-operator"

_log = structlog.get_logger(__name__)


def run_daemon(config: ServerConfig, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. Casts that run then go on in the next run.

    Args:
        config: checked.
        on_ready: told the dashboard's URL when it can be used.

    Raises:
        ConfigurationError: the state directory, the address or another key can't be used.
        DatabaseError: the database can't be opened.
    """
    with StateDirectory(config.server.state_directory) as state:
        listener = _listen(config)
        try:
            asyncio.run(_serve(config, state, listener, on_ready))
        except* DiskcastError as errors:
            first = next(leaf_errors(errors))
            raise first from first.__cause__
        finally:
            listener.close()


def _listen(config: ServerConfig) -> socket.socket:
    host, port = config.server.endpoint
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"{config.server.listen} is taken by another program: end it, or choose another address with "
                "server.listen or --listen"
            ) from error
        raise ConfigurationError(f"can't listen on {config.server.listen}: {error.strerror}") from error
    return listener


async def _serve(
    config: ServerConfig, state: StateDirectory, listener: socket.socket, on_ready: Callable[[str], None]
) -> None:
    raise_descriptor_limit()
    manager = ServiceManager.from_environment()
    manager.extend_timeout(_OPENING_MAX_S)
    store = await asyncio.to_thread(open_store, config)
    await _ensure_bootstrap_token(config, store, state.path)
    recorder = Recorder(store, state.path)
    services = make_services(config, store, recorder, state)
    server = ApiServer(create_application(services), listener)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    url = _url(listener)
    describe = functools.partial(_doing, url, services.supervisor.runs)
    try:
        async with asyncio.TaskGroup() as group:
            recording = group.create_task(recorder.run(), name="recorder")
            serving = group.create_task(server.run_until_stopped(), name="api")
            work = [
                group.create_task(services.library.run(), name="library"),
                group.create_task(services.supervisor.run(), name="supervisor"),
                group.create_task(services.live.run(), name="live feed"),
                group.create_task(run_schedules(services), name="schedules"),
                group.create_task(run_retention(services), name="retention"),
                group.create_task(watch_daemon(services), name="metrics"),
                group.create_task(
                    Watchdog(services.supervisor.stuck, describe, manager=manager).run(), name="watchdog"
                ),
            ]
            gc.collect()
            gc.freeze()  # what is imported stays: to look through it again and again takes tenths of a second each time
            _log.info("daemon_ready", url=url, owner=str(services.supervisor.owner))
            on_ready(url)
            manager.ready(describe())
            await stop.wait()
            _log.info("daemon_ends", casts_left=len(services.supervisor.runs))
            manager.stopping("casts go on after the next start")
            await services.supervisor.leave()
            server.stop()
            for task in work:
                task.cancel()
            await serving
            with contextlib.suppress(TimeoutError):
                await recorder.drain(_DRAIN_S)
            recording.cancel()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        recorder.close()
        store.close()


def _doing(url: str, runs: Mapping[str, CastJob]) -> str:
    """What ``systemctl status`` shows of a daemon that works."""
    casts = ", ".join(f"{cast_id} of {live.cast.image_name}" for cast_id, live in runs.items())
    return f"serving {url}, casting {casts}" if casts else f"serving {url}"


async def _ensure_bootstrap_token(config: ServerConfig, store: Store, state: Path) -> None:
    """Where tokens are demanded and nobody has one, leave the first one where only this daemon's user can read it."""
    if not config.server.tokens_required:
        return
    tokens, _ = await store.run(store.tokens.list, limit=1)
    if tokens:
        return
    path = state / FIRST_OPERATOR_FILE
    token, secret = await store.run(
        store.tokens.create,
        FIRST_OPERATOR_NAME,
        Role.OPERATE,
        audit=AuditNote(f"daemon {config.server.name}"),
    )
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, 0o600)
        file.write(secret + "\n")
    _log.warning(
        "first_token_made",
        mend="operate with it, make others with 'diskcast tokens create', then revoke it",
        token_file=str(path),
        name=token.name,
    )


def make_services(config: ServerConfig, store: Store, recorder: Recorder, state: StateDirectory) -> Services:
    """The daemon's parts, none of them begun; for tests as well."""
    services = Services.__new__(Services)
    services.config = config
    services.store = store
    services.recorder = recorder
    services.started_at = datetime.now(UTC)
    services.library = Library(config.library, store)
    services.presence = Presence()
    services.supervisor = Supervisor(services, state.owner(config.server.name))
    services.steering = CastCommands(services)
    services.rooms_now = RoomsNow(services)
    services.live = LiveFeed(services)
    services.desk = CheckInDesk(services)
    return services


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  every address: this machine's own name is one of them
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
