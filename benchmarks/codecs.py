"""What demuxing, decoding, scaling, converting and encoding cost, and the delay that they add.

    python benchmarks/codecs.py [--frames 120] [--no-latency]

One thread, software codecs. Times are milliseconds of wall clock a frame. The last table feeds a transport
stream at its own pace into this project's demuxer and decoder, and through a pipe into FFmpeg's, and gives
the time from a frame's last byte written to the frame in hand.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np

from stream.codecs.convert import Converter
from stream.codecs.mpegts_muxer import TsMuxer
from stream.codecs.video_decoder import VideoDecoder
from stream.codecs.video_encoder import VideoEncoder, VideoEncoderSettings
from stream.frames import Picture
from stream.mpegts import TsDemuxer
from stream.units import TS_TIME_BASE, EncodedUnit

SIZES = ((512, 512), (1280, 720))
FPS = 30
TICKS = 90_000 // FPS
START = 90_000


def pictures(count: int, width: int, height: int) -> Iterator[Picture]:
    """A textured picture that pans, with noise: not easy, not absurd."""
    rng = np.random.default_rng(0)
    base: Any = rng.integers(0, 255, (height + 256, width + 256)).astype(np.float32)
    for _ in range(3):
        base = (base + np.roll(base, 1, 0) + np.roll(base, 1, 1) + np.roll(base, (1, 1), (0, 1))) / 4
    base = (base - base.mean()) * 2 + 120
    y, x = np.mgrid[0 : height // 2, 0 : width // 2]
    for index in range(count):
        top, left = index * 2 % 256, index * 3 % 256
        luma = base[top : top + height, left : left + width] + rng.normal(0, 1.5, (height, width))
        chroma = [((x + y * k + index * 2) % 160 + 48).astype(np.uint8) for k in (0, 1)]
        yield Picture("yuv420p", width, height, (luma.clip(16, 235).astype(np.uint8), *chroma), "bt709")


def encoded(count: int, width: int, height: int, bitrate: int) -> list[EncodedUnit]:
    settings = VideoEncoderSettings(hardware="off", bitrate=bitrate)
    encoder = VideoEncoder(settings, width, height, matrix="bt709")
    return [
        unit
        for index, picture in enumerate(pictures(count, width, height))
        for unit in encoder.encode(picture, START + index * TICKS)
    ]


def ffmpeg_ts(units: list[EncodedUnit], width: int, height: int) -> list[bytes]:
    """The stream as FFmpeg's multiplexer writes it, cut after each picture."""
    target = io.BytesIO()
    parts: list[bytes] = []
    container = av.open(target, "w", format="mpegts", options={"flush_packets": "1"})
    stream: Any = container.add_mux_stream("h264", width=width, height=height)
    stream.time_base = TS_TIME_BASE
    for unit in units:
        packet = av.Packet(unit.data)
        packet.pts = packet.dts = unit.pts
        packet.time_base, packet.is_keyframe, packet.stream = TS_TIME_BASE, unit.key, stream
        container.mux(packet)
        parts.append(target.getvalue()[sum(map(len, parts)) :])
    container.close()
    return parts


def row(*cells: object) -> None:
    first, *rest = cells
    print(f"{first!s:<44}" + "".join(f"{cell!s:>14}" for cell in rest))


def spread(seconds: list[float]) -> tuple[str, str]:
    values = np.array(seconds) * 1000
    return f"{np.percentile(values, 50):.2f}", f"{np.percentile(values, 95):.2f}"


def timed(times: list[tuple[float, float]], function: Callable[..., Any], *arguments: Any) -> Any:
    """Notes wall clock and this thread's own time."""
    begin, own = time.perf_counter(), time.thread_time()
    result = function(*arguments)
    times.append((time.perf_counter() - begin, time.thread_time() - own))
    return result


def demuxing() -> None:
    units = encoded(90, 1280, 720, 20_000_000)
    data = b"".join(ffmpeg_ts(units, 1280, 720))
    seconds = len(units) / FPS
    row("demuxing", "MB/s", "Mbit/s", "% of a core")
    for chunk in (1316, 16_384, 262_144):
        best = min(_demux(data, chunk) for _ in range(5))
        rate = len(data) * 8 / seconds / 1e6
        row(
            f"  in pieces of {chunk} bytes",
            f"{len(data) / best / 1e6:.0f}",
            f"{rate:.1f}",
            f"{best / seconds:.1%}",
        )
    print()


def _demux(data: bytes, chunk: int) -> float:
    demuxer, found = TsDemuxer(), 0
    begin = time.process_time()
    for at in range(0, len(data), chunk):
        found += len(demuxer.feed(data[at : at + chunk], 1))
    assert found >= 89
    return time.process_time() - begin


