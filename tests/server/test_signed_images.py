"""Signed images with a real daemon and real agents: refused until an operator signs, then cast, with its record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from protocol.errors import UnsignedImageError
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S, Program, diskcast
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online, wait_until
from tests.support.signing import SIGNER

MADE = make_image("r" * 16, name="lab")


def test_an_unsigned_image_is_refused_until_it_is_signed(
    tmp_path: Path, agents: Callable[..., list[ServiceAgent]]
) -> None:
    image_id = MADE.manifest.image_id.hex()
    with Daemon(tmp_path / "daemon") as daemon:
        shown = daemon.add_image(MADE.write(tmp_path / "lab.dci", signer=None))
        assert (shown["signer"], shown["version"]) == ("", "")
        [agent] = agents("pc01", daemon)
        ids = wait_online(daemon, {"pc01": agent})
        refused = daemon.create_cast(image_id, machine_ids=list(ids.values()))

        def line() -> dict[str, object]:
            lines = [line for line in daemon.history(cast_id=refused) if line["state"] == "failed"]
            return lines[0] if lines else {}

        found = wait_until("the refusal is in the history", line, describe=daemon.describe)
        assert found["exit_code"] == UnsignedImageError.exit_code
        assert "isn't signed" in str(found["error"])
        [entry] = [
            entry for entry in daemon.ask("GET", "/audit")["items"] if entry["action"] == "image.refuse"
        ]
        assert (entry["actor"], entry["subject"]) == ("machine pc01", f"cast {refused}")
        assert entry["detail"]["exit_code"] == UnsignedImageError.exit_code
        assert not agent.target.exists() or agent.target.read_bytes() == b""
        daemon.ask("POST", f"/casts/{refused}/cancel")
        daemon.wait_phase(refused, "cancelled", "failed")
        sign = ("images", "sign", "lab", "--image-version", "7", "--server", daemon.url, "--json")
        environment = {"DISKCAST_TOKEN_FILE": str(daemon.token_file)}
        with Program(diskcast(*sign), environment=environment) as signing:
            assert signing.wait(LIMIT_S) == 0, signing.describe()
        cast_id = daemon.create_cast(image_id, machine_ids=list(ids.values()))
        daemon.wait_phase(cast_id, "done")
        assert agent.target.read_bytes() == MADE.raw
        [line_done] = daemon.history(cast_id=cast_id)
        assert (line_done["image_signer"], line_done["image_version"]) == (SIGNER.public.id_text, "7")
        assert line_done["unsigned_allowed"] is False


def test_an_allowed_unsigned_image_is_recorded(tmp_path: Path) -> None:
    """An auditor must see which machines took an image without a signature."""
    image_id = MADE.manifest.image_id.hex()
    with Daemon(tmp_path / "daemon") as daemon:
        daemon.add_image(MADE.write(tmp_path / "lab.dci", signer=None))
        with ServiceAgent(tmp_path / "disks", "pc01", [daemon], options=("--allow-unsigned",)) as agent:
            ids = wait_online(daemon, {"pc01": agent})
            cast_id = daemon.create_cast(image_id, machine_ids=list(ids.values()))
            daemon.wait_phase(cast_id, "done")
            accepted = agent.program.wait_event("image_accepted", LIMIT_S)
            assert (accepted["signed"], accepted["image_id"]) == (False, image_id)
            assert agent.target.read_bytes() == MADE.raw
        [line] = daemon.history(cast_id=cast_id)
        assert line["unsigned_allowed"] is True
        actions = [entry["action"] for entry in daemon.ask("GET", "/audit")["items"]]
        assert actions.count("image.allow_unsigned") == 1
