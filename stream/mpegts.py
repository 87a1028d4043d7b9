"""An incremental MPEG-TS demuxer (ISO/IEC 13818-1) that holds no picture back. Pure.

FFmpeg's demuxer gives a picture out when the next one begins, and its parser adds another frame of delay.
Here an access unit ends with the packet that completes it: where PES_packet_length says so, at the packet
whose adaptation field is stuffed (a multiplexer stuffs the last packet of a PES packet), at the next PES
header otherwise. Whatever bytes come in, nothing is raised; what was wrong is counted in `TsStatistics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stream.access_units import Framer, Piece, framer_of
from stream.pes import HEADER, is_stuffed, payload_start, timestamps, unwrapped
from stream.psi import PAT_PID, SectionAssembler, parse_pat, parse_pmt
from stream.tracks import Track, tracks_of
from stream.ts_packets import PACKET, PAYLOAD, SYNC, run_at

MAX_PES_SIZE = 8 << 20

_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class AccessUnit:
    """One coded picture or one frame of sound.

    ``data`` is Annex B for ``h264`` and ``hevc``, one frame for ``vp8``, a frame with its ADTS header for
    ``aac``, one packet for ``opus``. ``pts`` and ``dts`` count 1/90000 s and run on where the
    33 bits of the stream wrap round.
    ``received`` is the time (ns) at which the last byte came in. ``key``: decoding can begin here.
    ``discontinuity``: something before this unit was lost, or its track takes another's place.
    ``channels`` is known for Opus, 0 otherwise. ``epoch`` grows when another publisher takes over: neither
    its timestamps nor its pictures go on from those before.
    """

    pid: int
    codec: str
    kind: Literal["video", "audio"]
    data: bytes
    pts: int
    dts: int
    received: int
    key: bool = False
    discontinuity: bool = False
    channels: int = 0
    epoch: int = 0


@dataclass(slots=True)
class TsStatistics:
    """What was read, and what was wrong with it."""

    packets: int = 0
    skipped_bytes: int = 0
    transport_errors: int = 0
    continuity_errors: int = 0
    duplicates: int = 0
    scrambled: int = 0
    malformed: int = 0
    oversized: int = 0
    truncated: int = 0
    wrongly_ended: int = 0


@dataclass(slots=True, eq=False)
class _Elementary:
    """One selected track and the PES packet that is being put together."""

    track: Track
    framer: Framer
    next_counter: int = _UNKNOWN
    parts: list[bytes] | None = None
    size: int = 0
    needed: int = 0
    sized: bool = False
    random_access: bool = False
    lost: bool = False
    timed: bool = False
    trusts_stuffing: bool = True
    ended_by_stuffing: bool = False
    last: bytes = b""
    received: int = 0


class TsDemuxer:
    """Transport stream in, access units of the first program's first video and first audio track out.

    ``max_pes_size`` bounds what is held of one PES packet, in bytes; a larger one is dropped and counted.
    """

    def __init__(self, *, max_pes_size: int = MAX_PES_SIZE) -> None:
        self.statistics = TsStatistics()
        self._max_pes_size = max_pes_size
        self._rest = b""
        self._received = 0
        self._synchronised = True
        self._tracks: tuple[Track, ...] = ()
        self._elementary: dict[int, _Elementary] = {}
        # The four bytes of a packet that only goes on with a PES packet, for the fast way through `feed`.
        self._plain: dict[bytes, tuple[_Elementary, int]] = {}
        self._program: tuple[int, int] | None = None
        self._sections = {PAT_PID: SectionAssembler()}
        self._last_sections: dict[int, bytes] = {}
        self._pat_counter = _UNKNOWN
        self._clock: int | None = None
        self._units: list[AccessUnit] = []

    @property
    def tracks(self) -> tuple[Track, ...]:
        """Every stream of the program in the order of its map; empty until that was read."""
        return self._tracks

    def feed(self, data: bytes | bytearray | memoryview, received: int) -> list[AccessUnit]:
        """Any number of bytes that arrived at ``received`` (ns): the access units that they complete."""
        data = self._rest + data if self._rest else bytes(data)
        self._received = received
        position, last, skipped = 0, len(data) - PACKET, self.statistics.skipped_bytes
        if not self._synchronised:
            position = self._resynchronise(data, 0)
        plain = self._plain
        while position <= last and self._synchronised:
            known = plain.get(data[position : position + 4])
            if known is not None:
                elementary, counter = known
                if elementary.next_counter == counter and elementary.parts is not None:
                    count = run_at(data, position, elementary.needed - elementary.size)
                    end = position + count * PACKET
                    elementary.parts += [data[at : at + PAYLOAD] for at in range(position + 4, end, PACKET)]
                    elementary.size += count * PAYLOAD
                    elementary.next_counter = counter + count & 15
                    elementary.received = received
                    position = end
                    if elementary.size >= elementary.needed:
                        self._fill(elementary)
                    continue
            if data[position] != SYNC:
                position = self._resynchronise(data, position)
                continue
            self._packet(data[position : position + PACKET], received)
            plain = self._plain
            position += PACKET
        self.statistics.packets += (position + skipped - self.statistics.skipped_bytes) // PACKET
        self._rest = data[position:]
        return self._take_units()

    def flush(self) -> list[AccessUnit]:
        """A segment ends: what is still held is given out, and the next one may begin its counters anew."""
        rest, self._rest = self._rest, b""
        if len(rest) == PACKET and rest[0] == SYNC:
            self._packet(rest, self._received)
            self.statistics.packets += 1
            rest = b""
        self.statistics.skipped_bytes += len(rest)
        self._end_segment(cut_short=bool(rest))
        self._synchronised = True
        return self._take_units()

    def _take_units(self) -> list[AccessUnit]:
        units, self._units = self._units, []
        return units

    def _resynchronise(self, data: bytes, position: int) -> int:
        """The next place where a packet begins and another follows; where that is unsure, `feed` waits."""
        found = data.find(b"\x47", position)
        while 0 <= found < len(data) - PACKET:
            if data[found + PACKET] == SYNC:
                break
            found = data.find(b"\x47", found + 1)
        end = found if found >= 0 else len(data)
        self._synchronised = 0 <= found < len(data) - PACKET
        self.statistics.skipped_bytes += end - position
        return end

    # -- one packet --------------------------------------------------------------------------------------

    def _packet(self, packet: bytes, received: int) -> None:
        pid = (packet[1] & 0x1F) << 8 | packet[2]
        if packet[1] & 0x80:
            self.statistics.transport_errors += 1
            return
        elementary = self._elementary.get(pid)
        if elementary is None and pid not in self._sections:
            return
        if packet[3] & 0xC0:
            self.statistics.scrambled += 1
            return
        start, flags, stuffed = 4, 0, False
        if packet[3] & 0x20:
            length = packet[4]
            if length > PACKET - 5:
                self.statistics.malformed += 1
                return
            start = 5 + length
            flags = packet[5] if length else 0
            stuffed = is_stuffed(packet, length)
        payload = packet[start:] if packet[3] & 0x10 else b""
        starts, counter = bool(packet[1] & 0x40), packet[3] & 0x0F
        if elementary is None:
            self._section(pid, payload, starts, counter)
            return
        if flags & 0x80:
            elementary.next_counter = _UNKNOWN
        if packet[3] & 0x10 and self._continues(elementary, counter, payload):
            if starts:
                self._finish(elementary)
            elementary.received = received
            elementary.last = payload
            if starts:
                self._begin(elementary, payload, bool(flags & 0x40))
            elif elementary.parts is not None:
                elementary.parts.append(payload)
                elementary.size += len(payload)
            elif elementary.ended_by_stuffing:
                self._mistrust_stuffing(elementary)
            self._end_where_due(elementary, stuffed)

    def _continues(self, elementary: _Elementary, counter: int, payload: bytes) -> bool:
        """Whether the packet is to be used; a gap in the counters ends what cannot become whole."""
        expected = elementary.next_counter
        if expected != _UNKNOWN and counter != expected:
            before = elementary.parts[-1] if elementary.parts else elementary.last
            if counter == (expected - 1) & 15 and payload == before:
                self.statistics.duplicates += 1
                return False
            self.statistics.continuity_errors += 1
            self._lose(elementary)
        elementary.next_counter = counter + 1 & 15
        return True

    # -- PES packets -------------------------------------------------------------------------------------

    def _begin(self, elementary: _Elementary, payload: bytes, random_access: bool) -> None:
        if payload[:3] != b"\x00\x00\x01"[: len(payload)]:
            self.statistics.malformed += 1
            self._lose(elementary)
            return
        length = payload[4] << 8 | payload[5] if len(payload) >= 6 else 0
        elementary.parts = [payload]
        elementary.size = len(payload)
        elementary.sized = length > 0
        elementary.needed = 6 + length if length else self._max_pes_size + 1
        elementary.random_access = random_access
        elementary.ended_by_stuffing = False
        if elementary.needed > self._max_pes_size + 1:
            self._drop_oversized(elementary)

    def _end_where_due(self, elementary: _Elementary, stuffed: bool) -> None:
        if elementary.parts is None:
            return
        if elementary.size >= elementary.needed:
            self._fill(elementary)
        elif stuffed and not elementary.sized and elementary.trusts_stuffing and elementary.size > HEADER:
            self._finish(elementary)
            elementary.ended_by_stuffing = True

    def _fill(self, elementary: _Elementary) -> None:
        """As much has come as was announced, or more than is allowed."""
        if elementary.sized:
            self._finish(elementary)
        else:
            self._drop_oversized(elementary)

    def _drop_oversized(self, elementary: _Elementary) -> None:
        self.statistics.oversized += 1
        self._lose(elementary)

    def _mistrust_stuffing(self, elementary: _Elementary) -> None:
        """A PES packet went on after a stuffed packet, so what was given out was only its beginning."""
        self.statistics.wrongly_ended += 1
        elementary.trusts_stuffing = False
        self._lose(elementary)

    def _lose(self, elementary: _Elementary) -> None:
        elementary.parts = None
        elementary.lost = True
        elementary.ended_by_stuffing = False
        elementary.framer.reset()

    def _finish(self, elementary: _Elementary) -> None:
        """Give out what the PES packet holds, if it is whole."""
        parts, elementary.parts = elementary.parts, None
        if parts is None:
            return
        elementary.last = parts[-1]
        if elementary.sized and elementary.size < elementary.needed:
            self.statistics.truncated += 1
            self._lose(elementary)
            return
        packet = b"".join(parts) if len(parts) > 1 else parts[0]
        if elementary.sized:
            packet = packet[: elementary.needed]
        start = payload_start(packet)
        if start is None:
            self.statistics.malformed += 1
            self._lose(elementary)
        elif packet[6] & 0x30:
            self.statistics.scrambled += 1
            self._lose(elementary)
        else:
            pts, dts = self._times(packet)
            # What comes before the first timestamp has no place in time.
            elementary.timed = elementary.timed or pts is not None
            if elementary.timed:
                self._give(elementary, elementary.framer.split(packet[start:], pts, dts))

    def _times(self, packet: bytes) -> tuple[int | None, int | None]:
        """PTS and DTS of a PES packet, unwrapped against the last time that was seen on any track."""
        raw = timestamps(packet)
        if raw is None:
            return None, None
        pts = unwrapped(raw[0], raw[0] if self._clock is None else self._clock)
        self._clock = unwrapped(raw[1], pts)
        return pts, self._clock

    def _give(self, elementary: _Elementary, pieces: Iterable[Piece]) -> None:
        track = elementary.track
        assert track.kind != "other"
        random_access = elementary.random_access
        for piece in pieces:
            self._units.append(
                AccessUnit(
                    track.pid,
                    track.codec,
                    track.kind,
                    piece.data,
                    piece.pts,
                    piece.dts,
                    elementary.received,
                    piece.key or random_access,
                    elementary.lost,
                    track.channels,
                )
            )
            elementary.lost = random_access = False

    # -- tables ------------------------------------------------------------------------------------------

    def _section(self, pid: int, payload: bytes, starts: bool, counter: int) -> None:
        if pid == PAT_PID and payload:
            if self._pat_counter != _UNKNOWN and counter != self._pat_counter:
                # A table whose counter begins anew is how a segment begins in a concatenation.
                self._forget_counters()
            self._pat_counter = counter + 1 & 15
        for section in self._sections[pid].feed(payload, starts):
            if self._last_sections.get(pid) == section:
                continue
            if pid == PAT_PID:
                self._read_pat(section)
            else:
                self._read_pmt(section)

    def _forget_counters(self) -> None:
        self._pat_counter = _UNKNOWN
        for elementary in self._elementary.values():
            elementary.next_counter = _UNKNOWN
            elementary.last = b""

    def _end_segment(self, *, cut_short: bool) -> None:
        for elementary in self._elementary.values():
            if cut_short and elementary.parts is not None and not elementary.sized:
                self.statistics.truncated += 1
                self._lose(elementary)
            self._finish(elementary)
            elementary.framer.reset()
            elementary.ended_by_stuffing = False
        for assembler in self._sections.values():
            assembler.reset()
        self._forget_counters()

    def _read_pat(self, section: bytes) -> None:
        programs = parse_pat(section)
        if not programs:
            self.statistics.malformed += programs is None
            return
        self._last_sections[PAT_PID] = section
        program = self._program if self._program in programs else programs[0]
        if program == self._program:
            return
        self._program = program
        self._sections = {PAT_PID: self._sections[PAT_PID], program[1]: SectionAssembler()}
        self._last_sections = {PAT_PID: section}
        self._elementary.pop(program[1], None)
        self._index()

    def _read_pmt(self, section: bytes) -> None:
        found = parse_pmt(section)
        if found is None:
            self.statistics.malformed += 1
            return
        number, streams = found
        if self._program is None or number != self._program[0]:
            return
        self._last_sections[self._program[1]] = section
        self._tracks = tracks_of(stream for stream in streams if stream.pid not in self._sections)
        before, self._elementary = self._elementary, {}
        kinds = {elementary.track.kind for elementary in before.values()}
        for track in self._tracks:
            if not track.selected:
                continue
            elementary = before.get(track.pid)
            if elementary is not None and elementary.track.codec == track.codec:
                before.pop(track.pid).track = track
            else:
                elementary = _Elementary(track, framer_of(track.codec), lost=track.kind in kinds)
            self._elementary[track.pid] = elementary
        for gone in before.values():
            self._finish(gone)
        self._index()

    def _index(self) -> None:
        """The headers that `feed` knows at sight."""
        self._plain = {
            bytes((SYNC, pid >> 8, pid & 0xFF, 0x10 | counter)): (elementary, counter)
            for pid, elementary in self._elementary.items()
            for counter in range(16)
        }
