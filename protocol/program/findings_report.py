"""Output of a doctor's findings: a table on a terminal, lines in a pipe, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from protocol.program.findings import Finding, Status, plain_lines, require_no_failure, result_json, summary

_STYLES: Final = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}


def report_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print all findings and a summary.

    Raises:
        DoctorFoundProblemsError: a check failed.
    """
    if as_json:
        for finding in findings:
            click.echo(json.dumps(finding.to_json()))
    elif sys.stdout.isatty():
        _print_table(findings)
    else:
        for line in (*plain_lines(findings), summary(findings)):
            click.echo(line)
    require_no_failure(findings)
    if as_json:
        click.echo(json.dumps(result_json(findings)))


def _print_table(findings: Sequence[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("check", overflow="fold")
    table.add_column("found", overflow="fold")
    for finding in findings:
        style = _STYLES[finding.status]
        fix = f"\n[bold]fix: {escape(finding.fix)}[/bold]" if finding.fix else ""
        status = f"[{style}]{finding.status.value}[/{style}]"
        table.add_row(status, escape(finding.check), escape(finding.detail) + fix)
    console = Console(highlight=False)
    console.print(table)
    console.print(summary(findings))
