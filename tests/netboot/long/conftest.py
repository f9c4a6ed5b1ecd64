"""Shared by the long runs with virtual machines: they are collected for ``make netboot-vm`` only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machines.bootable_image import signed_loaders
from tests.support.machines.debian_image import make_debian_image
from tests.support.machines.debian_sources import write_debian_sources
from tests.support.machines.micro_image import make_micro_image
from tests.support.machines.netboot_room import SERVER_URL, NetbootRoom

collect_ignore_glob = [] if os.environ.get("DISKCAST_NETBOOT_VM") else ["test_*.py"]


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetbootRoom]:
    """The daemon and a DHCP server that knows nothing of diskcast; no boot services yet."""
    with NetbootRoom(tmp_path_factory.mktemp("room")) as room:
        yield room


@pytest.fixture(scope="session")
def medium(room: NetbootRoom) -> Path:
    """A boot medium for virtual machines, quickly compressed."""
    return room.build_medium(room.folder / "medium", "--cloud", "--quick")


@pytest.fixture(scope="session")
def micro(room: NetbootRoom, medium: Path) -> str:
    """The name of a small image in the library that boots on every firmware, with Secure Boot too."""
    raw = make_micro_image(room.folder / "micro.raw", medium, uefi_loaders=signed_loaders(medium))
    room.add_image(raw, "micro")
    return "micro"


@pytest.fixture(scope="session")
def stick(room: NetbootRoom, medium: Path) -> Path:
    """A USB stick with the boot medium."""
    path, token = room.folder / "stick.img", room.folder / "stick.token"
    room.command("tokens", "create", "stick", "--role", "enrol", "--output", token)
    room.command("netboot", "usb", medium, "-o", path, "--server", SERVER_URL, "--token-file", token)
    return path


@pytest.fixture(scope="session")
def micro_for_all(room: NetbootRoom) -> tuple[Path, str]:
    """A medium with the kernel for all machines and firmware, and the name of an image with that kernel."""
    sources = write_debian_sources(room.folder / "firmware.sources")
    medium = room.build_medium(room.folder / "medium-for-all", "--mirror", str(sources))
    room.add_image(make_micro_image(room.folder / "all.raw", medium), "micro-for-all")
    return medium, "micro-for-all"


@pytest.fixture(scope="session")
def debian(room: NetbootRoom) -> str:
    """The name of an image in the library with a whole Debian."""
    raw = make_debian_image(room.folder / "debian.raw")
    room.add_image(raw, "debian")
    raw.unlink()
    return "debian"
