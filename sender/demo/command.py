"""The command ``diskcast demo``: run a whole cast on this machine and show its results."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocol.errors import ConfigurationError, ReceiversIncompleteError
from protocol.program.options import PIN_OPTION, WholeNumber
from protocol.shared.units import format_bytes, parse_size_bytes
from sender.demo.image import IMAGE_BYTES_MIN
from sender.demo.run import (
    AGENT_COUNT_MAX,
    AgentRun,
    DemoPlan,
    DemoReport,
    PrintStep,
    demo_directory,
    run_demo,
)

LOG_COLUMNS = 160
"""Width without a terminal, so that lines stay whole."""

_Result = TypeVar("_Result")

NEXT_STEPS = (
    ("check this machine", "diskcast doctor"),
    ("pack a disk that isn't in use", "diskcast pack /dev/sdX -o lab.dci"),
    ("cast it to a room", "diskcast send lab.dci --interface IF --wait-for 30"),
    (
        "receive it on every machine, from a live system",
        "diskcast-agent receive --target /dev/sdX --interface IF --join CODE",
    ),
)


@click.command()
@click.option("--size", metavar="SIZE", default="512MiB", show_default=True, help="Size of the source disk.")
@click.option(
    "--agents",
    metavar="N",
    type=WholeNumber(1, AGENT_COUNT_MAX),
    default=4,
    show_default=True,
    help="Number of agents, each a process of its own.",
)
@click.option(
    "--server",
    metavar="URL",
    help="Give image, room and agents to the daemon at this URL instead.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    show_default="that of a daemon without configuration",
    help="With --server: image folder of the daemon.",
)
@click.option(
    "--room", default="demo", show_default=True, metavar="ROOM", help="With --server: id of the room."
)
@PIN_OPTION
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --server: file with a token of the role operate.",
)
@click.option("--keep", is_flag=True, help="Keep the source disk, the image and the targets.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    show_default="$TMPDIR or /var/tmp",
    help="Parent of the temporary directory.",
)
@click.option(
    "--json", "json_lines", is_flag=True, help="Write JSON lines to stdout; the last one is the result."
)
def demo(
    size: str,
    agents: int,
    server: str | None,
    images: Path | None,
    room: str,
    pins: tuple[str, ...],
    token_file: Path | None,
    directory: Path | None,
    *,
    keep: bool,
    json_lines: bool,
) -> None:
    """Run a whole cast on this machine: make a disk, pack it, cast it to agents, compare every byte.

    Needs no root and no network: it uses the loopback interface and disturbs no running cast. The second agent loses
    datagrams; the last of three or more joins late.

    With --server, gives an image, a room and agents to a daemon (diskcast serve) on this machine instead, shows the
    command that starts a cast, and runs the agents until Ctrl-C.

    \b
    Examples:
      diskcast demo
      diskcast demo --size 2GiB --agents 8
      diskcast demo --server http://127.0.0.1:7400
    """  # noqa: D301  click needs the backspace
    image_bytes = parse_size_bytes(size)
    if image_bytes < IMAGE_BYTES_MIN:
        raise ConfigurationError(
            f"--size {size} is too small: choose at least {format_bytes(IMAGE_BYTES_MIN)}"
        )
    show_tables = sys.stderr.isatty() and not json_lines
    plan = DemoPlan(image_bytes, agents, directory, keep, show_tables)
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else LOG_COLUMNS)
    print_step = _step_printer(console, json_lines=json_lines)
    if server is not None:
        _serve_room(plan, server, images, room, pins, token_file, print_step)
        if json_lines:
            click.echo(json.dumps({"event": "result", "ok": True, "exit_code": 0}))
        return
    with demo_directory(plan) as workspace:
        report = asyncio.run(_run_until_terminated(run_demo(plan, workspace, print_step)))
        if not json_lines:
            _show(console, plan, report)
    _require_success(report)
    if json_lines:
        click.echo(json.dumps(_result(report)))


def _serve_room(
    plan: DemoPlan,
    server: str,
    images: Path | None,
    room: str,
    pins: tuple[str, ...],
    token_file: Path | None,
    print_step: PrintStep,
) -> None:
    """Run the agents of a daemon until Ctrl-C."""
    from sender.config.config_file import load_config
    from sender.console.options import connect
    from sender.demo.server import RoomPlan, run_room

    client, _ = connect(server, token_file, pins, json_lines=False)
    folder = images or load_config(None, {}).library.folders[0]
    with client, demo_directory(plan) as workspace, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            _run_until_terminated(run_room(RoomPlan(plan, client, folder, room, pins), workspace, print_step))
        )
    print_step("Stopped; the daemon keeps image and room")


def _step_printer(console: Console, *, json_lines: bool) -> PrintStep:
    if json_lines:
        return lambda text: click.echo(json.dumps({"event": "step", "text": text.strip()}))
    return lambda text: console.print(Text(text, style="" if text.startswith(" ") else "bold"))


async def _run_until_terminated(demo: Coroutine[Any, Any, _Result]) -> _Result:
    """Run the demo, and clean up after SIGTERM or SIGHUP as after Ctrl-C."""
    this_task = asyncio.current_task()
    assert this_task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, this_task.cancel)
    try:
        return await demo
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error


def _show(console: Console, plan: DemoPlan, report: DemoReport) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("agent", "role", "target"):
        table.add_column(column)
    for column in ("lost", "parity repairs", "NACK repairs"):
        table.add_column(column, justify="right")
    for agent in report.agents:
        table.add_row(*_row(agent))
    console.print()
    console.print(table)
    console.print()
    if report.ok:
        clones = f"{len(report.agents)} clone{'s' if len(report.agents) > 1 else ''}"
        console.print(f"[bold green]{clones}, every byte identical to the source disk.[/bold green]")
        console.print("\nNext steps:")
        for purpose, command in NEXT_STEPS:
            console.print(Text.assemble(f"  {purpose}:\n    ", (command, "bold")))
    if plan.keep:
        kept = f"\nKept in {shlex.quote(str(report.directory))}: disk.img, demo.dci and the agents' targets."
        console.print(Text(kept))


def _row(agent: AgentRun) -> tuple[str | Text, ...]:
    if not agent.ok:
        return agent.name, agent.role, Text(agent.fault, style="red")
    return (
        agent.name,
        agent.role,
        Text("identical", style="green"),
        f"{_lost_fraction(agent.result):.1%}",
        f"{_number(agent.result, 'blocks_repaired_by_parity'):.0f}",
        f"{_number(agent.result, 'blocks_repaired_by_nack'):.0f}",
    )


def _number(status: dict[str, object], name: str) -> float:
    value = status[name]
    assert isinstance(value, int | float), name
    return value


def _lost_fraction(status: dict[str, object]) -> float:
    expected_count = _number(status, "datagrams_expected")
    return 1 - _number(status, "datagrams_received") / expected_count if expected_count else 0.0


def _require_success(report: DemoReport) -> None:
    """Raise the error of a failed demo."""
    if report.ok:
        return
    faults = [f"{agent.name}: {agent.fault}" for agent in report.agents if not agent.ok]
    if report.sender_exit_code != 0:
        fault = f": {report.sender_fault}" if report.sender_fault else ""
        faults.insert(0, f"diskcast send failed with exit code {report.sender_exit_code}{fault}")
    raise ReceiversIncompleteError(
        f"the demo failed: {'; '.join(faults)}; run diskcast doctor --interface lo"
    )


def _result(report: DemoReport) -> dict[str, object]:
    return {
        "event": "result",
        "ok": True,
        "exit_code": 0,
        "raw_bytes": report.image.raw_bytes,
        "payload_bytes": report.payload_bytes,
        "filesystem": report.image.filesystem,
        "agents": [
            {
                "name": agent.name,
                "joins_late": agent.joins_late,
                "rehearses_loss": agent.rehearses_loss,
                "started_after_s": round(agent.started_after_s, 3),
                "target": str(agent.target),
                **{key: value for key, value in agent.result.items() if key not in ("event", "target")},
            }
            for agent in report.agents
        ],
    }
