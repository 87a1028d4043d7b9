"""The thread that writes a recording, and its limits."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stream.clock import TICKS
from stream.errors import HeadraceError, SinkError
from stream.logs import session_thread
from stream.recording.container import RecordingFile, container_of, suffix_of
from stream.recording.takes import Begin, MediaUnit, Takes

log = logging.getLogger(__name__)

MAX_BYTES = 32 << 20
MAX_UNITS = 2_000
"""What waits for a slow disk; more, and everything up to the next key picture is left out."""
SPACE_EVERY = 1.0
"""Seconds between two looks at the space that is left."""
MAX_PARTS = 1_000

Phase = Literal["waiting", "recording", "ended", "failed"]


@dataclass(frozen=True, slots=True)
class RecordingLimits:
    """``duration``: seconds after which a recording ends by itself; ``reserve``: bytes of the disk that are
    left alone."""

    duration: float = 4 * 3600.0
    reserve: int = 1 << 30


class RecordingWriter:
    """Writes units to one file after the other: ``stem``.mp4, ``stem``-2.mp4 and so on, without
    the names that exist.

    `put` and `finish` belong to the loop and never wait; ``done`` is set when the thread has ended, and
    ``begun`` when the first file is there, or never will be.
    """

    def __init__(self, folder: Path, stem: str, limits: RecordingLimits, takes: Takes) -> None:
        self.stem = stem
        self._folder, self._limits = folder, limits
        self._takes = takes
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._units: deque[MediaUnit] = deque()
        self._waiting_bytes = 0
        self._skipping = False
        self._finishing = False
        self._file: RecordingFile | None = None
        self._recorded = 0
        self._parts = 0
        self._space_checked = 0.0
        self.files: list[dict[str, Any]] = []
        """What was written: name, container, tracks, bytes, seconds."""
        self.phase: Phase = "waiting"
        self.reason: str | None = None
        """Why it ended, unless it was asked to."""
        self.dropped = 0
        """Units left out because the disk was too slow."""
        self.begun = asyncio.Event()
        self.done = asyncio.Event()
        self._thread = session_thread("record", self._run)

    def start(self) -> None:
        self._thread.start()

    @property
    def wants_key(self) -> bool:
        """Whether a key picture would help."""
        return (self._takes.wants_key or self._skipping) and self.phase in ("waiting", "recording")

    @property
    def begins_in_vain(self) -> bool:
        """Whether it is over already for a reason of its own: it failed, or had no room for a first file."""
        return self.phase == "failed" or (self.reason is not None and not self.files)

    def expect(self, *, video: bool, audio: bool) -> None:
        """Which kinds of units will come."""
        with self._changed:
            self._takes.expects_video, self._takes.expects_audio = video, audio
            self._takes.wants_key = self._takes.wants_key and video

    def put(self, unit: MediaUnit) -> None:
        with self._changed:
            if self._finishing or self.phase in ("ended", "failed"):
                return
            if self._skips(unit):
                self.dropped += 1
                return
            self._units.append(unit)
            self._waiting_bytes += len(unit.data)
            self._changed.notify()

    def _skips(self, unit: MediaUnit) -> bool:
        """Whether the disk is too slow for the unit; then all is left out up to a key picture."""
        full = self._waiting_bytes + len(unit.data) > MAX_BYTES or len(self._units) >= MAX_UNITS
        if full:
            self._skipping = True
        elif self._skipping and len(self._units) < MAX_UNITS // 2:
            begins = unit.kind == "audio" if self._takes.expects_video is False else unit.kind == "video"
            self._skipping = not (begins and unit.key)
        return self._skipping

    def finish(self) -> None:
        """Write what is held and make whole files of it; `done` tells when."""
        with self._changed:
            self._finishing = True
            self._changed.notify()

    # -- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (unit := self._take()) is not None:
                self._steps(self._takes.put(unit))
                self._check_limits()
            self._steps(self._takes.end())
            self.phase = "ended"
        except HeadraceError as error:
            self._fail(error.message)
        except _LimitReached as limit:
            self.reason, self.phase = str(limit), "ended"
            log.warning("a recording ends: %s", limit)
        except Exception as error:  # the edge of a thread: nobody else would hear of it
            log.exception("a recording broke")
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._close_file()
            with self._changed:
                self._units.clear()
            self._call(self._ended)

    def _take(self) -> MediaUnit | None:
        """The next unit; None when there will be no more."""
        with self._changed:
            while not self._units:
                if self._finishing:
                    return None
                self._changed.wait()
            unit = self._units.popleft()
            self._waiting_bytes -= len(unit.data)
            return unit

    def _steps(self, steps: list[Any]) -> None:
        for step in steps:
            if isinstance(step, Begin):
                self._next_file(step)
            elif self._file is not None:
                self._file.write(step)

    def _next_file(self, begin: Begin) -> None:
        self._close_file()
        self._check_space()
        self._file = file = self._free_file(begin)
        self.files.append(_about(file))
        self.phase = "recording"
        log.info("recording to %s", file.path.name)
        self._call(self.begun.set)

    def _free_file(self, begin: Begin) -> RecordingFile:
        """The file of the next number that none has: nothing that exists is touched, nor ends a recording."""
        suffix = suffix_of(container_of(begin.video, begin.audio))
        while self._parts < MAX_PARTS:
            self._parts += 1
            part = f"-{self._parts}" if self._parts > 1 else ""
            path = self._folder / f"{self.stem}{part}{suffix}"
            if path.exists():
                continue
            try:
                return RecordingFile(path, begin.video, begin.audio, begin.key)
            except FileExistsError:
                log.info("%s has come meanwhile", path.name)
        raise _LimitReached(f"the numbers up to {MAX_PARTS} of {self.stem!r} are used up")

    def _close_file(self) -> None:
        """Never raises: a file that cannot be finished is readable up to its last fragment."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
        except SinkError as error:
            self.reason = self.reason or error.message
            log.error("a recording could not be finished: %s", error.message)
        self._recorded += file.duration
        self.files[-1] = _about(file)

    def _check_limits(self) -> None:
        file = self._file
        if file is None:
            return
        if (self._recorded + file.duration) / TICKS >= self._limits.duration:
            raise _LimitReached(f"{self._limits.duration:g} s are recorded, the limit")
        self.files[-1]["bytes"], self.files[-1]["seconds"] = file.bytes, round(file.duration / TICKS, 3)
        if time.monotonic() - self._space_checked > SPACE_EVERY:
            self._check_space()

    def _check_space(self) -> None:
        self._space_checked = time.monotonic()
        free = free_bytes(self._folder)
        if free < self._limits.reserve:
            raise _LimitReached(
                f"{free >> 20} MiB are free where recordings lie; {self._limits.reserve >> 20} MiB are kept"
            )

    def _fail(self, reason: str) -> None:
        self.reason, self.phase = reason, "failed"
        log.error("a recording failed: %s", reason)

    def _ended(self) -> None:
        self.begun.set()
        self.done.set()

    def _call(self, function: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            # The loop has ended, and everyone who waited with it.
            pass


class _LimitReached(Exception):
    """A recording ends by itself, and whole."""


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written below ``folder``."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _about(file: RecordingFile) -> dict[str, Any]:
    size = None if file.size is None else f"{file.size[0]}x{file.size[1]}"
    return {
        "file": file.path.name,
        "container": file.container,
        "video": None if file.video is None else file.video.codec,
        "audio": None if file.audio is None else file.audio.codec,
        "size": size,
        "bytes": file.bytes,
        "seconds": round(file.duration / TICKS, 3),
    }
