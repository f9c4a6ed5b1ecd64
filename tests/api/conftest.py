"""The daemons' APIs of a test module: one that requires tokens, one open on the loopback address.

Module scope, because other tests of the same process count threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import structlog

from sender.store.records.access import Role
from tests.api.served import Served, serve


def _drop(_logger: object, _method: str, _event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Drop log lines: thousands of requests and their tracebacks would be rendered."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    yield
    structlog.configure(**before)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("guarded"), server__require_tokens=True) as served:
        yield served


@pytest.fixture(scope="module")
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
