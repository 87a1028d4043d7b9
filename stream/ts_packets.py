"""The packets of a transport stream (ISO/IEC 13818-1, 2.4.3), and those that only go on. Pure."""

from __future__ import annotations

import numpy as np

PACKET = 188
PAYLOAD = PACKET - 4
SYNC = 0x47

_LONGEST_RUN = 512
"""Packets that are looked at together."""
_FOLLOWING = bytes(0x10 | counter & 15 for counter in range(_LONGEST_RUN + 16))
"""The fourth bytes of packets that carry nothing but payload, as they follow one another."""


def run_at(data: bytes, position: int, needed: int) -> int:
    """How many packets go on with the one at ``position``, which counts and carries payload alone: the same
    PID, the next counter each, and nothing else; as many as hold the ``needed`` bytes at most."""
    stop = min(len(data), position + min(_LONGEST_RUN, -(-max(needed, 1) // PAYLOAD)) * PACKET) - PACKET + 1
    # Columns of bytes, because a step for each packet is what takes the time.
    for column in range(3):
        values = data[position + column : stop + column : PACKET]
        stop = position + (len(values) - len(values.lstrip(values[:1])) - 1) * PACKET + 1
    controls = data[position + 3 : stop + 3 : PACKET]
    expected = _FOLLOWING[controls[0] & 15 :]
    if not expected.startswith(controls):
        return next(index for index, control in enumerate(controls) if control != expected[index])
    return len(controls)


def run_of(pid: int, counter: int, payload: bytes, count: int) -> bytes:
    """``count`` packets after the one with ``counter``: they differ in their counters and payloads alone."""
    packets = np.empty((count, PACKET), np.uint8)
    packets[:, :3] = (SYNC, pid >> 8, pid & 0xFF)
    packets[:, 3] = (np.arange(counter + 1, counter + 1 + count) & 15) | 0x10
    packets[:, 4:] = np.frombuffer(payload, np.uint8).reshape(count, PAYLOAD)
    return packets.tobytes()
