"""What PES headers and adaptation fields of transport packets say (ISO/IEC 13818-1, 2.4.3). Pure."""

from __future__ import annotations

HEADER = 9
"""Bytes of a PES header before its optional fields."""
WRAP = 1 << 33
"""Where timestamps wrap round."""

# Stream ids without the optional header (table 2-21): maps, padding, private_stream_2, ECM...
_HEADERLESS = frozenset((0xBC, 0xBE, 0xBF, 0xF0, 0xF1, 0xF2, 0xF8, 0xFF))


def is_stuffed(packet: bytes, length: int) -> bool:
    """Whether an adaptation field of that length holds bytes that mean nothing (2.4.3.4)."""
    if length == 0:
        return True
    flags = packet[5]
    if flags == 0:
        return True
    used = 1 + 6 * bool(flags & 0x10) + 6 * bool(flags & 0x08) + bool(flags & 0x04)
    for flag in (0x02, 0x01):
        if flags & flag and used < length:
            used += 1 + packet[5 + used]
    return used < length


def payload_start(packet: bytes) -> int | None:
    """Where the payload of a PES packet begins; None when its header is no MPEG-2 one (2.4.3.6)."""
    if len(packet) < HEADER or packet[3] in _HEADERLESS or packet[6] & 0xC0 != 0x80:
        return None
    start = HEADER + packet[8]
    return start if start <= len(packet) else None


def timestamps(packet: bytes) -> tuple[int, int] | None:
    """PTS and DTS as they stand in a PES header (33 bits, DTS the same where it is left out), or None."""
    flags = packet[7] >> 6
    if not flags & 2 or packet[8] < (10 if flags == 3 else 5):
        return None
    pts = _timestamp(packet, 9)
    return pts, _timestamp(packet, 14) if flags == 3 else pts


def unwrapped(raw: int, near: int) -> int:
    """The 33-bit ``raw`` as the value that lies nearest to ``near``."""
    return near + (raw - near + WRAP // 2) % WRAP - WRAP // 2


def packed_timestamp(prefix: int, time: int) -> bytes:
    """Five bytes of a PTS or DTS field; ``prefix`` is 2 for a PTS alone, 3 and 1 for PTS and DTS."""
    time %= WRAP
    return bytes(
        (
            prefix << 4 | time >> 29 & 0x0E | 1,
            time >> 22 & 0xFF,
            time >> 14 & 0xFE | 1,
            time >> 7 & 0xFF,
            time << 1 & 0xFE | 1,
        )
    )


def _timestamp(packet: bytes, at: int) -> int:
    return (
        (packet[at] >> 1 & 0x07) << 30
        | packet[at + 1] << 22
        | (packet[at + 2] >> 1) << 15
        | packet[at + 3] << 7
        | packet[at + 4] >> 1
    )
