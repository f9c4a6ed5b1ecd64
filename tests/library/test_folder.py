from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from protocol.errors import ImageError
from sender.library import folder as folder_module
from sender.library.folder import FolderWatch
from sender.library.library import Library
from sender.refusals import RequestRefusedError
from sender.store.records.images import ImageState
from tests.library.rig import running, settings, until
from tests.support.disks.disk_images import make_image


def _named(library: Library) -> dict[str, ImageState]:
    return {Path(image.location).name: image.state for image in library.images()}


def test_an_image_in_a_folder_can_be_cast_at_once(tmp_path: Path) -> None:
    async def check() -> None:
        made = make_image("drzu")
        async with running(Library(settings(tmp_path), None)) as library:
            path = made.write(tmp_path / "images" / "lab.dci")
            await until(library, library.images)
            [image] = library.images()
            assert image.state is ImageState.AVAILABLE
            assert image.image_id == made.manifest.image_id.hex()
            assert (image.raw_bytes, image.stored_bytes) == (len(made.raw), path.stat().st_size)
            async with await library.open(image.image_id, "00000001") as opened:
                assert opened.path == path
                assert library.images()[0].in_use_by == ("00000001",)
            assert library.images()[0].in_use_by == ()

    asyncio.run(check())


def test_a_cast_that_resumes_after_a_restart_waits_for_the_first_scan(tmp_path: Path) -> None:
    async def check() -> None:
        library = Library(settings(tmp_path), None)
        made = make_image("dd")
        made.write(tmp_path / "images" / "lab.dci")
        async with running(library):
            opened = await library.open(made.manifest.image_id.hex(), "00000001")
            assert opened.path.name == "lab.dci"
            opened.close()
            with pytest.raises(ImageError, match="isn't in the library"):
                await library.open("0" * 64, "00000001")

    asyncio.run(check())


def test_a_file_that_is_being_copied_is_neither_offered_nor_called_damaged(tmp_path: Path) -> None:
    async def check() -> None:
        made, other = make_image("drdr"), make_image("r", seed=2)
        whole = made.write(tmp_path / "whole").read_bytes()
        copy = tmp_path / "images" / "copy.dci"
        async with running(Library(settings(tmp_path), None, settle_s=1000)) as library:
            with copy.open("wb") as file:
                for start in range(0, len(whole), 30_000):
                    file.write(whole[start : start + 30_000])
                    file.flush()
                    await library.scan()
                    assert bool(library.images()) == (file.tell() == len(whole))
            copy.unlink()
            # Some copy programs set the length of the file first.
            with copy.open("wb") as file:
                file.truncate(len(whole))
                file.write(whole[:-1])
                file.flush()
                other.write(tmp_path / "images" / "other.dci")
                await until(library, lambda: _named(library) == {"other.dci": ImageState.AVAILABLE})
                file.write(whole[-1:])
            await until(library, lambda: len(library.images()) == 2)
            assert not library.problems()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: data + b"x", "other data behind"),
        (lambda data: data[:100] + b"x" + data[101:], "header was altered"),
        (lambda data: data[:4200] + bytes([data[4200] ^ 1]) + data[4201:], "the manifest is damaged"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "last block"),
        (lambda _: b"\x7fELF", "isn't"),
        (lambda _: b"", ""),
    ],
)
def test_a_damaged_image_is_shown_with_its_problem_until_it_is_replaced(
    tmp_path: Path, harm, message: str
) -> None:
    async def check() -> None:
        path = tmp_path / "images" / "lab.dci"
        data = make_image("dr").write(tmp_path / "whole").read_bytes()
        (tmp_path / "images").mkdir()
        path.write_bytes(harm(data))
        async with running(Library(settings(tmp_path), None, settle_s=0.0)) as library:
            await until(library, library.images)
            [image] = library.images()
            assert image.state is ImageState.DAMAGED
            assert message in image.problem
            assert str(path) in image.problem
            assert [problem.kind for problem in library.problems()] == ["library"]
            with pytest.raises(ImageError, match=r"lab\.dci"):
                await library.open(image.image_id, "00000001")
            path.write_bytes(data)
            await until(library, lambda: _named(library) == {"lab.dci": ImageState.AVAILABLE})
            assert not library.problems()

    asyncio.run(check())


def test_an_old_damaged_file_is_reported_at_the_first_scan(tmp_path: Path) -> None:
    async def check() -> None:
        config = settings(tmp_path)
        path = tmp_path / "images" / "old.dci"
        path.write_bytes(b"no image")
        os.utime(path, (1e9, 1e9))
        async with running(Library(config, None, settle_s=1000)) as library:
            await until(library, library.images)
            assert library.images()[0].state is ImageState.DAMAGED

    asyncio.run(check())


