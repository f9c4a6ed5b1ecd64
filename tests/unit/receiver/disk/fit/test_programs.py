"""Running partition and filesystem tools: failures, hangs, signals, output, Ctrl-C."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import MissingDependencyError
from protocol.program.confinement import KERNEL_TOOL
from receiver.disk.fit import programs
from receiver.disk.fit.programs import (
    StepError,
    UninterruptedWork,
    last_lines,
    require_programs,
)
from receiver.disk.fit.programs import run_program as run_confined
from tests.support.network.lab import LIMIT_S

run_program = functools.partial(run_confined, confinement=KERNEL_TOOL)


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_tool_that_fails_is_named_with_its_last_lines() -> None:
    with pytest.raises(StepError, match=r"failed with code 3: two / three$"):
        run_program(
            _python("import sys; print('two', flush=True); print('three', file=sys.stderr); sys.exit(3)"),
            time_limit_s=60,
        )


def test_a_tool_that_hangs_is_stopped() -> None:
    with pytest.raises(StepError, match=r"didn't exit within 0\.1 s: "):
        run_program(
            _python("import time; print('begun', flush=True); time.sleep(600)"),
            time_limit_s=0.1,
        )


def test_a_tool_killed_by_a_signal_has_failed() -> None:
    with pytest.raises(StepError, match="signal 9"):
        run_program(_python("import os; os.kill(os.getpid(), 9)"), time_limit_s=60)


def test_a_tool_that_prints_without_end_costs_no_memory() -> None:
    output = run_program(_python("print('x' * 4_000_000); print('end')"), time_limit_s=60)
    assert output.endswith("end\n")
    assert len(output) <= 256 * 1024


def test_a_tool_reads_its_input_and_speaks_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    code = "import os, sys; print(sys.stdin.read(), os.environ['LC_ALL'])"
    assert run_program(_python(code), text="start=1", time_limit_s=60) == "start=1 C\n"


def test_a_tool_that_does_not_read_its_input_is_judged_by_its_exit_code() -> None:
    assert run_program(_python("pass"), text="x" * 200_000, time_limit_s=60) == ""


def test_a_tool_is_out_of_reach_of_the_terminals_ctrl_c() -> None:
    assert run_program(_python("import os; print(os.getsid(0))"), time_limit_s=60) != f"{os.getsid(0)}\n"


def test_a_tool_continues_when_its_reader_was_killed() -> None:
    """Printing into a closed pipe would kill the tool in the middle of its work."""
    ignored = run_program(["grep", "SigIgn", "/proc/self/status"], time_limit_s=60).split()[1]
    assert int(ignored, 16) >> (signal.SIGPIPE - 1) & 1


def test_a_tool_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_SYSTEM_PATH", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StepError, match=r"sgdisk isn't installed \(Debian package gdisk\)"):
        run_program(["sgdisk", "--version"], time_limit_s=60)
    with pytest.raises(MissingDependencyError, match="apt install fdisk gdisk"):
        require_programs(["sfdisk", "sgdisk"], "looking")


def test_last_lines_are_those_a_person_can_read() -> None:
    output = "1 percent\r2 percent\r\n\x1b[1mbold\x1b[0m\n\n  end\b\b \n"
    assert last_lines(output) == "1 percent / 2 percent / bold / end"
    assert last_lines("\x1b]0;pwned\x07label \x9b31m\u202eevil\x1b]52;c;cm0=") == "label 31m evil"
    assert last_lines("\n\n") == "no output"
    assert len(last_lines("x" * 10_000)) == 400


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_work_between_two_steps() -> None:
    steps = []

    def work(check: Callable[[], None]) -> None:
        steps.append("one")
        os.kill(os.getpid(), signal.SIGINT)
        while time.monotonic() < give_up_at:  # the main thread takes it when it does
            check()

    give_up_at = time.monotonic() + LIMIT_S
    with pytest.raises(KeyboardInterrupt):
        UninterruptedWork(work).run()
    assert steps == ["one"]


def test_work_hands_back_its_result_and_its_errors() -> None:
    assert UninterruptedWork(lambda _check: 5).run() == 5

    def fails(_check: Callable[[], None]) -> None:
        raise StepError("why")

    with pytest.raises(StepError, match="why"):
        UninterruptedWork(fails).run()
