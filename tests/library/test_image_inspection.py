"""Contents of images, read once however many pages ask at the same time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sender.imaging.contents import image_contents
from sender.imaging.contents.image_contents import ContentsState
from sender.library.entries import image_inspection
from sender.library.entries.image_inspection import ImageInspection
from tests.support.disks.disk_images import make_image


class EmptyStore:
    """A database that answers a moment later, and knows nothing."""

    image_entries = SimpleNamespace(contents=None, put_contents=None)

    async def run(self, *_arguments: object) -> None:
        await asyncio.sleep(0)


def test_many_requests_at_once_read_an_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request asks the database first: a second entry in the queue ended the daemon."""
    path = make_image("rdzr").write(tmp_path / "lab.dci")
    read: list[object] = []

    def read_contents(image: Any) -> Any:
        read.append(image)
        return image_contents.read_contents(image)

    monkeypatch.setattr(image_inspection, "read_contents", read_contents)

    async def ask() -> list[ContentsState]:
        inspection = ImageInspection(EmptyStore(), lambda _image_id: path)  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as group:
            running = group.create_task(inspection.run())
            answers = await asyncio.gather(*[inspection.contents("ab" * 32) for _ in range(8)])
            again = await inspection.contents("ab" * 32)
            assert not running.done()
            running.cancel()
        return [answer.state for answer in (*answers, again)]

    assert set(asyncio.run(ask())) == {ContentsState.READY}
    assert len(read) == 1
