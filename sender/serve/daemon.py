"""Run the daemon: start its parts in order, wait for a signal, stop them in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Final

import structlog

from protocol.errors import AddressInUseError, ConfigurationError, DiskcastError, leaf_errors
from protocol.program.output_streams import let_output_fail
from sender.api.application import create_application
from sender.api.server import ApiServer
from sender.config.daemon_certificate import daemon_certificate
from sender.config.local_endpoint import LocalEndpoint, write_local_endpoint
from sender.config.server_config import ServerConfig
from sender.daemon.jobs.cast_job import CastJob
from sender.daemon.jobs.rate_share import share_rates
from sender.daemon.leases import StateDirectory
from sender.daemon.presence import save_presence
from sender.daemon.scheduler import run_retention, run_schedules
from sender.http.descriptor_limit import raise_descriptor_limit
from sender.serve.composition import Daemon, compose_daemon
from sender.serve.operator_token import ensure_operator_token, login_link
from sender.store.open_store import open_store
from sender.store.write_behind import Recorder
from sender.systemd_notify import SystemdNotifier, Watchdog

_DRAIN_S: Final = 5.0
"""Time for writing the last records to the database; the rest waits in a file for the next start."""
_OPENING_MAX_S: Final = 1800.0
"""Longest wait of systemd for the database: years of history are checked and migrated in minutes."""
_BACKLOG: Final = 1024

_log = structlog.get_logger(__name__)


def run_daemon(config: ServerConfig, on_ready: Callable[[str, str, str], None]) -> None:
    """Serve until SIGTERM or SIGINT. Running casts resume after the next start.

    Args:
        config: checked.
        on_ready: called when the dashboard is ready, with its URL, the certificate's pin, and a link that logs in once
            and belongs in no log.

    Raises:
        ConfigurationError: the state directory, the address or another key can't be used.
        DatabaseError: the database can't be opened.
    """
    let_output_fail()
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
                f"{config.server.listen} is taken by another program: stop it, or choose another address with "
                "server.listen or --listen"
            ) from error
        raise ConfigurationError(
            f"can't listen on {config.server.listen}: {error.strerror}; choose another address with server.listen or "
            "--listen"
        ) from error
    return listener


async def _serve(
    config: ServerConfig,
    state: StateDirectory,
    listener: socket.socket,
    on_ready: Callable[[str, str, str], None],
) -> None:
    raise_descriptor_limit()
    notifier = SystemdNotifier.from_environment()
    notifier.extend_timeout(_OPENING_MAX_S)
    store = await asyncio.to_thread(open_store, config)
    await asyncio.to_thread(ensure_operator_token, config.server.name, store, state.path)
    recorder = Recorder(store, state.path)
    certificate = daemon_certificate(config.server, datetime.now(UTC))
    daemon = compose_daemon(config, store, recorder, state.owner(config.server.name), certificate)
    services, supervisor = daemon.services, daemon.supervisor
    application = create_application(services)
    tls = None if config.server.loopback else certificate.server_context()
    server = ApiServer(application, listener, config.server.proxy_networks, tls=tls)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    url = _url(listener, encrypted=tls is not None)
    write_local_endpoint(state.path, _local_endpoint(listener, "" if tls is None else certificate.pin))
    link = await login_link(url, state.path, application.state.authenticator)
    describe = functools.partial(_status, url, services.registry.jobs)
    try:
        async with asyncio.TaskGroup() as group:
            recording = group.create_task(recorder.run(), name="recorder")
            serving = group.create_task(server.run_until_stopped(), name="api")
            watchdog = Watchdog(services.health.stuck, describe, notifier=notifier)
            work = [
                group.create_task(task, name=name)
                for name, task in {**_background(daemon), "watchdog": watchdog.run()}.items()
            ]
            gc.collect()
            gc.freeze()  # imported modules stay: each collection that scans them takes tenths of a second
            _log.info("daemon_ready", url=url, pin=certificate.pin, owner=str(daemon.owner))
            on_ready(url, certificate.pin, link)
            notifier.ready(describe())
            await stop.wait()
            _log.info("daemon_ends", casts_left=len(services.registry.jobs))
            notifier.stopping("casts resume after the next start")
            await supervisor.leave()
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


def _background(daemon: Daemon) -> dict[str, Coroutine[None, None, None]]:
    """Return the daemon's background tasks by name; each runs until cancelled."""
    services = daemon.services
    config, store = services.config, services.store
    return {
        "library": services.library.run(),
        "image uploads": services.uploads.run(),
        "image exports": services.exports.run(),
        "supervisor": daemon.supervisor.run(),
        "rates": share_rates(services.registry, config.network.rate_ceiling_bytes_per_s),
        "presence": save_presence(store, services.presence),
        "waker": services.waker.run(),
        "revocations": services.access.run(),
        "claims": services.desk.run(),
        "booting machines": services.booting.run(),
        "image requests": services.image_requests.run(),
        "captures": services.captures.run(),
        "live feed": services.feed.run(),
        "schedules": run_schedules(store, services.library, services.commands),
        "retention": run_retention(store, config.history.retention_days),
        "metrics": services.metrics.run(),
    }


def _status(url: str, jobs: Mapping[str, CastJob]) -> str:
    """Return the text that ``systemctl status`` shows."""
    casts = ", ".join(f"{cast_id} of {job.cast.image_name}" for cast_id, job in jobs.items())
    return f"serving {url}, casting {casts}" if casts else f"serving {url}"


def _local_endpoint(listener: socket.socket, pin: str) -> LocalEndpoint:
    """Return the address for commands on this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  it's compared, not bound
    return LocalEndpoint(f"{'https' if pin else 'http'}://{f'[{host}]' if ':' in host else host}:{port}", pin)


def _url(listener: socket.socket, *, encrypted: bool) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  all addresses: use this machine's name
        host = socket.gethostname()
    scheme = "https" if encrypted else "http"
    return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"
