"""The recordings of a worker: one for each session and direction at most."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from stream.decoding import UnitDecoding
from stream.errors import Conflict, Forbidden, HeadraceError, InvalidInput, NotFound, SinkError
from stream.recording.folder import RecordingFolder, checked_name, name_from
from stream.recording.sources import RecordingSink, RecordingTap
from stream.recording.takes import Takes
from stream.recording.writer import RecordingLimits, RecordingWriter
from stream.session import Session

log = logging.getLogger(__name__)

Direction = Literal["in", "out"]
DIRECTIONS: dict[str, tuple[Direction, ...]] = {"in": ("in",), "out": ("out",), "both": ("in", "out")}
BEGIN_TIMEOUT = 4.0
"""Seconds for which an answer waits for the first key picture, from which on there is a file."""
FINISH_TIMEOUT = 5.0
"""Seconds in which a recording that was asked to end is finished."""
CLOSE_TIMEOUT = 1.5
"""The same when the worker stops, where the sessions have ended theirs before."""


@dataclass(slots=True, eq=False)
class Recording:
    """One direction of one session."""

    session: str
    direction: Direction
    writer: RecordingWriter
    detach: Callable[[], None]

    def as_dict(self) -> dict[str, Any]:
        """``files`` so far, ``state`` (waiting, recording, ended, failed) and, where it is known, why."""
        writer = self.writer
        return {
            "session": self.session,
            "what": self.direction,
            "state": writer.phase,
            "reason": writer.reason,
            "files": [dict(each) for each in writer.files],
            "dropped": writer.dropped,
        }


class Recorder:
    """Starts and stops recordings; belongs to the loop. Without a ``folder`` it refuses to."""

    def __init__(self, folder: RecordingFolder | None, limits: RecordingLimits | None = None) -> None:
        self._folder = folder
        self._limits = limits or RecordingLimits()
        self._active: dict[tuple[str, Direction], Recording] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def folder(self) -> RecordingFolder:
        """Raises `Forbidden` when there is none."""
        if self._folder is None:
            raise Forbidden(
                "recording is switched off: --recordings FOLDER (HEADRACE_RECORDINGS) switches it on",
                field="recordings",
            )
        return self._folder

    def active(self, session_id: str | None = None) -> list[Recording]:
        """Those under way, of one session or of all."""
        return [each for each in self._active.values() if session_id in (None, each.session)]

    def writing(self) -> set[str]:
        """The file names that are being written to."""
        return {each["file"] for recording in self.active() for each in recording.writer.files[-1:]}

    async def start(self, session: Session, what: object, name: object = None) -> list[Recording]:
        """Record a session from its next key picture on, and wait a moment for that.

        Raises `InvalidInput`, `Forbidden` without a folder, `Conflict` for what is being recorded already, a
        name that is taken, or a session that ends, and `SinkError` where nothing can be written; then none
        of the directions is recorded.
        """
        folder = self.folder
        if not isinstance(what, str) or what not in DIRECTIONS:
            raise InvalidInput(f"what is one of {', '.join(DIRECTIONS)}, not {repr(what)[:60]}", field="what")
        directions = DIRECTIONS[what]
        stems = self._stems(session.id, directions, name)
        self._check(session, directions, stems)
        folder.prepare()
        begun: list[Recording] = []
        try:
            for direction in directions:
                begun.append(self._begin(session, direction, stems[direction]))
        except HeadraceError:
            await self._finish(begun)
            raise
        await _first(begun)
        broken = next((each.writer for each in begun if each.writer.begins_in_vain), None)
        if broken is not None:
            await self._finish(begun)
            raise SinkError(f"{broken.stem!r} cannot be recorded: {broken.reason}")
        return begun

    async def stop(self, session_id: str, what: object = "both") -> list[Recording]:
        """End recordings of a session and return them finished; raises `NotFound` when there is none."""
        if not isinstance(what, str) or what not in DIRECTIONS:
            raise InvalidInput(f"what is one of {', '.join(DIRECTIONS)}, not {repr(what)[:60]}", field="what")
        ending = [each for each in self.active(session_id) if each.direction in DIRECTIONS[what]]
        if not ending:
            raise NotFound(f"nothing of {session_id!r} is being recorded", field="stream_id")
        await self._finish(ending)
        return ending

    async def close(self) -> None:
        """Finish everything, in a bounded time, and take no more."""
        self._closed = True
        await self._finish(self.active(), CLOSE_TIMEOUT)
        watchers = list(self._watchers)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

    # -- inside ------------------------------------------------------------------------------------------

    def _stems(self, session_id: str, directions: Sequence[Direction], name: object) -> dict[Direction, str]:
        if name is None:
            stem = f"{name_from(session_id)}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        else:
            stem = checked_name(name).removesuffix(".mp4")
        if name is not None and len(directions) == 1:
            return {directions[0]: stem}
        return {direction: f"{stem}-{direction}" for direction in directions}

    def _check(self, session: Session, directions: Sequence[Direction], stems: dict[Direction, str]) -> None:
        if self._closed or session.ending is not None:
            raise Conflict(f"the stream {session.id!r} is ending", field="stream_id")
        for direction in directions:
            if (session.id, direction) in self._active:
                raise Conflict(f"what goes {direction} of {session.id!r} is being recorded", field="what")
            reserved = {each.writer.stem for each in self.active()}
            if stems[direction] in reserved or self.folder.is_taken(stems[direction]):
                raise Conflict(f"there is a recording {stems[direction]!r}", field="name")
        if "in" in directions and not isinstance(session.decoding, UnitDecoding):
            raise InvalidInput(f"nothing comes in to {session.id!r} that could be recorded", field="what")

    def _begin(self, session: Session, direction: Direction, stem: str) -> Recording:
        tracks = session.tracks
        takes = Takes(
            expects_video=None if tracks is None else tracks[0],
            expects_audio=tracks is not None and tracks[1],
        )
        writer = RecordingWriter(self.folder.path, stem, self._limits, takes)
        detach = self._connect(session, direction, writer)
        writer.start()
        recording = Recording(session.id, direction, writer, detach)
        self._active[session.id, direction] = recording
        watcher = asyncio.create_task(self._watch(recording), name=f"recording {stem}")
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return recording

    def _connect(self, session: Session, direction: Direction, writer: RecordingWriter) -> Callable[[], None]:
        """Let units flow; returns what ends that."""
        if direction == "out":
            sink = RecordingSink(writer)
            handle = session.attach(sink)
            assert handle is not None
            sink.request_key = handle.request_key

            def detach() -> None:
                session.detach(sink)
                # A sink that was never run is not asked to end.
                sink.end()
        else:
            assert isinstance(session.decoding, UnitDecoding)
            tap = RecordingTap(writer, session.decoding, session.request_input_key)
            detach = tap.close
        unlisten = session.listen(lambda kind, _: detach() if kind == "ended" else None)

        def disconnect() -> None:
            unlisten()
            detach()

        return disconnect

    async def _watch(self, recording: Recording) -> None:
        """Let go of a recording that has ended by itself."""
        try:
            await recording.writer.done.wait()
        finally:
            recording.detach()
            self._active.pop((recording.session, recording.direction), None)

    async def _finish(self, recordings: Sequence[Recording], timeout: float = FINISH_TIMEOUT) -> None:
        for recording in recordings:
            recording.detach()
        if not recordings:
            return
        finished = asyncio.gather(*(each.writer.done.wait() for each in recordings))
        try:
            await asyncio.wait_for(finished, timeout)
        except TimeoutError:
            log.error("a recording is not finished after %g s; what is written can be read", timeout)


async def _first(recordings: Sequence[Recording]) -> None:
    """Wait until each has a file, or will have none, but not for ever."""
    begun = asyncio.gather(*(each.writer.begun.wait() for each in recordings))
    try:
        await asyncio.wait_for(begun, BEGIN_TIMEOUT)
    except TimeoutError:
        log.info("no key picture yet; the recording begins with the first one")
