"""Tests of database failures during a cast: the room gets its image, the operator sees the problem, and confirmed
changes are there once the database is available again.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest

from protocol.control.control_messages import PROBLEM_TYPE
from protocol.errors import EXIT_OK
from tests.server.conftest import RATE_BYTES_PER_S, GoldenImage
from tests.support.disks.devices import mounted
from tests.support.network.lab import LIMIT_S, Program, diskcast
from tests.support.postgres.server import PASSWORD, postgres_server
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online, wait_until

Agents = Callable[..., list[ServiceAgent]]

NAMES = ("pc01", "pc02")


def start_cast(daemon: Daemon, image: GoldenImage) -> str:
    """Start a cast to :data:`NAMES`; return its id when its data flows."""
    machine_ids = list(wait_online(daemon, NAMES).values())
    cast_id = daemon.create_cast(image.image_id, machine_ids=machine_ids, rate_bytes_per_s=RATE_BYTES_PER_S)
    daemon.wait_progress(cast_id, 0.1)
    return cast_id


def confirm_rooms(daemon: Daemon, prefix: str, count: int = 3) -> list[str]:
    """Create rooms; return the ids that the daemon has confirmed."""
    rooms = [f"{prefix}-{number}" for number in range(count)]
    for room_id in rooms:
        daemon.ask("POST", "/rooms", {"name": room_id, "room_id": room_id})
    return rooms


def wait_refused(daemon: Daemon) -> httpx.Response:
    """Return the first write that the daemon refuses."""

    def refused() -> httpx.Response | None:
        answer = daemon.api.post("/rooms", json={"name": f"room {random.random()}"})
        return None if answer.is_success else answer

    return wait_until("a write is refused", refused, describe=daemon.describe) or pytest.fail("no answer")


def assert_reported(daemon: Daemon, refused: httpx.Response, *words: str) -> None:
    """Assert that the status page and the response name the problem and its fix."""
    assert refused.headers["Content-Type"] == PROBLEM_TYPE
    assert refused.status_code in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INSUFFICIENT_STORAGE), (
        refused.text
    )
    problem = daemon.problems()["database"]
    for word in words:
        assert word in refused.json()["detail"]
        assert word in problem


def assert_room_is_imaged(daemon: Daemon, room: list[ServiceAgent], image: GoldenImage) -> None:
    """Assert that every disk is right, in spite of the database."""
    for agent in room:
        wait_until(
            f"{agent.name} has the image",
            lambda agent=agent: agent.target.exists() and agent.target.read_bytes() == image.raw,
            LIMIT_S,
            describe=lambda agent=agent: f"{agent.describe()}\n{daemon.describe()}",
        )


def assert_all_is_kept(daemon: Daemon, cast_id: str, rooms: list[str]) -> None:
    """Assert that the cast and its machines are in history once, and every confirmed room exists."""

    def recorded() -> bool:
        lines = daemon.history(cast_id=cast_id)
        return sorted(line["machine_name"] for line in lines if line["state"] == "complete") == sorted(NAMES)

    wait_until("history is complete", recorded, describe=daemon.describe)
    assert daemon.wait_phase(cast_id, "done")["complete_count"] == len(NAMES)
    assert len(daemon.history(cast_id=cast_id)) == len(NAMES)
    assert set(rooms) <= {room["room_id"] for room in daemon.ask("GET", "/rooms", limit="500")["items"]}
    wait_until("the daemon is content", lambda: not daemon.problems(), describe=daemon.describe)
    confirm_rooms(daemon, "afterwards", 1)


def overwrite(path: Path, start_bytes: int, rng: random.Random) -> None:
    """Overwrite a file with garbage from ``start_bytes`` on, as a faulty disk would leave it."""
    size_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(start_bytes)
        file.write(rng.randbytes(max(0, size_bytes - start_bytes)))


def test_a_damaged_sqlite_file_does_not_disturb_the_cast_and_is_restored(
    tmp_path: Path, image: GoldenImage, agents: Agents
) -> None:
    with Daemon(tmp_path / "d") as daemon:
        daemon.add_image(image.path)
        room = agents(" ".join(NAMES), daemon)
        cast_id = start_cast(daemon, image)
        rooms = confirm_rooms(daemon, "before")
        database = daemon.state_directory / "diskcast.db"
        rng = random.Random(7)
        overwrite(database, 4096, rng)
        with contextlib.suppress(FileNotFoundError):
            overwrite(database.with_name("diskcast.db-wal"), 32, rng)
        refused = wait_refused(daemon)
        assert_reported(daemon, refused, str(database), "damaged", "diskcast database restore")
        assert_room_is_imaged(daemon, room, image)
        daemon.stop()
        # The daemon doesn't start with a damaged database, and doesn't change it.
        daemon.start(ready=False)
        assert daemon.program.wait(LIMIT_S) not in (EXIT_OK, 1)
        assert "diskcast database restore" in daemon.program.stderr_text()
        with Program(diskcast("database", "restore", "--config", daemon.config_path)) as restore:
            assert restore.wait(LIMIT_S) == EXIT_OK, restore.describe()
        daemon.start()
        assert_all_is_kept(daemon, cast_id, rooms)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted("tmpfs", tmp_path / "small", "-t", "tmpfs", "-o", "size=24m") as point:
        yield point


@pytest.mark.needs_root
def test_a_full_disk_does_not_disturb_the_cast_and_the_daemon_recovers(
    tmp_path: Path, image: GoldenImage, agents: Agents, small_disk: Path
) -> None:
    with Daemon(tmp_path / "d", state_directory=small_disk / "state") as daemon:
        daemon.add_image(image.path)
        room = agents(" ".join(NAMES), daemon)
        cast_id = start_cast(daemon, image)
        rooms = confirm_rooms(daemon, "before")
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        assert shutil.disk_usage(small_disk).free == 0
        refused = wait_refused(daemon)
        assert refused.status_code == HTTPStatus.INSUFFICIENT_STORAGE
        assert_reported(daemon, refused, str(daemon.state_directory), "full")
        assert_room_is_imaged(daemon, room, image)
        filler.unlink()
        assert_all_is_kept(daemon, cast_id, rooms)


def test_a_restart_of_postgresql_does_not_disturb_the_cast_and_no_other_daemon_takes_it_over(
    tmp_path: Path, image: GoldenImage, agents: Agents
) -> None:
    with postgres_server() as postgres:
        settings = {"server": {"database": postgres.new_database()}}
        with (
            Daemon(tmp_path / "a", settings=settings) as daemon,
            Daemon(tmp_path / "b", settings=settings) as other,
        ):
            for one in (daemon, other):
                one.add_image(image.path)
            room = agents(" ".join(NAMES), daemon, other)
            cast_id = start_cast(daemon, image)
            owner = daemon.cast(cast_id)["owner"]
            # Either daemon may have taken the cast; only its owner shows it without the database.
            running = next(one for one in (daemon, other) if one.name == owner)
            rooms = confirm_rooms(daemon, "before")
            postgres.stop()
            refused = wait_refused(daemon)
            assert refused.status_code == HTTPStatus.SERVICE_UNAVAILABLE
            assert_reported(daemon, refused, "postgresql", "start it")
            assert PASSWORD not in refused.text
            assert_room_is_imaged(daemon, room, image)
            assert running.cast(cast_id)["owner"] == owner
            postgres.start()
            assert_all_is_kept(daemon, cast_id, rooms)
            cast = other.cast(cast_id)
            assert cast["run_count"] == 1
            assert cast["owner"] == owner
