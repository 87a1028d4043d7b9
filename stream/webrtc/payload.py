"""Access units to RTP payloads and back: H.264 (RFC 6184, packetization mode 1), VP8 (RFC 7741). Pure.

Opus needs nothing here: a packet is a payload (RFC 7587, 4.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

PAYLOAD_MAX = 1180
"""Bytes of a payload. With the headers of RTP, its extensions, SRTP, a retransmission, TURN, UDP and IPv6 a
packet stays within 1280 bytes, which every path carries (RFC 8200, 5)."""
MAX_PICTURE = 8 << 20
"""Bytes of one coded picture that are put together from payloads."""

_STAP_A = 24
_FU_A = 28
_START_CODE = b"\x00\x00\x00\x01"
_DELIMITER, _FILLER = 9, 12
_IDR, _SPS = 5, 7


class Malformed(ValueError):
    """A payload that its payload format does not allow, or one of a kind that was not negotiated."""


# -- H.264 ---------------------------------------------------------------------------------------------


def nal_units(data: bytes) -> Iterator[bytes]:
    """The NAL units of an Annex B byte stream (ITU-T H.264, B.1), without start codes and zero bytes."""
    position = data.find(b"\x00\x00\x01")
    while position >= 0:
        begin = position + 3
        position = data.find(b"\x00\x00\x01", begin)
        end = len(data) if position < 0 else position
        while end > begin and data[end - 1] == 0:
            end -= 1
        if end > begin:
            yield data[begin:end]


def packetise_h264(data: bytes, limit: int = PAYLOAD_MAX) -> list[bytes]:
    """The payloads of an access unit: small NAL units together (STAP-A), large ones in pieces (FU-A).

    Delimiters and filler data are left out: the marker bit and the timestamp say the same.
    """
    payloads: list[bytes] = []
    together: list[bytes] = []
    size = 1
    for unit in nal_units(data):
        if unit[0] & 0x1F in (_DELIMITER, _FILLER):
            continue
        if together and size + 2 + len(unit) > limit:
            payloads.append(_aggregated(together))
            together, size = [], 1
        if len(unit) > limit:
            payloads.extend(_fragments(unit, limit))
        else:
            together.append(unit)
            size += 2 + len(unit)
    if together:
        payloads.append(_aggregated(together))
    return payloads


def _aggregated(units: Sequence[bytes]) -> bytes:
    if len(units) == 1:
        return units[0]
    header = max(unit[0] & 0x60 for unit in units) | _STAP_A
    return bytes((header,)) + b"".join(len(unit).to_bytes(2, "big") + unit for unit in units)


def _fragments(unit: bytes, limit: int) -> list[bytes]:
    """Pieces of about the same size, so that none is so small that it costs more than it carries."""
    indicator, kind = unit[0] & 0xE0 | _FU_A, unit[0] & 0x1F
    body = len(unit) - 1
    count = -(-body // (limit - 2))
    bounds = [1 + body * index // count for index in range(count + 1)]
    pieces = []
    for index in range(count):
        edge = 0x80 if index == 0 else 0x40 if index == count - 1 else 0
        pieces.append(bytes((indicator, kind | edge)) + unit[bounds[index] : bounds[index + 1]])
    return pieces


def begins_h264(payload: bytes) -> bool:
    """Whether a picture may begin with this payload: anything but a later fragment."""
    if payload[0] & 0x1F != _FU_A:
        return True
    return len(payload) > 1 and bool(payload[1] & 0x80)


def depacketise_h264(payloads: Sequence[bytes]) -> bytes:
    """The access unit (Annex B) of the payloads of one timestamp, in order; raises `Malformed`."""
    parts: list[bytes] = []
    fragment: int | None = None
    for payload in payloads:
        if payload[0] & 0x80:
            raise Malformed("the forbidden bit of a NAL unit is set")
        kind = payload[0] & 0x1F
        if kind == _FU_A:
            fragment = _defragment(payload, fragment, parts)
            continue
        if fragment is not None:
            raise Malformed("a fragmented NAL unit has no end")
        if 1 <= kind <= 23:
            parts += (_START_CODE, payload)
        elif kind == _STAP_A:
            _disaggregate(payload, parts)
        else:
            raise Malformed(f"NAL units of type {kind} were not negotiated")
    if fragment is not None:
        raise Malformed("a fragmented NAL unit has no end")
    return b"".join(parts)


def _defragment(payload: bytes, fragment: int | None, parts: list[bytes]) -> int | None:
    """Take one FU-A; returns the type of the NAL unit that goes on, None when it is complete."""
    if len(payload) < 3:
        raise Malformed("a fragment is empty")
    flags, kind = payload[1] & 0xC0, payload[1] & 0x1F
    if not 1 <= kind <= 23:
        raise Malformed(f"a fragment of a NAL unit of type {kind}")
    if flags & 0x80:
        if fragment is not None:
            raise Malformed("a fragmented NAL unit has no end")
        parts += (_START_CODE, bytes((payload[0] & 0xE0 | kind,)))
    elif fragment != kind:
        raise Malformed("a fragment without the one before it")
    parts.append(payload[2:])
    return None if flags & 0x40 else kind


def _disaggregate(payload: bytes, parts: list[bytes]) -> None:
    position = 1
    if len(payload) < 4:
        raise Malformed("an aggregation packet is empty")
    while position < len(payload):
        size = int.from_bytes(payload[position : position + 2], "big")
        position += 2
        if not size or position + size > len(payload):
            raise Malformed("an aggregation packet is cut short")
        parts += (_START_CODE, payload[position : position + size])
        position += size


def h264_kinds(data: bytes) -> set[int]:
    """The types of the NAL units up to the first slice: where key pictures and parameter sets show."""
    kinds = set()
    position = data.find(b"\x00\x00\x01")
    while 0 <= position < len(data) - 3:
        kind = data[position + 3] & 0x1F
        kinds.add(kind)
        if 1 <= kind <= 5:
            break
        position = data.find(b"\x00\x00\x01", position + 3)
    return kinds


def is_key_h264(data: bytes) -> bool:
    """Whether decoding can begin with this access unit."""
    return _IDR in h264_kinds(data)


def with_parameter_sets(data: bytes, sets: bytes) -> bytes:
    """The access unit with ``sets`` (Annex B) before it, where a key picture comes without its own."""
    if not sets:
        return data
    kinds = h264_kinds(data)
    return sets + data if _IDR in kinds and _SPS not in kinds else data


# -- VP8 -----------------------------------------------------------------------------------------------


def packetise_vp8(data: bytes, limit: int = PAYLOAD_MAX) -> list[bytes]:
    """The payloads of a frame, each with the shortest descriptor: receivers go by sequence numbers then."""
    count = max(1, -(-len(data) // (limit - 1)))
    bounds = [len(data) * index // count for index in range(count + 1)]
    return [
        (b"\x00" if index else b"\x10") + data[bounds[index] : bounds[index + 1]] for index in range(count)
    ]


def _vp8_descriptor(payload: bytes) -> int:
    """Bytes of the payload descriptor (RFC 7741, 4.2)."""
    size = 1
    if payload[0] & 0x80:
        if len(payload) < 3:
            raise Malformed("a VP8 payload descriptor is cut short")
        extension = payload[1]
        size = 2
        if extension & 0x80:
            size += 2 if payload[2] & 0x80 else 1
        size += bool(extension & 0x40) + bool(extension & 0x30)
    if len(payload) <= size:
        raise Malformed("a VP8 payload is empty")
    return size


def begins_vp8(payload: bytes) -> bool:
    """Whether a frame begins with this payload: the start of partition 0."""
    return payload[0] & 0x17 == 0x10


def depacketise_vp8(payloads: Sequence[bytes]) -> bytes:
    """The frame of the payloads of one timestamp, in order; raises `Malformed`."""
    return b"".join(payload[_vp8_descriptor(payload) :] for payload in payloads)


def is_key_vp8(data: bytes) -> bool:
    """Whether the frame is a key frame (RFC 6386, 9.1)."""
    return bool(data) and not data[0] & 0x01
