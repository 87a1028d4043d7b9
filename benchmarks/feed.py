"""Plays a clip into a trickle channel in real time and records what comes back on another.

    python -m benchmarks.feed CLIP --into URL --from URL --fed NOTES --out FILE [--limit SECONDS]

A process of its own, and a plain aiohttp client rather than the one under test, so that the worker and its
peer are fed and watched by the same independent hand. When a frame's last byte has been written its number is
noted in ``--fed``. Everything read goes to ``--out`` with the time of each read; decoding waits until later.
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import aiohttp

from benchmarks.notes import Notes
from byoc.mock import clip
from byoc.mock.outputs import Arrival

LEAD_S = 0.3
"""From the start of the program to its first frame."""
LINGER_S = 2.0
"""How long output is still waited for after the last frame."""
RECORD = struct.Struct("<qqq")


async def publish(
    session: aiohttp.ClientSession, url: str, segments: Sequence[list[clip.Chunk]], fed: Notes
) -> None:
    """Write each chunk when it is due; one request a segment."""
    start = time.monotonic() + LEAD_S

    async def body(segment: list[clip.Chunk]) -> AsyncIterator[bytes]:
        for chunk in segment:
            await asyncio.sleep(start + chunk.due - time.monotonic())
            yield chunk.data
            # aiohttp resumes here when it has handed the chunk to the socket.
            if chunk.number is not None:
                fed.note(chunk.number)

    for index, segment in enumerate(segments):
        async with session.post(f"{url}/{index}", data=body(segment)) as answer:
            answer.raise_for_status()


class Recorder:
    """Reads every segment of a channel; the next one is asked for as soon as the present one begins."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.segments: dict[int, list[Arrival]] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(group, 0))

    async def _follow(self, group: asyncio.TaskGroup, wanted: int) -> None:
        while True:
            async with self._session.get(f"{self._url}/{wanted}") as answer:
                if answer.status == 470:
                    wanted = int(answer.headers["Lp-Trickle-Latest"])
                    continue
                if answer.status != 200 or "Lp-Trickle-Closed" in answer.headers:
                    return
                seq = int(answer.headers["Lp-Trickle-Seq"])
                group.create_task(self._follow(group, seq + 1))
                reads = self.segments.setdefault(seq, [])
                async for data in answer.content.iter_any():
                    reads.append(Arrival(time.monotonic_ns(), data))
                return


def save(segments: dict[int, list[Arrival]], path: Path) -> None:
    with path.open("wb") as file:
        for seq, reads in segments.items():
            for read in reads:
                file.write(RECORD.pack(seq, read.at, len(read.data)) + read.data)


def load(path: Path) -> list[list[Arrival]]:
    """The segments that `save` wrote, in their order."""
    segments: dict[int, list[Arrival]] = {}
    for seq, arrival in _records(path.read_bytes()):
        segments.setdefault(seq, []).append(arrival)
    return [segments[seq] for seq in sorted(segments)]


def _records(data: bytes) -> Iterator[tuple[int, Arrival]]:
    at = 0
    while at < len(data):
        seq, moment, size = RECORD.unpack_from(data, at)
        at += RECORD.size
        yield seq, Arrival(moment, data[at : at + size])
        at += size


async def run(arguments: argparse.Namespace) -> None:
    segments = clip.cut(arguments.clip)
    fed = Notes(arguments.fed)
    # The pipe between a publisher and a channel has no limit of time; the whole run has one.
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        recorder = Recorder(session, arguments.watch)
        recording = asyncio.create_task(recorder.run())
        try:
            async with asyncio.timeout(arguments.limit):
                await publish(session, arguments.into, segments, fed)
                await asyncio.wait({recording}, timeout=LINGER_S)
        finally:
            recording.cancel()
            await asyncio.gather(recording, return_exceptions=True)
            save(recorder.segments, arguments.out)
            fed.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clip", type=Path)
    parser.add_argument("--into", required=True)
    parser.add_argument("--from", dest="watch", required=True)
    parser.add_argument("--fed", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=300.0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
