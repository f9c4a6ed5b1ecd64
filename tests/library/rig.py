"""A running library on folders of the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from sender.config.sections import LibrarySection
from sender.library.library import Library
from tests.support.network.lab import LIMIT_S


@contextlib.asynccontextmanager
async def running(library: Library) -> AsyncIterator[Library]:
    """Run ``library`` during a ``with`` block."""
    task = asyncio.ensure_future(library.run())
    try:
        yield library
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def settings(tmp_path: Path, *remotes: str, cache_size: str = "1GiB", **more: object) -> LibrarySection:
    """Return settings with one folder, frequent scans and a cache."""
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    values: dict[str, object] = {
        "folders": (folder,),
        "scan_interval_s": 0.05,
        "remotes": remotes,
        "cache_directory": tmp_path / "cache",
    }
    # Without the validation of the size: tests need smaller caches than operators can configure.
    return LibrarySection(**(values | more)).model_copy(update={"cache_size": cache_size})


async def until(library: Library, condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait for the library to satisfy ``condition``."""
    changed = asyncio.Event()
    before, library.on_change = library.on_change, changed.set
    try:
        async with asyncio.timeout(limit_s):
            while not condition():
                await changed.wait()
                changed.clear()
    except TimeoutError:
        raise AssertionError(f"{library.images()}\n{library.problems()}") from None
    finally:
        library.on_change = before
