"""The report of ``images generalise``: for people, and as JSON lines."""

from __future__ import annotations

import collections
import dataclasses
from typing import Final

from protocol.shared.units import format_bytes
from sender.imaging.generalise.generalise_image import GeneraliseResult
from sender.imaging.generalise.linux_changes import Change
from sender.imaging.image_progress import emit

_PATHS_SHOWN_MAX: Final = 3
"""Paths of one kind in the text; --json has all of them."""


def emit_report(result: GeneraliseResult, *, is_new: bool) -> None:
    """Print one line for each change and remark, and the result."""
    for change in result.changes:
        emit("change", **dataclasses.asdict(change))
    for remark in result.remarks:
        emit("remark", text=remark)
    emit(
        "result",
        ok=True,
        image=str(result.path),
        image_id=result.image_id.hex(),
        changed=is_new,
        systems=list(result.systems),
        change_count=len(result.changes),
        changed_blocks=result.changed_blocks,
    )


def report_text(result: GeneraliseResult, *, is_new: bool) -> str:
    """Return the report as lines of text."""
    by_kind: dict[tuple[int, str, str], list[Change]] = collections.defaultdict(list)
    for change in result.changes:
        by_kind[change.place, change.kind.value, change.action.value].append(change)
    lines = []
    for (place, kind, action), changes in by_kind.items():
        names = ", ".join(change.path for change in changes[:_PATHS_SHOWN_MAX])
        more = f" and {len(changes) - _PATHS_SHOWN_MAX} more" if len(changes) > _PATHS_SHOWN_MAX else ""
        size = format_bytes(sum(change.size_bytes for change in changes))
        lines.append(f"{f'partition {place}' if place else 'disk'}: {kind}: {action} {names}{more} ({size})")
    lines += [f"left as it is: {remark}" for remark in result.remarks]
    system = ", ".join(result.systems)
    if not result.changes:
        lines.append(
            "nothing to change" if not is_new else "nothing to change but the image's mark as generalised"
        )
    lines.append(f"{result.path}: generalised ({system}), {result.changed_blocks} blocks changed")
    lines.append(f"image id   {result.image_id.hex()}")
    return "\n".join(lines)
