"""Logging of a worker: lines for people or JSON for programs, each with the session that it concerns.

The session is a context variable: tasks and `asyncio.to_thread` inherit it by themselves, threads that are
started by hand are made by `session_thread`.
"""

from __future__ import annotations

import contextvars
import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, get_args

from stream.errors import InvalidInput

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

MAIN_THREAD = "MainThread"
MAX_WAITING = 5000
"""Lines that wait for whoever reads the log; more are counted and left out."""
FLUSH_TIMEOUT = 1.0
FAULTS_AT_ONCE, FAULTS_APART = 5, 5.0
"""How many different faults are told at once, and the seconds after which one more is."""

_session: contextvars.ContextVar[str | None] = contextvars.ContextVar("session", default=None)


def current_session() -> str | None:
    """The session that the running task or thread works for."""
    return _session.get()


@contextmanager
def about_session(session_id: str | None) -> Iterator[None]:
    """Everything logged in the block, and in tasks and session threads begun there, concerns that session."""
    token = _session.set(session_id)
    try:
        yield
    finally:
        _session.reset(token)


def session_thread(name: str, target: Callable[[], object]) -> threading.Thread:
    """A daemon thread, not yet started, that logs for the session of its creator and is named after both."""
    context = contextvars.copy_context()
    session = _session.get()
    full_name = f"{name} {session}" if session else name
    return threading.Thread(target=context.run, args=(target,), name=full_name, daemon=True)


class Faults:
    """Which of many faults are told: each that is another than the last, but no flood of them (a message may
    have a figure that is never the same)."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._left = float(FAULTS_AT_ONCE)
        self._at = 0.0

    def tells(self, text: str, now: float) -> bool:
        """Whether the fault is to be told at that moment (s); what is not may come again later."""
        if text == self._last:
            return False
        self._left = min(self._left + (now - self._at) / FAULTS_APART, FAULTS_AT_ONCE)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        self._last = text
        return True


class TextFormatter(logging.Formatter):
    """``12:00:01.123 WARNING [session] message``, without the session where the message names it itself."""

    def format(self, record: logging.LogRecord) -> str:
        session, message = session_of(record), record.getMessage()
        moment = f"{self.formatTime(record, '%H:%M:%S')}.{int(record.msecs):03d}"
        mark = f"[{session}] " if session and session not in message else ""
        lines = [f"{moment} {record.levelname:<7} {mark}{message}", _trace(self, record), record.stack_info]
        return "\n".join(line for line in lines if line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, and where there is one
    ``session``, ``thread``, ``exception`` and ``stack``."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "session": session_of(record),
            "thread": record.threadName if record.threadName != MAIN_THREAD else None,
            "exception": _trace(self, record),
            "stack": record.stack_info,
        }
        return json.dumps({key: value for key, value in line.items() if value is not None})


def session_of(record: logging.LogRecord) -> str | None:
    """The session that the line concerns: the record's own ``session``, else that of the running context."""
    own = getattr(record, "session", None)
    return own if isinstance(own, str) else _session.get()


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    return formatter.formatException(record.exc_info) if record.exc_info else record.exc_text


class PatientHandler(logging.Handler):
    """Writes in a thread of its own, so that a log that nobody reads (a paused terminal, a full pipe) never
    holds up a frame. Lines that do not fit are counted, and the count is written when there is room again."""

    def __init__(self, stream: TextIO, max_waiting: int = MAX_WAITING) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue(max_waiting)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Wait for what was logged to be written, for a moment."""
        end = time.monotonic() + FLUSH_TIMEOUT
        while self._lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            dropped, self._dropped = self._dropped, 0
            note = f"({dropped} lines of the log were left out: nobody read them)\n" if dropped else ""
            try:
                self._stream.write(f"{line}\n{note}")
                self._stream.flush()
            except (OSError, ValueError):
                # The reader has gone or the stream is closed; there is nowhere left to say so.
                pass
            finally:
                self._lines.task_done()


def configure(level: str, log_format: str = "text", stream: TextIO | None = None) -> None:
    """Send the log of the whole process to ``stream`` (standard error by default) and nowhere else.

    Raises `InvalidInput` for a level or format that does not exist.
    """
    levels, formats = get_args(LogLevel), get_args(LogFormat)
    if level not in levels:
        raise InvalidInput(f"log level must be one of {', '.join(levels)}, not {level!r}", field="log_level")
    if log_format not in formats:
        known = ", ".join(formats)
        raise InvalidInput(f"log format must be one of {known}, not {log_format!r}", field="log_format")
    handler = PatientHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # aioice tells every step of every ICE check.
    logging.getLogger("aioice").setLevel("DEBUG" if level == "debug" else "WARNING")