def stages(count: int) -> None:
    for width, height in SIZES:
        times: dict[str, list[tuple[float, float]]] = {}
        decoder, converter = VideoDecoder("h264", hardware="off"), Converter()
        encoder = VideoEncoder(VideoEncoderSettings(hardware="off"), width, height, matrix="bt709")
        muxer, demuxer = TsMuxer(encoder.parameters, None), TsDemuxer()
        source = encoded(count, width, height, 4_000_000)
        for part in ffmpeg_ts(source, width, height):
            for unit in timed(times.setdefault("demux", []), demuxer.feed, part, 1):
                for frame in timed(times.setdefault("decode", []), decoder.decode, unit):
                    picture = frame.picture
                    target = (512, 512) if (width, height) != (512, 512) else (384, 384)
                    name = f"scale to {target[0]}x{target[1]}, cropped"
                    timed(times.setdefault(name, []), converter.scale, picture, *target)
                    rgb = timed(times.setdefault("to RGB", []), picture.rgb)
                    back = Picture.from_rgb(rgb)
                    timed(times.setdefault("from RGB", []), converter.to_yuv420p, back, "bt709", False)
                    coded = timed(
                        times.setdefault("encode (superfast, 3 Mbit/s)", []),
                        encoder.encode,
                        picture,
                        frame.timestamp,
                    )
                    for each in coded:
                        timed(times.setdefault("mux", []), muxer.mux, each)
        row(f"{width}x{height}, ms a frame", "p50", "p95", "p50 of CPU")
        for name, values in times.items():
            wall, own = zip(*values[5:], strict=True)
            row(f"  {name}", *spread(list(wall)), spread(list(own))[0])
        print()


def delay_here(parts: list[bytes]) -> list[float]:
    demuxer, decoder = TsDemuxer(), VideoDecoder("h264", hardware="off")
    written: dict[int, float] = {}
    delays = []
    for index, part in enumerate(_paced(parts)):
        written[START + index * TICKS] = time.perf_counter()
        for unit in demuxer.feed(part, time.monotonic_ns()):
            for frame in decoder.decode(unit):
                delays.append(time.perf_counter() - written[frame.timestamp])
    return delays


def delay_through_a_pipe(parts: list[bytes], options: dict[str, str], threads: int) -> list[float]:
    reader, writer = os.pipe()
    written: dict[int, float] = {}
    thread = threading.Thread(target=_feed, args=(writer, parts, written), daemon=True)
    thread.start()
    delays = []
    with (
        open(reader, "rb", buffering=0) as pipe,
        av.open(pipe, "r", format="mpegts", options=options) as container,
    ):
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO" if threads != 1 else "NONE", threads
        for frame in container.decode(stream):
            assert frame.pts is not None
            delays.append(time.perf_counter() - written[frame.pts])
    thread.join()
    return delays


def _feed(writer: int, parts: list[bytes], written: dict[int, float]) -> None:
    with open(writer, "wb", buffering=0) as pipe:
        for index, part in enumerate(_paced(parts)):
            pipe.write(part)
            written[START + index * TICKS] = time.perf_counter()


def _paced(parts: list[bytes]) -> Iterator[bytes]:
    begin = time.perf_counter()
    for index, part in enumerate(parts):
        wait = begin + index / FPS - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        yield part


def latency(count: int) -> None:
    row(f"added delay at {FPS} fps, ms a frame", "p50", "p95", "frames")
    ways: dict[str, Callable[[list[bytes]], list[float]]] = {
        "this demuxer, one-thread decoder": delay_here,
        "av.open on a pipe": lambda parts: delay_through_a_pipe(parts, {}, 0),
        "  one thread": lambda parts: delay_through_a_pipe(parts, {}, 1),
        "  one thread, nobuffer, low_delay": lambda parts: delay_through_a_pipe(
            parts, {"fflags": "nobuffer", "flags": "low_delay", "probesize": "32768"}, 1
        ),
    }
    for width, height in SIZES:
        parts = ffmpeg_ts(encoded(count, width, height, 3_000_000), width, height)
        print(f"  {width}x{height}")
        for name, measure in ways.items():
            delays = measure(parts)
            # The second half: FFmpeg looks at the first seconds before it gives anything out.
            row(f"    {name}", *spread(delays[len(delays) // 2 :]), f"{len(delays)} of {count}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--no-latency", action="store_true")
    options = parser.parse_args()
    print(f"PyAV {av.__version__}, {os.cpu_count()} processors, {FPS} fps\n")
    demuxing()
    stages(options.frames)
    if not options.no_latency:
        latency(options.frames)


if __name__ == "__main__":
    main()
