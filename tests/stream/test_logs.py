"""Log lines: form, session, and a reader that stops reading."""

import asyncio
import io
import json
import logging
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import InvalidInput
from stream.logs import (
    FAULTS_AT_ONCE,
    Faults,
    JsonFormatter,
    PatientHandler,
    TextFormatter,
    about_session,
    configure,
    current_session,
    session_thread,
)


def record(message="hello %s", *args, **extra):
    made = logging.LogRecord("stream.test", logging.WARNING, __file__, 1, message, args or ("you",), None)
    made.__dict__.update(extra)
    return made


@pytest.fixture
def logger():
    """A logger of its own, so that the test run's handlers stay."""
    made = logging.getLogger("test_logs")
    made.propagate = False
    made.setLevel(logging.INFO)
    yield made
    made.handlers.clear()


def test_text_lines_name_the_session_once():
    formatter = TextFormatter()
    assert "[" not in formatter.format(record())
    with about_session("abc"):
        assert formatter.format(record()).endswith("WARNING [abc] hello you")
        assert formatter.format(record("session %s ended", "abc")).endswith("WARNING session abc ended")
    assert formatter.format(record(session="own")).endswith("[own] hello you")


def test_text_lines_carry_tracebacks():
    try:
        raise ValueError("no")
    except ValueError as error:
        made = record(exc_info=(type(error), error, error.__traceback__))
    assert "ValueError: no" in TextFormatter().format(made)
    assert "ValueError: no" in json.loads(JsonFormatter().format(made))["exception"]


@given(st.text(), st.text(min_size=1))
def test_json_lines_are_one_object_each(message, session):
    with about_session(session):
        line = JsonFormatter().format(record("%s", message))
    assert line.isascii()
    assert len(line.splitlines()) == 1
    parsed = json.loads(line)
    assert parsed["message"] == message
    assert parsed["session"] == session
    assert parsed["level"] == "warning"
    assert parsed["time"].endswith("Z")


async def test_tasks_and_threads_log_for_the_session_that_began_them():
    seen = {}

    async def child():
        seen["task"] = current_session()
        seen["to_thread"] = await asyncio.to_thread(current_session)

    async def session(name):
        with about_session(name):
            thread = session_thread("decode", lambda: seen.update(thread=current_session()))
            thread.start()
            await asyncio.create_task(child())
            await asyncio.to_thread(thread.join)
            return thread.name

    assert await asyncio.create_task(session("one")) == "decode one"
    assert seen == {"task": "one", "to_thread": "one", "thread": "one"}
    assert current_session() is None


def test_a_reader_that_stops_holds_nothing_up_and_is_told_of_the_loss(logger):
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, True)
        stream = os.fdopen(writer, "w", closefd=False)
        handler = PatientHandler(stream, max_waiting=50)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        begun = time.monotonic()
        for number in range(200):
            logger.info("%d %s", number, "x" * 4096)
        assert time.monotonic() - begun < 5
        assert handler._dropped > 0
        received = b""
        while b"left out" not in received:
            received += os.read(reader, 65536)
        handler.flush()
    finally:
        os.close(writer)
        os.close(reader)
    assert received.startswith(b"0 ")


def test_flush_waits_until_everything_is_written(logger):
    stream = io.StringIO()
    handler = PatientHandler(stream)
    logger.addHandler(handler)
    for number in range(100):
        logger.info("%d", number)
    handler.flush()
    assert stream.getvalue().split() == [str(number) for number in range(100)]


def test_a_closed_stream_is_no_fault(logger):
    stream = io.StringIO()
    handler = PatientHandler(stream)
    logger.addHandler(handler)
    stream.close()
    logger.info("into the void")
    handler.flush()
    assert "log" in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("level", "form", "field"), [("loud", "text", "log_level"), ("info", "xml", "log_format")]
)
def test_unknown_levels_and_formats_are_refused_with_the_known_ones(level, form, field):
    with pytest.raises(InvalidInput, match="must be one of") as raised:
        configure(level, form)
    assert raised.value.field == field


def test_a_fault_is_told_once_and_many_that_differ_are_no_flood():
    faults = Faults()
    assert [faults.tells("the same", at / 30) for at in range(300)].count(True) == 1
    told = [faults.tells(f"never the same {at}", 10 + at / 30) for at in range(300)]
    assert FAULTS_AT_ONCE <= told.count(True) <= FAULTS_AT_ONCE + 3
    assert faults.tells("another, later", 60)
