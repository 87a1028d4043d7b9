"""What the codecs and pixel formats of a stream cost alone: FFmpeg's own command line on the same clip.

No worker can take less without another codec, so a ratio between two of them has its limit here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.measures import Bench
from benchmarks.workers import BenchmarkError
from byoc.mock import clip
from byoc.mock.clip import Recipe
from stream.codecs.audio_encoder import COMPLEXITY
from stream.codecs.h264_options import TRICKLE_QUALITY, x264_options
from stream.codecs.video_encoder import VideoEncoderSettings

HEAD_S = 2.0
"""Seconds of a second run, whose cost is taken off: what it takes to start and to end."""
PIXELS = "scale=flags=bilinear,format=rgb24,scale=flags=bilinear,format=yuv420p"
"""Both workers give a processor RGB and take RGB from it."""
KEYS = "expr:gte(t,n_forced*2)"


def floors(bench: Bench, recipe: Recipe) -> dict[str, float]:
    """Milliseconds of CPU time per frame with each worker's settings, fed as fast as frames are due."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise BenchmarkError("there is no ffmpeg to measure the codecs with")
    stream = bench.rig.new_file("floor.ts")
    segments = clip.cut(bench.rig.clip(recipe))
    stream.write_bytes(b"".join(chunk.data for segment in segments for chunk in segment))
    frames = (recipe.seconds - HEAD_S) * recipe.fps
    costs = {}
    for name, options in (("headrace", _ours()), ("pytrickle", _theirs())):
        whole, head = (_cpu_seconds(program, stream, options, end) for end in (recipe.seconds, HEAD_S))
        costs[name] = (whole - head) / frames * 1000
    return costs


def _ours() -> list[str]:
    settings = VideoEncoderSettings(quality=TRICKLE_QUALITY)
    buffer = round(settings.bitrate * settings.buffer)
    x264 = x264_options(settings.preset, settings.profile, settings.bitrate, buffer, settings.quality)
    options = [text for name, value in x264.items() for text in (f"-{name}:v", value)]
    opus = [text for name, value in COMPLEXITY.items() for text in (f"-{name}:a", value)]
    return [*options, "-bf:v", "0", "-threads:v", "1", "-b:a", "128k", *opus]


def _theirs() -> list[str]:
    """PyTrickle's encoder names these and leaves the rest to FFmpeg; its sound is mono."""
    return [
        "-preset:v",
        "superfast",
        "-tune:v",
        "zerolatency",
        "-bf:v",
        "0",
        "-forced-idr:v",
        "1",
        "-ac",
        "1",
    ]


def _cpu_seconds(program: str, source: Path, options: list[str], seconds: float) -> float:
    command = [
        program,
        "-v",
        "error",
        "-nostdin",
        "-threads",
        "1",
        "-re",
        "-i",
        str(source),
        "-t",
        f"{seconds:g}",
    ]
    command += ["-vf", PIXELS, "-c:v", "libx264", "-force_key_frames", KEYS, "-c:a", "libopus", *options]
    process = subprocess.Popen([*command, "-f", "mpegts", os.devnull, "-y"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BenchmarkError(f"ffmpeg ended with {process.returncode}: {said.strip()[-300:]}")
    return usage.ru_utime + usage.ru_stime
