"""Shared by the tests of booting from the network: the boot medium, built once in a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.machines.built_medium import shared_medium


@pytest.fixture(scope="session")
def boot_medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a medium for virtual machines, without a pin."""
    return shared_medium(tmp_path_factory)
