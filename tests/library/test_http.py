from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.constants import KIB
from protocol.errors import DiskcastError, ImageDamagedError, ImageError
from sender.library import fetch as fetch_module
from sender.library.cache import Cache
from sender.library.library import Library
from sender.library.remote_addresses import is_public
from sender.refusals import RequestRefusedError
from sender.store.records.images import Image, ImageState
from tests.library.http_files import HttpFiles
from tests.library.rig import running, settings, until
from tests.support.disks.disk_images import MadeImage, make_image
from tests.support.network.lab import LIMIT_S

PIECE_BYTES = 64 * KIB


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpFiles]:
    (tmp_path / "www" / "more").mkdir(parents=True)
    with HttpFiles(tmp_path / "www") as files:
        yield files


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(fetch_module, "PIECE_BYTES_MIN", 4 * KIB)


def _library(tmp_path: Path, *remotes: str, **more: object) -> Library:
    return Library(settings(tmp_path, *remotes, **more), None, back_off_s=0.01)


def _put(server: HttpFiles, name: str = "lab.dci", kinds: str = "r" * 10, seed: int = 1) -> MadeImage:
    made = make_image(kinds, seed=seed)
    made.write(server.folder / name)
    return made


async def _known(library: Library) -> Image:
    await until(
        library, lambda: library.images() and (library.images()[0].raw_bytes or library.images()[0].problem)
    )
    return library.images()[0]


async def _open_whole(library: Library, made: MadeImage) -> None:
    """Open the image, and check that its file equals the served one."""
    async with await library.open(made.manifest.image_id.hex(), "00000001") as opened:
        assert opened.path.stat().st_size == opened.image.stored_bytes
        assert library.get(opened.image.image_id).state is ImageState.AVAILABLE
        assert Cache(opened.path.parent, 1).load().keys() == {made.manifest.image_id.hex()}


@pytest.mark.parametrize("ranges", [True, False])
def test_a_remote_image_is_known_without_fetching_it_and_fetched_when_a_cast_needs_it(
    tmp_path: Path, server: HttpFiles, *, ranges: bool
) -> None:
    async def check() -> None:
        server.ranges = ranges
        made = _put(server)
        async with running(_library(tmp_path, f"{server.url}/lab.dci")) as library:
            image = await _known(library)
            assert (image.state, image.source) == (ImageState.REMOTE, "remote")
            assert (image.image_id, image.name) == (made.manifest.image_id.hex(), "made")
            assert (image.raw_bytes, image.block_bytes) == (len(made.raw), made.manifest.block_bytes)
            if ranges:
                assert server.body_bytes < 5000
            await _open_whole(library, made)
            image = library.images()[0]
            assert (image.fetched_bytes, image.location) == (image.stored_bytes, f"{server.url}/lab.dci")
        # The next start finds the copy, with or without the server.
        server.stop()
        async with running(_library(tmp_path, f"{server.url}/lab.dci")) as library:
            await _open_whole(library, made)

    asyncio.run(check())


