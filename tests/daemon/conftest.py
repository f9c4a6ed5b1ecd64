from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from sender.store.open_store import open_database
from sender.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_database(sa.URL.create("sqlite", database=str(tmp_path / "diskcast.db")), upkeep=False)
    yield opened
    opened.close()
