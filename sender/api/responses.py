"""What the API answers beside the store's records themselves: pages, and things that are put together."""

from __future__ import annotations

from datetime import datetime
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from sender.store.records.access import Role, Token
from sender.store.records.casts import CastEvent, TimelinePoint
from sender.store.records.live import LiveCast, LiveMachine
from sender.store.records.machines import Room
from sender.store.records.problems import Problem

ItemT = TypeVar("ItemT")


class ResponseBody(BaseModel):
    """A body that the daemon made."""

    model_config = ConfigDict(extra="forbid")


class Page(ResponseBody, Generic[ItemT]):
    """Some of a list; the rest by asking again with ``cursor``."""

    items: list[ItemT]
    next_cursor: str | None = Field(description="null: this was the last page.")


class ServerView(ResponseBody):
    """The daemon itself."""

    name: str
    version: str
    role: Role = Field(description="What the one who asks may do.")
    auth: Literal["open", "token"]
    api: Literal["v1"]
    started_at: datetime
    problems: list[Problem] = Field(description="What an operator should look at now.")
    casts_live: int
    machines_online: int
    machines_total: int
    rate_ceiling_bytes_per_s: float | None


class SessionView(ResponseBody):
    """Who has signed in."""

    role: Role
    name: str


class RoomLive(ResponseBody):
    """A room and its machines now."""

    room: Room
    machines: list[LiveMachine]


class CastLive(ResponseBody):
    """A cast and its machines now."""

    live: LiveCast
    machines: list[LiveMachine]


class CastTimeline(ResponseBody):
    """A cast's charts and what happened in it."""

    points: list[TimelinePoint]
    events: list[CastEvent]


class NewToken(ResponseBody):
    """A token and, this once, its secret."""

    token: Token
    secret: str = Field(description="Shown once; only its hash is kept.")


class Health(ResponseBody):
    """Whether the daemon works."""

    status: Literal["ok"]
    database: Literal["ok", "failing"]


class ScanStarted(ResponseBody):
    """The library's folders are looked at."""

    started: bool
