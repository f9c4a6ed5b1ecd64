"""Tests of filesystem tools: whatever a tool does, packing continues and no process is left running."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from protocol.program import system_tools
from protocol.program.confinement import KERNEL_TOOL
from protocol.program.system_tools import (
    ToolError,
    find_tool,
    run_tool,
    tool_lines,
    tool_output_start,
)
from tests.support.network.lab import LIMIT_S


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a tool in the search path; :func:`script` writes its body."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "sometool"


def script(tool: Path, body: str) -> None:
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)


def test_lines_are_joined_however_they_were_written(tool: Path) -> None:
    script(tool, "printf 'one\\ntw'; sleep 0.05; printf 'o\\n\\nlast'; echo noise >&2")
    assert run_tool(["sometool"], KERNEL_TOOL) == [b"one", b"two", b"", b"last"]


def test_a_tool_in_sbin_is_found_by_every_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_tool("dumpe2fs") is not None


def test_a_missing_tool_is_reported() -> None:
    with pytest.raises(ToolError, match="sometool isn't installed"):
        run_tool(["sometool"], KERNEL_TOOL)


def test_the_error_of_a_failing_tool_is_reported(tool: Path) -> None:
    script(tool, "echo half; echo 'bad superblock' >&2; exit 3")
    with pytest.raises(ToolError, match="failed with code 3: bad superblock"):
        run_tool(["sometool"], KERNEL_TOOL)


def test_a_crashing_tool_is_a_failing_one(tool: Path) -> None:
    script(tool, "kill -SEGV $$")
    with pytest.raises(ToolError, match="killed by signal 11"):
        run_tool(["sometool"], KERNEL_TOOL)


def test_a_file_that_is_no_program_is_a_failing_tool(tool: Path) -> None:
    tool.write_bytes(b"\x7fELFnonsense")
    tool.chmod(0o755)
    with pytest.raises(ToolError, match="can't be started"):
        run_tool(["sometool"], KERNEL_TOOL)


def test_a_hanging_tool_is_killed_with_its_children(tool: Path, tmp_path: Path) -> None:
    # Confined tools can't write files: the names of empty folders are their process ids.
    pids = tmp_path / "pids"
    pids.mkdir()
    script(tool, f"sleep 1000 & mkdir {pids}/$! {pids}/$$; echo started; wait")
    started_pids: list[str] = []
    for limit_s in (0.5, 5.0, 50.0):  # on a busy machine a shell may need more than half a second to start
        with pytest.raises(ToolError, match=rf"didn't exit within {limit_s:g} s"):
            run_tool(["sometool"], KERNEL_TOOL, time_limit_s=limit_s)
        started_pids = [path.name for path in pids.iterdir()]
        if len(started_pids) == 2:
            break
        for path in pids.iterdir():
            path.rmdir()
    assert len(started_pids) == 2
    deadline = time.monotonic() + LIMIT_S
    for pid in started_pids:
        # A killed process needs CPU time to exit.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X"):
                assert time.monotonic() < deadline, f"process {pid} lives"
                time.sleep(0.01)


def test_a_tool_that_closes_its_output_and_stays_is_killed(
    tool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_tools, "_EXIT_WAIT_S", 0.2)
    script(tool, "exec >&- 2>&-; exec sleep 1000")
    with pytest.raises(ToolError, match="closed its output but didn't exit"):
        run_tool(["sometool"], KERNEL_TOOL)


def test_a_tool_with_endless_output_is_killed(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tool, "exec yes")
    monkeypatch.setattr(system_tools, "OUTPUT_BYTES_MAX", 5_000_000)
    with pytest.raises(ToolError, match="wrote too much output"):
        run_tool(["sometool"], KERNEL_TOOL)
    script(tool, "exec cat /dev/zero")
    monkeypatch.setattr(system_tools, "_LINE_BYTES_MAX", 3_000_000)
    with pytest.raises(ToolError, match="wrote too much output"):
        run_tool(["sometool"], KERNEL_TOOL)


def test_a_flood_of_errors_takes_no_memory(tool: Path) -> None:
    script(tool, "yes complaint | head -c 20000000 >&2; echo done; exit 1")
    with pytest.raises(ToolError, match="complaint") as caught:
        run_tool(["sometool"], KERNEL_TOOL)
    assert len(str(caught.value)) < 300


def test_leaving_the_output_kills_the_tool(tool: Path) -> None:
    script(tool, "echo $$; exec sleep 1000")
    with contextlib.closing(tool_lines(["sometool"], KERNEL_TOOL)) as lines:
        pid = int(next(lines))
    assert not Path(f"/proc/{pid}").exists()


def test_the_start_of_a_long_output_is_enough(tool: Path) -> None:
    script(tool, "exec cat /dev/zero")
    assert tool_output_start(["sometool"], 8192, KERNEL_TOOL) == bytes(8192)
    script(tool, "echo short")
    assert tool_output_start(["sometool"], 8192, KERNEL_TOOL) == b"short\n"


def test_tools_inherit_the_given_descriptors(tool: Path, tmp_path: Path) -> None:
    (tmp_path / "content").write_text("content\n")
    script(tool, 'cat "$1"')
    with (tmp_path / "content").open() as file:
        path = f"/proc/self/fd/{file.fileno()}"
        assert run_tool(["sometool", path], KERNEL_TOOL, pass_fds=[file.fileno()]) == [b"content"]


def test_tools_speak_english_in_any_locale(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    script(tool, "echo $LC_ALL")
    assert run_tool(["sometool"], KERNEL_TOOL) == [b"C"]
