"""RTP packets of one stream in any order, complete access units out. Pure; moments are handed in (ns).

A picture is complete with its marker bit, when every packet since the last picture's end is there: nothing
waits for the next picture. What is missing is asked for and waited for, but no longer than ``patience``;
then what it belonged to is left out, and the unit after it says that something was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from stream.webrtc.payload import (
    MAX_PICTURE,
    Malformed,
    begins_h264,
    begins_vp8,
    depacketise_h264,
    depacketise_vp8,
    is_key_h264,
    is_key_vp8,
)

CAPACITY = 1024
"""Packets that are held while one before them is missing."""
MAX_MISSING = 256
"""Missing packets in one gap that are still asked for."""
ASK_AGAIN = 30_000_000
"""ns between two requests for one packet when the way there and back is not known."""
MAX_ASKED = 10
"""How often one packet is asked for."""


@dataclass(frozen=True, slots=True)
class Packet:
    """What counts of an RTP packet. An empty payload is padding, which only takes up a number."""

    sequence: int
    timestamp: int
    marker: bool
    payload: bytes
    received: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A complete access unit, Annex B for H.264. ``received``: when its last packet came."""

    data: bytes
    timestamp: int
    received: int
    key: bool
    lost: bool


@dataclass(slots=True)
class Counts:
    """What came, and what was wrong with it."""

    packets: int = 0
    duplicates: int = 0
    late: int = 0
    reordered: int = 0
    malformed: int = 0
    lost: int = 0
    recovered: int = 0
    units: int = 0
    oversized: int = 0
    jumps: int = 0


@dataclass(slots=True)
class _Missing:
    since: int
    asked: int = 0
    asked_at: int = 0


@dataclass(frozen=True, slots=True)
class PayloadFormat:
    """How payloads become an access unit."""

    begins: Callable[[bytes], bool]
    join: Callable[[Sequence[bytes]], bytes]
    is_key: Callable[[bytes], bool]
    single: bool = False
    """Every packet is an access unit of its own."""


FORMATS: dict[Literal["h264", "vp8", "opus"], PayloadFormat] = {
    "h264": PayloadFormat(begins_h264, depacketise_h264, is_key_h264),
    "vp8": PayloadFormat(begins_vp8, depacketise_vp8, is_key_vp8),
    "opus": PayloadFormat(lambda payload: True, b"".join, lambda data: True, single=True),
}


