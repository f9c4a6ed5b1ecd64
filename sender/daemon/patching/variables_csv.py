"""Variables of a room's machines from a CSV file with the columns of ``diskcast patches build``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from protocol.errors import ConfigurationError
from sender.patches.limits import COLUMNS_MAX
from sender.patches.machines_file import BUILT_IN_VARIABLES, read_lines
from sender.store.machines.identity import identity_key, normal_mac
from sender.store.records.machines import ImportProblem, Machine

_PROBLEMS_MAX: Final = 100
"""Problems of a file that are reported at once."""


def read_variables(
    text: str, machines: Sequence[Machine], known: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, dict[str, str]], list[ImportProblem]]:
    """Return the variables of the machines of a CSV file, by id, and the problems of its lines.

    The columns name, mac, serial and asset_tag find the machine; room, position and machine_id are ignored, since the
    daemon knows them. Each other column is a variable: an empty cell removes it, and variables without a column stay.

    Args:
        text: content of the file.
        machines: machines of the room.
        known: their present variables, by id.
    """
    finder = _MachineFinder(machines)
    found: dict[str, dict[str, str]] = {}
    line_of: dict[str, int] = {}
    problems: list[ImportProblem] = []
    try:
        for line, cells in read_lines(text.removeprefix("\ufeff")):
            try:
                machine = finder.find(cells)
                if machine.machine_id in found:
                    raise ConfigurationError(
                        f"the machine {machine.name} is in line {line_of[machine.machine_id]} too: remove one of them"
                    )
                own = {column: cell for column, cell in cells.items() if column not in BUILT_IN_VARIABLES}
                merged = dict(known.get(machine.machine_id, {})) | own
                variables = {name: value for name, value in merged.items() if value}
                if len(variables) > COLUMNS_MAX:
                    raise ConfigurationError(
                        f"the machine {machine.name} would have {len(variables)} variables, more than {COLUMNS_MAX}"
                    )
                found[machine.machine_id], line_of[machine.machine_id] = variables, line
            except ConfigurationError as error:
                problems.append(ImportProblem(line, str(error)))
                if len(problems) >= _PROBLEMS_MAX:
                    break
    except ConfigurationError as error:
        problems.append(ImportProblem(1, str(error)))
    if not found and not problems:
        problems.append(ImportProblem(1, "no machines: start with a line like name,ip and add one for each"))
    return found, problems


class _MachineFinder:
    """Finds the machine of a line by its identifiers, which must agree."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._ids: dict[tuple[str, str], list[Machine]] = {}
        for machine in machines:
            keys = {("mac", mac) for mac in machine.macs}
            keys |= {("serial", identity_key(machine.serial)), ("asset_tag", identity_key(machine.asset_tag))}
            keys.add(("name", machine.name.casefold()))
            for key in keys:
                if key[1]:
                    self._ids.setdefault(key, []).append(machine)

    def find(self, cells: Mapping[str, str]) -> Machine:
        """Return the machine that all known identifiers of a line name.

        Raises:
            ConfigurationError: there is none, or they name several.
        """
        mac = cells.get("mac", "")
        keys = (
            ("mac", normal_mac(mac) if mac else ""),
            ("serial", identity_key(cells.get("serial", ""))),
            ("asset_tag", identity_key(cells.get("asset_tag", ""))),
        )
        found = {machine.machine_id: machine for key in keys if key[1] for machine in self._ids.get(key, ())}
        name = cells["name"]
        if not found:
            found = {one.machine_id: one for one in self._ids.get(("name", name.casefold()), ())}
        if not found:
            raise ConfigurationError(f"the room has no machine {name[:64]!r}: add it to the room first")
        if len(found) > 1:
            names = ", ".join(sorted(f"{one.name} ({one.machine_id})" for one in found.values())[:3])
            raise ConfigurationError(
                f"the line is about several machines, {names}: give one hardware address"
            )
        return next(iter(found.values()))
