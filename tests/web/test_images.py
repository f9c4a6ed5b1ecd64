"""The page of an image: contents, versions, differences, note; uploads and pruning in the library."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from sender.imaging.pack import PackOptions, pack_image
from tests.support.disks.disk_images import make_image
from tests.support.disks.foreign_images import make_virtual_disk
from tests.support.network.lab import wait_until
from tests.support.programs.processes import require_program
from tests.support.programs.serving import Daemon
from tests.web.browsing import DESKTOP, PHONE, visit

OLD = make_image("rrzu" * 8, seed=1, name="lab")
NEW = make_image("rdzu" * 8, seed=1, name="lab")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("images")
    own = {"library": {"cache_directory": str(folder / "cache")}}  # the folder beside it is the daemon's own
    with Daemon(folder, settings=own) as started:
        for number, made in enumerate((OLD, NEW), 1):
            image_id = started.add_image(made.write(folder / f"lab-{number}.dci"))["image_id"]
            wait_until(
                "the version has its number",
                lambda image_id=image_id, number=number: (
                    started.ask("GET", f"/images/{image_id}")["number"] == number
                ),
            )
        yield started


@pytest.fixture(scope="module")
def linux(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the id of an image of a disk with a small Linux."""
    if shutil.which("mkfs.ext4") is None or shutil.which("sfdisk") is None:
        pytest.skip("mkfs.ext4 or sfdisk isn't installed")
    folder = tmp_path_factory.mktemp("linux")
    (folder / "tree/etc").mkdir(parents=True)
    (folder / "tree/etc/os-release").write_text('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    disk, part = folder / "disk", folder / "part"
    for path, size in ((disk, 200), (part, 128)):
        with path.open("wb") as file:
            file.truncate(size << 20)
    script = (
        "label: gpt\nstart=2048, size=65536, type=uefi, name=EFI\n"
        "start=67584, size=262144, type=linux, name=root\n"
    )
    subprocess.run(["sfdisk", "-q", disk], input=script.encode(), check=True, capture_output=True)
    subprocess.run(["mkfs.ext4", "-q", "-L", "golden", "-d", folder / "tree", part], check=True)
    with disk.open("r+b") as file:
        file.seek(67584 * 512)
        file.write(part.read_bytes())
    packed = pack_image(disk, folder / "debian.dci", PackOptions(name="debian-12", level=1))
    daemon.add_image(packed.path)
    return packed.image_id.hex()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_shows_what_is_in_the_image(
    browser: Browser, daemon: Daemon, linux: str, size: tuple[int, int]
) -> None:
    with visit(browser, daemon, size) as visiting:
        page = visiting.open(f"/images/{linux}")
        expect(page.locator("h1")).to_have_text("debian-12@1")
        contents = page.get_by_role("region", name="Partitions")
        expect(contents).to_contain_text("Debian GNU/Linux 12 (bookworm)")
        expect(contents).to_contain_text("golden")
        expect(page.get_by_text("Packed from a disk")).to_be_visible()


def test_the_form_of_a_cast_warns_of_an_image_that_was_not_generalised(
    browser: Browser, daemon: Daemon, linux: str
) -> None:
    with visit(browser, daemon) as visiting:
        page = visiting.open(f"/images/{linux}")
        expect(page.get_by_text("Not generalised: all machines get the identity")).to_be_visible()
        page = visiting.open("/new-cast")
        warning = page.get_by_text("The image is not generalised: all machines get the identity")
        page.locator("select[name=image]").select_option(linux)
        expect(warning).to_be_visible()
        page.locator("select[name=image]").select_option(NEW.manifest.image_id.hex())
        expect(warning).to_have_count(0)


def test_versions_are_compared(browser: Browser, daemon: Daemon) -> None:
    with visit(browser, daemon) as visiting:
        page = visiting.open("/images")
        page.get_by_role("link", name="lab@2").click()
        expect(page.locator("h1")).to_have_text("lab@2")
        page.get_by_role("button", name="Compare with the previous version").click()
        expect(page.get_by_text("8 blocks of 32 changed")).to_be_visible()
        page.get_by_role("region", name="Versions").get_by_role("link", name="lab@1").click()
        expect(page.locator("h1")).to_have_text("lab@1")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        assert Path(download.value.path()).read_bytes() == (daemon.images / "lab-1.dci").read_bytes()


def test_a_note_and_a_pin_are_kept(browser: Browser, daemon: Daemon) -> None:
    image_id = OLD.manifest.image_id.hex()
    with visit(browser, daemon) as visiting:
        page = visiting.open(f"/images/{image_id}")
        page.get_by_role("button", name="Add note").click()
        page.get_by_role("textbox", name="Note").fill("Office 2027,\nfor the exams")
        page.get_by_role("dialog").get_by_role("button", name="Save").click()
        expect(page.locator(".image-note")).to_have_text("Office 2027,\nfor the exams")
        page.get_by_role("button", name="Pin").click()
        expect(page.get_by_text("Pinned: it is kept")).to_be_visible()
        image = daemon.ask("GET", f"/images/{image_id}")
        assert (image["note"], image["pinned"]) == ("Office 2027,\nfor the exams", True)
        page.get_by_role("button", name="Unpin").click()
        expect(page.get_by_role("button", name="Pin", exact=True)).to_be_visible()


def test_a_schedule_says_which_version_it_casts(browser: Browser, daemon: Daemon) -> None:
    daemon.ask("POST", "/rooms", {"name": "Lab 1", "room_id": "lab-1"})
    with visit(browser, daemon) as visiting:
        page = visiting.open("/schedules")
        page.get_by_role("button", name="New schedule").click()
        page.get_by_label("Name (required)").fill("Friday")
        page.locator("select[name=image]").select_option("lab@latest")
        page.get_by_role("button", name="Create the schedule").click()
        expect(page.get_by_text("The newest version of lab")).to_be_visible()
        [schedule] = daemon.ask("GET", "/schedules")["items"]
        assert schedule["plan"]["latest_of"] == "lab"
        daemon.ask("DELETE", f"/schedules/{schedule['schedule_id']}")


def test_an_image_is_uploaded_with_progress_and_a_refusal_stands_at_its_field(
    browser: Browser, daemon: Daemon, tmp_path: Path
) -> None:
    made = make_image("rrzu", seed=5, name="uploaded")
    good, bad = made.write(tmp_path / "uploaded.dci"), tmp_path / "bad.dci"
    data = bytearray(good.read_bytes())
    data[made.stored_offset(0)] ^= 1
    bad.write_bytes(data)
    with visit(browser, daemon) as visiting:
        page = visiting.open("/images")
        page.get_by_role("button", name="Upload").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("File (required)").set_input_files(bad)
        dialog.get_by_role("button", name="Upload").click()
        expect(dialog.locator(".field-error:visible")).to_contain_text("block 0")
        dialog.get_by_label("File (required)").set_input_files(good)
        dialog.get_by_role("button", name="Upload").click()
        expect(page.locator("#notices")).to_contain_text("uploaded.dci is in the library")
        expect(page.get_by_role("link", name="uploaded@1")).to_be_visible()


def test_a_virtual_disk_is_uploaded_and_stays_in_the_list(
    browser: Browser, daemon: Daemon, tmp_path: Path
) -> None:
    require_program("qemu-img")
    raw = tmp_path / "disk.raw"
    raw.write_bytes(make_image("rdz" * 8, seed=8).raw)
    foreign = make_virtual_disk(raw, tmp_path / "server.qcow2", "qcow2")
    archive = tmp_path / "server.zip"
    archive.write_bytes(b"PK\x03\x04" + bytes(100_000))
    with visit(browser, daemon) as visiting:
        visiting.allowed.append("409")
        page = visiting.open("/images")
        page.get_by_role("button", name="Upload").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("Keep this page open until the file has arrived")
        dialog.get_by_label("File (required)").set_input_files(archive)
        dialog.get_by_role("button", name="Upload").click()
        expect(dialog.get_by_text("is a zip archive: unpack it first")).to_be_visible()
        dialog.get_by_label("File (required)").set_input_files(foreign)
        dialog.get_by_label("Name").fill("server")
        dialog.get_by_role("button", name="Upload").click()
        expect(page.get_by_role("link", name="server@1")).to_be_visible()
        uploads = page.get_by_role("region", name="Uploads")
        expect(uploads.get_by_role("listitem").filter(has_text="server.qcow2")).to_contain_text(
            "In the library"
        )
        failed = uploads.get_by_role("listitem").filter(has_text="server.zip")
        expect(failed).to_contain_text("zip archive")
        failed.get_by_role("button", name="Clear").click()
        expect(failed).to_have_count(0)


def test_an_image_is_exported_from_its_page(browser: Browser, daemon: Daemon, tmp_path: Path) -> None:
    require_program("qemu-img")
    with visit(browser, daemon) as visiting:
        page = visiting.open(f"/images/{NEW.manifest.image_id.hex()}")
        exports = page.get_by_role("region", name="Export")
        with page.expect_download() as raw:
            exports.get_by_role("link", name="Raw", exact=True).click()
        assert Path(raw.value.path()).read_bytes() == NEW.raw
        exports.get_by_role("button", name="qcow2").click()
        row = exports.get_by_role("listitem")
        expect(row.locator(".badge")).to_have_text("Ready")
        with page.expect_download() as download:
            row.get_by_role("link", name="Download").click()
        assert download.value.suggested_filename == "lab@2.qcow2"
        disk = tmp_path / "disk.raw"
        disk.write_bytes(NEW.raw)
        command = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(disk), str(download.value.path())]
        assert "identical" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row.get_by_role("button", name="Delete").click()
        expect(row).to_have_count(0)


def test_pruning_shows_what_it_deletes_before_it_asks(browser: Browser, daemon: Daemon) -> None:
    with visit(browser, daemon) as visiting:
        page = visiting.open("/images")
        page.get_by_role("button", name="Prune").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Newest versions to keep").fill("1")
        expect(dialog.get_by_role("button", name="Delete…")).to_be_disabled()
        dialog.get_by_role("button", name="Preview").click()
        expect(dialog.get_by_text("1 image of")).to_be_visible()
        dialog.get_by_role("button", name="Delete…").click()
        asked = page.get_by_role("dialog")
        expect(asked).to_contain_text("lab-1.dci")
        assert (daemon.images / "lab-1.dci").exists()
        asked.get_by_role("button", name="Delete them").click()
        expect(page.locator("#notices")).to_contain_text("1 image deleted")
        assert not (daemon.images / "lab-1.dci").exists()
        assert (daemon.images / "lab-2.dci").exists()
