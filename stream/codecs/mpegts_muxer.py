"""Encoded units into MPEG-TS segments (ISO/IEC 13818-1), each unit's bytes at once. Pure.

FFmpeg's multiplexer, told of sound and pictures, keeps one packet back until the next has come, whatever its
``max_interleave_delta``: a frame of delay. Here nothing is held, sound that was declared and does not come
holds nothing back, and no unit is written to.
"""

from __future__ import annotations

from stream.pes import packed_timestamp
from stream.psi import PAT_PID, ElementaryStream, build_pat, build_pmt
from stream.ts_packets import PACKET, PAYLOAD, run_of
from stream.units import AudioParameters, EncodedUnit, VideoParameters

PMT_PID = 0x1000
VIDEO_PID = 0x0100
AUDIO_PID = 0x0101
TABLES_EVERY = 45_000
"""Ticks after which the tables are repeated, beside those before each key picture."""
PCR_LEAD = 9_000
"""Ticks by which the clock runs ahead of the timestamps: what a receiver may buffer."""

_PROGRAM = 1
_H264, _PRIVATE_DATA = 0x1B, 0x06
_VIDEO_ID, _PRIVATE_STREAM_1 = 0xE0, 0xBD
_MAX_PES_LENGTH = 0xFFFF
_DELIMITER = b"\x00\x00\x00\x01\x09\xf0"
_DISCONTINUITY, _RANDOM_ACCESS, _PCR = 0x80, 0x40, 0x10


class TsMuxer:
    """One segment. It begins with its tables, and every PID's first packet is marked as a discontinuity.

    Give it a key picture first, or sound where there are no pictures. Timestamps are taken as they are,
    so they run on from one segment to the next.
    """

    def __init__(self, video: VideoParameters | None, audio: AudioParameters | None) -> None:
        if video is None and audio is None:
            raise ValueError("a segment needs pictures or sound")
        self._clock_pid = AUDIO_PID if video is None else VIDEO_PID
        self._tables = (
            (PAT_PID, build_pat([(_PROGRAM, PMT_PID)])),
            (PMT_PID, build_pmt(_PROGRAM, self._clock_pid, _streams_of(video, audio))),
        )
        self._pids = {"video": VIDEO_PID} if video is not None else {}
        if audio is not None:
            self._pids["audio"] = AUDIO_PID
        self._counters: dict[int, int] = {}
        self._tables_at: int | None = None

    def mux(self, unit: EncodedUnit) -> bytes:
        """The packets of one unit, with the tables before it where they are due.

        Raises `ValueError` for a kind that was not declared.
        """
        pid = self._pids.get(unit.kind)
        if pid is None:
            raise ValueError(f"this segment was declared without {unit.kind}")
        tables = b""
        leads = pid == self._clock_pid
        due = self._tables_at is None or (leads and unit.pts - self._tables_at >= TABLES_EVERY)
        if due or (unit.kind == "video" and unit.key):
            self._tables_at = unit.pts
            tables = b"".join(self._table(table_pid, section) for table_pid, section in self._tables)
        flags = _RANDOM_ACCESS if unit.key else 0
        clock = unit.pts - PCR_LEAD if leads else None
        return tables + self._packets(pid, _pes_of(unit), flags, clock)

    def close(self) -> bytes:
        """What is left to write at the segment's end: nothing, since nothing is held."""
        return b""

    def _counter(self, pid: int) -> tuple[int, int]:
        """The next continuity counter, and the discontinuity flag that the first packet carries."""
        first = pid not in self._counters
        counter = self._counters.get(pid, 0)
        self._counters[pid] = (counter + 1) & 15
        return counter, _DISCONTINUITY if first else 0

    def _table(self, pid: int, section: bytes) -> bytes:
        counter, flags = self._counter(pid)
        payload = b"\x00" + section
        adaptation = _adaptation(flags, None) if flags else b""
        head = bytes((0x47, 0x40 | pid >> 8, pid & 0xFF, (0x30 if adaptation else 0x10) | counter))
        return (head + adaptation + payload).ljust(PACKET, b"\xff")

    def _packets(self, pid: int, pes: bytes, flags: int, clock: int | None) -> bytes:
        counter, discontinuity = self._counter(pid)
        adaptation = _adaptation(flags | discontinuity, clock)
        room = PAYLOAD - len(adaptation)
        packets = [_packet(pid, True, counter, adaptation, pes[:room])]
        count = max(0, len(pes) - room) // PAYLOAD
        if count:
            packets.append(run_of(pid, counter, pes[room : room + count * PAYLOAD], count))
            counter = (counter + count) & 15
        rest = pes[room + count * PAYLOAD :]
        if rest:
            counter = (counter + 1) & 15
            packets.append(_packet(pid, False, counter, b"", rest))
        self._counters[pid] = (counter + 1) & 15
        return b"".join(packets)


def _adaptation(flags: int, clock: int | None) -> bytes:
    """An adaptation field (2.4.3.4), empty where it would say nothing; ``clock`` counts 1/90000 s."""
    if clock is not None:
        flags |= _PCR
        base = clock % (1 << 33)
        return bytes((7, flags)) + (base << 15 | 0x7E00).to_bytes(6, "big")
    return bytes((1, flags)) if flags else b""


def _packet(pid: int, starts: bool, counter: int, adaptation: bytes, payload: bytes) -> bytes:
    """One packet whose adaptation field is stuffed so that the payload ends with it."""
    missing = PAYLOAD - len(adaptation) - len(payload)
    if missing and not adaptation:
        adaptation = b"\x00" if missing == 1 else bytes((missing - 1, 0)) + b"\xff" * (missing - 2)
    elif missing:
        adaptation = bytes((adaptation[0] + missing,)) + adaptation[1:] + b"\xff" * missing
    control = (0x30 if adaptation else 0x10) | counter
    return bytes((0x47, (0x40 if starts else 0) | pid >> 8, pid & 0xFF, control)) + adaptation + payload


def _pes_of(unit: EncodedUnit) -> bytes:
    data = unit.data
    if unit.kind == "video":
        stream_id = _VIDEO_ID
        # H.264 in a transport stream needs an access unit delimiter (2.14.1).
        if data[:5] not in (b"\x00\x00\x00\x01\x09", b"\x00\x00\x01\x09\xf0"):
            data = _DELIMITER + data
    else:
        stream_id = _PRIVATE_STREAM_1
        data = b"\x7f\xe0" + b"\xff" * (len(data) // 255) + bytes((len(data) % 255,)) + data
    optional = b"\x84\x80\x05" + packed_timestamp(2, unit.pts)
    length = len(optional) + len(data)
    # A length lets a receiver end the unit at once; pictures too large for the field go without.
    announced = length if length <= _MAX_PES_LENGTH else 0
    return b"\x00\x00\x01" + bytes((stream_id,)) + announced.to_bytes(2, "big") + optional + data


def _streams_of(video: VideoParameters | None, audio: AudioParameters | None) -> list[ElementaryStream]:
    streams = []
    if video is not None:
        streams.append(ElementaryStream(_H264, VIDEO_PID))
    if audio is not None:
        # Registration descriptor, then the extension descriptor with the channel configuration.
        descriptors = b"\x05\x04Opus\x7f\x02\x80" + bytes((audio.channels,))
        streams.append(ElementaryStream(_PRIVATE_DATA, AUDIO_PID, descriptors))
    return streams
