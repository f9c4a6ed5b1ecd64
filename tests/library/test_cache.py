from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import ImageError, StorageError
from sender.library import cache as cache_module
from sender.library.library import Library
from sender.store.records.images import ImageState
from tests.library.http_files import HttpFiles
from tests.library.rig import running, settings, until
from tests.support.disks.disk_images import MadeImage, make_image

BLOCKS = 8
IMAGE_KIB = 8 + 64 * BLOCKS


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpFiles]:
    (tmp_path / "www").mkdir()
    with HttpFiles(tmp_path / "www") as files:
        yield files


def _put(server: HttpFiles, count: int) -> list[MadeImage]:
    made = [make_image("r" * BLOCKS, seed=seed) for seed in range(count)]
    for seed, image in enumerate(made):
        image.write(server.folder / f"{seed}.dci")
    return made


def _library(tmp_path: Path, server: HttpFiles, images: float) -> Library:
    """Return a library whose cache has space for this many images."""
    config = settings(tmp_path, f"{server.url}/", cache_size=f"{int(images * IMAGE_KIB)}KiB")
    return Library(config, None, back_off_s=0.01)


def _cached(tmp_path: Path) -> set[str]:
    return {path.stem for path in (tmp_path / "cache").glob("*.dci")}


def _ids(made: list[MadeImage]) -> list[str]:
    return [one.manifest.image_id.hex() for one in made]


def test_the_least_recently_used_copy_is_evicted(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        a, b, c = _ids(_put(server, 3))
        async with running(_library(tmp_path, server, 2.5)) as library:
            await until(library, lambda: len(library.images()) == 3)
            for image_id in (a, b, a, c):
                (await library.open(image_id, "00000001")).close()
            assert _cached(tmp_path) == {a, c}
            assert library.get(b).state is ImageState.REMOTE
            (await library.open(b, "00000001")).close()
            assert _cached(tmp_path) == {b, c}

    asyncio.run(check())


def test_an_image_in_use_is_never_evicted(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        a, b, c = _ids(_put(server, 3))
        async with running(_library(tmp_path, server, 2.5)) as library:
            await until(library, lambda: len(library.images()) == 3)
            one, two = await library.open(a, "00000001"), await library.open(b, "00000002")
            with pytest.raises(ImageError, match=r"doesn't fit into the cache.*library\.cache_size"):
                await library.open(c, "00000003")
            assert _cached(tmp_path) == {a, b}
            assert library.get(c).in_use_by == ()
            one.close()
            async with await library.open(c, "00000003"):
                assert _cached(tmp_path) == {b, c}
            two.close()

    asyncio.run(check())


def test_an_image_larger_than_the_cache_is_refused_before_anything_is_evicted(
    tmp_path: Path, server: HttpFiles
) -> None:
    async def check() -> None:
        [a] = _ids(_put(server, 1))
        large = make_image("r" * 4 * BLOCKS, seed=9)
        large.write(server.folder / "large.dci")
        async with running(_library(tmp_path, server, 2)) as library:
            await until(library, lambda: len(library.images()) == 2)
            (await library.open(a, "00000001")).close()
            with pytest.raises(ImageError, match=r"larger than the cache.*library\.cache_size"):
                await library.open(large.manifest.image_id.hex(), "00000001")
            assert _cached(tmp_path) == {a}

    asyncio.run(check())


def test_a_full_disk_is_reported_before_the_fetch(
    tmp_path: Path, server: HttpFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        a, b = _ids(_put(server, 2))
        async with running(_library(tmp_path, server, 5)) as library:
            await until(library, lambda: len(library.images()) == 2)
            (await library.open(a, "00000001")).close()
            monkeypatch.setattr(cache_module, "DISK_RESERVE_BYTES", 1 << 60)
            sent = server.body_bytes
            with pytest.raises(ImageError, match="too full"):
                await library.open(b, "00000001")
            assert server.body_bytes == sent
            assert not _cached(tmp_path), "it tried to make room"

    asyncio.run(check())


def test_a_disk_that_fills_up_during_the_fetch_is_reported(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        [a] = _ids(_put(server, 1))
        async with running(_library(tmp_path, server, 5)) as library:
            await until(library, lambda: len(library.images()) == 1)
            (tmp_path / "cache" / f"{a}.partial").symlink_to("/dev/full")  # open() refuses to follow it
            with pytest.raises(StorageError, match=r"can't be written to the cache"):
                await library.open(a, "00000001")
            assert "can't be written" in library.get(a).problem

    asyncio.run(check())


def test_damaged_copies_of_earlier_runs_are_fetched_again(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        [a] = _ids(_put(server, 1))
        for _ in range(2):
            async with running(_library(tmp_path, server, 5)) as library:
                await until(library, library.images)
                (await library.open(a, "00000001")).close()
                copy = tmp_path / "cache" / f"{a}.dci"
                assert copy.read_bytes() == (server.folder / "0.dci").read_bytes()
                os.truncate(copy, 10_000)

    asyncio.run(check())


def test_two_daemons_dont_write_the_same_copy(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        [a] = _ids(_put(server, 1))
        async with running(_library(tmp_path, server, 5)) as library:
            await until(library, library.images)
            partial = tmp_path / "cache" / f"{a}.partial"
            with partial.open("wb") as other:
                fcntl.flock(other, fcntl.LOCK_EX)
                with pytest.raises(ImageError, match="another program"):
                    await library.open(a, "00000001")
            (await library.open(a, "00000001")).close()

    asyncio.run(check())


def test_an_unusable_cache_stops_neither_folders_nor_the_daemon(tmp_path: Path) -> None:
    async def check() -> None:
        (tmp_path / "file").write_text("x")
        config = settings(tmp_path, cache_directory=tmp_path / "file" / "cache")
        make_image("d").write(tmp_path / "images" / "lab.dci")
        async with running(Library(config, None)) as library:
            await until(library, lambda: library.images() and library.problems())
            assert "library.cache_directory" in library.problems()[0].text

    asyncio.run(check())


def test_a_file_in_a_folder_is_preferred_to_a_fetch(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        [made] = _put(server, 1)
        async with running(_library(tmp_path, server, 5)) as library:
            await until(library, library.images)
            made.write(tmp_path / "images" / "near.dci")
            await until(library, lambda: library.images()[0].source == "folder")
            async with await library.open(made.manifest.image_id.hex(), "00000001") as opened:
                assert opened.path == tmp_path / "images" / "near.dci"
            assert not _cached(tmp_path)

    asyncio.run(check())
