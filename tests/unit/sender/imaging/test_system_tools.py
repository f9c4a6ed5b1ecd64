"""Tools that read a source's books: whatever they do, packing goes on and nothing is left running."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from sender.imaging import system_tools
from sender.imaging.system_tools import ToolError, find_tool, run_tool, tool_lines, tool_start
from tests.support.network.lab import LIMIT_S


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shell script in the search path; write its body with :func:`script`."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "booktool"


def script(tool: Path, body: str) -> None:
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)


def test_lines_come_whole_however_they_were_written(tool: Path) -> None:
    script(tool, "printf 'one\\ntw'; sleep 0.05; printf 'o\\n\\nlast'; echo noise >&2")
    assert run_tool(["booktool"]) == [b"one", b"two", b"", b"last"]


def test_a_tool_of_the_administrator_s_is_found_by_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_tool("losetup") is not None


def test_a_missing_tool_is_said() -> None:
    with pytest.raises(ToolError, match="booktool isn't installed"):
        run_tool(["booktool"])


def test_a_failing_tool_says_why(tool: Path) -> None:
    script(tool, "echo half; echo 'bad superblock' >&2; exit 3")
    with pytest.raises(ToolError, match="failed with code 3: bad superblock"):
        run_tool(["booktool"])


def test_a_crashing_tool_is_a_failing_one(tool: Path) -> None:
    script(tool, "kill -SEGV $$")
    with pytest.raises(ToolError, match="ended by signal 11"):
        run_tool(["booktool"])


def test_a_file_that_is_no_program_is_a_failing_tool(tool: Path) -> None:
    tool.write_bytes(b"\x7fELFnonsense")
    tool.chmod(0o755)
    with pytest.raises(ToolError, match="can't be started"):
        run_tool(["booktool"])


def test_a_hanging_tool_is_ended_with_its_children(tool: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script(tool, f"sleep 1000 & echo $! > {pids}; echo $$ >> {pids}; echo started; wait")
    begun: list[str] = []
    for limit_s in (0.5, 5.0, 50.0):  # on a busy machine a shell may not even begin in half a second
        with pytest.raises(ToolError, match=rf"didn't end within {limit_s:g} s"):
            run_tool(["booktool"], time_limit_s=limit_s)
        begun = pids.read_text().split() if pids.exists() else []
        if len(begun) == 2:
            break
    assert len(begun) == 2
    deadline = time.monotonic() + LIMIT_S
    for pid in begun:
        # A process that was killed still has to be given a processor to end on.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X"):
                assert time.monotonic() < deadline, f"process {pid} lives"
                time.sleep(0.01)


def test_a_tool_that_closes_its_output_and_stays_is_ended(
    tool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_tools, "_SILENT_WAIT_S", 0.2)
    script(tool, "exec >&- 2>&-; exec sleep 1000")
    with pytest.raises(ToolError, match="closed its output but didn't end"):
        run_tool(["booktool"])


def test_a_tool_that_runs_wild_is_ended(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tool, "exec yes")
    monkeypatch.setattr(system_tools, "OUTPUT_BYTES_MAX", 5_000_000)
    with pytest.raises(ToolError, match="more than it can have to say"):
        run_tool(["booktool"])
    script(tool, "exec cat /dev/zero")
    monkeypatch.setattr(system_tools, "_LINE_BYTES_MAX", 3_000_000)
    with pytest.raises(ToolError, match="more than it can have to say"):
        run_tool(["booktool"])


def test_a_flood_of_complaints_takes_no_memory(tool: Path) -> None:
    script(tool, "yes complaint | head -c 20000000 >&2; echo done; exit 1")
    with pytest.raises(ToolError, match="complaint") as caught:
        run_tool(["booktool"])
    assert len(str(caught.value)) < 300


def test_a_tool_is_ended_when_its_output_is_left(tool: Path, tmp_path: Path) -> None:
    script(tool, f"echo $$ > {tmp_path}/pid; echo one; exec sleep 1000")
    with contextlib.closing(tool_lines(["booktool"])) as lines:
        assert next(lines) == b"one"
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_the_start_of_a_long_output_is_enough(tool: Path) -> None:
    script(tool, "exec cat /dev/zero")
    assert tool_start(["booktool"], 8192) == bytes(8192)
    script(tool, "echo short")
    assert tool_start(["booktool"], 8192) == b"short\n"


def test_descriptors_are_handed_on(tool: Path, tmp_path: Path) -> None:
    (tmp_path / "book").write_text("content\n")
    script(tool, 'cat "$1"')
    with (tmp_path / "book").open() as file:
        path = f"/proc/self/fd/{file.fileno()}"
        assert run_tool(["booktool", path], pass_fds=[file.fileno()]) == [b"content"]


def test_tools_speak_english_whatever_the_operator_does(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    script(tool, "echo $LC_ALL")
    assert run_tool(["booktool"]) == [b"C"]
