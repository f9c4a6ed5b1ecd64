"""Tests of the image commands: the output that scripts and people read."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.errors import ConfigurationError, ImageDamagedError
from sender.imaging import image_progress
from sender.imaging.image_commands import agent_arguments, inspect, pack, verify
from sender.imaging.image_progress import show_progress
from tests.support.disks.disk_images import BLOCK_BYTES, make_image
from tests.support.network.lab import LIMIT_S, Program, diskcast
from tests.support.signing import SIGNER

MADE = make_image("drzzd", tail_bytes=500)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(MADE.raw)
    return path


@pytest.fixture
def image(source: Path, tmp_path: Path) -> Path:
    path = tmp_path / "disk.dci"
    invoke(pack, source, "-o", path, "--block-size", "64KiB", "--name", "golden")
    return path


def invoke(command: Any, *arguments: str | Path) -> str:
    result = CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_pack_and_inspect_report_the_same_fields(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.dci"
    result = events(invoke(pack, source, "-o", path, "--block-size", "64KiB", "--name", "golden", "--json"))[
        -1
    ]
    assert result.pop("duration_s") >= 0
    (filesystem,) = result.pop("filesystems")
    assert filesystem["kept_because"] == "no supported filesystem was found"
    assert result.pop("signing_key_created") is False
    assert result.pop("acquisition_reports") == []
    assert result == events(invoke(inspect, path, "--json"))[-1]
    signature = result.pop("signature")
    assert (signature["state"], signature["signed_name"]) == ("signed", "golden")
    assert signature["public_key"] == SIGNER.public.text
    data_stored = result["kinds"]["data"].pop("stored_bytes")
    assert 0 < data_stored < BLOCK_BYTES
    assert result.pop("image_id") == blake3_of_manifest(path)
    assert result == {
        "event": "result",
        "ok": True,
        "image": str(path),
        "name": "golden",
        "format_version": 1,
        "raw_bytes": len(MADE.raw),
        "block_bytes": BLOCK_BYTES,
        "block_count": 5,
        "payload_bytes": data_stored + BLOCK_BYTES,
        "manifest_bytes": result["manifest_bytes"],
        "file_bytes": path.stat().st_size,
        "ratio": round(len(MADE.raw) / path.stat().st_size, 3),
        "kinds": {
            "data": {"block_count": 2, "raw_bytes": BLOCK_BYTES + 500},
            "raw": {"block_count": 1, "raw_bytes": BLOCK_BYTES, "stored_bytes": BLOCK_BYTES},
            "zero": {"block_count": 2, "raw_bytes": 2 * BLOCK_BYTES, "stored_bytes": 0},
            "unused": {"block_count": 0, "raw_bytes": 0, "stored_bytes": 0},
        },
        "metadata": {
            "layout": {
                "table": "none",
                "sector_bytes": 512,
                "filesystem": "",
                "boot_record_offsets": [],
                "partitions": [],
            },
            "logical_sector_bytes": 512,
        },
    }


def blake3_of_manifest(path: Path) -> str:
    """Return the image id from the place that the format's documentation gives: bytes 48 to 80 of the file."""
    return path.read_bytes()[48:80].hex()


def test_inspect_prints_the_main_facts(image: Path) -> None:
    text = invoke(inspect, image)
    for part in (
        "golden",
        blake3_of_manifest(image),
        "5 of 64.0 KiB",
        "zero     2: 128.0 KiB",
        "version 1",
        SIGNER.public.id_text,
    ):
        assert part in text


def test_verify_reports_an_undamaged_image(image: Path) -> None:
    assert "all 5 blocks are correct" in invoke(verify, image)
    assert events(invoke(verify, image, "--json"))[-1]["ok"] is True


def test_verify_names_bad_blocks_for_scripts(image: Path) -> None:
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    with Program(diskcast("verify", image, "--json")) as program:
        assert program.wait(LIMIT_S) == ImageDamagedError.exit_code
        bad, result = [event for event in program.events if event["event"] != "progress"]
    assert (bad["event"], bad["block"], bad["raw_offset"]) == ("bad_block", 4, 4 * BLOCK_BYTES)
    assert result["error_class"] == "ImageDamagedError"
    assert "block 4 " in result["error"]


@pytest.mark.parametrize(
    "options", [("--block-size", "large"), ("--level", "99"), ("--jobs", "0"), ("--name", "\x1b[2J")]
)
def test_a_bad_option_is_a_configuration_error(
    source: Path, tmp_path: Path, options: tuple[str, str]
) -> None:
    with pytest.raises(ConfigurationError):
        invoke(pack, source, "-o", tmp_path / "disk.dci", *options)


def test_the_agent_runs_every_command_that_touches_a_target() -> None:
    """One program checks, writes and reads back targets, with or without a network."""
    arguments = agent_arguments("compare", Path("a.dci"), Path("/dev/sdz"), json_lines=True)
    assert arguments == [
        sys.executable,
        "-m",
        "receiver",
        "compare",
        "a.dci",
        "--target",
        "/dev/sdz",
        "--json",
    ]
    assert "--json" not in agent_arguments("restore", Path("a.dci"), Path("b"), json_lines=False)


def test_unpack_and_compare_reach_the_agent(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    for argv in (
        diskcast("unpack", image, target, "--json"),
        diskcast("verify", image, "--against", target, "--json"),
    ):
        with Program(argv) as program:
            assert program.wait(LIMIT_S) == 0, program.describe()
            assert program.result["ok"] is True
    assert target.read_bytes() == MADE.raw


def test_a_terminal_gets_a_bar_and_a_pipe_gets_clean_text(source: Path, tmp_path: Path) -> None:
    argv = diskcast("pack", source, "-o", tmp_path / "disk.dci")
    controller, terminal = os.openpty()
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=terminal, timeout=LIMIT_S, check=True)
        shown = os.read(controller, 1 << 16)
    finally:
        os.close(controller)
        os.close(terminal)
    assert b"packing" in shown
    assert b"packing" not in done.stdout
    done = subprocess.run(argv, capture_output=True, timeout=LIMIT_S, check=True)
    assert done.stderr == b""


def test_frequent_updates_give_few_json_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    updates_per_s = 10_000
    clock = (tick / updates_per_s for tick in itertools.count())
    monkeypatch.setattr(image_progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with show_progress("packing", json_lines=True) as update:
        for done_bytes in range(100_000):
            update(done_bytes, 100_000)
    lines = events(capsys.readouterr().out)
    assert 0 < len(lines) <= 100_000 / updates_per_s / image_progress.JSON_INTERVAL_S
    for line in lines:
        assert line["event"] == "progress"
        assert (line["phase"], line["total_bytes"]) == ("packing", 100_000)
        assert line["rate_bytes_per_s"] > 0
