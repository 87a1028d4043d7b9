"""PyTrickle as the other worker under test; runs in a virtual environment of its own.

    python peer_pytrickle.py PORT {passthrough,slow,invert} [--package byoc]

With ``--package byoc`` the very same processors run on our own server. ``slow`` notes each frame's number at
the entry of the processor and returns it after a time of `asyncio.sleep`, or of `time.sleep` when it is to
block. Settings come from the environment, by the names that `benchmarks.processors` has.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

if not __package__:
    # The packages lie beside this folder, which has a module of the name of one.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from aiohttp import web

from benchmarks.notes import Notes
from byoc.mock import barcode

PACKAGE = "byoc" if "byoc" in sys.argv else "pytrickle"
FrameProcessor: Any = importlib.import_module(PACKAGE).FrameProcessor
StreamServer: Any = importlib.import_module(PACKAGE).StreamServer


class Passthrough(FrameProcessor):  # type: ignore[misc]
    """Gives every frame back."""

    async def load_model(self, **kwargs: Any) -> None:
        pass

    async def process_video_async(self, frame: Any) -> Any:
        return frame

    async def process_audio_async(self, frame: Any) -> Any:
        return [frame]

    async def update_params(self, params: Any) -> None:
        pass


class Slow(Passthrough):
    """Notes a frame's number, then takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.notes = Notes(Path(os.environ["BENCHMARK_NOTES"]))
        self.take = float(os.environ["BENCHMARK_TAKE"])
        self.block = bool(os.environ.get("BENCHMARK_BLOCK"))

    async def process_video_async(self, frame: Any) -> Any:
        taken = time.monotonic_ns()
        number = barcode.read_number(frame.tensor[0].numpy())
        if number is not None:
            self.notes.note(number, taken)
        if self.block:
            time.sleep(self.take)  # noqa: ASYNC251 (a model that holds the event loop)
        else:
            await asyncio.sleep(self.take)
        return frame


class Invert(Passthrough):
    """Works on every pixel."""

    async def process_video_async(self, frame: Any) -> Any:
        return frame.replace_tensor(1 - frame.tensor)


PROCESSORS = {"passthrough": Passthrough, "slow": Slow, "invert": Invert}


async def counted(request: web.Request) -> web.Response:
    """How many tasks there are, and how many threads of asyncio's own pool, which grows up to a bound."""
    pool = sum(thread.name.startswith("asyncio_") for thread in threading.enumerate())
    return web.json_response({"tasks": len(asyncio.all_tasks()), "pool": pool})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("processor", choices=list(PROCESSORS))
    parser.add_argument("--package", choices=["pytrickle", "byoc"], default="pytrickle")
    arguments = parser.parse_args()
    processor = PROCESSORS[arguments.processor]()
    server = StreamServer(processor, port=arguments.port, host="127.0.0.1")
    server.add_route("GET", "/counted", counted)
    asyncio.run(server.run_forever())


if __name__ == "__main__":
    main()
