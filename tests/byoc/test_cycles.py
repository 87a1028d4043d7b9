"""Streams that come and go leave nothing behind."""

import asyncio
import os
import threading

from byoc_rig import clip, serving

from byoc import FrameProcessor

CYCLES = 20


class Counts(FrameProcessor):
    async def process_video_async(self, frame):
        return frame.replace_picture(frame.picture)

    async def update_params(self, params):
        self.seen = params


def held():
    """What the process holds: tasks, threads but those of asyncio's pool, descriptors, memory files."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            continue
    threads = [thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]
    return {
        "tasks": len(asyncio.all_tasks()),
        "threads": sorted(threads),
        "descriptors": len([link for link in links if not link.startswith("socket:")]),
        "memory files": sum("memfd:" in link for link in links),
    }


async def settled(wanted):
    """What is held once it is what is wanted, or when there is no more hope that it will be."""
    for _ in range(100):
        if (found := held()) == wanted:
            break
        await asyncio.sleep(0.05)
    return found


async def test_start_params_stop_over_and_over():
    parts = [b"".join(chunk.data for chunk in segment) for segment in clip(1)]
    async with serving(Counts()) as rig:
        await rig.until_health("IDLE")

        async def cycle(name):
            assert (await rig.start(name, data_url=None, events_url=None))[0] == 200
            for index, part in enumerate(parts):
                async with rig.http.post(f"{rig.channel(f'{name}-in')}/{index}", data=part) as response:
                    assert response.status == 200
            assert (await rig.post("/stream/params", {"name": name}))[0] == 200
            assert (await rig.stop(name))[0] == 200
            for channel in ("in", "control"):
                async with rig.http.delete(rig.channel(f"{name}-{channel}")) as response:
                    await response.read()
            await rig.until_health("IDLE")

        await cycle("first")
        await cycle("second")
        before = held()
        for number in range(CYCLES):
            await cycle(str(number))
        assert await settled(before) == before
        assert rig.server.frame_processor.seen == {"name": str(CYCLES - 1)}
        assert rig.server.state.active_streams == 0
