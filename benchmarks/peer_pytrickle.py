"""PyTrickle as the other worker under test; runs in a virtual environment of its own.

    python peer_pytrickle.py PORT {passthrough,slow}

``slow`` notes each frame's number at the entry of the processor and returns it after a time of
`asyncio.sleep`, or of `time.sleep` when it is to block. Settings come from the environment, by the names that
`benchmarks.processors` has.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import Any

from pytrickle import FrameProcessor, StreamServer  # type: ignore[import-not-found]

from benchmarks.notes import Notes
from byoc.mock import barcode


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("processor", choices=["passthrough", "slow"])
    arguments = parser.parse_args()
    processor = Slow() if arguments.processor == "slow" else Passthrough()
    server = StreamServer(processor, port=arguments.port, host="127.0.0.1")
    asyncio.run(server.run_forever())


if __name__ == "__main__":
    main()
