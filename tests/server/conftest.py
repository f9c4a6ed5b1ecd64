"""Fixtures: an image that takes seconds at :data:`RATE_BYTES_PER_S`, and the daemon that most tests share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.disks.disk_images import make_image
from tests.support.postgres.server import PostgresServer, postgres_server
from tests.support.programs.serving import Daemon, ServiceAgent

BLOCK_BYTES = 256 << 10
RATE_BYTES_PER_S = 4e6


@dataclasses.dataclass(frozen=True, slots=True)
class GoldenImage:
    """A packed image, and the content that every disk must have at the end."""

    path: Path
    image_id: str
    raw: bytes

    def assert_is_on(self, target: Path) -> None:
        assert target.read_bytes() == self.raw, f"{target} isn't the image"


def make_golden_image(path: Path, block_count: int, seed: int) -> GoldenImage:
    """Return an image of random bytes: they don't compress, so the rate determines the length of a cast."""
    made = make_image("r" * block_count, block_bytes=BLOCK_BYTES, seed=seed)
    return GoldenImage(made.write(path), made.manifest.image_id.hex(), made.raw)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> GoldenImage:
    """Return an image of 16 MiB, which takes four seconds."""
    return make_golden_image(tmp_path_factory.mktemp("golden") / "lab.dci", 64, seed=5)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL server, in which each test creates its own database."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Callable[..., list[ServiceAgent]]]:
    """Return a function that starts agents by their names, each with an empty disk, until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(names: str, *daemons: Daemon) -> list[ServiceAgent]:
            disks = tmp_path / "disks"
            return [stack.enter_context(ServiceAgent(disks, name, daemons)) for name in names.split()]

        yield start
