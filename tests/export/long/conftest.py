"""Shared by the runs with virtual machines: they are collected for ``make export-vm`` only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.machines.built_medium import shared_medium
from tests.support.machines.micro_image import make_micro_image
from tests.support.network.lab import diskcast, run

collect_ignore_glob = [] if os.environ.get("DISKCAST_EXPORT_VM") else ["test_*.py"]


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that boots to its login on BIOS and UEFI."""
    folder = tmp_path_factory.mktemp("micro")
    raw = make_micro_image(folder / "micro.raw", shared_medium(tmp_path_factory))
    run(*diskcast("pack", raw, "-o", folder / "micro.dci", "--no-sign"))
    raw.unlink()
    return folder / "micro.dci"
