"""Commands on the daemon's machine find it by themselves, and nobody else can direct them elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sender.config.local_endpoint import (
    ENDPOINT_FILE,
    LocalEndpoint,
    find_local_endpoint,
    write_local_endpoint,
)

ENDPOINT = LocalEndpoint("https://127.0.0.1:7400", "a" * 52)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("default_state_directory", "user_state_directory"):
        monkeypatch.setattr(f"sender.config.local_endpoint.{name}", lambda: tmp_path / "diskcast")
    monkeypatch.setattr("sender.config.local_endpoint.SYSTEM_STATE_DIRECTORY", tmp_path / "system")
    directory = tmp_path / "diskcast"
    directory.mkdir()
    return directory


def test_the_users_daemon_is_found(state: Path) -> None:
    assert find_local_endpoint() is None
    write_local_endpoint(state, ENDPOINT)
    assert find_local_endpoint() == ENDPOINT
    assert [path.name for path in state.iterdir()] == [ENDPOINT_FILE]


def test_the_systems_daemon_is_the_second_choice(state: Path) -> None:
    system = state.parent / "system"
    system.mkdir()
    write_local_endpoint(system, ENDPOINT)
    assert find_local_endpoint() == ENDPOINT
    own = LocalEndpoint("http://127.0.0.1:7500", "")
    write_local_endpoint(state, own)
    assert find_local_endpoint() == own


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"url": 1, "pin": ""}', '{"url": "https://h", "pin": "x"}']
)
def test_nonsense_is_ignored(state: Path, content: str) -> None:
    (state / ENDPOINT_FILE).write_text(content)
    assert find_local_endpoint() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_file_is_ignored(state: Path) -> None:
    write_local_endpoint(state, ENDPOINT)
    os.chown(state / ENDPOINT_FILE, 12345, 12345)
    assert find_local_endpoint() is None
