"""The documents: every link leads somewhere, and every command line in them is one that the programs understand."""

from __future__ import annotations

import functools
import ipaddress
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import receiver.cli
import sender.cli
from sender.config.sections import GROUP_COUNT
from sender.config.server_config import ServerConfig

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS: dict[str, click.Group] = {"diskcast": sender.cli.cli, "diskcast-agent": receiver.cli.cli}

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
_INLINE_PATH = re.compile(r"`((?:deploy|docs|protocol|receiver|sender|tests)/[^`\s]*)`")
_INLINE_COMMAND = re.compile(r"`((?:diskcast|diskcast-agent) [^`\n]+)`")
_WRAPPERS = {"docker", "exec", "podman", "runuser", "sudo", "systemd-run", "watch"}
"""What runs another program; its own options come first."""
_SEPARATORS = {"|", "||", "&&", ";", "&", ">", ">>", "2>", "<", "2>&1"}


def _documents() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    return sorted(path for name in listing.stdout.split("\0") if name and (path := ROOT / name).exists())


DOCUMENTS = _documents()
PRESENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
"""Pages about diskcast as it is now; the changelog also names files and commands of the past."""


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def _anchors(path: Path) -> set[str]:
    """Return a page's headings as the web pages of code forges name them."""
    anchors: set[str] = set()
    for heading in _HEADING.findall(_FENCED.sub("", path.read_text())):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = 0
        while (anchor := f"{slug}-{count}" if count else slug) in anchors:
            count += 1
        anchors.add(anchor)
    return anchors


def test_every_link_leads_somewhere() -> None:
    assert [problem for path in DOCUMENTS for problem in _broken_links(path)] == []


def _broken_links(path: Path) -> Iterator[str]:
    text = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", path.read_text()))
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        if not there.exists():
            yield f"{_name(path)}: {target}: no such file"
        elif not there.is_relative_to(ROOT):
            yield f"{_name(path)}: {target}: outside of the repository"
        elif anchor and there.suffix == ".md" and anchor not in _anchors(there):
            yield f"{_name(path)}: {target}: no such heading"


def test_every_page_is_in_the_contents() -> None:
    contents = ROOT / "docs" / "README.md"
    listed = _linked_pages(contents)
    listed |= {page for index in listed if index.name == "README.md" for page in _linked_pages(index)}
    pages = {path for path in DOCUMENTS if path.is_relative_to(contents.parent)} - {contents}
    assert not pages - listed


def _linked_pages(path: Path) -> set[Path]:
    return {(path.parent / target).resolve() for target in _LINK.findall(path.read_text())}


def test_every_picture_is_on_a_page() -> None:
    """One that nobody sees is made anew and checked in for nothing."""
    shown = {
        (path.parent / target).resolve() for path in DOCUMENTS for target in _LINK.findall(path.read_text())
    }
    pictures = {path for kind in ("png", "svg") for path in (ROOT / "docs").rglob(f"*.{kind}")}
    assert not pictures - shown


def test_every_file_in_the_text_exists() -> None:
    missing = [
        f"{_name(path)}: {name}: no such file"
        for path in PRESENT
        for name in _INLINE_PATH.findall(_FENCED.sub("", path.read_text()))
        if not (ROOT / name).exists()
    ]
    assert missing == []


def test_the_map_of_the_code_has_every_room() -> None:
    """Who looks for where something belongs finds every package, and every room of the tests."""
    modules = [
        path for top in ("protocol", "receiver", "sender", "tests") for path in (ROOT / top).rglob("*.py")
    ]
    mirrored = ("tests/unit/", "tests/support/")  # the packages of the programs again, and helpers
    rooms = {room for path in modules if not (room := _name(path.parent)).startswith(mirrored)} - {"tests"}
    page = (ROOT / "docs" / "explanation" / "code.md").read_text()
    assert not {room for room in rooms if f"`{room}/`" not in page}


def _shell_lines(text: str) -> Iterator[str]:
    """What a reader would type: lines after a prompt in console blocks, continued lines put together."""
    for kind, block in _FENCED.findall(text):
        if kind == "console":
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith(("$ ", "# ")):
                    yield line[2:]


