"""What came out of a worker: every published frame with its number and when its last byte arrived."""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import av

from byoc.mock import barcode
from byoc.mock.clip import access_units


@dataclass(frozen=True, slots=True)
class Arrival:
    """Bytes of one read, and `time.monotonic_ns` after it."""

    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Output:
    """One published frame; ``number`` is None where no barcode was legible (an overlay over it)."""

    at: int
    pts: int
    number: int | None
    inverted: bool


def outputs(segments: Sequence[Sequence[Arrival]]) -> list[Output]:
    """Decode the published segments and join each frame with its arrival, in the order of arrival.

    Each segment is decoded by itself, as a viewer who joins there would, so one that does not begin with a
    key frame loses pictures here.
    """
    return [output for segment in segments for output in _segment(segment)]


def _segment(arrivals: Sequence[Arrival]) -> list[Output]:
    data = b"".join(arrival.data for arrival in arrivals)
    ends: list[int] = []
    for arrival in arrivals:
        ends.append((ends[-1] if ends else 0) + len(arrival.data))
    found: list[Output] = []
    with av.open(io.BytesIO(data), "r", format="mpegts") as source:
        video = source.streams.video[0]
        arrived = {
            unit.pts: arrivals[bisect.bisect_left(ends, unit.end)].at for unit in access_units(data, video.id)
        }
        for frame in source.decode(video):
            if frame.pts is None or frame.pts not in arrived:
                continue
            mark = barcode.read(frame.to_ndarray(format="gray"))
            found.append(
                Output(
                    arrived[frame.pts],
                    frame.pts,
                    mark.number if mark else None,
                    mark is not None and mark.inverted,
                )
            )
    return found


def longest_gap(times: Sequence[int]) -> float:
    """Seconds between the two neighbours that lie furthest apart."""
    return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0) / 1e9
