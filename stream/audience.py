"""The sinks of a session: they come and go while it runs, and each gets the units of its rendition."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from stream.encoding import EncodingStage
from stream.errors import Conflict, HeadraceError, SinkError
from stream.renditions import RenditionHandle
from stream.sinks import Sink
from stream.units import EncodedUnit, Rendition

log = logging.getLogger(__name__)

LEAVE = 3.0
"""Seconds in which a sink that was asked to end must have put out what it holds."""


@dataclass(slots=True, eq=False)
class _Seat:
    """A sink with its hold on its rendition and, while the session runs, its task."""

    sink: Sink
    essential: bool
    handle: RenditionHandle | None
    close_sound: Callable[[], None]
    task: asyncio.Task[None] | None = None
    began: bool = False
    leaving: bool = False

    def let_go(self) -> None:
        """Nothing more is encoded for it."""
        if self.handle is not None:
            self.handle.close()
        self.close_sound()


class Audience:
    """Attends to the sinks of one session; belongs to the loop.

    A sink gets pictures from a key picture on, which is asked for when it comes. One that is not essential
    only leaves when it ends or fails; when an essential one does so uncalled for, ``lost`` is called.
    """

    def __init__(self, encoding: EncodingStage, lost: Callable[[HeadraceError], None]) -> None:
        self._encoding = encoding
        self._lost = lost
        self._seats: dict[Sink, _Seat] = {}
        self._tracks: tuple[bool, bool] | None = None
        self._running = self._closed = False
        self._gone_bytes = self._gone_units = 0

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """Those that get units."""
        return tuple(seat.sink for seat in self._seats.values() if not seat.leaving)

    @property
    def bytes_sent(self) -> int:
        """Bytes of media that went out to all sinks that count them, those that have left included."""
        return self._gone_bytes + sum(getattr(sink, "bytes_sent", 0) for sink in self._seats)

    @property
    def units_dropped(self) -> int:
        """Encoded units that sinks left out, those that have left included."""
        return self._gone_units + sum(getattr(sink, "dropped", 0) for sink in self._seats)

    def attach(self, sink: Sink, *, essential: bool) -> RenditionHandle | None:
        """Open the sink's rendition and let it take part; raises `Conflict` after the session's end."""
        if self._closed:
            raise Conflict("the stream is ending and takes no more viewers")
        if sink in self._seats:
            raise Conflict("this sink takes part already")
        handle = self._encoding.open(sink.rendition) if sink.rendition is not None else None
        seat = _Seat(sink, essential, handle, self._encoding.open_sound())
        self._seats[sink] = seat
        if self._tracks is not None:
            sink.expect(video=self._tracks[0], audio=self._tracks[1])
        if handle is not None:
            handle.request_key()
        if self._running:
            self._start(seat)
        return handle

    def detach(self, sink: Sink) -> None:
        """Ask the sink to end, in a bounded time; nothing happens when it has left already."""
        seat = self._seats.get(sink)
        if seat is None or seat.leaving:
            return
        seat.leaving = True
        seat.let_go()
        if seat.task is None:
            self._remove(seat)
            return
        sink.end()
        asyncio.get_running_loop().call_later(LEAVE, seat.task.cancel)

    def expect(self, video: bool, audio: bool) -> None:
        """Which kinds of units will come."""
        self._tracks = (video, audio)
        for sink in self.sinks:
            sink.expect(video=video, audio=audio)

    def offer(self, units: list[EncodedUnit]) -> None:
        """Hand units to the sinks that they are for."""
        for unit in units:
            for seat in list(self._seats.values()):
                if not seat.leaving and self._concerns(unit, seat):
                    self._offer(unit, seat)

    def rendition_failed(self, rendition: Rendition, error: HeadraceError) -> None:
        """Nothing more comes of a rendition: those who took it are lost."""
        for seat in list(self._seats.values()):
            if seat.sink.rendition == rendition and not seat.leaving:
                self._fail(seat, error)

    # -- with the session's life -----------------------------------------------------------------------

    def start(self) -> None:
        """The session runs: so do the sinks."""
        self._running = True
        for seat in list(self._seats.values()):
            self._start(seat)

    async def close(self, timeout: float = LEAVE) -> None:
        """End every sink within ``timeout`` seconds; what does not end is cancelled. Safe to call twice."""
        self._closed = True
        tasks = [seat.task for seat in self._seats.values() if seat.task is not None]
        for seat in self._seats.values():
            if not seat.leaving:
                seat.leaving = True
                seat.sink.end()
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=timeout)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for seat in list(self._seats.values()):
                self._remove(seat)

    def _start(self, seat: _Seat) -> None:
        seat.task = asyncio.create_task(self._attend(seat), name=f"sink {type(seat.sink).__name__}")

    async def _attend(self, seat: _Seat) -> None:
        error: HeadraceError | None = None
        try:
            await seat.sink.run()
            if not seat.leaving and seat.essential:
                error = SinkError("a sink that the stream depends on has ended")
        except HeadraceError as raised:
            error = raised
        except Exception as raised:  # the edge of a task: one sink must not stop the others
            log.exception("a sink broke")
            error = SinkError(f"a sink broke: {type(raised).__name__}: {raised}")
        finally:
            self._remove(seat)
        if error is None:
            return
        if seat.essential:
            self._lost(error)
        else:
            log.info("a sink has left: %s", error.message)

    def _remove(self, seat: _Seat) -> None:
        if self._seats.get(seat.sink) is not seat:
            return
        del self._seats[seat.sink]
        seat.leaving = True
        self._gone_bytes += getattr(seat.sink, "bytes_sent", 0)
        self._gone_units += getattr(seat.sink, "dropped", 0)
        seat.let_go()

    # -- units -----------------------------------------------------------------------------------------

    def _concerns(self, unit: EncodedUnit, seat: _Seat) -> bool:
        if unit.kind == "audio":
            return True
        if unit.rendition != seat.sink.rendition:
            return False
        seat.began = seat.began or unit.key
        return seat.began

    def _offer(self, unit: EncodedUnit, seat: _Seat) -> None:
        try:
            seat.sink.offer(unit)
        except Exception as error:  # the edge to a sink: the others get their units
            log.exception("a sink broke over a unit")
            self._fail(seat, SinkError(f"a sink broke: {type(error).__name__}: {error}"))

    def _fail(self, seat: _Seat, error: HeadraceError) -> None:
        self.detach(seat.sink)
        if seat.essential:
            self._lost(error)
