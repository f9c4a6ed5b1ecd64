"""The tables of docs/how-to/netboot-troubleshooting.md, from the live system's messages and boot parameters."""

from __future__ import annotations

import re

from protocol.control.boot_parameters import PARAMETERS
from receiver.live.messages import MESSAGES


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def message_table() -> str:
    rows = ["| line | cause | fix |", "|---|---|---|"]
    for message in MESSAGES:
        line = re.sub(r"\{\w+\}", "…", message.template)
        if line == "…":
            line = "NAME=VALUE … isn't valid: …"
        rows.append(_row(f"`{line}`" + ("" if message.fatal else " (continues)"), message.cause, message.fix))
    return "\n".join(rows)


def parameter_table() -> str:
    rows = ["| parameter | value | meaning |", "|---|---|---|"]
    rows += [_row(f"`{one.name}`", f"`{one.value}`", one.meaning) for one in PARAMETERS]
    return "\n".join(rows)
