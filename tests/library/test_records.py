"""The library with the real store of the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from sender.actors import Actor
from sender.library.library import Library
from sender.store.open_store import open_database
from sender.store.records.images import Image, ImageState
from sender.store.store import Store
from tests.library.http_files import HttpFiles
from tests.library.rig import running, settings, until
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_database(sa.make_url(f"sqlite:///{tmp_path / 'diskcast.db'}"), upkeep=False)
    yield opened
    opened.close()


async def _recorded(store: Store, image_id: str, state: ImageState) -> Image:
    while (image := await store.run(store.images.get, image_id)) is None or image.state is not state:
        await asyncio.sleep(0.02)
    return image


def test_a_gone_image_keeps_its_record(tmp_path: Path, store: Store) -> None:
    async def check() -> None:
        config = settings(tmp_path)
        one, two = make_image("d", seed=1), make_image("d", seed=2)
        ids = [made.manifest.image_id.hex() for made in (one, two)]
        paths = [
            made.write(tmp_path / "images" / f"{name}.dci") for name, made in (("one", one), ("two", two))
        ]
        async with asyncio.timeout(LIMIT_S):
            async with running(Library(config, store)):
                first = await _recorded(store, ids[0], ImageState.AVAILABLE)
                await _recorded(store, ids[1], ImageState.AVAILABLE)
                paths[0].unlink()
                gone = await _recorded(store, ids[0], ImageState.GONE)
                assert (gone.name, gone.first_seen_at) == ("made", first.first_seen_at)
            paths[1].unlink()  # no scan runs
            async with running(Library(config, store)) as library:
                await _recorded(store, ids[1], ImageState.GONE)
                one.write(paths[0])
                back = await _recorded(store, ids[0], ImageState.AVAILABLE)
                assert back.first_seen_at == first.first_seen_at
                assert library.get(ids[0]).first_seen_at == first.first_seen_at

    asyncio.run(check())


def test_added_remote_images_survive_a_restart_and_removed_ones_dont_return(
    tmp_path: Path, store: Store
) -> None:
    async def check() -> None:
        image_id = make_image("d").manifest.image_id.hex()
        (tmp_path / "www" / "more").mkdir(parents=True)
        make_image("d").write(tmp_path / "www" / "lab.dci")
        with HttpFiles(tmp_path / "www") as server:
            config = settings(tmp_path, f"{server.url}/more/")
            async with running(Library(config, store)) as library:
                await library.add_remote(f"{server.url}/lab.dci", "", Actor("anna", "r1"))
            async with running(Library(config, store)) as library:
                await until(library, lambda: library.get(image_id))
            server.stop()
            async with running(Library(config, store)) as library:
                await until(library, library.problems)
                [image] = library.images()
                assert (image.state, image.name) == (ImageState.REMOTE, "lab")
                await library.forget(image.image_id, Actor("anna", "r2"))
                assert not library.images()
            async with running(Library(config, store)) as library:
                await library.scan()
                assert not library.images()
        entries, _ = await store.run(store.audit.list)
        assert [(entry.actor, entry.action, entry.request_id) for entry in entries] == [
            ("anna", "image.forget", "r2"),
            ("anna", "image.add", "r1"),
        ]

    asyncio.run(check())
