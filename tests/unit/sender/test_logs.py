from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from sender.config.sections import LogSection
from sender.logs import (
    LIBRARY_LEVELS,
    TEXT_CHARS_MAX,
    DaemonHandler,
    configure_logging,
    redact,
)


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    levels = {name: logging.getLogger(name).level for name in LIBRARY_LEVELS}
    yield
    for handler in [handler for handler in root.handlers if isinstance(handler, DaemonHandler)]:
        root.removeHandler(handler)
    root.setLevel(level)
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def _configured(format_: str = "json", level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(
        LogSection.model_validate({"format": format_, "level": level}), daemon="rack1", stream=stream
    )
    return stream


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_object_that_names_time_level_event_daemon_cast_and_request() -> None:
    stream = _configured()
    with bound_contextvars(cast="1a2b3c4d", request_id="r-1", actor="alice"):
        structlog.get_logger().info("cast_started", machines_count=30, text="two\nlines")
    structlog.get_logger().info("idle")
    started, idle = _lines(stream)
    assert list(started)[:6] == ["time", "level", "event", "daemon", "cast", "request_id"]
    assert started["time"].endswith("Z")
    assert (
        started | {"event": "cast_started", "level": "info", "cast": "1a2b3c4d", "actor": "alice"} == started
    )
    assert started["machines_count"] == 30
    assert "cast" not in idle


def test_libraries_log_in_the_same_format_with_the_cast() -> None:
    stream = _configured()
    with bound_contextvars(cast="1a2b3c4d"):
        logging.getLogger("botocore.endpoint").warning("slow %s", "client")
    (line,) = _lines(stream)
    assert (line["event"], line["text"], line["cast"]) == ("library_message", "slow client", "1a2b3c4d")


@pytest.mark.parametrize("level", ["debug", "info"])
def test_libraries_do_not_flood_the_log_or_leak_secrets_even_at_debug(level: str) -> None:
    stream = _configured(level=level)
    for name in ("botocore.auth", "sqlalchemy.engine.Engine", "uvicorn.error", "httpx", "asyncio"):
        logging.getLogger(name).info("chatter")
    logging.getLogger("uvicorn.access").warning("GET /")
    assert stream.getvalue() == ""


def test_the_level_is_obeyed() -> None:
    stream = _configured(level="warning")
    structlog.get_logger().info("unimportant")
    structlog.get_logger().warning("important")
    assert [line["event"] for line in _lines(stream)] == ["important"]


def test_configuring_twice_does_not_log_twice() -> None:
    _configured()
    stream = _configured()
    structlog.get_logger().info("once")
    assert len(_lines(stream)) == 1


def test_a_traceback_stays_in_its_line_and_shows_no_local_variables() -> None:
    secret = "correct horse"  # noqa: F841  it's what must not be shown
    for format_ in ("json", "console"):
        stream = _configured(format_)
        try:
            raise ValueError("postgresql://u:hunter2@db/d")
        except ValueError:
            structlog.get_logger().exception("failed")
        assert "Traceback" in stream.getvalue()
        assert "hunter2" not in stream.getvalue()
        assert "correct" not in stream.getvalue()
        if format_ == "json":
            assert len(_lines(stream)) == 1


@pytest.mark.parametrize(
    "value",
    [
        {"token": "s3cret"},
        {"a": {"b": [{"Authorization": "s3cret"}]}},
        {"session_token": "s3cret"},
        {"database_password": ["s3cret"]},
        {"url": "s3://user:s3cret@bucket/x"},
        {"url": "https://h/x.dci?a=1&X-Amz-Signature=s3cret&b=2"},
        {"text": "Authorization: Bearer s3cret00000"},
        {"text": "used dct_operate_s3cret0000000000000000000000000000000000000"},
        {"aws_secret_access_key": "s3cret"},
        {"text": "of a machine: dcm_s3cret0000000000000000000000000000"},
        {"text": "of a session: dcs_s3cret0000000000000000000000000000"},
        {"text": "of a capture: dcc_s3cret0000000000000000000000000000"},
    ],
)
def test_secrets_are_never_written(value: dict[str, object]) -> None:
    stream = _configured()
    structlog.get_logger().info("event", **value)
    assert "s3cret" not in stream.getvalue()
    assert "***" in stream.getvalue()


def test_values_that_only_sound_secret_are_written() -> None:
    assert redact({"token_id": "7", "require_tokens": True, "tokens": 3, "url": "http://h:80/a@b"}) == {
        "token_id": "7",
        "require_tokens": True,
        "tokens": 3,
        "url": "http://h:80/a@b",
    }


def test_a_line_stays_short_enough_for_the_journal() -> None:
    stream = _configured()
    structlog.get_logger().info("event", text="x" * 100_000)
    assert len(stream.getvalue()) < TEXT_CHARS_MAX + 500


def test_a_machine_name_cannot_move_the_cursor_of_a_terminal() -> None:
    stream = _configured("console")
    structlog.get_logger().info("joined", machine="pc\x1b[2J\x9b")
    assert "\x1b[2J" not in stream.getvalue()
    assert "\x9b" not in stream.getvalue()


def test_automatic_format_is_for_people_only_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, is_json in ((io.StringIO(), True), (Terminal(), False)):
        configure_logging(LogSection(), stream=stream)
        structlog.get_logger().info("event")
        assert stream.getvalue().startswith("{") == is_json


def test_the_journal_gets_the_priority_of_a_line() -> None:
    read, write = os.pipe()
    with os.fdopen(read) as out, os.fdopen(write, "w") as stream:
        status = os.fstat(stream.fileno())
        environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        configure_logging(LogSection(), stream=stream, environment=environment)
        structlog.get_logger().warning("event")
        stream.flush()
        line = out.readline()
    assert line.startswith('<4>{"time"')


def test_warnings_of_python_are_logged_too() -> None:
    stream = _configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)  # within catch_warnings, which has its own showwarning
        warnings.warn("old way", UserWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    assert "old way" in _lines(stream)[0]["text"]