class Assembler:
    """`add` takes packets as they come, `expire` gives up what has been missing for too long."""

    def __init__(self, codec: Literal["h264", "vp8", "opus"], *, patience: int) -> None:
        self.counts = Counts()
        self.patience = patience
        self._format = FORMATS[codec]
        self._held: dict[int, Packet] = {}
        self._missing: dict[int, _Missing] = {}
        self._next: int | None = None
        self._highest = 0
        self._parts: list[Packet] = []
        self._size = 0
        # A timestamp whose picture is known to be incomplete.
        self._broken: int | None = None
        self._after_gap = True
        self._lost = False

    # -- what comes in -----------------------------------------------------------------------------------

    def add(self, packet: Packet) -> list[Unit]:
        """Take a packet; returns the units that it completes."""
        self.counts.packets += 1
        number = self._number(packet.sequence)
        units: list[Unit] = []
        if self._next is None:
            self._next, self._highest = number, number - 1
        if number < self._next:
            self._count_old(number)
            return units
        if number in self._held:
            self.counts.duplicates += 1
            return units
        if number - self._next >= CAPACITY:
            self._jump(number)
        self._note(number, packet.received)
        self._held[number] = packet
        return self._drain()

    def expire(self, now: int) -> list[Unit]:
        """Give up what has been missing since before ``now - patience``; returns what it held back."""
        units: list[Unit] = []
        while (gap := self._gap()) is not None and now - gap.since >= self.patience:
            self._skip()
            units += self._drain()
        return units

    # -- what is asked for -------------------------------------------------------------------------------

    def wanted(self, now: int, round_trip: int | None = None) -> list[int]:
        """Sequence numbers (16 bits, ascending) to ask the sender for now."""
        again = ASK_AGAIN if round_trip is None else max(ASK_AGAIN // 2, round_trip + round_trip // 4)
        numbers = []
        for number, missing in self._missing.items():
            if missing.asked < MAX_ASKED and (not missing.asked or now - missing.asked_at >= again):
                missing.asked += 1
                missing.asked_at = now
                numbers.append(number)
        return sorted(number & 0xFFFF for number in numbers)

    @property
    def waiting_since(self) -> int | None:
        """Since when (ns) something has been missing that holds others back."""
        gap = self._gap()
        return None if gap is None else gap.since

    def asked_at(self, sequence: int) -> int | None:
        """When this number was last asked for, if it is missing."""
        missing = self._missing.get(self._number(sequence))
        return missing.asked_at if missing is not None and missing.asked == 1 else None

    # -- numbers -----------------------------------------------------------------------------------------

    def _number(self, sequence: int) -> int:
        """The 16 bits as a number that never wraps, next to the highest one seen."""
        if self._next is None:
            return sequence + (1 << 16)
        return self._highest + ((sequence - self._highest + 0x8000) & 0xFFFF) - 0x8000

    def _count_old(self, number: int) -> None:
        assert self._next is not None
        if number in self._missing:
            del self._missing[number]
        if self._next - number < 64:
            self.counts.duplicates += 1
        else:
            self.counts.late += 1

    def _note(self, number: int, now: int) -> None:
        if self._missing.pop(number, None) is not None:
            self.counts.recovered += 1
        if number > self._highest:
            if number - self._highest - 1 <= MAX_MISSING:
                for missing in range(self._highest + 1, number):
                    self._missing[missing] = _Missing(now)
            self._highest = number
        elif number < self._highest:
            self.counts.reordered += 1

    def _jump(self, number: int) -> None:
        """Far from everything: the sender began anew, or far too much is missing."""
        self.counts.jumps += 1
        self._held.clear()
        self._missing.clear()
        self._next, self._highest = number, number - 1
        self._break()

    def _gap(self) -> _Missing | None:
        """What is missing at the head of what is held."""
        if not self._held:
            return None
        assert self._next is not None
        missing = self._missing.get(self._next)
        if missing is None:
            # Too many were missing to ask for them: nothing to wait for.
            return _Missing(-(1 << 62))
        return missing

    def _skip(self) -> None:
        first = min(self._held)
        assert self._next is not None
        self.counts.lost += first - self._next
        for number in range(self._next, first):
            self._missing.pop(number, None)
        self._next = first
        self._break()

    # -- pictures ----------------------------------------------------------------------------------------

    def _break(self) -> None:
        """Something is gone for good: whatever it belonged to is too."""
        self._broken = self._parts[-1].timestamp if self._parts else None
        self._drop_parts()
        self._after_gap = self._lost = True

    def _drop_parts(self) -> None:
        self._parts, self._size = [], 0

    def _drain(self) -> list[Unit]:
        units: list[Unit] = []
        assert self._next is not None
        while (packet := self._held.pop(self._next, None)) is not None:
            self._next += 1
            if packet.payload:
                self._push(packet, units)
        return units

    def _push(self, packet: Packet, units: list[Unit]) -> None:
        if self._parts and packet.timestamp != self._parts[0].timestamp:
            # A sender that sets no marker: the next picture ends this one.
            self._finish(units)
        if not self._parts and not self._may_begin(packet):
            return
        self._parts.append(packet)
        self._size += len(packet.payload)
        if self._size > MAX_PICTURE:
            self.counts.oversized += 1
            self._break()
        elif packet.marker or self._format.single:
            self._finish(units)

    def _may_begin(self, packet: Packet) -> bool:
        """Whether a picture can begin here; after a gap, its first packets may be among the missing."""
        if packet.timestamp == self._broken:
            return False
        self._broken = None
        if not self._format.begins(packet.payload):
            self._lost = True
            self._broken = packet.timestamp
            self.counts.malformed += not self._after_gap
            return False
        return True

    def _finish(self, units: list[Unit]) -> None:
        parts = self._parts
        self._drop_parts()
        self._after_gap = False
        try:
            data = self._format.join([part.payload for part in parts])
        except Malformed:
            self.counts.malformed += 1
            self._lost = True
            return
        if not data:
            return
        received = max(part.received for part in parts)
        units.append(Unit(data, parts[0].timestamp, received, self._format.is_key(data), self._lost))
        self.counts.units += 1
        self._lost = False
