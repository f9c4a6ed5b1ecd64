"""Follow server-sent events like many browsers: ``python -m tests.load.watchers API_URL TOPICS COUNT LOG``.

Each watcher has its own connection and reads every event; an event that several watchers got is parsed once. A line on
stdin has the number of complete machines. When every watcher has been shown all of them, or after a time limit, LOG
gets the times at which each watcher was shown each machine's progress, and the missed events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

LINE_BYTES_MAX = 64 << 20
_PARSED_KEPT = 32
_TOPICS_OF_MACHINES = ("room", "cast")
_LAST_WAIT_S = 120.0
"""Time limit of the last changes: one that hasn't arrived by then is lost."""
_POLL_S = 0.01


class Watchers:
    """All watchers, as the module describes them."""

    def __init__(self, url: str, topics: str, count: int) -> None:
        self._address = urllib.parse.urlsplit(url)
        self._topics = topics
        self._count = count
        self._parsed: dict[bytes, int] = {}
        self.events: list[dict[str, Any]] = []
        """Topic, True for a full snapshot, and the progress of each named machine, by event."""
        self.arrivals: list[list[tuple[float, int]]] = [[] for _ in range(count)]
        self.byte_counts = [0] * count
        self._completions: list[list[tuple[str, str]]] = []
        """Topic and name of the machines that an event shows as complete, by event."""
        self._shown: list[set[tuple[str, str]]] = [set() for _ in range(count)]
        self.broken: list[str] = []

    async def run(self, log: Path) -> None:
        """Wait for the line on stdin, and until every watcher was shown its number of machines."""
        tasks = [asyncio.create_task(self._watch(index)) for index in range(self._count)]
        while not all(self.arrivals):
            await asyncio.sleep(_POLL_S)
        sys.stdout.write("watching\n")
        sys.stdout.flush()
        machine_count = int(await asyncio.to_thread(sys.stdin.readline))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WAIT_S):
                while any(len(shown) < machine_count * len(_TOPICS_OF_MACHINES) for shown in self._shown):
                    await asyncio.sleep(_POLL_S)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        log.write_text(
            json.dumps(
                {
                    "events": self.events,
                    "arrivals": self.arrivals,
                    "bytes": self.byte_counts,
                    "broken": self.broken,
                }
            )
        )

    async def _watch(self, index: int) -> None:
        host, port = self._address.hostname, self._address.port
        reader, writer = await asyncio.open_connection(host, port, limit=LINE_BYTES_MAX)
        try:
            writer.write(
                f"GET /api/v1/events?topics={self._topics} HTTP/1.1\r\nHost: {self._address.netloc}\r\n"
                f"Authorization: Bearer {os.environ['DISKCAST_TOKEN']}\r\n"
                "Accept: text/event-stream\r\n\r\n".encode()
            )
            status = await reader.readline()
            if b" 200 " not in status:
                self.broken.append(f"watcher {index}: {status!r}")
                return
            name = ""
            while line := await reader.readline():
                if line.startswith(b"event:"):
                    name = line[6:].strip().decode()
                elif line.startswith(b"data:"):
                    self.byte_counts[index] += len(line)
                    event_index = self._parse(name, line)
                    self.arrivals[index].append((time.monotonic(), event_index))
                    self._shown[index].update(self._completions[event_index])
            self.broken.append(f"watcher {index}: the stream ended")
        except OSError as error:
            self.broken.append(f"watcher {index}: {error}")
        finally:
            writer.close()

    def _parse(self, name: str, line: bytes) -> int:
        known = self._parsed.get(line)
        if known is not None:
            return known
        document = json.loads(line[5:])
        machines = document.get("machines", ())
        self.events.append(
            {
                "topic": name,
                "full": bool(document.get("full")),
                "progress": {machine["name"]: machine["progress"] for machine in machines},
            }
        )
        complete = (machine["name"] for machine in machines if machine["progress"] >= 1.0)
        self._completions.append([(name, one) for one in complete if name in _TOPICS_OF_MACHINES])
        while len(self._parsed) >= _PARSED_KEPT:
            self._parsed.pop(next(iter(self._parsed)))
        self._parsed[line] = len(self.events) - 1
        return len(self.events) - 1


def main(url: str, topics: str, count: str, log: str) -> None:
    asyncio.run(Watchers(url, topics, int(count)).run(Path(log)))


if __name__ == "__main__":
    main(*sys.argv[1:])
