"""A library that doesn't take a busy machine's own folder for a dead file server."""

from __future__ import annotations

import pytest

from sender.library import folder, library
from tests.support.network.lab import LIMIT_S


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "ANSWER_S", LIMIT_S)
    monkeypatch.setattr(library, "SCAN_S", LIMIT_S)
