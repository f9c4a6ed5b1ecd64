"""Calls that may never return: their results arrive, and the program ends without them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sender.blocking_calls import start_blocking_call
from tests.support.network.lab import LIMIT_S

ROOT = Path(__file__).resolve().parents[3]


def test_results_and_errors_arrive() -> None:
    async def run() -> None:
        assert await start_blocking_call(lambda: 7, "test") == 7
        with pytest.raises(ZeroDivisionError):
            await start_blocking_call(lambda: 1 // 0, "test")

    asyncio.run(run())


def test_a_cancelled_call_that_returns_later_disturbs_nobody() -> None:
    go_on, ended = threading.Event(), threading.Event()

    def wait() -> None:
        go_on.wait()
        ended.set()

    async def run() -> None:
        start_blocking_call(wait, "test").cancel()
        first = start_blocking_call(wait, "test")
        await asyncio.sleep(0)
        first.cancel()

    asyncio.run(run())
    go_on.set()
    assert ended.wait(LIMIT_S)


STUCK = """
import asyncio, os
from sender.blocking_calls import start_blocking_call

async def run():
    never = os.pipe()
    await asyncio.wait([start_blocking_call(lambda: os.read(never[0], 1), "stuck")], timeout=0.1)
    print("ends")

asyncio.run(run())
"""


def test_the_program_ends_while_a_call_is_stuck() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
