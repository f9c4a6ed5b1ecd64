"""The daemon's log: one JSON object a line for the journal, lines for people on a terminal, no secrets in either.

Modules call ``structlog.get_logger()`` and log events: a short constant name in the past tense (``cast_started``) with
keywords. Lines of a cast also have ``cast``, those of an API call ``request_id``; they are bound by structlog's context
variables, which tasks inherit. Only the daemon uses this log: ``diskcast send`` prints its own lines.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from sender.config.sections import LogSection

TEXT_CHARS_MAX = 4_000
"""journald cuts lines at 48 KiB (LineMax=), and a cut line isn't JSON; a longer text is an accident or an attack."""
TRACEBACK_CHARS_MAX = 16_000
"""A longer traceback keeps its end, where the error is."""
NESTING_MAX = 4

HIDDEN = "***"

LIBRARY_LEVELS: Mapping[str, int] = {
    "aiobotocore": logging.WARNING,
    "aiohttp": logging.WARNING,
    "alembic": logging.WARNING,
    "asyncio": logging.WARNING,
    "botocore": logging.WARNING,
    "fsspec": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "s3fs": logging.WARNING,
    "sqlalchemy": logging.WARNING,
    "urllib3": logging.WARNING,
    "uvicorn": logging.WARNING,
    "uvicorn.access": logging.ERROR,
}
"""Lowest level of libraries' messages, at every log level of ours: at lower ones botocore logs the headers that sign a
request, SQLAlchemy every value, and uvicorn a line for each of 500 agents' polls."""

_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""syslog priorities, which journald reads from a ``<N>`` before the line: ``journalctl -p warning`` works."""
_OUR_PACKAGES = ("protocol", "sender")
_FIRST_KEYS = ("time", "level", "event", "daemon", "cast", "request_id")

_SECRET_WORDS = {
    "authorization",
    "cookie",
    "credential",
    "credentials",
    "passwd",
    "password",
    "passphrase",
    "secret",
}
_SECRET_LAST_WORDS = {"token", "tokens"}
_WORDS = re.compile(r"[^a-z0-9]+")
_SECRETS = (
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/@]+@", re.IGNORECASE), rf"\1:{HIDDEN}@"),
    (re.compile(r"\b(dct_[a-z]{1,16}_|dc[a-z]_)[A-Za-z0-9_-]{20,}"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"([?&](?:[a-z-]*(?:signature|token|credential|secret|password|sig))=)[^&\s\"']+", re.IGNORECASE),
     rf"\1{HIDDEN}"),
)  # fmt: skip
"""Passwords in URLs, diskcast's tokens and secrets, values of Authorization headers, and signatures in URLs."""
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class DaemonHandler(logging.StreamHandler[TextIO]):
    """The handler that :func:`configure_logging` installs; calling it again replaces it."""


def configure_logging(
    log: LogSection,
    *,
    daemon: str = "",
    stream: TextIO | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Send all log messages of this process, of diskcast and its libraries, to one place in one format.

    uvicorn must be started with ``log_config=None``, or it logs elsewhere.

    Args:
        log: format and level.
        daemon: this daemon's name, in every line.
        stream: gets the lines; standard error by default.
        environment: in it, systemd marks the journal's stream.
    """
    out = sys.stderr if stream is None else stream
    as_json = log.format == "json" or (log.format == "auto" and not out.isatty())
    level = logging.getLevelNamesMapping()[log.level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = DaemonHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _named_event],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                _Finish(daemon),
                *(_json_renderers(_is_journal(out, environment)) if as_json else _console_renderers(out)),
            ],
        )
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, DaemonHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name, least in LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(max(least, level))
    logging.captureWarnings(capture=True)


# -- processors ------------------------------------------------------------------------------------------------


def _named_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Rename a library's message, which isn't an event name, to ``library_message`` with a ``text``."""
    if str(event.get("logger", "")).partition(".")[0] in _OUR_PACKAGES:
        return event
    return {**event, "text": event["event"], "event": "library_message"}


class _Finish:
    """The last processor: it adds the daemon's name, removes secrets, shortens texts and orders the keys."""

    def __init__(self, daemon: str) -> None:
        self._daemon = daemon

    def __call__(self, _logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> EventDict:
        if self._daemon:
            event.setdefault("daemon", self._daemon)
        clean = {key: redact(value, key) for key, value in event.items()}
        first = {key: clean.pop(key) for key in _FIRST_KEYS if key in clean}
        return {**first, **clean}


def redact(value: object, key: str = "", *, nesting: int = 0) -> Any:
    """Return ``value`` without secrets, at any depth.

    Args:
        value: value of a log line's field.
        key: the field's name; it may mark the whole value as secret.
        nesting: depth of the value.
    """
    if isinstance(value, bool | int | float) or value is None:
        return value  # require_tokens=True and the like
    if _is_secret(key):
        return HIDDEN
    if isinstance(value, Mapping) and nesting < NESTING_MAX:
        return {str(name): redact(item, str(name), nesting=nesting + 1) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and nesting < NESTING_MAX:
        return [redact(item, key, nesting=nesting + 1) for item in value]
    text = str(value)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    if key in ("exception", "stack"):
        return text if len(text) <= TRACEBACK_CHARS_MAX else "…" + text[-TRACEBACK_CHARS_MAX:]
    return text if len(text) <= TEXT_CHARS_MAX else text[:TEXT_CHARS_MAX] + "…"


def _is_secret(key: str) -> bool:
    words = [word for word in _WORDS.split(key.lower()) if word]
    return bool(words) and (not _SECRET_WORDS.isdisjoint(words) or words[-1] in _SECRET_LAST_WORDS)


def _is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return whether ``stream`` is the journal: ``$JOURNAL_STREAM`` has its device and inode, systemd.exec(5)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # a buffer in memory
        return False
    return environment.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"


def _json_renderers(for_journal: bool) -> list[Processor]:
    def render(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
        line = json.dumps(event, default=str)
        return f"<{_PRIORITIES.get(str(event.get('level')), 6)}>{line}" if for_journal else line

    return [render]


def _console_renderers(stream: TextIO) -> list[Processor]:
    def plain(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Replace control characters: a machine's name must not move the operator's cursor."""
        return {key: _visible(value) for key, value in event.items()}

    def without_logger(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.pop("logger", None)
        event.pop("daemon", None)
        return event

    renderer = structlog.dev.ConsoleRenderer(
        colors=stream.isatty() and "NO_COLOR" not in os.environ,
        timestamp_key="time",
        exception_formatter=structlog.dev.plain_traceback,  # others show local variables, secrets among them
    )
    return [without_logger, plain, renderer]


def _visible(value: object) -> object:
    if isinstance(value, str):
        return _CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", value)
    return value
