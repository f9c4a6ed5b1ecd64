"""The menu for one machine, as a technician uses it: a real daemon, a real disk, and a terminal with a person at it.

Lost if these fail: somebody images the wrong disk of a machine, or a stranger at a console images one at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.constants import MIB
from tests.library.http_files import HttpFiles
from tests.support.disks.devices import loop_device
from tests.support.disks.disk_images import MadeImage, make_image
from tests.support.network.lab import LIMIT_S, diskcast, run, wait_until
from tests.support.programs.open_watch import OpenWatch
from tests.support.programs.serving import Daemon
from tests.support.programs.technician import Technician
from tests.support.signing import STRANGER

pytestmark = pytest.mark.needs_root

IMAGE = make_image("drzu" * 6, name="lab")


class Disk:
    """A loop device as the machine's disk; it has no serial number, so its name confirms it."""

    def __init__(self, device: Path, backing: Path) -> None:
        self.device = device
        self.backing = backing

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.backing.read_bytes()).hexdigest()

    def holds(self, image: MadeImage) -> bool:
        """Return whether every block of the image that isn't unused is on the disk."""
        raw, found = image.raw, self.backing.read_bytes()
        block_bytes = image.manifest.block_bytes
        return all(
            raw[start : start + block_bytes] == found[start : start + block_bytes]
            for index, start in enumerate(range(0, len(raw), block_bytes))
            if "drzu"[index % 4] != "u"
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    backing = tmp_path / "disk"
    with backing.open("wb") as file:
        file.write(b"the old system" * 1000)
        file.truncate(8 * MIB)
    with loop_device(backing) as device:
        yield Disk(device, backing)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("menu")
    with Daemon(folder) as started:
        started.add_image(IMAGE.write(folder / "lab.dci"))
        started.add_image(make_image("dd", name="stranger", seed=2).write(folder / "x.dci", STRANGER))
        yield started


def at_console(daemon: Daemon, name: str, *, boot_token: bool = True) -> Technician:
    """Start the menu of a machine; with a boot token as the boot service gives one, here a token for enrolment."""
    environment = {"DISKCAST_TOKEN": daemon.secret("enrol")} if boot_token else {}
    return Technician(
        "--server", daemon.url, "--interface", "lo", "--identity", f"SN-{name}", "--name", name,
        environment=environment,
    )  # fmt: skip


def confirm(technician: Technician, disk: Disk, typed: str = "") -> None:
    """Choose the disk and answer the confirmation, by default rightly."""
    technician.chooses(f"{disk.device}[ ,]")
    technician.sees(rf"EVERYTHING ON {disk.device} WILL BE OVERWRITTEN")
    technician.sees(rf"Type its name, {disk.device.name}, to overwrite it[^\n]*:")
    technician.types(typed or disk.device.name)


def test_an_operator_approves_a_request_with_the_code_of_the_console(daemon: Daemon, disk: Disk) -> None:
    with at_console(daemon, "pc01") as technician:
        technician.chooses("from the daemon at")
        technician.chooses("An operator approves")
        technician.sees(r"lab, 1\.5 MiB\n[^\n]*fits [^\n]*\n[^\n]*version 1, signed by [^\n]*")
        technician.sees(r"Number")
        technician.types("1")
        confirm(technician, disk)
        code = technician.sees(r"code of this request: +(\S(?: \S){5})")[1].replace(" ", "")
        before = disk.digest
        [request] = daemon.ask("GET", "/requests")["items"]
        assert (request["machine_name"], request["image_name"], request["code"]) == ("pc01", "lab", code)
        assert str(disk.device) in request["disk"]
        assert disk.digest == before, "asking writes nothing"
        daemon.ask("POST", f"/machines/{request['machine_id']}/requests/approve", {"code": code})
        technician.sees("Approved by")
        technician.sees(rf"lab \(1\.5 MiB\) is on {disk.device}, every byte read back and verified")
        assert technician.program.wait(LIMIT_S) == 0, technician.describe()
    assert disk.holds(IMAGE)
    actions = [entry["action"] for entry in daemon.ask("GET", "/audit")["items"]]
    assert {"machine.request_image", "machine.approve_request", "cast.create"} <= set(actions)
    [line] = [line for line in daemon.history() if line["machine_name"] == "pc01"]
    assert line["state"] == "complete"


def test_an_operators_token_enrols_the_machine_and_plans_the_cast(daemon: Daemon, disk: Disk) -> None:
    """A stick has no boot token: the operator at the machine signs in, and nothing of the token is left or shown."""
    token = daemon.secret("operate")
    with at_console(daemon, "pc02", boot_token=False) as technician:
        technician.chooses("from the daemon at")
        technician.chooses("Type an operator's token")
        technician.sees("Token:")
        technician.types(token)
        technician.chooses("lab, ")
        confirm(technician, disk)
        technician.sees("every byte read back and verified")
        assert technician.program.wait(LIMIT_S) == 0, technician.describe()
        assert token not in technician.shown
    assert disk.holds(IMAGE)
    names = [one["name"] for one in daemon.ask("GET", "/tokens")["items"]]
    assert not [name for name in names if name.startswith("menu ")], "the token that enrolled it is revoked"


def test_in_a_room_with_approval_the_code_is_shown_first(daemon: Daemon, disk: Disk) -> None:
    daemon.ask("POST", "/rooms", {"name": "Strict", "room_id": "strict", "enrolment": "approve"})
    machine = daemon.ask("POST", "/machines", {"name": "pc03", "room_id": "strict", "serial": "SN-pc03"})
    with at_console(daemon, "pc03") as technician:
        technician.chooses("from the daemon at")
        technician.chooses("An operator approves")
        code = technician.sees(r"its code: +(\S(?: \S){5})")[1].replace(" ", "")
        assert "lab, " not in technician.shown, "images are shown to admitted machines only"
        daemon.ask("POST", f"/machines/{machine['machine_id']}/approve", {"code": code})
        technician.sees("lab, ")


def test_an_operator_at_the_machine_needs_no_second_person_in_a_room_with_approval(daemon: Daemon) -> None:
    daemon.ask("POST", "/rooms", {"name": "Vault", "room_id": "vault", "enrolment": "approve"})
    machine = daemon.ask("POST", "/machines", {"name": "pc09", "room_id": "vault", "serial": "SN-pc09"})
    with at_console(daemon, "pc09", boot_token=False) as technician:
        technician.chooses("from the daemon at")
        technician.chooses("Type an operator's token")
        technician.sees("Token:")
        technician.types(daemon.secret("operate"))
        technician.sees("enrolled as pc09")
        technician.sees("lab, ")
    approved = daemon.ask("GET", f"/machines/{machine['machine_id']}")
    assert approved["enrolled_by"].endswith(f"approved by {daemon.name} operate")


@pytest.mark.parametrize("typed", ["", "y", "sda", "loop", "\x03"])
def test_a_wrong_confirmation_opens_nothing_for_writing(daemon: Daemon, disk: Disk, typed: str) -> None:
    before, casts = disk.digest, len(daemon.ask("GET", "/casts")["items"])
    with (
        OpenWatch(disk.device, only_writing=True) as watch,
        at_console(daemon, "pc04") as technician,
    ):
        technician.chooses("from the daemon at")
        technician.chooses("An operator approves")
        technician.chooses("lab, ")
        technician.chooses(f"{disk.device}[ ,]")
        technician.sees(rf"Type its name, {disk.device.name}")
        technician.types(typed)
        technician.sees("Nothing was written")
        technician.sees("What do you want to do")
        assert not watch.touched
    assert disk.digest == before
    assert daemon.ask("GET", "/requests")["items"] == []
    assert len(daemon.ask("GET", "/casts")["items"]) == casts


def test_a_declined_request_writes_nothing(daemon: Daemon, disk: Disk) -> None:
    before = disk.digest
    with at_console(daemon, "pc05") as technician:
        technician.chooses("from the daemon at")
        technician.chooses("An operator approves")
        technician.chooses("lab, ")
        confirm(technician, disk)
        technician.sees("code of this request")
        [request] = wait_until("the request waits", lambda: daemon.ask("GET", "/requests")["items"])
        options = ("--server", daemon.url, "--token-file", str(daemon.token_file))
        shown = run(*diskcast("machines", "requests", *options))
        assert all(word in shown for word in ("pc05", "lab", request["code"]))
        run(*diskcast("machines", "decline-request", "pc05", "--code", request["code"], *options))
        technician.sees(r"was declined by .*\. Nothing was written")
    assert disk.digest == before


def test_another_cast_for_the_machine_is_not_received_in_the_menu(daemon: Daemon, disk: Disk) -> None:
    """The technician confirmed nothing yet: a room's cast mustn't overwrite a disk behind the menu."""
    with (
        OpenWatch(disk.device, only_writing=True) as watch,
        at_console(daemon, "pc06") as technician,
    ):
        technician.chooses("from the daemon at")
        technician.chooses("An operator approves")
        technician.sees("lab, ")
        [machine] = [
            row for row in daemon.ask("GET", "/machines", limit="500")["items"] if row["name"] == "pc06"
        ]
        cast_id = daemon.create_cast("lab", machine_ids=[machine["machine_id"]], wait_for=1)
        wait_until(
            "the cast is offered to the machine",
            lambda: "pc06" in daemon.machines_of(cast_id),
            describe=daemon.describe,
        )
        technician.types("1")
        technician.sees(f"{disk.device}")
        assert not watch.touched
        daemon.ask("POST", f"/casts/{cast_id}/cancel")


def test_an_image_that_this_machine_does_not_trust_is_refused(daemon: Daemon, disk: Disk) -> None:
    before = disk.digest
    with at_console(daemon, "pc07") as technician:
        technician.chooses("from the daemon at")
        technician.chooses("An operator approves")
        technician.chooses("stranger, ")
        technician.chooses(f"{disk.device}[ ,]")
        technician.sees(r"NO +signature")
        technician.sees("Nothing was written")
    assert disk.digest == before


def test_an_operators_token_of_another_role_is_refused(daemon: Daemon) -> None:
    with at_console(daemon, "pc08", boot_token=False) as technician:
        technician.chooses("from the daemon at")
        technician.chooses("Type an operator's token")
        technician.sees("Token:")
        technician.types(daemon.secret("view"))
        technician.sees("the role view: type one of the role operate")
        technician.sees("What do you want to do")


def test_an_image_behind_a_url_without_a_daemon(tmp_path: Path, disk: Disk) -> None:
    folder = tmp_path / "www"
    folder.mkdir()
    IMAGE.write(folder / "lab.dci")
    with HttpFiles(folder) as files, Technician("--image", f"{files.url}/lab.dci") as technician:
        technician.chooses("from a URL")
        technician.sees(r"Enter: http://")
        technician.types("")
        confirm(technician, disk)
        technician.sees("every byte read back and verified")
        assert technician.program.wait(LIMIT_S) == 0, technician.describe()
    assert disk.holds(IMAGE)


def test_an_unsigned_image_of_a_directory_opens_no_disk(tmp_path: Path, disk: Disk) -> None:
    folder = tmp_path / "stick"
    folder.mkdir()
    IMAGE.write(folder / "good.dci")
    IMAGE.write(folder / "unsigned.dci", None)
    with (
        OpenWatch(disk.device, only_writing=True) as watch,
        Technician("--directory", folder) as technician,
    ):
        technician.chooses("from a stick or a directory")
        technician.chooses(r"unsigned\.dci")
        technician.chooses(f"{disk.device}[ ,]")
        technician.sees("isn't signed")
        technician.sees("Nothing was written")
        assert not watch.touched
        technician.chooses("from a stick or a directory")
        technician.chooses(r"good\.dci")
        confirm(technician, disk)
        technician.sees("every byte read back and verified")
        assert technician.program.wait(LIMIT_S) == 0, technician.describe()
    assert disk.holds(IMAGE)
    assert disk.backing.stat().st_size == 8 * MIB