def test_all_images_of_a_prefix_are_listed_and_changes_are_noticed(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        (server.folder / "a b").mkdir()
        names = ["one.dci", "zwei & drei.dci", "ünï.dci"]
        for seed, name in enumerate(names):
            _put(server, f"a b/{name}", "r", seed)
        (server.folder / "a b" / "notes.txt").write_text("x")
        (server.folder / "a b" / "more.dci").mkdir()
        async with running(_library(tmp_path, f"{server.url}/a b/")) as library:
            await until(library, lambda: len(library.images()) == 3)
            made = make_image("r", seed=1)
            await _open_whole(library, made)
            (server.folder / "a b" / "one.dci").unlink()
            _put(server, "a b/four.dci", "r", 4)
            await library.scan()
            assert {image.location.rpartition("/")[2] for image in library.images()} == {
                "four.dci", "zwei%20%26%20drei.dci", "%C3%BCn%C3%AF.dci",
            }  # fmt: skip
            assert not library.problems()

    asyncio.run(check())


def test_links_to_other_places_are_ignored(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        (server.folder / "list").mkdir()
        _put(server, "secret.dci")
        _put(server, "list/good.dci", "r", 2)
        (server.folder / "list" / "index.html").write_text(
            '<a href="/secret.dci">a</a><a href="../secret.dci">b</a><a href="//127.0.0.1:1/x.dci">c</a>'
            '<a href="file:///etc/passwd.dci">d</a><a href="sub/x.dci">e</a><a href="x.dci?y">f</a><a>g</a>'
            '<a href="http://[bad/x.dci">h</a><A HREF="./good.dci">i</A><a href=".dci">j</a>'
        )
        async with running(_library(tmp_path, f"{server.url}/list/")) as library:
            await until(library, library.images)
            await library.scan()
            assert [image.location for image in library.images()] == [f"{server.url}/list/good.dci"]
            assert not library.problems()

    asyncio.run(check())


@pytest.mark.parametrize("ranges", [True, False])
def test_a_fetch_resumes_after_broken_connections_and_errors(
    tmp_path: Path, server: HttpFiles, *, ranges: bool
) -> None:
    async def check() -> None:
        made = _put(server, kinds="r" * 6)
        async with running(_library(tmp_path, f"{server.url}/lab.dci")) as library:
            await _known(library)
            server.ranges = ranges
            server.failures = [500, 503, 502]
            if ranges:  # each connection sends 10 KB
                server.cut_after_bytes = 10_000
            sent_before = server.body_bytes
            await _open_whole(library, made)
            if ranges:
                assert server.body_bytes - sent_before < 1.8 * (server.folder / "lab.dci").stat().st_size

    asyncio.run(check())


@pytest.mark.parametrize("tags", [True, False])
def test_data_fetched_before_a_restart_isnt_fetched_again(
    tmp_path: Path, server: HttpFiles, *, tags: bool
) -> None:
    async def check() -> None:
        server.tags = tags
        made = _put(server)
        image_id = made.manifest.image_id.hex()
        size = (server.folder / "lab.dci").stat().st_size
        half, cancelled = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def stop_half_way(_: str) -> None:
            if server.body_bytes > size // 2:
                loop.call_soon_threadsafe(half.set)
                assert cancelled.wait(LIMIT_S)
                raise ConnectionAbortedError

        server.before_get = stop_half_way
        async with running(_library(tmp_path, f"{server.url}/lab.dci")) as library:
            await _known(library)
            opening = asyncio.ensure_future(library.open(image_id, "00000001"))
            await half.wait()
            assert library.get(image_id).state is ImageState.FETCHING
            opening.cancel()
            await asyncio.wait({opening})
            cancelled.set()
            # A cancelled cast closes its image, and the fetch stops.
            await until(library, lambda: library.get(image_id).state is ImageState.REMOTE)
            assert library.get(image_id).in_use_by == ()
        fetched = (tmp_path / "cache" / f"{image_id}.partial").stat().st_size
        assert size // 3 < fetched < size
        server.body_bytes, server.before_get = 0, lambda _: None
        async with running(_library(tmp_path, f"{server.url}/lab.dci")) as library:
            await _open_whole(library, made)
        assert server.body_bytes < size - fetched + 20_000

    asyncio.run(check())


@pytest.mark.parametrize("tags", [True, False])
def test_a_file_that_is_replaced_while_it_is_fetched_isnt_mixed_with_its_successor(
    tmp_path: Path, server: HttpFiles, *, tags: bool
) -> None:
    """The successor has the same image, packed again."""

    async def check() -> None:
        server.tags = tags
        made = _put(server)
        path = server.folder / "lab.dci"
        whole = path.read_bytes()
        path.write_bytes(
            whole[:-300_000] + bytes(300_000)
        )  # header and manifest are correct, the end is damaged
        os.utime(path, (1e9, 1e9))
        size = len(whole)
        replacement = tmp_path / "replacement"
        replacement.write_bytes(whole)

        def replace(_: str) -> None:
            if server.body_bytes > size // 2 and replacement.exists():
                replacement.replace(path)

        async with running(_library(tmp_path, f"{server.url}/lab.dci")) as library:
            await _known(library)
            server.before_get = replace
            await _open_whole(library, made)

    asyncio.run(check())


def test_another_image_behind_the_url_is_reported_and_offered(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        old = _put(server)
        async with running(_library(tmp_path, f"{server.url}/lab.dci")) as library:
            await _known(library)
            new = _put(server, seed=2)
            with pytest.raises(ImageError, match="another image now"):
                await library.open(old.manifest.image_id.hex(), "00000001")
            await library.scan()
            assert library.resolve("made").image_id == new.manifest.image_id.hex()
            await _open_whole(library, new)

    asyncio.run(check())


def test_an_image_damaged_at_its_source_is_reported_and_never_cast(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        made = _put(server)
        path = server.folder / "lab.dci"
        whole = bytearray(path.read_bytes())
        whole[made.stored_offset(3) + 5] ^= 1
        path.write_bytes(whole)
        image_id = made.manifest.image_id.hex()
        async with running(_library(tmp_path, f"{server.url}/lab.dci")) as library:
            await _known(library)
            with pytest.raises(ImageDamagedError, match="block 3") as raised:
                await library.open(image_id, "00000001")
            assert f"{server.url}/lab.dci" in str(raised.value)
            assert library.get(image_id).state is ImageState.DAMAGED
            assert "block 3" in library.problems()[0].text
            whole[made.stored_offset(3) + 5] ^= 1
            path.write_bytes(whole)
            os.utime(path, (1e9, 1e9))
            await library.scan()
            assert not library.problems()
            await _open_whole(library, made)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda server: setattr(server, "failures", [404] * 100), r"doesn't exist \(404\)"),
        (lambda server: setattr(server, "failures", [500] * 100), "status 500"),
        (lambda server: setattr(server, "failures", [403] * 100), "access is refused"),
        (lambda server: server.stop(), "can't be reached"),
        (lambda server: setattr(server, "cut_after_bytes", 0), "connection broke"),
        (lambda server: (server.folder / "lab.dci").unlink(), "doesn't exist"),
    ],
)
def test_a_failed_fetch_reports_the_reason_and_can_be_repeated(
    tmp_path: Path, server: HttpFiles, harm, message: str
) -> None:
    async def check() -> None:
        made = _put(server)
        async with running(_library(tmp_path, f"{server.url}/lab.dci")) as library:
            image = await _known(library)
            harm(server)
            with pytest.raises(ImageError, match=message) as raised:
                await library.open(image.image_id, "00000001")
            assert f"{server.url}/lab.dci" in str(raised.value)
            await until(library, library.problems)
            assert library.get(image.image_id).state is ImageState.REMOTE
            assert library.get(image.image_id).in_use_by == ()
            if server.gets("/lab.dci") < 50 and "reached" not in message and "unlink" not in message:
                server.failures, server.cut_after_bytes = [], None
                made.write(server.folder / "lab.dci")
                await _open_whole(library, made)
                await library.scan()
                assert not library.problems()

    asyncio.run(check())


def test_a_file_that_isnt_an_image_is_reported_without_fetching_it(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        (server.folder / "lab.dci").write_bytes(b"<html>" + bytes(1_000_000))
        whole = make_image("rr").write(tmp_path / "whole").read_bytes()
        (server.folder / "cut.dci").write_bytes(whole[:-1])
        urls = (f"{server.url}/lab.dci", f"{server.url}/cut.dci", f"{server.url}/none.dci")
        async with running(_library(tmp_path, *urls)) as library:
            await until(library, lambda: len(library.problems()) == 3)
            by_name = {image.name: image for image in library.images()}
            assert {name: image.state for name, image in by_name.items()} == {
                "lab": ImageState.DAMAGED, "cut": ImageState.DAMAGED, "none": ImageState.REMOTE,
            }  # fmt: skip
            assert "truncated" in by_name["cut"].problem
            assert server.body_bytes < 50_000
            for image in by_name.values():
                with pytest.raises(ImageError):
                    await library.open(image.image_id, "00000001")

    asyncio.run(check())


def test_credentials_are_used_and_never_shown(
    tmp_path: Path, server: HttpFiles, capfd: pytest.CaptureFixture[str]
) -> None:
    async def check() -> list[object]:
        server.login = "lab:geheim"
        made = _put(server)
        right = server.url.replace("//", "//lab:geheim@")
        wrong = server.url.replace("//", "//lab:falsch@")
        shown: list[object] = []
        async with running(_library(tmp_path / "1", f"{right}/lab.dci")) as library:
            await _known(library)
            await _open_whole(library, made)
            shown += [library.images(), library.problems()]
            server.failures = [500] * 100
            _put(server, seed=3)
            await library.scan()
            shown += [library.images(), library.problems()]
            server.failures = []
        for url in (f"{wrong}/lab.dci", f"{right}/none.dci", f"{wrong}/", f"{right}/none/"):
            async with running(_library(tmp_path / "2", url)) as library:
                await until(library, library.problems)
                shown += [library.images(), library.problems()]
                for image in library.images():
                    with pytest.raises(DiskcastError) as raised:
                        await library.open(image.image_id, "00000001")
                    shown.append(str(raised.value))
        return shown

    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    shown = repr(asyncio.run(check())) + "".join(capfd.readouterr())
    for path in tmp_path.rglob("*.json"):
        shown += path.read_text()
    assert "access is refused (401)" in shown
    assert "geheim" not in shown
    assert "falsch" not in shown


def test_a_netrc_holds_credentials_for_urls_that_were_added(
    tmp_path: Path, server: HttpFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        server.login = "lab:geheim"
        made = _put(server)
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login lab password geheim\n")
        netrc.chmod(0o600)
        async with running(_library(tmp_path, f"{server.url}/more/")) as library:
            with pytest.raises(RequestRefusedError, match="401"):
                await library.add_remote(f"{server.url}/lab.dci", "")
            monkeypatch.setenv("NETRC", str(netrc))
            await library.add_remote(f"{server.url}/lab.dci", "")
            await _open_whole(library, made)

    asyncio.run(check())


def test_an_image_can_be_added_fetched_and_forgotten(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        made = _put(server)
        async with running(_library(tmp_path, f"{server.url}/more/")) as library:
            image = await library.add_remote(f"{server.url}/lab.dci", "x")
            assert await library.add_remote(f"{server.url}/lab.dci", "x") == image
            assert (image.state, image.name) == (ImageState.REMOTE, "made")
            assert (await library.fetch(image.image_id)).state is ImageState.FETCHING
            await until(library, lambda: library.images()[0].state is ImageState.AVAILABLE)
            async with await library.open(image.image_id, "00000001"):
                with pytest.raises(RequestRefusedError, match="used by cast 00000001"):
                    await library.forget(image.image_id)
            await library.forget(image.image_id)
            assert not library.images()
            assert not list((tmp_path / "cache").iterdir())
            with pytest.raises(RequestRefusedError) as refused:
                await library.forget(image.image_id)
            assert refused.value.status == 404
            assert made.manifest.image_id.hex() == image.image_id

    asyncio.run(check())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd.dci", "http://, https:// or s3://"),
        ("/etc/passwd.dci", "http://, https:// or s3://"),
        ("local:///x.dci", "http://, https:// or s3://"),
        ("memory://x/x.dci", "http://, https:// or s3://"),
        ("HTTP+file://x/x.dci", "http://, https:// or s3://"),
        ("http:///x.dci", "has no server"),
        ("http://host:99999/x.dci", "isn't a URL"),
        ("http://[::1/x.dci", "isn't a URL"),
        ("s3://../x.dci", "has no bucket"),
        ("s3:///x.dci", "has no bucket"),
        ("https://host/x.iso", r"must end in \.dci"),
        ("https://host/x.dci?sig=abc", "remove the query"),
        ("https://u:p@host/x.dci", "netrc"),
        ("s3://key:secret@bucket/x.dci", "AWS_ACCESS_KEY_ID"),
        ("https://host/images/", "library.remotes"),
        ("https://host/\n.dci", "printable"),
        ("https://host/" + "x" * 5000 + ".dci", "4096"),
    ],
)
def test_only_urls_of_images_are_accepted(tmp_path: Path, url: str, message: str) -> None:
    async def check() -> None:
        library = _library(tmp_path)
        with pytest.raises(RequestRefusedError, match=message) as refused:
            await library.add_remote(url, "")
        assert refused.value.status == 422
        for secret in ("secret", "sig=abc", "u:p"):
            assert secret not in str(refused.value)

    asyncio.run(check())


def test_two_casts_of_a_remote_image_fetch_it_once(tmp_path: Path, server: HttpFiles) -> None:
    async def check() -> None:
        made = _put(server)
        image_id = made.manifest.image_id.hex()
        async with running(_library(tmp_path, f"{server.url}/lab.dci")) as library:
            await _known(library)
            sent_before = server.body_bytes
            one, two = await asyncio.gather(
                library.open(image_id, "00000001"), library.open(image_id, "00000002")
            )
            assert library.get(image_id).in_use_by == ("00000001", "00000002")
            assert server.body_bytes - sent_before < (server.folder / "lab.dci").stat().st_size + 20_000
            one.close()
            one.close()
            assert library.get(image_id).in_use_by == ("00000002",)
            two.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
    ],
)
def test_addresses_of_private_networks_are_recognised_in_every_form(address: str, public: bool) -> None:
    assert is_public(address) == public
