"""The table of attacks in ``explanation/threat-model.md``: each test of ``tests/attacks`` and the loss it prevents."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ATTACKS: Final = Path(__file__).parent.parent / "tests" / "attacks"
_TEST: Final = re.compile(r"test_(\d\d)_(\w+)")


def attack_tests() -> Iterator[tuple[int, str, str]]:
    """Yield number, path with the name, and docstring of every numbered attack test."""
    for path in sorted(ATTACKS.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
                match := _TEST.fullmatch(node.name)
            ):
                text = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
                yield int(match[1]), f"{path.name}::{node.name}", text


def attack_table() -> str:
    """Return the Markdown table, by number."""
    rows = [f"| {number} | `{name}` | {text} |" for number, name, text in sorted(attack_tests())]
    return "\n".join(
        ["| attack | test in `tests/attacks` | without the protection |", "|---:|---|---|", *rows]
    )
