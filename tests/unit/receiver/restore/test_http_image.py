"""Images on web servers: read in ranges, from servers that fail, change files, or aren't the right ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import (
    ConfigurationError,
    ImageChangedError,
    ImageDamagedError,
    ImageError,
    ImageFormatError,
    ProtocolError,
    UnsignedImageError,
)
from protocol.program.peer_trust import PeerTrust
from receiver.restore.disk_progress import TextProgress
from receiver.restore.http_image import HttpImageBytes, open_image_url, parse_content_range_untrusted
from receiver.restore.restore_image import restore_opened
from tests.library.http_files import HttpFiles
from tests.support.disks.disk_images import make_image
from tests.support.signing import KEYS, NOW

MADE = make_image("drzu" * 8, name="lab")
NO_TRUST = PeerTrust()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[HttpFiles]:
    folder = tmp_path / "www"
    folder.mkdir()
    MADE.write(folder / "lab.dci")
    with HttpFiles(folder) as served:
        yield served


def no_sleep(_seconds: float) -> None:
    """Don't wait before a retry."""


def test_an_image_is_restored_from_a_web_server(tmp_path: Path, files: HttpFiles) -> None:
    with open_image_url(f"{files.url}/lab.dci", NO_TRUST) as image:
        assert image.offered.name == "lab"
        assert image.offered.signed is not None
        assert KEYS.verify(image.offered.signed, NOW).statement.image_id == MADE.manifest.image_id
        restore_opened(image, tmp_path / "disk", TextProgress())
    found = (tmp_path / "disk").read_bytes()
    block_bytes = MADE.manifest.block_bytes
    for block, letter in enumerate("drzu" * 8):
        span = slice(block * block_bytes, (block + 1) * block_bytes)
        assert letter == "u" or found[span] == MADE.raw[span]


def test_a_short_failure_of_the_server_is_survived(files: HttpFiles) -> None:
    data = HttpImageBytes(f"{files.url}/lab.dci", NO_TRUST, sleep=no_sleep)
    fails = iter([True, True, False])

    def break_connection(_path: str) -> None:
        if next(fails, False):
            raise ConnectionError

    files.before_get = break_connection
    into = bytearray(100)
    assert data.read_into(memoryview(into), 4000) == 100
    assert bytes(into) == (files.folder / "lab.dci").read_bytes()[4000:4100]
    assert data.read_into(memoryview(into), data.size_bytes - 10) == 10, "fewer at the end"
    data.close()


def test_a_server_that_stays_away_is_named(files: HttpFiles) -> None:
    pauses: list[float] = []
    data = HttpImageBytes(f"{files.url}/lab.dci", NO_TRUST, sleep=pauses.append)

    def break_connection(_path: str) -> None:
        raise ConnectionError

    files.before_get = break_connection
    with pytest.raises(ImageError, match=r"can't be read: .*check the address and the server"):
        data.read_into(memoryview(bytearray(10)), 0)
    assert len(pauses) == 6
    data.close()


def test_a_file_that_is_replaced_is_noticed(files: HttpFiles) -> None:
    data = HttpImageBytes(f"{files.url}/lab.dci", NO_TRUST, sleep=no_sleep)
    make_image("dd", name="lab", seed=9).write(files.folder / "lab.dci")
    with pytest.raises(ImageChangedError, match="was replaced"):
        data.read_into(memoryview(bytearray(10)), 0)
    data.close()


def test_refusals_say_what_to_change(files: HttpFiles) -> None:
    with pytest.raises(ImageError, match=r"no such file \(404\)"):
        open_image_url(f"{files.url}/other.dci", NO_TRUST)
    files.ranges = False
    with pytest.raises(ImageError, match="supports ranges"):
        open_image_url(f"{files.url}/lab.dci", NO_TRUST)
    files.failures = [302]
    with pytest.raises(ImageError, match="redirects to another address"):
        open_image_url(f"{files.url}/lab.dci", NO_TRUST)
    files.stop()
    with pytest.raises(ImageError, match="check the address"):
        open_image_url(f"{files.url}/lab.dci", NO_TRUST)


def test_a_truncated_or_foreign_file_is_no_image(files: HttpFiles) -> None:
    whole = (files.folder / "lab.dci").read_bytes()
    (files.folder / "cut.dci").write_bytes(whole[:-1])
    (files.folder / "text.dci").write_text("hello")
    with pytest.raises(ImageDamagedError, match="truncated"):
        open_image_url(f"{files.url}/cut.dci", NO_TRUST)
    with pytest.raises(ImageFormatError):
        open_image_url(f"{files.url}/text.dci", NO_TRUST)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "lab.dci",
        "ftp://host/lab.dci",
        "http:///x",
        "http://user:pw@host/x",
        "http://host/a b",
        "http://[x",
    ],
)
def test_only_urls_of_web_servers_are_accepted(url: str) -> None:
    with pytest.raises(ConfigurationError, match="isn't"):
        open_image_url(url, NO_TRUST)


def test_a_damaged_signature_is_no_signature(files: HttpFiles) -> None:
    with open_image_url(f"{files.url}/lab.dci", NO_TRUST) as image:
        object.__setattr__(image.header, "signature", b"\xff" * 3072)
        with pytest.raises(UnsignedImageError):
            _ = image.offered


@pytest.mark.parametrize(
    "text",
    ["", "bytes 0-1", "bytes 2-1/10", "bytes 0-10/10", "bytes 0-1/*", f"bytes 0-1/{'9' * 19}", "items 0-1/2"],
)
def test_a_content_range_is_checked(text: str) -> None:
    with pytest.raises(ProtocolError, match="Content-Range"):
        parse_content_range_untrusted(text)
