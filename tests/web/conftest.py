"""One browser, and one daemon with a room of real agents, for all tests of the dashboard."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.disks.disk_images import make_image
from tests.support.network.lab import held
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online, wait_until
from tests.web.browsing import DESKTOP, LIMIT_MS, PHONE, Visit, chromium, visit

BLOCK_BYTES = 256 << 10
BLOCK_COUNT = 32
"""8 MiB: at the tests' rates a cast is long enough to watch and to cancel."""
ROOM = "lab"
ROOM_NAME = "Lab 2"
IMAGE = "win11-lab"
MACHINES = ("pc01", "pc02", "pc03")


@dataclasses.dataclass(frozen=True, slots=True)
class Lab:
    """A room of waiting agents."""

    daemon: Daemon
    agents: dict[str, ServiceAgent]
    raw: bytes

    def machine_ids(self) -> dict[str, str]:
        """Return the machines' ids by name."""
        return {row["name"]: row["machine_id"] for row in self.daemon.ask("GET", "/machines")["items"]}

    @contextlib.contextmanager
    def held_cast(self, cast_id: str) -> Iterator[None]:
        """Wait until every machine is receiving; one stopped agent keeps the cast from ending within the context."""
        self.daemon.wait_progress(cast_id, 0.05, MACHINES)
        agent = self.agents[MACHINES[0]].program
        assert agent is not None
        with held(agent):
            yield

    def empty_disks(self) -> None:
        """Cancel all casts and empty every disk, so that the next cast takes its full time."""
        daemon = self.daemon
        for cast in daemon.ask("GET", "/casts")["items"]:
            if cast["ended_at"] is None:
                daemon.api.post(f"/casts/{cast['cast_id']}/cancel")  # it may have just ended

        def quiet() -> bool:
            return all(cast["ended_at"] for cast in daemon.ask("GET", "/casts")["items"])

        wait_until("no cast runs", quiet, describe=daemon.describe)
        for agent in self.agents.values():
            agent.target.unlink(missing_ok=True)


@contextlib.contextmanager
def open_lab(directory: Path) -> Iterator[Lab]:
    """Return a daemon with an image, a room and three waiting machines."""
    made = make_image("r" * BLOCK_COUNT, block_bytes=BLOCK_BYTES, seed=11, name=IMAGE)
    with contextlib.ExitStack() as stack:
        # The cast must not lose an agent that a test stops.
        settings = {"casts": {"receiver_timeout_s": 3600}}
        daemon = stack.enter_context(Daemon(directory / "daemon", name="castle", settings=settings))
        daemon.add_image(made.write(directory / f"{IMAGE}.dci"))
        daemon.ask("POST", "/rooms", {"name": ROOM_NAME, "room_id": ROOM, "description": "Second floor"})
        agents = {
            name: stack.enter_context(ServiceAgent(directory / "disks", name, [daemon])) for name in MACHINES
        }
        ids = wait_online(daemon, agents)
        for index, name in enumerate(MACHINES):
            change = {"room_id": ROOM, "position": f"row 1, seat {index + 1}"}
            daemon.ask("PATCH", f"/machines/{ids[name]}", change)
        yield Lab(daemon, agents, made.raw)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run a browser for one module: playwright's event loop excludes any other one in that time."""
    expect.set_options(timeout=LIMIT_MS)
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("lab")) as opened:
        yield opened


@pytest.fixture
def ready_lab(lab: Lab) -> Lab:
    lab.empty_disks()
    return lab


@pytest.fixture
def desktop(browser: Browser, lab: Lab) -> Iterator[Visit]:
    with visit(browser, lab.daemon, DESKTOP) as visiting:
        yield visiting


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def window(request: pytest.FixtureRequest, browser: Browser, lab: Lab) -> Iterator[Visit]:
    with visit(browser, lab.daemon, request.param) as visiting:
        yield visiting
