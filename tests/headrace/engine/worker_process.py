"""A worker with one engine and one session, for tests that kill it. Says the engine's process id.

Arguments: the folder of the processors, the fault that its engine is to have, and when to speak:
``starting`` as soon as there is a process, ``ready`` when the session runs.
"""

from __future__ import annotations

import asyncio
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from stream.frames import Picture, VideoFrame


def say(pid: int | None) -> None:
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()


async def main(folder: str, fault: str, moment: str) -> None:
    async with Engine(EngineSettings(extra_path=(folder,), call_timeout=60)) as engine:
        if moment == "starting":
            say(engine.pid)
        await engine.wait_ready(60)
        spec = {"kind": "class", "target": "engine_processors:Faulty"}
        processor = EngineProcessor(engine, spec, session="s")
        await processor.load_model()
        await processor.on_stream_start({})
        picture = Picture.from_rgb(np.zeros((64, 64, 3), np.uint8))
        frame = VideoFrame.from_picture(picture, 0, Fraction(1, 30))
        await processor.process_video_async(frame)
        await processor.update_params({"fault": fault})
        call = asyncio.create_task(processor.process_video_async(frame))
        await asyncio.sleep(0.2)
        say(engine.pid)
        await asyncio.sleep(60)
        call.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
