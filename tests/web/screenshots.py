"""Take the screenshots in docs/screenshots, of a real daemon that casts to real agents.

``python -m tests.web.screenshots``. Debian's fonts-inter gives the best result; any sans-serif font works. One agent's
disk fails during the cast, so that the screenshots show a failure.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.support.disks.disk_images import make_image
from tests.support.disks.slow_disk import Action, Behaviour, Fault, Operation, slow_disk
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online, wait_until
from tests.web.browsing import DESKTOP, LIMIT_MS, PHONE, chromium, visit
from tests.web.odd_room import ODD_ROOM, odd_room

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
BYTES_MAX: Final = 150_000
ROOM: Final = "lab-2"
MACHINES: Final = tuple(f"pc{index:02}" for index in range(1, 13))
AWAY: Final = ("pc13", "pc14")
BROKEN: Final = "pc07"
REFERENCE: Final = "reference"
CAPTURE_RATE: Final = "12M"
"""Slow enough to be seen."""
_BREAKS: Final = Behaviour(faults=(Fault(Operation.WRITE, Action.ERROR, after_bytes=10 << 20),))
_BLOCK_BYTES: Final = 256 << 10
_RATE_BYTES_PER_S: Final = 2.5e6


def main() -> None:
    """Take all screenshots."""
    FOLDER.mkdir(exist_ok=True)
    expect.set_options(timeout=LIMIT_MS)
    with (
        _short_folder() as folder,
        chromium() as browser,
        contextlib.ExitStack() as stack,
    ):
        settings = {
            "captures": {"rate_ceiling": CAPTURE_RATE},
            "library": {"cache_directory": str(folder / "daemon" / "cache")},  # so that uploads have a folder
        }
        daemon = stack.enter_context(Daemon(folder / "daemon", name="castle", settings=settings))
        _furnish(daemon, folder)
        disk = stack.enter_context(slow_disk(folder, _BREAKS))
        for name in MACHINES:
            target = disk.directory / "disk" if name == BROKEN else None
            stack.enter_context(ServiceAgent(folder / "disks", name, [daemon], target=target))
        reference = folder / "disks" / f"{REFERENCE}.disk"
        _make_linux(reference)
        stack.enter_context(
            ServiceAgent(
                folder / "disks", REFERENCE, [daemon], target=reference, options=("--allow-capture",)
            )
        )
        wait_online(daemon, (*MACHINES, REFERENCE))
        _take(browser, daemon)
        _take_images(browser, daemon)
        _take_preflight(browser, daemon)


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """Make the image; its name is visible in the screenshots."""
    folder = Path(tempfile.gettempdir()) / "castle"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _furnish(daemon: Daemon, folder: Path) -> None:
    for name, blocks, seed in (("win11-lab", 240, 1), ("debian-13-desktop", 24, 2)):
        made = make_image("r" * blocks, block_bytes=_BLOCK_BYTES, seed=seed, name=name)
        daemon.add_image(made.write(folder / f"{name}.dci"))
    daemon.ask(
        "POST", "/rooms", {"name": "Lab 2", "room_id": ROOM, "description": "Classroom on the second floor"}
    )
    daemon.ask(
        "POST", "/rooms", {"name": "Rack A", "room_id": "rack-a", "description": "Row 4, units 1 to 40"}
    )
    rows = [
        f"{name},SN-{name},row {index // 6 + 1} seat {index % 6 + 1}"
        for index, name in enumerate(MACHINES + AWAY)
    ]
    _import(daemon, ROOM, rows)
    _import(daemon, "rack-a", [f"node{index:02},RA-{index:02},unit {index}" for index in range(1, 41)])


def _import(daemon: Daemon, room: str, rows: list[str]) -> None:
    text = "\n".join(["name,serial,position", *rows])
    response = daemon.api.post(f"/rooms/{room}/import", content=text, headers={"Content-Type": "text/csv"})
    response.raise_for_status()


def _take(browser: Browser, daemon: Daemon) -> None:
    ids = {row["name"]: row["machine_id"] for row in daemon.ask("GET", "/machines", limit="500")["items"]}
    chosen = [ids[name] for name in MACHINES]
    first = daemon.create_cast("debian-13-desktop", room_id=ROOM, machine_ids=chosen, name="Exam week")
    daemon.wait_phase(first, "done", "failed")
    cast_id = daemon.create_cast(
        "win11-lab", room_id=ROOM, machine_ids=chosen, rate_bytes_per_s=_RATE_BYTES_PER_S
    )
    daemon.wait_phase(cast_id, "casting")
    wait_until(
        "the broken disk is found",
        lambda: daemon.live_machines(cast_id).get(BROKEN, {}).get("state") == "failed",
        describe=daemon.describe,
    )
    _shoot(browser, daemon, "overview", "/")
    _shoot(browser, daemon, "room", f"/rooms/{ROOM}", prepare=_see_its_cast)
    _shoot(browser, daemon, "cast-dark", f"/casts/{cast_id}", theme="dark")
    _shoot(
        browser, daemon, "room-phone", f"/rooms/{ROOM}", PHONE, prepare=lambda page: page.mouse.wheel(0, 330)
    )
    _shoot(
        browser, daemon, "machine-phone-dark", f"/rooms/{ROOM}/machines/{ids[BROKEN]}", PHONE, theme="dark"
    )
    _shoot(browser, daemon, "new-cast", f"/new-cast?room={ROOM}")
    daemon.wait_phase(cast_id, "failed")
    _shoot(browser, daemon, "cast", f"/casts/{cast_id}", full=True)
    _shoot(browser, daemon, "history", "/history")


def _take_preflight(browser: Browser, daemon: Daemon) -> None:
    with odd_room(daemon):
        _shoot(browser, daemon, "preflight", f"/new-cast?room={ODD_ROOM}", prepare=_see_preflight)


def _see_preflight(page: Page) -> None:
    page.locator("select[name=image]").select_option(index=1)
    page.get_by_role("button", name="Start the cast").click()
    expect(page.get_by_role("dialog").locator("tbody tr")).to_have_count(2)


def _make_linux(disk: Path) -> None:
    """Make the disk of the reference machine, whose partitions the page of its image shows."""
    tree, root = disk.with_suffix(".tree"), disk.with_suffix(".root")
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/os-release").write_text('PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n')
    (tree / "files").write_bytes(random.Random(1).randbytes(24 << 20))
    for path, size in ((disk, 200), (root, 128)):
        with path.open("wb") as file:
            file.truncate(size << 20)
    script = (
        "label: gpt\nstart=2048, size=65536, type=uefi, name=EFI\n"
        "start=67584, size=262144, type=linux, name=root\n"
    )
    subprocess.run(["sfdisk", "-q", disk], input=script.encode(), check=True, capture_output=True)
    subprocess.run(["mkfs.ext4", "-q", "-L", "root", "-d", tree, root], check=True)
    with disk.open("r+b") as file:
        file.seek(67584 * 512)
        file.write(root.read_bytes())


def _take_images(browser: Browser, daemon: Daemon) -> None:
    """Take the screenshots of a capture, an upload and an export."""
    [machine_id] = [
        row["machine_id"]
        for row in daemon.ask("GET", "/machines", limit="500")["items"]
        if row["name"] == REFERENCE
    ]
    capture = daemon.ask("POST", f"/machines/{machine_id}/capture", {"name": "debian-13-desktop"})

    def progress(share: float) -> Callable[[], bool]:
        def reached() -> bool:
            found = daemon.ask("GET", f"/captures/{capture['capture_id']}")
            assert found["state"] != "failed", found
            return bool(found["state"] == "complete" or found["uploaded_bytes"] > share * (24 << 20))

        return reached

    wait_until("the capture has begun", progress(0.3), describe=daemon.describe)
    for name, theme in (("capture", "light"), ("capture-dark", "dark")):
        _shoot(browser, daemon, name, f"/machines/{machine_id}", theme=theme, prepare=_see_capture)
    wait_until("the image is in the library", progress(99), describe=daemon.describe)
    image_id = daemon.ask("GET", f"/captures/{capture['capture_id']}")["image_id"]
    upload = daemon.ask("POST", "/images/uploads", {"file_name": "golden.vmdk", "total_bytes": 40 << 20})
    for part in range(6):
        daemon.api.put(
            f"/images/uploads/{upload['upload_id']}/content",
            params={"offset": part << 22},
            content=bytes(4 << 20),
            headers={"Content-Type": "application/octet-stream"},
        ).raise_for_status()
    _shoot(browser, daemon, "images", "/images", prepare=_see_upload)
    for kind in ("qcow2", "vhdx"):
        export = daemon.ask("POST", f"/images/{image_id}/exports", {"format": kind})

    def exported() -> bool:
        return bool(daemon.ask("GET", f"/images/exports/{export['export_id']}")["state"] == "done")

    wait_until("the image is exported", exported, describe=daemon.describe)
    for name, theme in (("image", "light"), ("image-dark", "dark")):
        _shoot(browser, daemon, name, f"/images/{image_id}", theme=theme, full=True, prepare=_see_contents)


def _see_capture(page: Page) -> None:
    captures = page.get_by_role("region", name="Captures of the disk")
    expect(captures.locator(".progress-words")).to_contain_text("uploaded")
    captures.scroll_into_view_if_needed()


def _see_upload(page: Page) -> None:
    expect(page.get_by_role("region", name="Uploads")).to_contain_text("60")


def _see_contents(page: Page) -> None:
    expect(page.get_by_role("region", name="Partitions")).to_contain_text("Debian")
    expect(page.get_by_role("region", name="Export")).to_contain_text("Download (")


def _see_its_cast(page: Page) -> None:
    expect(page.locator(".cast-card")).to_be_visible()


def _shoot(
    browser: Browser,
    daemon: Daemon,
    name: str,
    address: str,
    size: tuple[int, int] = DESKTOP,
    *,
    theme: str = "light",
    full: bool = False,
    prepare: Callable[[Page], object] = lambda _page: None,
) -> None:
    with visit(browser, daemon, size, theme=theme, reduced_motion="reduce") as visiting:
        page = visiting.open(address)
        expect(page.locator(".connection")).to_have_attribute("data-state", "live")
        prepare(page)
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        time.sleep(
            1
        )  # charts and tiles have their second frame, and scrolling has ended; no assertion depends on it
        path = FOLDER / f"{name}.png"
        page.screenshot(path=path, full_page=full)
    _shrink(path)


def _shrink(path: Path) -> None:
    """Compress a picture; reduce the colours of one that is still too large."""
    with Image.open(path) as picture:
        plain = picture.convert("RGB")
    plain.save(path, optimize=True)
    if path.stat().st_size > BYTES_MAX:
        plain.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    size = path.stat().st_size
    assert size <= BYTES_MAX, f"{path.name} is {size} bytes: show less"
    print(f"{path.name}: {size // 1000} kB")


if __name__ == "__main__":
    main()
