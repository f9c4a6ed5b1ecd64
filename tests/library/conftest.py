"""Longer timeouts, so that a folder of a busy machine doesn't count as a dead file server."""

from __future__ import annotations

import pytest

from sender.library import folder, library
from tests.support.network.lab import LIMIT_S


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "ANSWER_S", LIMIT_S)
    monkeypatch.setattr(library, "SCAN_S", LIMIT_S)
