"""Daemons' APIs for the whole session: one that demands tokens, one that is open on the loopback address."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from sender.store.records import Role
from tests.api.served import Served, serve


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("guarded"), server__require_tokens=True) as served:
        yield served


@pytest.fixture(scope="session")
def open_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("open")) as served:
        yield served


@pytest.fixture
def operator(guarded: Served) -> Iterator[httpx.Client]:
    with guarded.client(Role.OPERATE) as client:
        yield client


@pytest.fixture
def local(open_api: Served) -> Iterator[httpx.Client]:
    with open_api.client(None) as client:
        yield client
