"""Machines that join a daemon's cast without waiting for it: which of the operator's machines got the image."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.lab import Program, diskcast_agent
from tests.server.conftest import GoldenImage
from tests.serving import Daemon


def test_history_has_a_plain_agents_machine_as_the_operators_list_has_it(
    image: GoldenImage, tmp_path: Path
) -> None:
    with Daemon(tmp_path / "daemon") as daemon:
        daemon.add_image(image.path)
        known = daemon.ask("POST", "/machines", {"name": "seat 7", "serial": "PF1XYZ", "asset_tag": "LAB-7"})
        cast_id = daemon.create_cast(image.image_id, machine_ids=[known["machine_id"]], wait_for=2)
        url = daemon.wait_phase(cast_id, "gathering")["control_url"]
        with contextlib.ExitStack() as stack:
            for identity in ("pf1xyz", "elsewhere"):
                target = tmp_path / f"{identity}.disk"
                where = ("--interface", "lo", "--sender", url, "--name", "debian", "--identity", identity)
                stack.enter_context(Program(diskcast_agent("receive", "--target", target, *where)))
            daemon.wait_phase(cast_id, "done")
        image.assert_is_on(tmp_path / "pf1xyz.disk")
        lines = {line["machine_name"]: line for line in daemon.history(cast_id=cast_id)}
        assert {name: line["state"] for name, line in lines.items()} == {
            "seat 7": "complete",
            "debian": "complete",
        }
        seat, stranger = lines["seat 7"], lines["debian"]
        assert (seat["machine_id"], seat["serial"], seat["asset_tag"]) == (
            known["machine_id"],
            "PF1XYZ",
            "LAB-7",
        )
        assert (stranger["machine_id"], stranger["serial"]) == (None, "")
        assert [line["cast_id"] for line in daemon.history(machine_id=known["machine_id"])] == [cast_id]
