"""The end of every command: an exit code, and with --json a result line, whatever ended it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError, ResourcesError

FAILURES = {
    "usage": "raise click.UsageError('no such thing')",
    "interrupt": "os.kill(os.getpid(), signal.SIGINT); signal.pause()",
    "typed": "raise ConfigurationError('the cause')",
    "defect": "raise ValueError('a defect')",
    "files": "[os.open('/dev/null', os.O_RDONLY) for _ in range(1 << 20)]",
    "memory": "bytearray(1 << 60)",
    "library": "raise ImportError('libx.so: failed to map segment from shared object')",
}


def run_failing(kind: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program of one command that fails."""
    code = f"""
import os, signal, click
from protocol.errors import ConfigurationError
from protocol.program.command_line import run_program
@click.command()
@click.option("--json", is_flag=True)
def cli(json):
    {FAILURES[kind]}
run_program(cli)
"""
    return subprocess.run(
        [sys.executable, "-c", code, *options], check=False, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("kind", "exit_code", "said"),
    [
        ("usage", 2, "no such thing"),
        ("interrupt", 130, "interrupted"),
        ("typed", ConfigurationError.exit_code, "the cause"),
        ("defect", 1, "a defect"),
        ("files", ResourcesError.exit_code, "ulimit -n"),
        ("memory", ResourcesError.exit_code, "ulimit -v"),
        ("library", ResourcesError.exit_code, "ulimit -v"),
    ],
)
def test_whatever_ends_a_command_scripts_get_a_result(kind: str, exit_code: int, said: str) -> None:
    plain, scripted = run_failing(kind), run_failing(kind, "--json")
    assert (plain.returncode, scripted.returncode) == (exit_code, exit_code)
    assert plain.stdout == ""
    assert said in plain.stderr
    [line] = scripted.stdout.splitlines()
    result = json.loads(line)
    assert (result["event"], result["ok"], result["exit_code"]) == ("result", False, exit_code)
    assert said in result["error"]
    assert ("Traceback" in plain.stderr) == (kind == "defect")


def run_writer(stdout: int, lines: str) -> subprocess.CompletedProcess[str]:
    """Run a program that writes ``lines`` to a stdout that may fail, then to stderr."""
    code = f"""
import json, sys, click
from protocol.program.output_streams import let_output_fail
let_output_fail()
for line in {lines}:
    click.echo(line)
click.echo("worked on", err=True)
"""
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )


def test_a_full_disk_behind_stdout_doesn_t_end_the_work() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run_writer(full.fileno(), "['x'] * 3")
    assert done.returncode == 0
    assert done.stderr == "worked on\nnote: 3 writes to stdout were dropped: No space left on device\n"


def test_a_closed_pipe_doesn_t_end_the_work() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_writer(writer, "['x']")
    os.close(writer)
    assert done.returncode == 0
    assert done.stderr == "worked on\nnote: 1 writes to stdout were dropped: Broken pipe\n"


def test_a_reader_that_stops_doesn_t_stop_the_work_and_gets_whole_lines() -> None:
    reader, writer = os.pipe()
    done = run_writer(writer, "['y' * 5000] * 40")
    os.close(writer)
    assert done.returncode == 0
    assert "its reader takes nothing" in done.stderr
    with os.fdopen(reader) as pipe:
        *whole, last = pipe.read().splitlines()
    assert {len(line) for line in whole} == {5000}
    assert len(last) <= 5000
