"""Counters of boots over the network and of refused images; their labels have a fixed set of values."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

from sender.store.records.boots import BootReason

BOOTS: Final = Counter(
    "diskcast_boots",
    "Decided boots of machines over the network, by the system that they boot and the reason.",
    ("action", "reason"),
    registry=None,
)
BOOT_TOKEN_REFUSALS: Final = Counter(
    "diskcast_boot_token_refusals",
    "Check-ins refused for their boot token. spent: it has expired or was used by another agent. "
    "foreign_machine: it is of another machine.",
    ("reason",),
    registry=None,
)
IMAGE_REFUSALS: Final = Counter(
    "diskcast_image_refusals",
    "Images that machines refused before they opened their disks. untrusted: no trusted key signed it. unsigned: it "
    "has no signature. rollback: it is older than the machine accepts.",
    ("reason",),
    registry=None,
)

# Each series exists from the start, so that an alert sees the first refusal as an increase.
for _boot in BootReason:
    BOOTS.labels(_boot.action.value, _boot.value)
for _reason in ("spent", "foreign_machine"):
    BOOT_TOKEN_REFUSALS.labels(_reason)
for _reason in ("untrusted", "unsigned", "rollback"):
    IMAGE_REFUSALS.labels(_reason)
