"""Fixtures for tests of the live system."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def disk_state_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep the state of the disks apart for each test."""
    path = tmp_path / "disk-state"
    monkeypatch.setattr("receiver.live.disk_state.DISK_STATE_FILE", path)
    return path
