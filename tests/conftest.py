"""What every test module shares: the skip rule of privileged tests, hypothesis's profile, and how SIGINT is taken."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest

from tests.support.network.lab import privileged_obstacle

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


@pytest.fixture(scope="session")
def privileged_obstacle_text() -> str | None:
    """Why privileged tests can't run here, found out once."""
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
