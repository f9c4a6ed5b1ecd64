"""Start and exit of the benchmark programs: one signal ends a run, errors have one line."""

from __future__ import annotations

import signal
import sys

import click

from protocol.errors import EXIT_INTERRUPTED
from tests.support.network.lab import LabError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_command(command: click.Command) -> None:
    """Run ``command``, clean up after Ctrl-C and SIGTERM, and exit."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt_once)
    try:
        code = command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except LabError as error:
        sys.exit(f"error: {error}")
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code)


def _interrupt_once(_number: int, _frame: object) -> None:
    """End the run at the first signal; further ones don't interrupt the cleanup."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
