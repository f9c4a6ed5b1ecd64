"""The reference pages of the command line: one page per command, from the programs' own help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import click

import receiver.cli
import sender.cli
from protocol.program.command_line import Implementation

PROGRAMS: Final[tuple[tuple[str, Mapping[str, Implementation], str], ...]] = (
    ("diskcast", sender.cli.COMMANDS, "The operator's program: packs images, casts them, runs the daemon."),
    ("diskcast-agent", receiver.cli.COMMANDS, "The program on the machine that is imaged."),
)
SHARED_OPTIONS: Final = ("server", "token_file", "json_lines")
"""Options of every command that is a client of the daemon; listed once, in the index."""
_SHARED_LINK: Final = (
    "the [options of commands that use the daemon](README.md#options-of-commands-that-use-the-daemon)"
)

_INDEX = """# Command line

`--help` (or `-h`) shows the help of a command: its purpose, its options with their defaults, and examples. The pages
below have the same content.

{programs}
## Options that all commands share

`--help` or `-h` shows the help of a command; `--version` after the program's name shows the version. With `--json` a
command writes one JSON object per line to stdout; the last one has `"event": "result"`, `ok` and `exit_code`. Progress
and messages go to stderr.

## Exit codes

0 means success, 2 a wrong command line, 130 an interruption. Every error class has a fixed code:
[exit codes](../exit-codes.md).

## Sizes, rates and times

| value | examples |
|---|---|
| size in bytes | `256KiB`, `4MiB`, `64GB`, `65536` |
| rate in bits per second | `800M`, `2.5G` |
| duration | `90s`, `15m`, `2h`, `7d`; without a unit: seconds |
| point in time | `22:00`, `2026-11-21T22:00`, `2026-11-21T22:00+01:00`; without a zone: local time |

## Options of commands that use the daemon

