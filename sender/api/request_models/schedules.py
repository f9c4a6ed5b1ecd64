"""Request bodies for schedules."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime
from typing import Annotated

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, StringConstraints

from sender.api.request_models.casts import PlanInput
from sender.api.request_models.field_types import Name
from sender.api.request_models.request_body import PatchBody, RequestBody, omittable


def _cron(text: str) -> str:
    if len(text.split()) != 5:
        raise ValueError("expected five fields: minute, hour, day of month, month, day of week")
    try:
        next(CronSim(text, datetime(2024, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"{text!r} is invalid or never occurs: {error}") from error
    return text


def _zone(text: str) -> str:
    # Only listed names: ZoneInfo would look for a file of any relative path.
    if text not in zoneinfo.available_timezones():
        raise ValueError(f"{text!r} isn't a time zone: use a name such as Europe/Berlin or UTC")
    return text


Cron = Annotated[
    str, StringConstraints(min_length=9, max_length=120, pattern=r"^[0-9A-Za-z*/,#-]+( +[0-9A-Za-z*/,#-]+){4}$"),
    AfterValidator(_cron),
]  # fmt: skip
Zone = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_zone)]


class ScheduleInput(RequestBody):
    """A new schedule."""

    name: Name = Field(examples=["nightly refresh"])
    cron: Cron = Field(
        examples=["0 3 * * 1-5"], description="Five fields: minute, hour, day of month, month, day of week."
    )
    time_zone: Zone = Field(default="UTC", examples=["Europe/Berlin"])
    plan: PlanInput
    enabled: bool = True


class ScheduleChange(PatchBody):
    """Changes to a schedule."""

    name: Name = omittable(str)
    cron: Cron = omittable(str)
    time_zone: Zone = omittable(str)
    plan: PlanInput = omittable(dict)
    enabled: bool = omittable(bool)
