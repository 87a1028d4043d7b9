"""How long it takes from a start to the first processed picture, when the input flows already."""

from __future__ import annotations

import asyncio
import contextlib
import time
import urllib.error
from collections.abc import Iterable, Sequence

import aiohttp
import av

from benchmarks import feed
from benchmarks.measures import Bench
from benchmarks.notes import Notes
from benchmarks.workers import BenchmarkError, Worker, request, running, trickle
from byoc.mock import clip
from byoc.mock.clip import Recipe
from byoc.mock.outputs import outputs

FLOWS_S = 2.6
"""Seconds for which the input has flowed when the stream is started."""
LIMIT_S = 20.0
LOOK_S = 0.1
SIZE = 512


def first_pictures(bench: Bench, worker: Worker, rounds: int) -> list[float]:
    """Milliseconds of each round; one process of ``worker`` serves them one after the other.

    A round without a picture counts as `LIMIT_S`, and is told in the report.
    """
    segments = clip.cut(bench.rig.clip(Recipe(SIZE, SIZE, seconds=LIMIT_S)))
    times = []
    with (
        bench.rig.trickle_server() as base,
        running(
            worker.name, worker.command, bench.rig.new_file(f"{worker.name}-start.log"), worker.environment
        ) as program,
    ):
        for number in range(rounds):
            worker.ready(program)
            channels = bench.rig.channels(base, f"{number}-")
            notes = bench.rig.new_file(f"{worker.name}-{number}-fed")
            try:
                times.append(asyncio.run(_first(worker, channels, segments, Notes(notes))))
            except BenchmarkError as error:
                bench.report.notes.append(f"c: {worker.name}, round {number + 1}: {error}; counted as that")
                times.append(LIMIT_S * 1000)
            request(f"{worker.url}/stream/stop", {})
            end_channels(channels.values())
    return times


def end_channels(urls: Iterable[str]) -> None:
    """Delete channels; what a worker has deleted itself is no error."""
    for url in urls:
        with contextlib.suppress(urllib.error.HTTPError):
            trickle("DELETE", url)


async def _first(
    worker: Worker, channels: dict[str, str], segments: Sequence[list[clip.Chunk]], fed: Notes
) -> float:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        recorder = feed.Recorder(session, channels["publish_url"])
        tasks = [
            asyncio.create_task(recorder.run()),
            asyncio.create_task(feed.publish(session, channels["subscribe_url"], segments, fed)),
        ]
        try:
            await asyncio.sleep(FLOWS_S)
            begun = time.monotonic_ns()
            await asyncio.to_thread(worker.start_stream, channels, SIZE, SIZE)
            arrived = await _processed(recorder)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            fed.close()
    return (arrived - begun) / 1e6


async def _processed(recorder: feed.Recorder) -> int:
    """When the last byte of the first processed picture came."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        await asyncio.sleep(LOOK_S)
        try:
            found = outputs([recorder.segments[seq] for seq in sorted(recorder.segments)])
        except (av.FFmpegError, IndexError):
            # Not yet enough to be decoded.
            continue
        processed = [output.at for output in found if output.inverted]
        if processed:
            return min(processed)
    raise BenchmarkError(f"no processed picture came within {LIMIT_S:.0f} s")
