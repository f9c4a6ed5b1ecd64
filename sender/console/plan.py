"""The options of a planned cast, the same for ``casts create`` and ``schedules create``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from protocol.constants import RECEIVER_COUNT_MAX
from protocol.program.options import WholeNumber
from protocol.shared.units import parse_duration_s
from sender.cast.pace_options import Pace, encrypt_option, pace_options
from sender.console.options import checked_room

if TYPE_CHECKING:
    from sender.console.client import Client

NEVER: Final = "never"
START_MODES: Final = ("joined", "manual")
"""The values of ``StartMode``, so that ``--help`` needs no import; a test compares them."""


@dataclasses.dataclass(frozen=True, slots=True)
class PlanOptions:
    """The options of a plan, machines still by their names."""

    image: str
    room_id: str | None
    machines: tuple[str, ...]
    start: str
    wait_for: int | None
    max_wait_s: float | None
    pace: Pace
    encrypt: bool
    wake: bool
    plain: bool

    def to_json(self, client: Client, *, repeats: bool = False) -> dict[str, object]:
        """Return the plan as the API takes it, with ids in place of names.

        With ``repeats``, ``NAME@latest`` stays: the daemon looks it up for each cast.

        Raises:
            ServerRefusedError: the image or a machine doesn't exist.
        """
        from sender.console.lookup import find_image, find_machine
        from sender.store.records.images import LATEST

        found = find_image(client, self.image)
        follows = repeats and self.image == f"{found.name}@{LATEST}"
        plan: dict[str, object] = {
            "image": self.image if follows else found.image_id,
            "room_id": self.room_id,
            "machine_ids": [find_machine(client, text).machine_id for text in self.machines],
            "start": self.start,
            "wait_for": self.wait_for,
            "max_wait_s": self.max_wait_s,
            "encrypt": self.encrypt,
            "wake": self.wake,
            "plain": self.plain,
            **self.pace,
        }
        plan["slow"] = plan.pop("slow_policy")
        return plan


def machine_ids_of(body: Mapping[str, object]) -> list[str]:
    """Return the ids of the machines in a plan of :meth:`PlanOptions.to_json`."""
    ids = body["machine_ids"]
    assert isinstance(ids, list)
    return ids


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument IMAGE and the options of a plan to a command, which gets them as ``plan``."""

    @functools.wraps(function)
    def with_plan(
        *args: object,
        image: str,
        room_id: str | None,
        machine: tuple[str, ...],
        start: str,
        wait_for: int | None,
        max_wait: str,
        pace: Pace,
        encrypt: bool,
        wake: bool,
        plain: bool,
        **kwargs: object,
    ) -> object:
        max_wait_s = None if max_wait == NEVER else parse_duration_s(max_wait)
        plan = PlanOptions(image, room_id, machine, start, wait_for, max_wait_s, pace, encrypt, wake, plain)
        return function(*args, plan=plan, **kwargs)

    decorated = pace_options(encrypt_option(with_plan))
    for option in (
        click.option(
            "--plain",
            is_flag=True,
            help="Cast the image as it is, without the patches of rooms' templates.",
        ),
        click.option(
            "--wake",
            is_flag=True,
            help="Wake the machines first, by Wake-on-LAN, in waves.",
        ),
        click.option(
            "--max-wait",
            metavar="TIME",
            default="5m",
            show_default=True,
            help=f"Start after this time with the machines joined so far; or '{NEVER}'.",
        ),
        click.option(
            "--wait-for",
            metavar="N",
            type=WholeNumber(1, RECEIVER_COUNT_MAX),
            show_default="all machines of the plan",
            help="Start when N machines have joined.",
        ),
        click.option(
            "--start",
            type=click.Choice(START_MODES),
            default=START_MODES[0],
            show_default=True,
            help="Start when machines have joined, or with `diskcast casts start`.",
        ),
        click.option(
            "--machine",
            metavar="MACHINE",
            multiple=True,
            help="Only this machine; repeat the option for several.",
        ),
        click.option(
            "--room",
            "room_id",
            metavar="ROOM",
            callback=checked_room,
            help="Room of the machines to image.",
        ),
        click.argument("image"),
    ):
        decorated = option(decorated)
    return decorated
