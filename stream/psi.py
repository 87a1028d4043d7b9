"""Program specific information of MPEG-TS: which PID carries what (ISO/IEC 13818-1, 2.4.4).

Pure functions on bytes, and one small assembler of sections. What does not parse is None, never an error.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

PAT_PID = 0x0000
NULL_PID = 0x1FFF
MAX_SECTION = 1024

_PAT_TABLE = 0x00
_PMT_TABLE = 0x02
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


@dataclass(frozen=True, slots=True)
class ElementaryStream:
    """One entry of a program map: what the stream is, its PID and its raw descriptors."""

    stream_type: int
    pid: int
    descriptors: bytes = b""

    def descriptor(self, tag: int) -> bytes | None:
        """The body of the first descriptor with that tag."""
        position, data = 0, self.descriptors
        while position + 2 <= len(data):
            length = data[position + 1]
            if data[position] == tag:
                return data[position + 2 : position + 2 + length]
            position += 2 + length
        return None


class SectionAssembler:
    """Puts sections together from the payloads of one PID's packets."""

    def __init__(self) -> None:
        self._buffer = b""

    def reset(self) -> None:
        """Forget a section that has begun."""
        self._buffer = b""

    def feed(self, payload: bytes, starts: bool) -> list[bytes]:
        """The sections that this payload completes; ``starts``: payload_unit_start_indicator is set."""
        if not starts:
            if not self._buffer:
                return []
            self._buffer += payload
            return self._take()
        if not payload or 1 + payload[0] > len(payload):
            self._buffer = b""
            return []
        pointer = payload[0]
        sections: list[bytes] = []
        if self._buffer:
            self._buffer += payload[1 : 1 + pointer]
            sections = self._take()
        self._buffer = payload[1 + pointer :]
        return sections + self._take()

    def _take(self) -> list[bytes]:
        sections: list[bytes] = []
        while len(self._buffer) >= 3 and self._buffer[0] != 0xFF:
            length = 3 + ((self._buffer[1] & 0x0F) << 8 | self._buffer[2])
            if length > MAX_SECTION:
                break
            if len(self._buffer) < length:
                return sections
            sections.append(self._buffer[:length])
            self._buffer = self._buffer[length:]
        if len(self._buffer) >= 3 or self._buffer[:1] == b"\xff":
            self._buffer = b""
        return sections


def crc_is_right(section: bytes) -> bool:
    """Whether the CRC_32 at a section's end fits (annex A: polynomial 0x04C11DB7)."""
    # zlib knows the mirrored CRC; over mirrored bytes both are the same, and a right one leaves zero behind.
    return zlib.crc32(section.translate(_REVERSED_BITS)) == 0xFFFFFFFF


def parse_pat(section: bytes) -> list[tuple[int, int]] | None:
    """(program number, PID of its map) in the table's order; None when it is no valid, current table."""
    body = _body(section, _PAT_TABLE)
    if body is None:
        return None
    programs = []
    for position in range(0, len(body) - 3, 4):
        number = body[position] << 8 | body[position + 1]
        pid = (body[position + 2] & 0x1F) << 8 | body[position + 3]
        if number and pid not in (PAT_PID, NULL_PID):
            programs.append((number, pid))
    return programs


def parse_pmt(section: bytes) -> tuple[int, list[ElementaryStream]] | None:
    """Program number and its streams; None when it is no valid, current table."""
    body = _body(section, _PMT_TABLE)
    if body is None or len(body) < 4:
        return None
    number = section[3] << 8 | section[4]
    position = 4 + ((body[2] & 0x0F) << 8 | body[3])
    streams = []
    while position + 5 <= len(body):
        pid = (body[position + 1] & 0x1F) << 8 | body[position + 2]
        length = (body[position + 3] & 0x0F) << 8 | body[position + 4]
        streams.append(ElementaryStream(body[position], pid, body[position + 5 : position + 5 + length]))
        position += 5 + length
    return number, streams


def build_pat(programs: Sequence[tuple[int, int]]) -> bytes:
    """A program association section."""
    body = b"".join(number.to_bytes(2, "big") + (0xE000 | pid).to_bytes(2, "big") for number, pid in programs)
    return _section(_PAT_TABLE, 1, body)


def build_pmt(program: int, pcr_pid: int, streams: Sequence[ElementaryStream]) -> bytes:
    """A program map section without program descriptors."""
    body = (0xE000 | pcr_pid).to_bytes(2, "big") + b"\xf0\x00"
    for stream in streams:
        body += bytes((stream.stream_type,)) + (0xE000 | stream.pid).to_bytes(2, "big")
        body += (0xF000 | len(stream.descriptors)).to_bytes(2, "big") + stream.descriptors
    return _section(_PMT_TABLE, program, body)


def _body(section: bytes, table: int) -> bytes | None:
    """What lies between the eight bytes of a long section's header and its CRC."""
    valid = (
        len(section) >= 12
        and section[0] == table
        and section[1] & 0x80
        and section[5] & 0x01  # current_next_indicator
        and crc_is_right(section)
    )
    return section[8:-4] if valid else None


def _section(table: int, identifier: int, body: bytes) -> bytes:
    head = bytes((table,)) + (0xB000 | len(body) + 9).to_bytes(2, "big")
    head += identifier.to_bytes(2, "big") + b"\xc1\x00\x00"
    mirrored = zlib.crc32((head + body).translate(_REVERSED_BITS)) ^ 0xFFFFFFFF
    return head + body + int(f"{mirrored:032b}"[::-1], 2).to_bytes(4, "big")
