from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from protocol.constants import KIB
from protocol.errors import ImageError
from sender.library import fetch as fetch_module
from sender.library.library import Library
from sender.store.records.images import ImageState
from tests.library.rig import running, settings, until
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S
from tests.support.network.ports import free_port_range


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Run a real S3 server on the loopback interface."""
    [port] = free_port_range(1)
    url = f"http://127.0.0.1:{port}"
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as moto:
        try:
            deadline = time.monotonic() + LIMIT_S
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=LIMIT_S).close()
                    break
                assert moto.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield url
        finally:
            moto.terminate()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fsspec.AbstractFileSystem:
    """Create a bucket, and set the environment as an operator does."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "lab",
        "AWS_SECRET_ACCESS_KEY": "geheim",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fetch_module, "PIECE_BYTES", 64 * KIB)
    urllib.request.urlopen(
        urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST"), timeout=LIMIT_S
    ).close()
    system = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    system.mkdir("images")
    return system


def _library(tmp_path: Path, *remotes: str) -> Library:
    return Library(settings(tmp_path, *remotes), None, back_off_s=0.01)


def test_images_of_a_bucket_are_listed_and_fetched(tmp_path: Path, bucket: fsspec.AbstractFileSystem) -> None:
    async def check() -> None:
        made = make_image("r" * 10)
        whole = made.write(tmp_path / "whole").read_bytes()
        bucket.pipe("images/lab 1/Büro.dci", whole)
        bucket.pipe("images/lab 1/notes.txt", b"x")
        bucket.pipe("images/lab 1/deeper/other.dci", whole)
        bucket.pipe("images/lab 10/other.dci", whole)
        async with running(_library(tmp_path, "s3://images/lab 1/")) as library:
            await until(library, library.images)
            [image] = library.images()
            assert image.state is ImageState.REMOTE
            assert image.location == "s3://images/lab 1/Büro.dci"
            assert image.image_id == made.manifest.image_id.hex()
            async with await library.open(image.image_id, "00000001") as opened:
                assert opened.path.read_bytes() == whole
            bucket.rm("images/lab 1/Büro.dci")
            second = make_image("r", seed=2)
            bucket.pipe("images/lab 1/second.dci", second.write(tmp_path / "second").read_bytes())
            await library.scan()
            assert {one.image_id: one.state for one in library.images()} == {
                made.manifest.image_id.hex(): ImageState.AVAILABLE,  # the copy
                second.manifest.image_id.hex(): ImageState.REMOTE,
            }

    asyncio.run(check())


def test_an_object_that_is_replaced_is_another_image(
    tmp_path: Path, bucket: fsspec.AbstractFileSystem
) -> None:
    async def check() -> None:
        old, new = make_image("r" * 4), make_image("r" * 4, seed=2)
        bucket.pipe("images/lab.dci", old.write(tmp_path / "old").read_bytes())
        async with running(_library(tmp_path, "s3://images/lab.dci")) as library:
            await until(library, lambda: library.images() and library.images()[0].raw_bytes)
            bucket.pipe("images/lab.dci", new.write(tmp_path / "new").read_bytes())
            with pytest.raises(ImageError, match="another image now"):
                await library.open(old.manifest.image_id.hex(), "00000001")
            await library.scan()
            async with await library.open(new.manifest.image_id.hex(), "00000001") as opened:
                assert opened.path.read_bytes() == (tmp_path / "new").read_bytes()

    asyncio.run(check())


def test_errors_of_s3_are_reported_with_the_fix(
    tmp_path: Path, bucket: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def problem_of(url: str) -> str:
        async with running(_library(tmp_path, url)) as library:
            await until(library, library.problems)
            return library.problems()[0].text

    bucket.touch("images/empty.dci")
    assert "doesn't exist" in asyncio.run(problem_of("s3://images/none.dci"))
    assert "doesn't exist" in asyncio.run(problem_of("s3://nowhere/lab/"))
    assert "s3://images/empty.dci" in asyncio.run(problem_of("s3://images/empty.dci"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port_range(1)[0]}")
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    assert "s3://images/empty.dci" in asyncio.run(problem_of("s3://images/empty.dci"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    text = asyncio.run(problem_of("s3://images/lab.dci"))
    assert "AWS_ACCESS_KEY_ID" in text
