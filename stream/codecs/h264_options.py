"""What x264 and NVENC are told, and what is read from and written to their parameter sets."""

from __future__ import annotations

import os

TRICKLE_QUALITY = 23
"""x264's own default: a picture that stands still does not cost the bits of one that moves."""


def x264_options(preset: str, profile: str, ceiling: int, buffer: int, quality: int = 0) -> dict[str, str]:
    """Constant bitrate, the one mode in which x264 takes a new rate while it runs: up to ``ceiling`` (bits/s)
    as opened. The size of its ``buffer`` (bits) stays. With a ``quality`` (x264's constant rate factor) no
    more is spent than that takes, within the same limits."""
    return {
        **({"crf": str(quality)} if quality else {}),
        "preset": preset,
        "tune": "zerolatency",
        "profile": profile.removeprefix("constrained_"),
        "maxrate": str(ceiling),
        "bufsize": str(buffer),
        "forced-idr": "1",
        "sc_threshold": "0",
        "a53cc": "0",
    }


def nvenc_options(profile: str, buffer: int) -> dict[str, str]:
    """Constant bitrate, which NVENC changes while it runs, with a ``buffer`` of so many bits."""
    return {
        "preset": "p4",
        "tune": "ull",
        "profile": profile.removeprefix("constrained_"),
        "rc": "cbr",
        "bufsize": str(buffer),
        "bf": "0",
        "delay": "0",
        "zerolatency": "1",
        "rc-lookahead": "0",
        "no-scenecut": "1",
        "forced-idr": "1",
        "a53cc": "0",
    }


def threads_for(width: int, height: int) -> int:
    """One thread up to 720p, which costs the least; slices in parallel above, where one would be late."""
    if width * height <= 1280 * 720:
        return 1
    return min(4 if width * height <= 1920 * 1088 else 8, os.cpu_count() or 1)


def constrained(data: bytes) -> bytes:
    """The SPS with the flags of constrained baseline (7.4.2.1.1: sets 0 and 1); its pictures keep to it."""
    position = data.find(b"\x00\x00\x01")
    while 0 <= position < len(data) - 6:
        if data[position + 3] & 0x1F == 7:
            flags = data[position + 5] | 0xC0
            return data[: position + 5] + bytes((flags,)) + data[position + 6 :]
        position = data.find(b"\x00\x00\x01", position + 3)
    return data


def parameter_sets(data: bytes) -> bytes:
    """The SPS and PPS that a key picture begins with, in Annex B."""
    units = data.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").split(b"\x00\x00\x01")
    return b"".join(b"\x00\x00\x00\x01" + unit for unit in units if unit and unit[0] & 0x1F in (7, 8))