def _commands(line: str) -> Iterator[list[str]]:
    """The calls of our programs in a line of shell: words from the program's name to the next separator."""
    lexer = shlex.shlex(re.sub(r"\s#\s.*", "", line), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    call: list[str] = []
    for word in (*lexer, ";"):
        if word not in _SEPARATORS:
            call.append(word)
            continue
        start = 0
        if call and call[0] in _WRAPPERS:
            start = next(
                (index for index in range(len(call) - 1) if _is_call(call[index], call[index + 1])), 0
            )
        if call and call[start].removeprefix("/opt/diskcast/bin/") in PROGRAMS:
            yield [call[start].removeprefix("/opt/diskcast/bin/"), *call[start + 1 :]]
        call = []


def _is_call(word: str, following: str) -> bool:
    program = PROGRAMS.get(word.removeprefix("/opt/diskcast/bin/"))
    return program is not None and (
        re.match(r"--\w", following) is not None or following in program.list_commands(click.Context(program))
    )


def _understand(words: list[str], *, complete: bool) -> None:
    """Resolve the command and parse its options; raises ``click.UsageError`` on what it doesn't have."""
    command: click.Command = PROGRAMS[words[0]]
    context = click.Context(command, info_name=words[0])
    rest = words[1:]
    while isinstance(command, click.Group):
        if not rest or rest[0].startswith("-"):
            command.make_parser(context).parse_args(list(rest))
            return
        found = command.get_command(context, rest[0])
        if found is None:
            if command.invoke_without_command:
                break
            raise click.UsageError(f"{' '.join(words)}: there is no command {rest[0]!r}")
        command, context, rest = (
            found,
            click.Context(found, info_name=rest[0], parent=context, **found.context_settings),
            rest[1:],
        )
    values, left, _ = command.make_parser(context).parse_args(list(rest))
    if not complete or "--help" in rest:
        return
    if left:
        raise click.UsageError(f"{' '.join(words)}: too many arguments: {left}")
    for parameter in command.params:
        given = values.get(parameter.name or "")
        if parameter.required and (given is None or "unset" in repr(given).lower()):
            raise click.UsageError(f"{' '.join(words)}: {parameter.get_error_hint(context)} is missing")


def test_every_command_line_is_understood() -> None:
    refused = []
    for path in DOCUMENTS:
        for line in _shell_lines(path.read_text()):
            try:
                for words in _commands(line):
                    _understand(words, complete=True)
            except click.UsageError as error:
                refused.append(f"{_name(path)}: {line}: {error.format_message()}")
    assert refused == []


def test_every_command_in_the_text_exists() -> None:
    texts = [text for path in PRESENT for text in _INLINE_COMMAND.findall(_FENCED.sub("", path.read_text()))]
    for text in texts:
        words = [word for word in re.split(r"[\s|]+", text.replace("…", "").replace("...", "")) if word]
        words = [word.strip("[]") for word in words]
        if len(words) > 1 and re.fullmatch(r"[a-z-]+", words[1]):
            given = [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
            command = _command(words)
            known = {
                name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
            }
            assert set(given) <= known | {"--help"}, text


def _command(words: list[str]) -> click.Command:
    command: click.Command = PROGRAMS[words[0]]
    for word in words[1:]:
        if not isinstance(command, click.Group) or not re.fullmatch(r"[a-z-]+", word) or word.startswith("-"):
            break
        found = command.get_command(click.Context(command), word)
        if found is None:
            assert command.invoke_without_command, f"{' '.join(words)}: there is no command {word!r}"
            break
        command = found
    return command


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("diskcast casts create IMAGE --room lab", False),
        ("sudo diskcast-agent receive --target auto --interface eth0 # on every machine", False),
        ("diskcast casts create IMAGE --rom lab", True),
        ("diskcast kasts", True),
        ("diskcast pack /dev/sda", True),
        ("jq . x | diskcast inspect a.dci b.dci", True),
        ("cat /srv/diskcast && true", False),
        ("journalctl -u diskcast -p warning", False),
        ("sudo -u postgres createdb --owner diskcast diskcast", False),
        ("runuser -u diskcast -- /opt/diskcast/bin/diskcast doctor --sever", True),
    ],
)
def test_the_check_itself_finds_mistakes(line: str, refused: bool) -> None:
    def understand_all() -> None:
        for words in _commands(line):
            _understand(words, complete=True)

    if refused:
        with pytest.raises(click.UsageError):
            understand_all()
    else:
        understand_all()


def test_the_firewall_page_opens_what_a_daemon_uses() -> None:
    """Whoever types the page's rules in gets every cast, not one in sixteen."""
    page = (ROOT / "docs" / "how-to" / "firewalls.md").read_text()
    network = ServerConfig().network
    first = ipaddress.ip_address(network.group_base)
    ranges = set(re.findall(r"ip daddr (\S+)", page))
    assert ranges == {f"{first}-{first + GROUP_COUNT - 1}"}
    assert set(re.findall(r"udp dport (\S+)", page)) == {str(network.data_port), network.control_ports}
