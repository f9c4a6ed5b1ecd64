"""A CSV file with the machines of a room and their variables."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from protocol.constants import MACHINE_ID_BYTES_MAX
from protocol.errors import ConfigurationError
from protocol.patch.machine_patch import is_machine_id
from sender.patches.limits import CELL_BYTES_MAX, COLUMNS_MAX, MACHINES_BYTES_MAX, MACHINES_MAX

BUILT_IN_VARIABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "name": "the machine's name: column `name`",
        "machine_id": "the id that the patch is for: column `machine_id`, otherwise the name",
        "mac": "hardware address, in lower case with colons: column `mac`",
        "serial": "serial number: column `serial`",
        "asset_tag": "asset tag: column `asset_tag`",
        "room": "room: column `room`",
        "position": "place in the room: column `position`",
    }
)
"""Variables that every template may use; other columns are variables too."""

_COLUMN: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclasses.dataclass(frozen=True, slots=True)
class PatchMachine:
    """One machine and its variables.

    Attributes:
        name: its name, from which the patch's file name is made.
        machine_id: the id that the patch is for.
        variables: value of each variable; some are secret.
    """

    name: str
    machine_id: str
    variables: Mapping[str, str] = dataclasses.field(repr=False)

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> PatchMachine:
        """Return the machine of these variables.

        Raises:
            ConfigurationError: the name, the id or the hardware address is missing or invalid.
        """
        name = variables.get("name", "")
        if not _FILE_NAME.fullmatch(name):
            raise ConfigurationError(
                f"{name[:64]!r} can't name a machine here, and the file of its patch: use 1 to 64 letters, digits, "
                "dots, dashes and underscores"
            )
        machine_id = variables.get("machine_id", "") or name
        if not is_machine_id(machine_id):
            raise ConfigurationError(
                f"the machine {name} has an invalid machine_id: use 1 to {MACHINE_ID_BYTES_MAX} bytes of printable text"
            )
        mac = variables.get("mac", "").lower().replace("-", ":")
        if mac and not _MAC.fullmatch(mac):
            raise ConfigurationError(
                f"the machine {name} has an invalid mac {mac[:32]!r}: write it as 52:54:00:12:34:56"
            )
        known = dict.fromkeys(BUILT_IN_VARIABLES, "") | dict(variables)
        return cls(name, machine_id, MappingProxyType(known | {"machine_id": machine_id, "mac": mac}))


def is_variable_value(value: str) -> bool:
    """Return whether ``value`` can be the value of a variable."""
    return len(value.encode(errors="replace")) <= CELL_BYTES_MAX and value.isprintable()


def load_machines(path: Path) -> list[PatchMachine]:
    """Return the machines of a CSV file.

    Raises:
        ConfigurationError: the file can't be read, or a line is invalid; the message names the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MACHINES_BYTES_MAX + 1)
        if len(data) > MACHINES_BYTES_MAX:
            raise ConfigurationError(f"it has more than {MACHINES_BYTES_MAX >> 20} MiB: split it")
        return read_machines(data.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"can't read the machines of {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: the file isn't UTF-8: save it as UTF-8 (CSV)") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def read_machines(text: str) -> list[PatchMachine]:
    """Return the machines of CSV text, separated by commas, semicolons or tabs.

    The first line names the columns; ``name`` is required. Spaces and dashes in names of columns become underscores.

    Raises:
        ConfigurationError: a line is invalid, or two machines have the same name, id or hardware address.
    """
    machines: list[PatchMachine] = []
    seen: dict[tuple[str, str], int] = {}
    for line, variables in read_lines(text):
        try:
            machine = PatchMachine.of(variables)
        except ConfigurationError as error:
            raise ConfigurationError(f"line {line}: {error}") from error
        for key in (
            ("name", machine.name.lower()),  # two files that differ in case alone are one on some disks
            ("machine_id", machine.machine_id),
            ("mac", machine.variables["mac"]),
        ):
            if key[1] and key in seen:
                raise ConfigurationError(
                    f"line {line}: the {key[0]} {key[1]!r} is in line {seen[key]} too: give each machine its own"
                )
            seen[key] = line
        machines.append(machine)
    if not machines:
        raise ConfigurationError(
            "no machines: the first line names the columns (name,mac,…), the others are machines"
        )
    return machines


def read_lines(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line of CSV text and its cells by column; see :func:`read_machines`.

    Raises:
        ConfigurationError: a line is invalid.
    """
    first, _, _ = text.lstrip("\r\n").partition("\n")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        for count, (line, variables) in enumerate(_lines(reader), 1):
            if count > MACHINES_MAX:
                raise ConfigurationError(f"line {line}: more than {MACHINES_MAX} machines: split the file")
            yield line, variables
    except csv.Error as error:
        raise ConfigurationError(
            f"line {reader.line_num}: this isn't CSV: {error}; check the quotation marks"
        ) from error


def _lines(reader: Iterator[list[str]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line and its cells by column."""
    columns: list[str] | None = None
    for cells in reader:
        line: int = reader.line_num  # type: ignore[attr-defined]
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns = _columns(cells)
            continue
        if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
            raise ConfigurationError(
                f"line {line}: {len(cells)} cells under {len(columns)} columns: quote cells with the separator"
            )
        variables = {column: cell.strip() for column, cell in zip(columns, cells, strict=False)}
        for column, value in variables.items():
            if not is_variable_value(value):
                raise ConfigurationError(
                    f"line {line}, column {column}: at most {CELL_BYTES_MAX} bytes, and no control characters or line "
                    "breaks"
                )
        yield line, variables


def _columns(cells: list[str]) -> list[str]:
    columns = [re.sub(r"[ -]+", "_", cell.strip().lower()) for cell in cells]
    if len(columns) > COLUMNS_MAX:
        raise ConfigurationError(f"line 1: more than {COLUMNS_MAX} columns")
    for column in columns:
        if not _COLUMN.fullmatch(column):
            raise ConfigurationError(
                f"line 1: {column[:40]!r} can't name a column: use a letter, then letters, digits and underscores"
            )
        if columns.count(column) > 1:
            raise ConfigurationError(f"line 1: two columns are called {column!r}: remove one of them")
    if "name" not in columns:
        raise ConfigurationError("line 1: no column is called name: start with a line like name,mac,ip")
    return columns
