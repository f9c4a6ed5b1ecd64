"""The warning of ``casts create`` before a room becomes thirty copies of one machine."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from sender.cli import cli
from sender.imaging.generalise.generalise_image import generalise_image
from sender.imaging.image_file import ImageFile
from sender.imaging.pack import PackOptions, pack_image
from tests.console.api_double import lines, succeeded
from tests.support.disks.linux_disk import make_linux_disk, make_traces
from tests.support.network.lab import wait_until
from tests.support.programs.serving import Daemon

WARNING = "the image is not generalised: all machines get the identity of the reference machine"


def test_an_image_that_was_not_generalised_is_warned_of(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    make_linux_disk(disk, make_traces(1))
    plain = pack_image(disk, tmp_path / "plain.dci", PackOptions(name="plain")).path
    with ImageFile.open(plain) as image:
        general = generalise_image(image, tmp_path / "general.dci").path

    with Daemon(tmp_path) as daemon:
        ids = [daemon.add_image(path)["image_id"] for path in (plain, general)]
        daemon.ask("POST", "/rooms", {"name": "Lab 1", "room_id": "lab-1"})
        for image_id in ids:
            wait_until(
                "the contents are read",
                lambda image_id=image_id: (
                    daemon.ask("GET", f"/images/{image_id}/contents")["state"] == "ready"
                ),
            )

        def run(*arguments: str) -> Result:
            environment = {"DISKCAST_SERVER": daemon.url, "DISKCAST_TOKEN_FILE": str(daemon.token_file)}
            return succeeded(CliRunner().invoke(cli, arguments, env=environment))

        cast = "casts", "create", "--room", "lab-1", "--start", "manual", "--wait-for", "1"
        assert f"warning: {WARNING}" in run(*cast, ids[0]).stderr
        warning, result = lines(run(*cast, ids[0], "--json"))
        assert (warning["event"], result["event"]) == ("warning", "result")
        assert WARNING in warning["text"]
        assert "warning" not in run(*cast, ids[1]).stderr
        assert "not generalised: all machines" in run("images", "show", ids[0]).stderr
        assert "generalised: nothing of the reference machine is left" in run("images", "show", ids[1]).stderr
