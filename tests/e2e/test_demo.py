"""The demo is what a user runs first: it clones disks without root, says the truth, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import EXIT_INTERRUPTED, ConfigurationError, StorageError
from sender.demo.image import DemoPartition, write_partition_table
from sender.demo.run import find_fault, plan_agents
from tests.support.network.lab import LIMIT_S, Program, diskcast, wait_until
from tests.support.programs.serving import Daemon


def test_demo_clones_a_disk_to_agents_that_lose_datagrams_and_join_late(tmp_path: Path) -> None:
    command = diskcast(
        "demo", "--size", "96MiB", "--agents", "3", "--keep", "--directory", tmp_path, "--json"
    )
    with Program(command) as demo:
        assert demo.wait(LIMIT_S) == 0, demo.describe()
    result = demo.result
    first, lossy, late = result["agents"]
    for agent in result["agents"]:
        assert agent["ok"]
        assert 0 < agent["raw_bytes_verified"] == agent["raw_bytes_used"] <= agent["raw_bytes"] == 96 * MIB
    assert (first["rehearses_loss"], lossy["rehearses_loss"], late["joins_late"]) == (False, True, True)
    assert lossy["datagrams_received"] < lossy["datagrams_expected"]
    assert lossy["blocks_repaired_by_parity"] + lossy["blocks_repaired_by_nack"] > 0
    assert late["started_after_s"] > first["started_after_s"] + 1, (
        "the room has gathered and data flows by then"
    )
    [directory] = tmp_path.iterdir()
    assert (directory / "disk.img").read_bytes() == Path(late["target"]).read_bytes()


def test_without_keep_nothing_is_left(tmp_path: Path) -> None:
    with Program(diskcast("demo", "--size", "16MiB", "--agents", "1", "--directory", tmp_path)) as demo:
        assert demo.wait(LIMIT_S) == 0, demo.describe()
        assert "every byte identical" in demo.stderr_text()
    assert list(tmp_path.iterdir()) == []


def test_a_daemon_is_brought_an_image_a_room_and_agents_that_take_its_cast(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with Daemon(tmp_path / "daemon") as daemon:
        options = ("--images", daemon.images, "--token-file", daemon.token_file, "--room", "lab")
        command = diskcast("demo", "--server", daemon.url, "--size", "16MiB", "--agents", "2", "--json")
        with Program([*command, *map(str, options), "--directory", str(work)]) as demo:
            demo.wait_event("step", LIMIT_S, lambda event: event["text"].startswith("2 of 2 agents"))
            said = demo.wait_event("step", LIMIT_S, lambda event: "casts create" in event["text"])["text"]
            assert said == f"diskcast casts create demo --room lab --server {daemon.url}"
            cast_id = daemon.create_cast("demo", room_id="lab")
            daemon.wait_phase(cast_id, "done")
            demo.wait_event("step", LIMIT_S, lambda event: event["text"].startswith("All 2 are complete"))
            demo.signal(signal.SIGTERM)
            assert demo.wait(LIMIT_S) == 0, demo.describe()
        assert list(work.iterdir()) == []
        assert not _programs_of(work)
        tokens = [token["name"] for token in daemon.ask("GET", "/tokens")["items"]]
        assert "diskcast demo" not in tokens, "the agents' token ends with them"


def test_a_daemon_elsewhere_or_none_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for url, words in (
        ("http://192.0.2.1:7400", "isn't encrypted"),
        ("http://127.0.0.1:1", "no response"),
    ):
        command = diskcast("demo", "--server", url, "--directory", tmp_path, "--json")
        with Program(command) as demo:
            assert demo.wait(LIMIT_S) != 0
            assert words in demo.result["error"]


@pytest.mark.parametrize("stuck", [False, True], ids=["willing", "stuck"])
def test_interrupted_demo_ends_its_programs_and_removes_its_files(tmp_path: Path, stuck: bool) -> None:
    """Also when they don't react: they are stopped here, so that only SIGKILL ends them."""
    command = diskcast("demo", "--size", "64MiB", "--agents", "2", "--directory", tmp_path, "--json")
    with Program(command) as demo:
        demo.wait_event("step", LIMIT_S, lambda event: "agent-2" in event["text"])
        if stuck:
            for pid in _wait_for_programs(demo, "send", "agent-1.img", "agent-2.img"):
                os.kill(pid, signal.SIGSTOP)
        demo.signal(signal.SIGTERM)
        assert demo.wait(LIMIT_S) == EXIT_INTERRUPTED, demo.describe()
    assert list(tmp_path.iterdir()) == []
    assert not _programs_of(tmp_path)


def _wait_for_programs(demo: Program, *words: str) -> list[int]:
    """The process ids of the demo's programs, once there is one for each word of a command line."""

    def found() -> list[int]:
        programs = _programs_of(demo.argv[demo.argv.index("--directory") + 1])
        there = all(any(word in line for line in programs.values()) for word in words)
        return list(programs) if there else []

    return wait_until("the demo's programs run", found, describe=demo.describe)


def _programs_of(directory: str | Path) -> dict[int, str]:
    """Running programs that were given files in the demo's own directory, by process id."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{directory}/diskcast-demo-" in line:
                found[int(process.name)] = line
    return found


def test_wrong_options_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    for options, exit_code in (
        (["--size", "1MiB"], ConfigurationError.exit_code),
        (["--size", "1000TiB"], StorageError.exit_code),
        (["--directory", tmp_path / "missing"], ConfigurationError.exit_code),
    ):
        with Program(diskcast("demo", "--directory", tmp_path, *options, "--json")) as demo:
            assert demo.wait(LIMIT_S) == exit_code, demo.describe()
        assert demo.result["ok"] is False
        assert list(tmp_path.iterdir()) == []


def test_a_clone_that_differs_in_one_byte_is_a_fault(tmp_path: Path) -> None:
    source, target = tmp_path / "disk.img", tmp_path / "agent.img"
    with source.open("wb") as disk:
        disk.truncate(16 * MIB)
        write_partition_table(disk.fileno(), 16 * MIB, DemoPartition("p", MIB, 14 * MIB))
    target.write_bytes(source.read_bytes())
    assert find_fault(source, target) == ""
    with target.open("r+b") as disk:
        disk.seek(9 * MIB)
        disk.write(b"x")
    assert "from byte 9437184" in find_fault(source, target)
    target.write_bytes(source.read_bytes()[:-1])
    assert "bytes long" in find_fault(source, target)
    target.unlink()
    assert "No such file" in find_fault(source, target)


def test_roles_suit_the_number_of_agents(tmp_path: Path) -> None:
    def roles(count: int) -> list[tuple[bool, bool]]:
        return [(agent.rehearses_loss, agent.joins_late) for agent in plan_agents(tmp_path, count)]

    assert roles(1) == [(False, False)]
    assert roles(2) == [(False, False), (True, False)]
    assert roles(4) == [(False, False), (True, False), (False, False), (False, True)]