These commands are clients of the [daemon's API](../api.md): {clients}. They take these options:

{shared}
A token can't be given on the command line, where every user of the machine could read it. Without `--token-file`, the
programs read it from the environment variable `DISKCAST_TOKEN`, or from the file that `DISKCAST_TOKEN_FILE` names. A
daemon that listens only on the loopback address needs no token.
"""


def render_pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    pages = {"README.md": _index()}
    for program, commands, _ in PROGRAMS:
        for name, implementation in commands.items():
            pages[f"{program}-{name}.md"] = _page(implementation.load(), f"{program} {name}")
    return pages


def _index() -> str:
    parts = []
    clients: dict[str, click.Command] = {}
    for program, commands, purpose in PROGRAMS:
        rows = []
        for name, implementation in commands.items():
            command = implementation.load()
            rows.append(
                [
                    f"[`{program} {name}`]({program}-{name}.md)",
                    implementation.summary,
                    ", ".join(_children(command)),
                ]
            )
            client = next((found for _, found in _walk(command, "") if _is_client(found)), None)
            if client is not None:
                clients[f"`{name}`"] = client
        parts.append(f"## {program}\n\n{purpose}\n\n{_table(['command', 'purpose', 'subcommands'], rows)}")
    *most, last = clients
    client = clients[last]
    shared = [option for option in _options(client) if option.name in SHARED_OPTIONS]
    return _INDEX.format(
        programs="\n".join(parts),
        clients=f"{', '.join(most)} and {last}",
        shared=_option_table(shared, click.Context(client)),
    )


def _children(command: click.Command) -> Iterator[str]:
    if isinstance(command, click.Group):
        yield from (f"`{name}`" for name in command.list_commands(click.Context(command)))


def _page(command: click.Command, path: str) -> str:
    return "\n".join(
        _section(found, name, "#" if name == path else "##") for name, found in _walk(command, path)
    )


def _walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _walk(child, f"{path} {name}")


def _section(command: click.Command, path: str, heading: str) -> str:
    """Return a command's section of its page; the first section of a page links to the shared options."""
    context = click.Context(command, info_name=path)
    text, examples = _description(command)
    parts = [f"{heading} {path}\n", *text]
    if not isinstance(command, click.Group) or command.invoke_without_command:
        parts.append(f"```text\n{' '.join([path, *command.collect_usage_pieces(context)])}\n```\n")
        options = [
            option
            for option in _options(command)
            if not (_is_client(command) and option.name in SHARED_OPTIONS)
        ]
        if options:
            parts.append(_option_table(options, context))
    if isinstance(command, click.Group):
        rows = [
            [f"[`{name}`](#{path.replace(' ', '-')}-{name})", child.get_short_help_str(limit=200)]
            for name in command.list_commands(context)
            if (child := command.get_command(context, name)) is not None
        ]
        parts.append(_table(["subcommand", "purpose"], rows))
    if heading == "#" and any(_is_client(found) for _, found in _walk(command, path)):
        subject = "It also takes"
        if isinstance(command, click.Group):
            command_count = (
                len(command.list_commands(click.Context(command))) + command.invoke_without_command
            )
            subject = "Both also take" if command_count == 2 else "All of them also take"
        parts.append(f"{subject} {_SHARED_LINK}.\n")
    return "\n".join([*parts, *examples])


def _description(command: click.Command) -> tuple[list[str], list[str]]:
    """Return a command's help as Markdown paragraphs, and its examples as blocks of code."""
    text, examples = [], []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        title, *lines = paragraph.removeprefix("\b\n").splitlines()
        if not paragraph.startswith("\b\n"):
            text.append(_marked(" ".join(paragraph.split())) + "\n")
        else:
            lines = inspect.cleandoc("\n" + "\n".join(lines)).splitlines()
            is_shell = any(line.startswith(("diskcast", "sudo ")) for line in lines)
            shown = [f"$ {line}" if is_shell and not line.startswith(" ") else line for line in lines]
            block = f"{title}\n\n```{'console' if is_shell else 'text'}\n" + "\n".join(shown) + "\n```\n"
            (examples if title.startswith("Example") else text).append(block)
    return text, examples


def _marked(text: str) -> str:
    """Return ``text`` with the names of options as code."""
    parts = re.split(r"(`[^`]*`)", text.replace("<", "&lt;"))
    return "".join(
        part if part.startswith("`") else re.sub(r"(?<![\w-])(--?[a-z][a-z-]*)", r"`\1`", part)
        for part in parts
    )


def _options(command: click.Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option) and not option.hidden]


def _is_client(command: click.Command) -> bool:
    names = {option.name for option in _options(command) if option.name != "server" or option.envvar}
    return {*SHARED_OPTIONS} <= names


def _option_table(options: Sequence[click.Option], context: click.Context) -> str:
    rows = []
    for option in options:
        record = option.get_help_record(context)
        assert record is not None
        extra = option.get_help_extra(context)
        default = "required" if extra.get("required") else _default(extra.get("default", ""))
        limits = [_range(extra["range"])] if "range" in extra else []
        environment = [f"Environment: `{name}`." for name in extra.get("envvars", ())]
        meaning = " ".join([_marked(option.help or ""), *limits, *environment])
        rows.append([f"`{record[0]}`", meaning, default])
    return _table(["option", "meaning", "default"], rows)


def _default(text: str) -> str:
    """Return a value as code; keep click's ``(text)`` as text."""
    return text.strip("()") if not text or text.startswith("(") else f"`{text}`"


def _range(text: str) -> str:
    """Return click's ``1<=x<=10`` or ``x>=1`` as a sentence."""
    low, both, high = text.partition("<=x<=")
    return f"From {low} to {high}." if both else f"At least {text.removeprefix('x>=')}."


def _table(header: list[str], rows: list[list[str]]) -> str:
    kept = [index for index in range(len(header)) if any(row[index] for row in rows)]
    lines = ["| " + " | ".join(header[index] for index in kept) + " |", "|" + "---|" * len(kept)]
    lines += ["| " + " | ".join(row[index].replace("|", "\\|") for index in kept) + " |" for row in rows]
    return "\n".join(lines) + "\n"
