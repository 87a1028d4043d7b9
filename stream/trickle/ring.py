"""What a trickle server knows: channels, their rings of segments, and who may read and write what.

No sockets and no event loop here; time comes from a clock that is handed in. One thread at a time.
Behaviour follows go-livepeer's server, except that a number with which that one panics is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from stream.errors import AtCapacity, InvalidInput, NotFound, TooLarge
from stream.trickle.protocol import CURRENT, NEXT, RING_SIZE

CHANGEFEED = "_changes"
DEFAULT_SEGMENT_BYTES = 64 * 1024 * 1024


class UnknownChannel(NotFound):
    """No channel has this name."""


class Segment:
    """Bytes that are only ever appended to. A closed segment is complete for whoever waits for its end.

    A writer that was overtaken may still append to a closed segment; only later readers see that.
    """

    __slots__ = ("_buffer", "_limit", "_watchers", "closed", "seq")

    def __init__(self, seq: int, limit: int) -> None:
        self.seq = seq
        self.closed = False
        self._limit = limit
        self._buffer = bytearray()
        self._watchers: list[Callable[[], None]] = []

    @property
    def size(self) -> int:
        return len(self._buffer)

    def append(self, data: bytes) -> None:
        """Raise `TooLarge`, and take nothing, when the segment would grow over its limit."""
        if len(self._buffer) + len(data) > self._limit:
            raise TooLarge(f"segment {self.seq} is over the limit of {self._limit} bytes")
        self._buffer += data
        self._notify()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._notify()

    def read(self, offset: int, limit: int) -> bytes:
        """At most ``limit`` bytes from ``offset`` on; empty when there are none yet."""
        with memoryview(self._buffer) as view:
            return bytes(view[offset : offset + limit])

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after each change; the function returned ends that."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    def _notify(self) -> None:
        for callback in tuple(self._watchers):
            callback()


@dataclass(frozen=True, slots=True)
class Reading:
    """A segment to be read; ``latest`` is the channel's next number as it was when the reader came."""

    segment: Segment
    latest: int


@dataclass(frozen=True, slots=True)
class Missing:
    """The channel has no such segment; ``latest`` is the number that it expects next."""

    latest: int


class Channel:
    """A named row of segments of which the ring keeps five.

    ``next_write`` follows the first byte of whatever segment was begun last, so it can go backwards;
    ``written_at`` is the clock's time of that (or of the creation), and is what the idle sweep looks at.
    """

    def __init__(self, name: str, mime_type: str, clock: Callable[[], float], segment_limit: int) -> None:
        self.name = name
        self.mime_type = mime_type
        self.next_write = 0
        self.closed = False
        self._clock = clock
        self._segment_limit = segment_limit
        self.written_at = clock()
        self._slots: list[Segment | None] = [None] * RING_SIZE

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What the ring holds, in the order of the numbers."""
        return tuple(sorted((s for s in self._slots if s is not None), key=lambda s: s.seq))

    def upload(self, seq: int, *, reset: bool = False) -> Upload:
        """Begin to write segment ``seq`` (or `NEXT`), which takes its slot at once.

        ``reset`` closes every segment with a lower number. Raises `InvalidInput` on a number that cannot be.
        """
        if seq == NEXT:
            seq = self.next_write
        segment = self._at(seq)
        if segment is None:
            segment = self._occupy(seq)
        if reset:
            for other in self.segments:
                if other.seq < seq:
                    other.close()
        return Upload(self, segment)

    def read(self, seq: int) -> Reading | Missing:
        """The segment ``seq`` (or `NEXT`, `CURRENT`), made when the reader is just ahead of the writer.

        Raises `InvalidInput` on a number that cannot be.
        """
        if seq == NEXT:
            seq = self.next_write
        elif seq == CURRENT:
            seq = max(self.next_write - 1, 0)
        segment = self._at(seq)
        if segment is None:
            ahead = seq == self.next_write or (self.next_write == 0 and seq == 1)
            if self.closed or not ahead:
                return Missing(self.next_write)
            segment = self._occupy(seq)
        return Reading(segment, self.next_write)

    def close_segment(self, seq: int) -> None:
        """Raises `InvalidInput` when the ring does not hold ``seq``."""
        segment = self._at(seq)
        if segment is None:
            raise InvalidInput("Nonexistent segment")
        segment.close()

    def close(self) -> None:
        self.closed = True
        for segment in self.segments:
            segment.close()
        self._slots = [None] * RING_SIZE

    def note_written(self, seq: int) -> None:
        """``seq`` got its first byte, or ended without one."""
        self.next_write = seq + 1
        self.written_at = self._clock()

    def _at(self, seq: int) -> Segment | None:
        if seq < 0:
            raise InvalidInput("Invalid idx")
        segment = self._slots[seq % RING_SIZE]
        return segment if segment is not None and segment.seq == seq else None

    def _occupy(self, seq: int) -> Segment:
        occupant = self._slots[seq % RING_SIZE]
        if occupant is not None:
            occupant.close()
        segment = Segment(seq, self._segment_limit)
        if self.closed:
            segment.close()
        else:
            self._slots[seq % RING_SIZE] = segment
        return segment


class Upload:
    """One POST to a segment. Until its first byte it is a mere preconnect, which the segment's end ends."""

    __slots__ = ("_channel", "segment", "started")

    def __init__(self, channel: Channel, segment: Segment) -> None:
        self._channel = channel
        self.segment = segment
        self.started = False

    @property
    def displaced(self) -> bool:
        """Whether the segment was closed before the first byte came; what comes now is to be discarded."""
        return not self.started and self.segment.closed

    @property
    def channel_closed(self) -> bool:
        return self._channel.closed

    def write(self, data: bytes) -> None:
        """Raises `TooLarge` when the segment is full."""
        if not data:
            return
        if not self.started:
            self.started = True
            self._channel.note_written(self.segment.seq)
        self.segment.append(data)

    def finish(self) -> None:
        """The body has ended, or the server ends a preconnect. A POST that breaks is not finished."""
        if not self.started:
            self._channel.note_written(self.segment.seq)
        self.segment.close()


