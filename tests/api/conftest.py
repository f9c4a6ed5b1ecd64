"""The daemon's API of a test module.

Module scope, because other tests of the same process count threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
    with serve(tmp_path_factory.mktemp("guarded")) as served:
        yield served


@pytest.fixture
def operator(guarded: Served) -> Iterator[httpx.Client]:
    with guarded.client(Role.OPERATE) as client:
        yield client


@pytest.fixture
def own(served: Served) -> Path:
    """Return the folder of the daemon's own images; the test module makes the daemon ``served``."""
    return served.folder / "state" / "images"


@pytest.fixture
def api(served: Served) -> Iterator[httpx.Client]:
    """Return a client of the test module's daemon ``served``."""
    with served.client() as client:
        yield client
