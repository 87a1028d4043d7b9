"""Figures of one stream at the mock gateway: rates, latency, and what is wrong with its media."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import av

from byoc.mock.clip import CLOCK, START
from byoc.mock.outputs import Output, outputs
from byoc.mock.stream import GatewayStream, OutputSegment


@dataclass(frozen=True, slots=True)
class Measured:
    """Pictures that went in and came out, the rates a second, ms from a frame's last byte in to its last byte
    out (percentiles; none where frames could not be told apart), seconds of sound that came out, and the
    media's problems in words."""

    pictures_in: int
    pictures_out: int
    fps: float
    latency_ms: dict[int, float]
    first_output_ms: float | None
    sound_s: float
    problems: tuple[str, ...] = field(default=())

    def latency(self, percentile: int) -> float | None:
        return self.latency_ms.get(percentile)


def measured(stream: GatewayStream, *, fps_in: int = 30) -> Measured:
    """Decode what came back and compare it with what went in. Takes a while: call it in a thread.

    A frame is known by the number in its picture; where a processor has left none legible, by its time, which
    workers keep as it was.
    """
    problems: list[str] = []
    whole = [segment for segment in stream.segments if segment.reads]
    found = _pictures(whole, problems)
    sound = sum(_check(segment, problems) for segment in whole)
    times = sorted(output.at for output in found)
    span = (times[-1] - times[0]) / 1e9 if len(times) > 1 else 0.0
    latencies = sorted(_latencies(stream, found, fps_in))
    first_fed = min(stream.fed.values(), default=None)
    begun = stream.first_output
    return Measured(
        pictures_in=len(stream.fed),
        pictures_out=len(found),
        fps=(len(times) - 1) / span if span else 0.0,
        latency_ms={share: _percentile(latencies, share) / 1e6 for share in (50, 95, 99)}
        if latencies
        else {},
        first_output_ms=(begun - first_fed) / 1e6 if begun is not None and first_fed is not None else None,
        sound_s=sound,
        problems=tuple(problems),
    )


def _pictures(segments: Sequence[OutputSegment], problems: list[str]) -> list[Output]:
    found: list[Output] = []
    for segment in segments:
        try:
            found += outputs([segment.reads])
        except (av.FFmpegError, IndexError) as error:
            # IndexError: there is no picture in it.
            problems.append(f"output segment {segment.seq} cannot be decoded by itself: {error}")
    for before, after in pairwise(found):
        if after.pts <= before.pts:
            problems.append("the times of output pictures do not rise")
            break
    return found


def _check(segment: OutputSegment, problems: list[str]) -> float:
    """Seconds of sound in a segment; what a gateway or its viewers could not use becomes a problem."""
    try:
        with av.open(io.BytesIO(segment.data), "r", format="mpegts") as source:
            codecs = Counter(stream.codec_context.name for stream in source.streams if stream.codec_context)
            for name in codecs:
                if name not in ("h264", "opus", "libopus"):
                    problems.append(f"output is {name}; gateways take H.264 and Opus")
            heard = 0
            rate = 48_000
            for packet in source.demux():
                if packet.stream.type == "video" and packet.pts is not None:
                    if not packet.is_keyframe:
                        problems.append(f"output segment {segment.seq} does not begin with a key picture")
                    break
            source.seek(0)
            if source.streams.audio:
                for frame in source.decode(source.streams.audio[0]):
                    heard, rate = heard + frame.samples, frame.sample_rate
            return heard / rate
    except av.FFmpegError:
        return 0.0


def _latencies(stream: GatewayStream, found: Sequence[Output], fps_in: int) -> list[int]:
    seen: set[int] = set()
    latencies = []
    for output in found:
        number = output.number if output.number is not None else round((output.pts - START) * fps_in / CLOCK)
        fed = stream.fed.get(number)
        # A picture that is shown again has the same number.
        if fed is not None and number not in seen and output.at >= fed:
            seen.add(number)
            latencies.append(output.at - fed)
    return latencies


def _percentile(values: Sequence[int], share: int) -> float:
    return float(values[min(len(values) - 1, round(share / 100 * (len(values) - 1)))])
