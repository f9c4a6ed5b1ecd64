"""Response models: pages, and combinations of the store's records."""

from __future__ import annotations

from datetime import datetime
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from sender.store.records.access import Role
from sender.store.records.casts import CastEvent, TimelinePoint
from sender.store.records.problems import Problem

ItemT = TypeVar("ItemT")


class ResponseBody(BaseModel):
    """The base of response bodies."""

    model_config = ConfigDict(extra="forbid")


class Page(ResponseBody, Generic[ItemT]):
    """A page of a list; request the next one with ``cursor``."""

    items: list[ItemT]
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last page.")


class ServerView(ResponseBody):
    """The daemon: its settings, its problems and the rights of the client."""

    name: str
    version: str
    role: Role = Field(description="Role of the client.")
    api: Literal["v1"]
    started_at: datetime
    pin: str = Field(description="Pin of the daemon's certificate, for agents and clients.")
    trust_keys: list[str] = Field(
        description="Keys in the daemon's own directory of trusted keys, which new agents should be given."
    )
    problems: list[Problem] = Field(description="Problems that need an operator's attention now.")
    casts_live: int
    machines_online: int
    machines_total: int
    rate_ceiling_bytes_per_s: float | None


class SignatureView(ResponseBody):
    """The signature of an image; its texts are empty for an unsigned one."""

    image_id: str
    name: str = Field(description="Name of the image from the packing.")
    statement: str = Field(description="Signed statement about the image.")
    signature: str = Field(description="Signature of the statement, in minisign's format.")
    public_key: str = Field(
        description="Key that made it, in one line. It is a hint: machines trust their own keys."
    )


class SessionView(ResponseBody):
    """The signed-in user."""

    role: Role
    name: str


class LoginCode(ResponseBody):
    """A one-time code for logging in."""

    code: str = Field(examples=["dcl_…"])
    expires_at: datetime


class CastTimeline(ResponseBody):
    """A cast's chart points and events."""

    points: list[TimelinePoint]
    events: list[CastEvent]


class Health(ResponseBody):
    """The daemon's health."""

    status: Literal["ok"]
    database: Literal["ok", "failing"]


class ScanStarted(ResponseBody):
    """The start of a library scan."""

    started: bool