class Channels:
    """All channels of a server by name, the sweep of idle ones, and the feed of their coming and going."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        autocreate: bool = False,
        changefeed: bool = False,
        idle_timeout: float = 300.0,
        segment_limit: int = DEFAULT_SEGMENT_BYTES,
        channel_limit: int = 1024,
    ) -> None:
        self._clock = clock
        self._autocreate = autocreate
        self._idle_timeout = idle_timeout
        self._segment_limit = segment_limit
        self._channel_limit = channel_limit
        self._channels: dict[str, Channel] = {}
        if changefeed:
            self.create(CHANGEFEED, "application/json")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._channels)

    def get(self, name: str) -> Channel:
        """Raises `UnknownChannel`."""
        try:
            return self._channels[name]
        except KeyError:
            raise UnknownChannel("Stream not found") from None

    def create(self, name: str, mime_type: str) -> Channel:
        """The channel of that name, made when there is none; an existing one keeps its type.

        Raises `AtCapacity` when there are as many as may be.
        """
        channel = self._channels.get(name)
        if channel is None:
            if len(self._channels) >= self._channel_limit:
                raise AtCapacity(f"the limit of {self._channel_limit} channels is reached")
            channel = Channel(name, mime_type, self._clock, self._segment_limit)
            self._channels[name] = channel
            self._announce("added", name)
        return channel

    def publish_to(self, name: str, mime_type: str) -> Channel:
        """The channel for a caller from outside, who may make one only where ``autocreate`` says so.

        Raises `UnknownChannel` and `AtCapacity`.
        """
        return self.create(name, mime_type) if self._autocreate else self.get(name)

    def require_publishable(self, name: str) -> None:
        """Raise `UnknownChannel` where `publish_to` would."""
        if not self._autocreate:
            self.get(name)

    def delete(self, name: str) -> None:
        """Close and forget a channel; raises `UnknownChannel`."""
        self.get(name).close()
        del self._channels[name]
        self._announce("removed", name)

    def sweep(self) -> list[str]:
        """Close the channels that nobody has begun a segment on for too long; names with ``_`` are spared."""
        deadline = self._clock() - self._idle_timeout
        idle = [c.name for c in self._channels.values() if c.written_at < deadline and c.name[:1] != "_"]
        for name in idle:
            self.delete(name)
        return idle

    def close(self) -> None:
        """Close everything; the changefeed does not tell of it."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def _announce(self, what: str, name: str) -> None:
        feed = self._channels.get(CHANGEFEED)
        if feed is not None:
            upload = feed.upload(NEXT)
            upload.write(json.dumps({what: [name]}, separators=(",", ":")).encode())
            upload.finish()