def test_a_vanished_file_leaves_the_library_and_its_duplicate_replaces_it(tmp_path: Path) -> None:
    async def check() -> None:
        config = settings(tmp_path)
        made = make_image("dz")
        first, second = (made.write(tmp_path / "images" / name) for name in ("a.dci", "b.dci"))
        async with running(Library(config, None)) as library:
            await until(library, library.images)
            await library.scan()
            assert _named(library) == {"a.dci": ImageState.AVAILABLE}
            first.unlink()
            await until(library, lambda: _named(library) == {"b.dci": ImageState.AVAILABLE})
            second.unlink()
            await until(library, lambda: not library.images())

    asyncio.run(check())


def test_hidden_files_and_other_kinds_of_files_are_ignored(tmp_path: Path) -> None:
    async def check() -> None:
        config = settings(tmp_path)
        folder = tmp_path / "images"
        made = make_image("d")
        made.write(folder / ".lab.dci.partial")
        made.write(folder / ".hidden.dci")
        (folder / "directory.dci").mkdir()
        os.mkfifo(folder / "pipe.dci")
        (folder / "broken.dci").symlink_to("nowhere")
        made.write(tmp_path / "elsewhere")
        (folder / "link.dci").symlink_to(tmp_path / "elsewhere")
        async with running(Library(config, None, settle_s=0.0)) as library:
            await until(library, library.images)
            await library.scan()
            assert _named(library) == {"link.dci": ImageState.AVAILABLE}

    asyncio.run(check())


def test_images_are_found_by_id_start_of_an_id_or_name(tmp_path: Path) -> None:
    async def check() -> None:
        config = settings(tmp_path)
        one, two = make_image("d", seed=1), make_image("d", seed=2)
        one.write(tmp_path / "images" / "one.dci")
        async with running(Library(config, None)) as library:
            await until(library, library.images)
            image_id = one.manifest.image_id.hex()
            for text in (image_id, image_id[:8], image_id[:9].upper(), "made"):
                assert library.resolve(text).image_id == image_id
            for text in (image_id[:7], "mad", "", "0" * 64):
                with pytest.raises(RequestRefusedError) as refused:
                    library.resolve(text)
                assert refused.value.status == 404
            two.write(tmp_path / "images" / "two.dci")
            await until(library, lambda: any(image.number == 2 for image in library.images()))
            newest = two.manifest.image_id.hex()
            for text in ("made", "made@latest", "made@2"):
                assert library.resolve(text).image_id == newest
            assert library.resolve("made@1").image_id == image_id
            with pytest.raises(RequestRefusedError, match="made@3"):
                library.resolve("made@3")

    asyncio.run(check())


def test_a_missing_folder_is_a_problem_until_it_exists(tmp_path: Path) -> None:
    async def check() -> None:
        nas = tmp_path / "mnt" / "nas"
        config = settings(tmp_path, folders=(nas,))
        async with running(Library(config, None)) as library:
            await until(library, library.problems)
            assert str(nas) in library.problems()[0].text
            nas.mkdir(parents=True)
            make_image("d").write(nas / "lab.dci")
            await until(library, lambda: library.images() and not library.problems())

    asyncio.run(check())


def test_a_dead_file_server_is_reported_and_stops_neither_the_daemon_nor_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    answering = threading.Event()
    answering.set()
    looks = 0
    real = folder_module._signatures

    def hanging(folder: Path):  # as the kernel does with calls to a dead server
        nonlocal looks
        if folder.name == "nas":
            looks += 1
            answering.wait()
        return real(folder)

    monkeypatch.setattr(folder_module, "_signatures", hanging)
    monkeypatch.setattr(folder_module, "ANSWER_S", 0.1)

    async def check() -> None:
        nas = tmp_path / "nas"
        nas.mkdir()
        config = settings(tmp_path)
        config = settings(tmp_path, folders=(*config.folders, nas))
        make_image("d", seed=1).write(nas / "far.dci")
        async with running(Library(config, None)) as library:
            await until(library, library.images)
            answering.clear()
            # On a busy machine, the other folder may be late for a moment too.
            message = f"{nas} doesn't answer"
            await until(library, lambda: any(message in problem.text for problem in library.problems()))
            make_image("d", seed=2).write(tmp_path / "images" / "near.dci")
            await until(library, lambda: len(library.images()) == 2)
            stuck = looks
            await asyncio.wait({asyncio.ensure_future(library.scan())}, timeout=0.3)
            assert looks == stuck, "one thread hangs, not one more at each look"
            answering.set()
            await until(library, lambda: not library.problems())

    asyncio.run(check())
    answering.set()


def test_the_first_scan_of_a_folder_shows_images_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "PUBLISH_S", 0.0)

    async def check() -> None:
        config = settings(tmp_path)
        for seed in range(4):
            make_image("d", seed=seed).write(tmp_path / "images" / f"{seed}.dci")
        counts: list[int] = []
        watch = FolderWatch(config.folders[0], on_change=lambda: counts.append(len(watch.files)))
        await watch.scan()
        assert counts == [1, 2, 3, 4]

    asyncio.run(check())
