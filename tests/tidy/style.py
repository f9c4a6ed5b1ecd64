"""The rules of words and structure that ruff can't check; ``python -m tests.tidy.style`` checks the repository.

Each check takes its input as arguments and yields one line per violation, ``FILE:LINE: reason``, so that its own test
can pass it a seeded violation.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

import receiver.cli
import sender.cli

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "receiver", "sender")
PROGRAMS: dict[str, click.Group] = {"diskcast": sender.cli.cli, "diskcast-agent": receiver.cli.cli}

OPTION_HELP_MAX = 70
"""Characters: an option and its help fit a terminal's width of 100."""
MODULE_LINES_MAX = 700
TOP_MODULES_MAX = 4
"""Modules at the top of ``protocol/``: what everything else may import."""
ROOM_MODULES_MAX = 18

_NOT_AN_OPENING = re.compile(
    r"(what|who|whom|whose|whoever|whether|how|that|its|where|which|whichever)\b", re.IGNORECASE
)
BANNED_WORDS = {
    r"mend(s|ed|ing)?": "fix",
    r"lack(s|ed|ing)?": "miss, is missing, without",
    r"beg[iau]n(s|ning with)?(?![(_])": "start",
    r"go(es)? on|went on|gone on": "continue, resume",
    r"time to go": "ETA",
    r"what becomes of|becomes of": "how … is handled",
    r"whose doing": "bottleneck, cause",
    r"lately": "recently",
    r"who(so)?ever": "the operator, client, agent, …",
    r"can't be had": "unavailable",
    r"anew": "again",
    r"by themselves": "automatically, scheduled, unattended",
    r"(is|are|was|were) away": "unavailable",
    r"(is|are|was|were|be|been) told": "receive, is notified",
    r"tells? (who|what|whether|how|it|them|the)": "report, show",
    r"be it": "including",
    r"what bounds": "bottleneck",
    r"nobody (reads|needs|wants|asked)": "name the actor",
}
"""Words that style.md replaces, with the words to use."""
_BANNED = re.compile(r"\b(" + "|".join(f"(?:{word})" for word in BANNED_WORDS) + r")\b", re.IGNORECASE)


def tracked_files(*suffixes: str) -> list[Path]:
    """Return the repository's files with one of the suffixes, those not yet committed included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    paths = sorted(ROOT / name for name in listing.split("\0") if name.endswith(suffixes))
    return [path for path in paths if path.is_file()]


def source_files() -> list[Path]:
    """Return the modules of the three packages."""
    return [path for path in tracked_files(".py") if path.relative_to(ROOT).parts[0] in PACKAGES]


def docstring_openings(paths: Iterable[Path]) -> Iterator[str]:
    """Find docstrings, of attributes too, that open with a question word or a possessive."""
    for path in paths:
        for line, text in _docstrings(ast.parse(path.read_text())):
            if opening := _NOT_AN_OPENING.match(text.strip()):
                yield f"{path}:{line}: docstring opens with {opening[0]!r}: {text.strip().splitlines()[0][:60]!r}"


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for (
            statement
        ) in node.body:  # the first is the node's own, the others are those of the names above them
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.lineno, text


def banned_words(paths: Iterable[Path]) -> Iterator[str]:
    """Find banned words in whole files: prose, comments, help texts, errors, the dashboard's texts."""
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for found in _BANNED.finditer(line):
                if (
                    found[0] == "BEGIN" or line[found.start() - 1 : found.end() + 1] == '"begin"'
                ):  # SQL's, SQLAlchemy's
                    continue
                yield f"{path}:{number}: {found[0]!r}; write: {_replacement(found[0])}"


def _replacement(word: str) -> str:
    words = BANNED_WORDS.items()
    return next(better for banned, better in words if re.fullmatch(banned, word, re.IGNORECASE))


def long_option_help(programs: dict[str, click.Group]) -> Iterator[str]:
    """Find options whose help is missing or longer than one line, and commands without a description."""
    for name, command in _commands(programs):
        if not command.help:
            yield f"{name}: no description"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                text = parameter.help or ""
                if not 0 < len(text) <= OPTION_HELP_MAX:
                    yield f"{name} {parameter.opts[0]}: help of {len(text)} characters (1 to {OPTION_HELP_MAX})"


def _commands(programs: dict[str, click.Group]) -> Iterator[tuple[str, click.Command]]:
    todo: list[tuple[str, click.Command]] = list(programs.items())
    while todo:
        name, command = todo.pop()
        yield name, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for child in command.list_commands(context):
                found = command.get_command(context, child)
                assert found is not None, f"{name} lists {child}, which it doesn't have"
                todo.append((f"{name} {child}", found))


def repeated_class_names(paths: Iterable[Path]) -> Iterator[str]:
    """Find public classes that share a name."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path}:{node.lineno}")
    for name, found in places.items():
        if len(found) > 1:
            yield f"{found[0]}: class {name} is also at {', '.join(found[1:])}"


def crowded_rooms(protocol: Path) -> Iterator[str]:
    """Find packages of the protocol with too many modules."""
    for package in sorted({path.parent for path in protocol.rglob("*.py")}):
        modules = [path for path in package.glob("*.py") if path.name != "__init__.py"]
        limit = TOP_MODULES_MAX if package == protocol else ROOM_MODULES_MAX
        if len(modules) > limit:
            yield f"{package}: {len(modules)} modules, {limit} at most: give it sub-packages"


def long_modules(paths: Iterable[Path]) -> Iterator[str]:
    """Find modules that hold more than one responsibility can need, or don't state theirs."""
    for path in paths:
        text = path.read_text()
        if (count := text.count("\n")) > MODULE_LINES_MAX:
            yield f"{path}: {count} lines, {MODULE_LINES_MAX} at most: split it by responsibility"
        if not ast.get_docstring(ast.parse(text)):
            yield f"{path}:1: no docstring that states the module's responsibility"


def global_randomness(paths: Iterable[Path]) -> Iterator[str]:
    """Find uses of ``random``'s global functions: the protocol takes a ``random.Random``."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(value=ast.Name(id="random"), attr=name) if name != "Random":
                    yield f"{path}:{node.lineno}: random.{name}: inject a random.Random"


def prose_files() -> list[Path]:
    """Return every file that a person reads: code, dashboard, documentation, deployment."""
    suffixes = (
        ".py",
        ".js",
        ".html",
        ".css",
        ".md",
        ".toml",
        ".yml",
        ".yaml",
        ".service",
        ".conf",
        ".example",
    )
    tops = {*PACKAGES, "docs", "deploy", "README.md", "SECURITY.md"}
    return [
        path
        for path in tracked_files(*suffixes)
        if path.relative_to(ROOT).parts[0] in tops and "vendor" not in path.parts
    ]


def violations() -> Iterator[str]:
    """Check the whole repository."""
    sources = source_files()
    protocol = [path for path in sources if path.relative_to(ROOT).parts[0] == "protocol"]
    yield from docstring_openings(sources)
    yield from banned_words(prose_files())
    yield from long_option_help(PROGRAMS)
    yield from repeated_class_names(sources)
    yield from crowded_rooms(ROOT / "protocol")
    yield from long_modules(sources)
    yield from global_randomness(protocol)


if __name__ == "__main__":
    found = [line.removeprefix(f"{ROOT}/") for line in violations()]
    print(*found, sep="\n")
    sys.exit(f"{len(found)} violations" if found else 0)
