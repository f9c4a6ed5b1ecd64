"""Signatures in files and those that operators uploaded: the library offers the later one, on every daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from protocol.trust.statement import ImageStatement
from sender.actors import Actor
from sender.imaging.signature_page import write_signature
from sender.library.library import Library
from sender.refusals import RequestRefusedError
from sender.store.open_store import open_database
from sender.store.store import Store
from tests.library.http_files import HttpFiles
from tests.library.rig import running, settings, until
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S
from tests.support.signing import SIGNER, STRANGER, signed

MADE = make_image("drz")
IMAGE_ID = MADE.manifest.image_id.hex()
ANNA = Actor("anna", "r1")


def statement(version: int, name: str = "lab", image_id: bytes = MADE.manifest.image_id) -> ImageStatement:
    return ImageStatement(image_id, name, version)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_database(sa.make_url(f"sqlite:///{tmp_path / 'diskcast.db'}"), upkeep=False)
    yield opened
    opened.close()


def test_a_signature_in_the_file_is_shown_and_a_new_one_replaces_it(tmp_path: Path) -> None:
    async def check() -> None:
        path = MADE.write(tmp_path / "images" / "lab.dci", signer=None)
        async with asyncio.timeout(LIMIT_S), running(Library(settings(tmp_path), None)) as library:
            await until(library, lambda: library.get(IMAGE_ID))
            image = library.get(IMAGE_ID)
            assert (image.signer, image.version, image.signed_name) == ("", "", "")
            write_signature(path, signed(statement(2**64 - 1)), SIGNER.public)
            await until(library, lambda: library.get(IMAGE_ID).version)
            image = library.get(IMAGE_ID)
            assert (image.signer, image.version) == (SIGNER.public.id_text, str(2**64 - 1))
            assert image.signed_name == "lab"

    (tmp_path / "images").mkdir()
    asyncio.run(check())


def test_an_uploaded_signature_counts_here_and_on_other_daemons(tmp_path: Path, store: Store) -> None:
    async def check() -> None:
        path = MADE.write(tmp_path / "images" / "lab.dci", signer=None)
        before = path.read_bytes()
        config = settings(tmp_path)
        async with asyncio.timeout(LIMIT_S), running(Library(config, store)) as library:
            async with running(Library(config, store)) as other:
                for one in (library, other):
                    await until(one, lambda one=one: one.get(IMAGE_ID))
                await library.sign(IMAGE_ID, signed(statement(7)), SIGNER.public.text, ANNA)
                assert library.get(IMAGE_ID).version == "7"
                assert library.signature(IMAGE_ID).signer == SIGNER.public
                async with await other.open(IMAGE_ID, "00000001"):
                    assert other.signature(IMAGE_ID).statement == statement(7)
            write_signature(path, signed(statement(8)), SIGNER.public)
            await until(library, lambda: library.get(IMAGE_ID).version == "8")
        async with running(Library(config, store)) as restarted:
            await until(restarted, lambda: restarted.get(IMAGE_ID))
            assert restarted.get(IMAGE_ID).version == "8", "the file's signature is the later one"
            await restarted.sign(IMAGE_ID, signed(statement(9)), SIGNER.public.text, ANNA)
            assert restarted.get(IMAGE_ID).version == "9"
        assert path.read_bytes()[4096:] == before[4096:]
        entries, _ = await store.run(store.audit.list)
        assert [(entry.actor, entry.action) for entry in entries] == [("anna", "image.sign")] * 2
        assert "version: 9" in str(entries[0].detail["statement"])

    (tmp_path / "images").mkdir()
    asyncio.run(check())


def test_only_valid_and_newer_signatures_are_taken(tmp_path: Path, store: Store) -> None:
    async def check() -> None:
        MADE.write(tmp_path / "images" / "lab.dci")  # version 1
        async with asyncio.timeout(LIMIT_S), running(Library(settings(tmp_path), store)) as library:
            await until(library, lambda: library.get(IMAGE_ID))
            for both, key, message in (
                (signed(statement(2)), STRANGER.public, "altered|doesn't trust"),
                (signed(statement(2), STRANGER), SIGNER.public, "doesn't trust|altered"),
                (signed(statement(2, image_id=bytes(32))), SIGNER.public, "about the image"),
                (signed(statement(1)), SIGNER.public, "version 1 already"),
            ):
                with pytest.raises(RequestRefusedError, match=message):
                    await library.sign(IMAGE_ID, both, key.text, ANNA)
            with pytest.raises(RequestRefusedError, match="no image"):
                await library.sign("f" * 64, signed(statement(2)), SIGNER.public.text, ANNA)
            assert library.get(IMAGE_ID).version == "1"
        assert await store.run(store.images.signatures) == []

    (tmp_path / "images").mkdir()
    asyncio.run(check())


def test_an_invalid_signature_in_a_file_needs_attention(tmp_path: Path) -> None:
    async def check() -> None:
        path = MADE.write(tmp_path / "images" / "lab.dci")
        write_signature(path, signed(statement(2)), STRANGER.public)
        async with asyncio.timeout(LIMIT_S), running(Library(settings(tmp_path), None)) as library:
            await until(library, lambda: library.get(IMAGE_ID))
            assert library.get(IMAGE_ID).version == ""
            assert "altered" in library.get(IMAGE_ID).problem or "trust" in library.get(IMAGE_ID).problem
            assert library.problems()

    (tmp_path / "images").mkdir()
    asyncio.run(check())


def test_remote_images_show_their_signature_before_they_are_fetched(tmp_path: Path) -> None:
    async def check() -> None:
        (tmp_path / "www").mkdir()
        path = MADE.write(tmp_path / "www" / "lab.dci", signer=None)
        write_signature(path, signed(statement(7)), SIGNER.public)
        with HttpFiles(tmp_path / "www") as server:
            async with running(Library(settings(tmp_path, f"{server.url}/lab.dci"), None)) as library:
                await until(library, lambda: library.get(IMAGE_ID))
                image = library.get(IMAGE_ID)
                assert (image.state.value, image.signer, image.version) == (
                    "remote",
                    SIGNER.public.id_text,
                    "7",
                )
                async with await library.open(IMAGE_ID, "00000001") as opened:
                    assert opened.path.stat().st_mode & 0o777 == 0o640
                assert library.get(IMAGE_ID).version == "7"

    asyncio.run(check())
