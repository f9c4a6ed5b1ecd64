"""Shared by every test module: order, the skip rule of privileged tests, hypothesis's profile, handling of SIGINT."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

from tests.support.network.lab import privileged_obstacle
from tests.support.signing import signing_environment

FOLDER = Path(__file__).parent

# The same examples on every machine and every run: a failure seen once can be seen again, and none is a slow machine's.
hypothesis.settings.register_profile(
    "diskcast",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    max_examples=60,
    database=None,
    print_blob=True,
)
hypothesis.settings.load_profile("diskcast")

# A shell ignores SIGINT for what it starts in the background, and programs that tests start and interrupt inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


os.environ.update(signing_environment())

SLOW_FIRST = ("netboot", "e2e", "netns", "server", "simulation", "web", "deploy", "load", "property")
"""Folders with slow files, the slowest first: a slow file at the end would keep a single process busy."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow folders first; within a folder the order stays."""

    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(FOLDER).parts[0]
        return SLOW_FIRST.index(folder) if folder in SLOW_FIRST else len(SLOW_FIRST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def privileged_obstacle_text() -> str | None:
    """Return the reason that privileged tests can't run here, determined once, or None."""
    return privileged_obstacle()


@pytest.fixture(autouse=True)
def _privileges(request: pytest.FixtureRequest) -> None:
    """Skip a test marked ``needs_root`` with the reason, or fail it where nothing may be skipped."""
    if request.node.get_closest_marker("needs_root") is None:
        return
    obstacle: str | None = request.getfixturevalue("privileged_obstacle_text")
    if obstacle is None:
        return
    if os.environ.get("DISKCAST_REQUIRE_PRIVILEGED_TESTS"):
        pytest.fail(f"a privileged test can't run here, and CI may skip none: {obstacle}", pytrace=False)
    pytest.skip(obstacle)
