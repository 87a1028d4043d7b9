"""From the payloads of PES packets to single access units, codec by codec. Pure.

A framer is told each payload with its times and answers with what it holds: pictures, ADTS frames or Opus
packets. Times count 1/90000 s and are unwrapped already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

OPUS_RATE = 48_000
_TICKS = 90_000
_DEFAULT_FRAME = 3_000
_ADTS_HEADER = 7
_ADTS_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_START_CODE = b"\x00\x00\x01"


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes of one access unit with its times."""

    data: bytes
    pts: int
    dts: int
    key: bool = True


class Framer(Protocol):
    """Splits the payloads of one track's PES packets."""

    skipped: int
    """Bytes that belong to no access unit."""

    def split(self, payload: bytes, pts: int | None, dts: int | None) -> list[Piece]:
        """The access units that this payload completes. Without times they run on from the last ones."""
        ...

    def reset(self) -> None:
        """Data was lost: forget what has begun."""
        ...


class PictureFramer:
    """H.264 (ITU-T H.264, annex B) or HEVC: one picture a PES packet, or several with delimiters between."""

    def __init__(self, codec: str) -> None:
        self._hevc = codec == "hevc"
        self._delimiter = b"\x00\x00\x01\x46" if self._hevc else b"\x00\x00\x01\x09"
        self._last_dts: int | None = None
        self._step = _DEFAULT_FRAME
        self.skipped = 0

    def split(self, payload: bytes, pts: int | None, dts: int | None) -> list[Piece]:
        if pts is None:
            pts = dts = 0 if self._last_dts is None else self._last_dts + self._step
        if dts is None:
            dts = pts
        if self._last_dts is not None and 0 < dts - self._last_dts < _TICKS:
            self._step = dts - self._last_dts
        pieces = []
        for index, data in enumerate(self._pictures(payload)):
            shift = index * self._step
            self._last_dts = dts + shift
            pieces.append(Piece(data, pts + shift, dts + shift, self._is_key(data)))
        return pieces

    def reset(self) -> None:
        """Nothing is held between payloads."""

    def _pictures(self, payload: bytes) -> list[bytes]:
        if not payload:
            return []
        begin, pictures = 0, []
        # The first delimiter is within the first five bytes; any other begins another picture.
        position = payload.find(self._delimiter, 5)
        while position >= 0:
            if payload[position - 1] == 0:
                position -= 1
            pictures.append(payload[begin:position])
            begin = position
            position = payload.find(self._delimiter, position + 5)
        pictures.append(payload[begin:] if begin else payload)
        return pictures

    def _is_key(self, data: bytes) -> bool:
        """Whether its first slice is of a picture that decoding can begin with (IDR; IRAP in HEVC)."""
        position = data.find(_START_CODE)
        while 0 <= position < len(data) - 3:
            header = data[position + 3]
            kind = header >> 1 & 0x3F if self._hevc else header & 0x1F
            if self._hevc and kind < 32:
                return 16 <= kind <= 21
            if not self._hevc and 1 <= kind <= 5:
                return kind == 5
            position = data.find(_START_CODE, position + 3)
        return False


class AdtsFramer:
    """AAC in ADTS (ISO/IEC 13818-7, 6.2): whole frames, also where they cross PES packets."""

    def __init__(self) -> None:
        self._rest = b""
        self._base = 0
        self._samples = 0
        self._rate = OPUS_RATE
        self.skipped = 0

    def reset(self) -> None:
        self._rest = b""

    def split(self, payload: bytes, pts: int | None, dts: int | None) -> list[Piece]:
        held, data = len(self._rest), self._rest + payload
        position, pieces = 0, []
        while len(data) - position >= _ADTS_HEADER:
            length = _adts_length(data, position)
            if length == 0:
                found = data.find(b"\xff", position + 1)
                found = len(data) if found < 0 else found
                self.skipped += found - position
                position = found
                continue
            if position + length > len(data):
                break
            # A PES packet's time is that of the first frame that begins in it.
            if pts is not None and position >= held:
                self._base, self._samples, pts = pts, 0, None
            pieces.append(self._piece(data[position : position + length]))
            position += length
        self._rest = data[position:]
        if pts is not None and self._rest and position >= held:
            self._base, self._samples = pts, 0
        return pieces

    def _piece(self, frame: bytes) -> Piece:
        rate = _ADTS_RATES[frame[2] >> 2 & 0x0F]
        if rate != self._rate:
            self._base, self._samples, self._rate = self._time(), 0, rate
        time = self._time()
        self._samples += 1024 * ((frame[6] & 0x03) + 1)
        return Piece(frame, time, time)

    def _time(self) -> int:
        return self._base + (self._samples * _TICKS + self._rate // 2) // self._rate


def _adts_length(data: bytes, position: int) -> int:
    """Bytes of the ADTS frame at ``position``, 0 where there is none."""
    if data[position] != 0xFF or data[position + 1] & 0xF6 != 0xF0:
        return 0
    if data[position + 2] >> 2 & 0x0F >= len(_ADTS_RATES):
        return 0
    length = (data[position + 3] & 0x03) << 11 | data[position + 4] << 3 | data[position + 5] >> 5
    return length if length >= _ADTS_HEADER else 0


class OpusFramer:
    """Opus in MPEG-TS (the Opus project's mapping): control headers taken off, packets apart."""

    def __init__(self) -> None:
        self._next = 0
        self.skipped = 0

    def reset(self) -> None:
        """Nothing is held between payloads."""

    def split(self, payload: bytes, pts: int | None, dts: int | None) -> list[Piece]:
        time = self._next if pts is None else pts
        pieces = []
        for packet in self._packets(payload):
            pieces.append(Piece(packet, time, time))
            time += opus_samples(packet) * _TICKS // OPUS_RATE
        self._next = time
        return pieces

    def _packets(self, payload: bytes) -> list[bytes]:
        if not _has_control_header(payload, 0):
            return [payload] if payload else []
        packets, position = [], 0
        while _has_control_header(payload, position):
            flags = payload[position + 1]
            position += 2
            size = 0
            while position < len(payload):
                size += payload[position]
                position += 1
                if payload[position - 1] != 0xFF:
                    break
            position += 2 * bool(flags & 0x10) + 2 * bool(flags & 0x08)
            if flags & 0x04 and position < len(payload):
                position += 1 + payload[position]
            if not size or position + size > len(payload):
                break
            packets.append(payload[position : position + size])
            position += size
        self.skipped += max(0, len(payload) - position)
        return packets


def _has_control_header(payload: bytes, position: int) -> bool:
    """Eleven bits 0x3FF: opus_control_header's prefix."""
    return position + 2 < len(payload) and payload[position] == 0x7F and payload[position + 1] & 0xE0 == 0xE0


def opus_samples(packet: bytes) -> int:
    """Length of an Opus packet in samples of 48 kHz (RFC 6716, 3.1)."""
    configuration, code = packet[0] >> 3, packet[0] & 0x03
    if configuration < 12:
        frame = (480, 960, 1920, 2880)[configuration & 3]
    elif configuration < 16:
        frame = (480, 960)[configuration & 1]
    else:
        frame = (120, 240, 480, 960)[configuration & 3]
    if code == 3:
        return frame * (packet[1] & 0x3F) if len(packet) > 1 else 0
    return frame * (1, 2, 2)[code]


def framer_of(codec: str) -> Framer:
    """A fresh framer for ``h264``, ``hevc``, ``aac`` or ``opus``."""
    if codec == "aac":
        return AdtsFramer()
    return OpusFramer() if codec == "opus" else PictureFramer(codec)
