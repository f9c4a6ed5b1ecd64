"""Live events as server-sent events."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sender.api.bodies import event_stream
from sender.api.routes import events
from sender.store.records.access import Role
from tests.api.served import PREFIX, Served, serve
from tests.api.test_refusals import check_problem
from tests.support.network.lab import LIMIT_S


class Watcher:
    """A reader of a stream's events, as a browser reads them."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()

    def blocks(self) -> Iterator[dict[str, str]]:
        """Yield the fields of each block; comments have an empty name."""
        block: dict[str, str] = {}
        for line in self._lines:
            if line:
                name, _, value = line.partition(":")
                block[name] = value.removeprefix(" ")
            else:
                yield block
                block = {}

    def events(self, name: str) -> Iterator[dict[str, Any]]:
        for block in self.blocks():
            if block.get("event") == name:
                yield json.loads(block["data"])


@contextlib.contextmanager
def watch(client: httpx.Client, topics: str) -> Iterator[Watcher]:
    with client.stream("GET", "/events", params={"topics": topics}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        yield Watcher(response)


def wait_for_no_subscribers(served: Served) -> None:
    """Wait until every subscription of a closed connection is removed."""
    feed, state = served.services.feed, served.application.state
    give_up_at = time.monotonic() + LIMIT_S
    while state.stream_count or feed.subscriber_count:
        assert time.monotonic() < give_up_at, f"{state.stream_count} streams, {feed.subscriber_count} left"
        time.sleep(0.02)


def test_a_stream_starts_with_full_state_and_continues_with_changes(operator: httpx.Client) -> None:
    operator.post("/rooms", json={"name": "Watched"})
    with watch(operator, "overview,room:watched") as watcher:
        blocks = watcher.blocks()
        assert next(blocks) == {"retry": "2000"}
        first = [next(blocks) for _ in range(2)]
        assert sorted(block["event"] for block in first) == ["overview", "room"]
        overview = json.loads(next(block["data"] for block in first if block["event"] == "overview"))
        assert {"at", "casts", "machines_online", "machines_total", "problems"} == overview.keys()
        created = operator.post(
            "/casts", json={"image": "made", "room_id": "watched", "wait_for": 3, "name": "seen"}
        )
        assert created.status_code == 201, created.text
        cast_id = created.json()["cast_id"]
        for event in watcher.events("overview"):
            if any(cast["cast"]["cast_id"] == cast_id for cast in event["casts"]):
                break
    operator.post(f"/casts/{cast_id}/cancel", json={"reason": "seen"}).raise_for_status()


def test_an_unknown_topic_is_refused_before_the_stream_starts(operator: httpx.Client) -> None:
    check_problem(operator.get("/events", params={"topics": "room:nowhere"}), 404)
    check_problem(operator.get("/events", params={"topics": "cast:00000000"}), 404)
    for topics in ("", "all", "room:", "overview,", "room:a b", ",".join(["overview"] * 9), "cast:xyz"):
        check_problem(operator.get("/events", params={"topics": topics}), 422)


def test_a_silent_stream_is_kept_alive(operator: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "COMMENT_S", 0.05)
    operator.post("/rooms", json={"name": "Silent"})
    with watch(operator, "room:silent") as watcher:
        seen = 0
        for block in watcher.blocks():
            seen += "" in block
            if seen == 3:
                return
    raise AssertionError("the stream ended")


def test_a_stream_ends_when_its_token_is_deleted(
    guarded: Served, operator: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "_CHECK_S", 0.05)
    created = operator.post("/tokens", json={"name": "watcher", "role": "view"}).json()
    with (
        guarded.client(None, headers={"Authorization": f"Bearer {created['secret']}"}) as client,
        watch(client, "overview") as watcher,
    ):
        blocks = watcher.blocks()
        next(blocks)
        operator.delete(f"/tokens/{created['token']['token_id']}").raise_for_status()
        for _block in blocks:
            pass  # until the daemon closes it


def test_a_client_that_does_not_read_delays_no_other(guarded: Served, operator: httpx.Client) -> None:
    operator.post("/rooms", json={"name": "Slow"})
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", guarded.port), timeout=LIMIT_S))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.sendall(
                f"GET {PREFIX}/events?topics=overview,room:slow HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Bearer {guarded.secrets[Role.VIEW]}\r\n\r\n".encode()
            )
            assert peer.recv(64).startswith(b"HTTP/1.1 200")
        with watch(operator, "room:slow") as watcher:
            events = watcher.events("room")
            next(events)
            for index in range(30):
                operator.post(
                    "/machines", json={"name": f"slow-{index}", "serial": f"SLOW{index}", "room_id": "slow"}
                )
            while len(next(events)["machines"]) == 0:
                pass
        for subscriber in list(guarded.services.feed._subscribers):  # the loop may remove some in between
            assert subscriber.queue.qsize() <= 16
    wait_for_no_subscribers(guarded)


def test_the_number_of_streams_is_limited(
    guarded: Served, operator: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_no_subscribers(guarded)
    monkeypatch.setattr(events, "STREAMS_MAX", 1)
    with watch(operator, "overview") as watcher:
        next(watcher.blocks())
        answer = operator.get("/events")
        check_problem(answer, 503)
        assert "retry-after" in answer.headers


def test_the_daemon_stops_without_waiting_for_streams_and_agents(tmp_path: Path) -> None:
    check_in = {
        "agent_id": "a1", "name": "pc-1", "version": "1", "interface": "eth0", "macs": ["52:54:00:00:00:01"],
        "serial": "", "asset_tag": "", "inventory": {}, "state": "idle", "cast_id": None, "last_result": None,
        "wait_s": 25,
    }  # fmt: skip
    answers: list[int] = []
    with serve(tmp_path) as served, served.client() as client, watch(client, "overview") as watcher:
        events = watcher.events("overview")
        next(events)
        with served.client(Role.ENROL) as newcomer:
            secret = newcomer.post("/check-in", json=check_in).json()["machine_secret"]

        def ask() -> None:
            with served.client(None, headers={"Authorization": f"Bearer {secret}"}) as agent:
                answers.append(agent.post("/check-in", json=check_in).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        while next(events)["machines_online"] == 0:
            pass
        served.stop()
        for _ in events:
            pass
        thread.join(LIMIT_S)
    assert answers == [503]


def test_a_viewer_may_watch_and_an_agent_may_not(guarded: Served) -> None:
    with guarded.client(Role.VIEW) as viewer, watch(viewer, "overview") as watcher:
        assert next(watcher.blocks()) == {"retry": "2000"}
    with guarded.client(Role.ENROL) as agent:
        check_problem(agent.get("/events"), 403)
