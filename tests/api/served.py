"""The API on a real socket, with the real store, library and live feed, but without the supervisor: no cast starts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx

from sender.api.application import create_application
from sender.api.server import ApiServer
from sender.config.config_file import load_config
from sender.config.daemon_certificate import daemon_certificate
from sender.daemon.context import Services
from sender.daemon.leases import StateDirectory
from sender.serve.composition import compose_daemon
from sender.store.open_store import open_store
from sender.store.records.access import Role
from sender.store.write_behind import Recorder
from tests.support.disks.disk_images import MadeImage, make_image
from tests.support.network.lab import LIMIT_S

T = TypeVar("T")
PREFIX = "/api/v1"


class Served:
    """A daemon's API in its own thread.

    Attributes:
        services: use them in the loop only, by :meth:`run`.
        secrets: of one token of each role.
        image: that is in the library.
    """

    services: Services
    recorder: Recorder
    server: ApiServer

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir(parents=True)
        self.image: MadeImage = make_image("drzu")
        self.image.write(self.images / "lab.dci")
        self.config = load_config(
            None,
            {
                "server.name": "lab",
                "server.listen": "127.0.0.1:0",
                "server.state_directory": str(folder / "state"),
                "library.folders": (str(self.images),),
                "library.scan_interval_s": 0.2,
                **{name.replace("__", "."): value for name, value in settings.items()},
            },
        )
        self.secrets: dict[Role, str] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="served API", daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(LIMIT_S)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.server.stop)
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the daemon's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LIMIT_S)

    def store(self, choose: Callable[[Any], Callable[..., T]], *args: Any, **more: Any) -> T:
        """Call a method of the store."""
        return choose(self.services.store)(*args, **more)

    def client(self, role: Role | None = Role.OPERATE, **more: Any) -> httpx.Client:
        """Return a client with a token of ``role``, or without one."""
        headers = {} if role is None else {"Authorization": f"Bearer {self.secrets[role]}"}
        headers |= more.pop("headers", {})
        return httpx.Client(
            base_url=more.pop("base_url", self.url + PREFIX),
            headers=headers,
            timeout=LIMIT_S,
            trust_env=False,
            verify=False,  # no TLS here; loading the list of authorities takes a tenth of a second
            **more,
        )

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  handed to the test
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        with StateDirectory(self.config.server.state_directory) as state:
            store = open_store(self.config, upkeep=False)
            self.recorder = recorder = Recorder(store, state.path)
            try:
                for role in Role:
                    _token, self.secrets[role] = store.tokens.create(f"test-{role}", role)
                certificate = daemon_certificate(self.config.server, datetime.now(UTC))
                self.services = compose_daemon(
                    self.config, store, recorder, state.owner("lab"), certificate
                ).services
                self.application = create_application(self.services)
                self.server = ApiServer(
                    self.application, self._listener, self.config.server.proxy_networks, tls=None
                )
                tasks = [
                    asyncio.ensure_future(work)
                    for work in (
                        recorder.run(),
                        self.services.library.run(),
                        self.services.feed.run(),
                        self.services.captures.run(),
                        self.services.uploads.run(),
                        self.services.exports.run(),
                    )
                ]
                serving = asyncio.ensure_future(self.server.run_until_stopped())
                while not (self.server.started and self.services.library.images()):
                    await asyncio.sleep(0.01)
                self._ready.set()
                await serving
                for task in tasks:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
            finally:
                recorder.close()
                store.close()


@contextlib.contextmanager
def serve(folder: Path, **settings: object) -> Iterator[Served]:
    """Serve the API; settings are configuration keys with two underscores for the dot."""
    served = Served(folder, **settings)
    served.start()
    try:
        yield served
    finally:
        served.stop()
