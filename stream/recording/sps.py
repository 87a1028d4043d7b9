"""The sequence parameter set of H.264 (ITU-T H.264, 7.3.2.1.1), as far as a recording must know it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
_MAX_SIDE = 16_384


@dataclass(frozen=True, slots=True)
class SequenceParameters:
    """``width`` and ``height`` as shown, after cropping. ``coding`` is everything else that a decoder must be
    set up for; level, timing and bitrates, which encoders change as they go, are not in it."""

    width: int
    height: int
    profile: int
    coding: tuple[int, ...]


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = len(data) * 8
        self.read_values: list[int] = []

    def bits(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the parameter set is cut off")
        value = self._value >> self._left & (1 << count) - 1
        self.read_values.append(value)
        return value

    def unsigned(self) -> int:
        """Exponential-Golomb, ue(v) (9.1)."""
        zeros = 0
        while not self.bits(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("a number in the parameter set is too long")
        return (1 << zeros) - 1 + self.bits(zeros)

    def signed(self) -> int:
        """se(v)."""
        code = self.unsigned()
        return (code + 1) // 2 if code & 1 else -(code // 2)


def sequence_parameters(nal: bytes) -> SequenceParameters:
    """Read a NAL unit of type 7. Raises `ValueError` for one that cannot be."""
    if len(nal) < 5 or nal[0] & 0x1F != 7:
        raise ValueError("not a sequence parameter set")
    # Emulation prevention (7.4.1); the level, nal[3], is left out.
    bits = _Bits(nal[4:].replace(b"\x00\x00\x03", b"\x00\x00"))
    bits.unsigned()
    chroma, separate = 1, 0
    if nal[1] in _HIGH_PROFILES:
        chroma, separate = _high_profile(bits)
    bits.unsigned()
    _order_count(bits)
    bits.unsigned()
    bits.bits(1)
    columns, rows = bits.unsigned() + 1, bits.unsigned() + 1
    frames_only = bits.bits(1)
    if not frames_only:
        bits.bits(1)
    bits.bits(1)
    crop = [bits.unsigned() for _ in range(4)] if bits.bits(1) else [0, 0, 0, 0]
    unit_x = 2 if chroma in (1, 2) and not separate else 1
    unit_y = (2 if chroma == 1 and not separate else 1) * (2 - frames_only)
    width = columns * 16 - unit_x * (crop[0] + crop[1])
    height = rows * 16 * (2 - frames_only) - unit_y * (crop[2] + crop[3])
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        raise ValueError(f"a picture of {width}x{height}")
    return SequenceParameters(width, height, nal[1], tuple(bits.read_values))


def _high_profile(bits: _Bits) -> tuple[int, int]:
    """Chroma format and whether its planes are coded apart; bit depths and scaling lists are passed over."""
    chroma = bits.unsigned()
    separate = bits.bits(1) if chroma == 3 else 0
    bits.unsigned()
    bits.unsigned()
    bits.bits(1)
    if bits.bits(1):
        for index in range(12 if chroma == 3 else 8):
            if bits.bits(1):
                _scaling_list(bits, 16 if index < 6 else 64)
    return chroma, separate


def _scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed() + 256) % 256
        last = following or last


def _order_count(bits: _Bits) -> None:
    kind = bits.unsigned()
    if kind == 0:
        bits.unsigned()
    elif kind == 1:
        bits.bits(1)
        bits.signed()
        bits.signed()
        for _ in range(min(bits.unsigned(), 255)):
            bits.signed()
