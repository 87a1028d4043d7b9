"""Processors that the tests run in a real engine."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from stream.errors import EngineError, InvalidInput
from stream.frames import AudioFrame, Picture, VideoFrame
from stream.processor import FrameProcessor, Params, ProcessorInfo


class Touch(FrameProcessor):
    """The same pixels, by way of a tensor of its own."""

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        return frame.replace_tensor(frame.tensor)


class Planes(FrameProcessor):
    """The same pixels, by way of a picture of its own."""

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        return frame.replace_picture(frame.picture)


class Look(FrameProcessor):
    """Reads the tensor and returns the frame untouched."""

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        assert frame.tensor.shape[-1] == 3
        return frame


class Peeks(FrameProcessor):
    """Says how its frames came; looks at their pixels while ``read`` is set, and then gives them back."""

    read = False

    async def update_params(self, params: Params) -> None:
        self.read = bool(params["read"])

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        assert frame._picture is not None
        self.emit("text", frame._picture.format)
        return frame.replace_tensor(frame.tensor.clone()) if self.read else frame


class InPlace(FrameProcessor):
    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        frame.tensor.neg_().add_(1)
        return frame


class Delay(FrameProcessor):
    """Returns the frame before, which it has kept unread."""

    def __init__(self) -> None:
        super().__init__()
        self.before: VideoFrame | None = None

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame | None:
        before, self.before = self.before, frame
        return None if before is None else before


class Level(FrameProcessor):
    """Fills the picture with a grey that is a parameter."""

    def __init__(self, level: int = 0) -> None:
        super().__init__()
        self.level = level

    async def on_stream_start(self, params: Params) -> None:
        await self.update_params(params)

    async def update_params(self, params: Params) -> None:
        level = params.get("level", self.level)
        if not 0 <= level <= 255:
            raise InvalidInput(f"level is {level}", field="level")
        self.level = level

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        return _grey(frame, self.level)

    def info(self) -> ProcessorInfo:
        return ProcessorInfo(schema={"properties": {"level": {"type": "integer"}}})


class Several(FrameProcessor):
    """As many frames as ``count`` says, each a tick later than the one before."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    async def process_video_async(self, frame: VideoFrame) -> Sequence[VideoFrame]:
        frames = []
        for number in range(self.count):
            grey = np.full((frame.height, frame.width, 3), number, np.uint8)
            copy = frame.replace_picture(Picture.from_rgb(grey))
            copy.timestamp += number
            frames.append(copy)
        return frames


class Nonsense(FrameProcessor):
    """Returns what is not a frame; the frame's timestamp chooses what."""

    async def process_video_async(self, frame: VideoFrame) -> Any:
        import torch

        size = (1, frame.height, frame.width, 3)
        choices: list[Any] = [
            "a string",
            frame.tensor,
            [frame, 1],
            [frame] * 1000,
            frame.replace_tensor(torch.zeros(5)),
            frame.replace_tensor(torch.full(size, float("nan"))),
            frame.replace_tensor(torch.zeros(size, dtype=torch.int64)),
            VideoFrame(torch.zeros(size), 1.5, Fraction(1, 30)),  # type: ignore[arg-type]
            VideoFrame(torch.zeros(size), 2**70, Fraction(1, 30)),
            VideoFrame(torch.zeros(size), 1, Fraction(-1, 30)),
            frame.replace_tensor(torch.zeros(1, 20_000, 1, 3)),
            frame.replace_tensor("pixels"),  # type: ignore[arg-type]
        ]
        return choices[frame.timestamp]


class Faulty(FrameProcessor):
    """Does what its parameter ``fault`` says, in the next frame."""

    def __init__(self) -> None:
        super().__init__()
        self.fault = ""

    async def update_params(self, params: Params) -> None:
        self.fault = params["fault"]
        if self.fault == "refuse":
            self.fault = ""
            raise KeyError("no such thing")

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        fault, self.fault = self.fault, ""
        if fault == "raise":
            raise ValueError("the sky is green")
        if fault == "exit":
            sys.exit(7)
        if fault == "engine":
            raise EngineError("my own engine is cold")
        if fault == "cancel":
            raise asyncio.CancelledError
        if fault == "forever":
            await asyncio.sleep(3600)
        if fault == "spin":
            # A loop in C that never gives the interpreter's lock away.
            sum(iter(int, 1))
        if fault == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "chatter":
            for number in range(1000):
                self.emit("text", f"{number} " + "x" * 2000)
        return frame


class Waits(FrameProcessor):
    """Awaits for ever unless the frame's timestamp is a multiple of ten."""

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        if frame.timestamp % 10:
            await asyncio.sleep(3600)
        return frame


class Slow(FrameProcessor):
    def __init__(self, seconds: float, stop: float = 0) -> None:
        super().__init__()
        self.seconds = seconds
        self.stop = stop

    async def on_stream_stop(self) -> None:
        await asyncio.sleep(self.stop)

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        time.sleep(self.seconds)  # noqa: ASYNC251
        return frame


class Stretches(FrameProcessor):
    """Keeps the loop several times for each frame, and lets go of it in between."""

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        for _ in range(3):
            time.sleep(0.45)  # noqa: ASYNC251 (what it is about)
            await asyncio.sleep(0)
        return frame


class Meets(Level):
    """A frame waits for one of another stream."""

    here: ClassVar[list[asyncio.Future[None]]] = []

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        if Meets.here:
            Meets.here.pop().set_result(None)
        else:
            Meets.here.append(asyncio.get_running_loop().create_future())
            await Meets.here[0]
        return await super().process_video_async(frame)


class Company(Level):
    """Greys of the streams in a call; what `load_model` sets is one object for all."""

    loads: ClassVar[int] = 0
    batch_wait = 1.0
    process_video_async = FrameProcessor.process_video_async

    async def load_model(self, **kwargs: Any) -> None:
        Company.loads += 1
        self.weights = object()

    async def process_video_batch(
        self, streams: Sequence[FrameProcessor], frames: Sequence[VideoFrame]
    ) -> list[VideoFrame | Exception]:
        assert len({id(stream.weights) for stream in streams if isinstance(stream, Company)}) == 1
        results: list[VideoFrame | Exception] = []
        for stream, frame in zip(streams, frames, strict=True):
            assert isinstance(stream, Company)
            stream.emit("data", [len(streams), Company.loads])
            level = stream.level
            if level == 0:
                await asyncio.sleep(60)
            results.append(ValueError("unlucky") if level == 13 else _grey(frame, level))
        return results


class Gate(Level):
    """What it is told to await it awaits until a frame of another stream, of level 99, comes by."""

    gate: ClassVar[asyncio.Event | None] = None
    awaits = ""

    async def _pass(self, what: str) -> None:
        if what in self.awaits:
            import torch

            Gate.gate = Gate.gate or asyncio.Event()
            # A mode of the thread, left on while others run.
            with torch.autocast("cpu"), torch.inference_mode(False):
                await Gate.gate.wait()
            Gate.gate = None

    async def on_stream_start(self, params: Params) -> None:
        self.level = params.get("level", 0)
        self.awaits = params.get("awaits", "")
        await self._pass("start")

    async def update_params(self, params: Params) -> None:
        self.level = params["level"]
        await self._pass("params")

    async def on_stream_stop(self) -> None:
        await self._pass("stop")

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        import torch

        self.emit("data", [torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()])
        await self._pass("frame")
        if self.level == 99 and Gate.gate is not None:
            Gate.gate.set()
        return _grey(frame, self.level)


def _grey(frame: VideoFrame, level: int) -> VideoFrame:
    return frame.replace_picture(Picture.from_rgb(np.full((frame.height, frame.width, 3), level, np.uint8)))


class Loads(FrameProcessor):
    """Loads in as many steps as it is told, and fails when it is told to."""

    async def load_model(self, steps: int = 0, fail: str = "", device: str = "", **kwargs: Any) -> None:
        self.device = device
        for step in range(steps):
            self.emit("event", {"type": "progress", "message": "weights", "percent": 100 * step / steps})
            time.sleep(0.05)  # noqa: ASYNC251
        if fail == "raise":
            raise OSError("no such weights")
        if fail == "cancel":
            raise asyncio.CancelledError
        if fail == "task":
            self.task = asyncio.create_task(asyncio.sleep(3600))
        if fail == "block":
            time.sleep(3600)  # noqa: ASYNC251
        if fail == "die":
            os._exit(9)

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        self.emit("text", self.device)
        return frame


class Talks(FrameProcessor):
    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        self.emit("text", "hello")
        self.emit("data", {"n": [1, 2.5, None]})
        self.emit("event", {"type": "seen"})
        return frame


class WrongEvents(FrameProcessor):
    """Says what is no event, from a frame."""

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        self.emit("event", ["a"])
        return frame


class Unspeakable(FrameProcessor):
    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        self.emit("data", object())
        return frame


class Halves(FrameProcessor):
    """Touches sound alone: half as loud."""

    async def process_audio_async(self, frame: AudioFrame) -> list[AudioFrame]:
        return [frame.replace_samples((frame.samples * 0.5).astype(frame.samples.dtype))]


class AudioOddities(FrameProcessor):
    """By the frame's timestamp: as it came, changed in place, none, two, and what is not sound."""

    async def process_audio_async(self, frame: AudioFrame) -> Any:
        if frame.timestamp == 1:
            frame.samples *= 2
        if frame.timestamp == 2:
            return None
        if frame.timestamp == 3:
            return [frame, frame.replace_samples(frame.samples[:, :10])]
        if frame.timestamp == 4:
            return [frame.replace_samples(frame.samples.astype(np.int16))]
        if frame.timestamp == 5:
            return "sound"
        return [frame]


class Children(FrameProcessor):
    """Starts a program of its own, and says its process id."""

    async def on_stream_start(self, params: Params) -> None:
        self.program = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", "import time; time.sleep(60)"]
        )

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        self.emit("data", self.program.pid)
        return frame


class Surroundings(FrameProcessor):
    """Says what it finds around it."""

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        def found(name: str) -> bool:
            try:
                return importlib.util.find_spec(name) is not None
            except ModuleNotFoundError:
                return False

        import torch

        names = ("stream.frames", "stream.units", "headrace.engine.slots", "headrace.server", "byoc")
        self.emit(
            "data",
            {
                "found": [name for name in names if found(name)],
                "path": sys.path,
                "threads": torch.get_num_threads(),
                "inference": torch.is_inference_mode_enabled(),
                "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
                "nice": os.nice(0),
            },
        )
        return frame


def make() -> FrameProcessor:
    return Touch()


def make_wrong() -> object:
    return object()


class Prepares(Level):
    """Takes as long to prepare a change as the change says."""

    prepared: Params | None = None

    async def prepare_params(self, params: Params) -> None:
        if "fail" in params:
            raise InvalidInput("cannot be prepared", field="fail")
        await asyncio.sleep(params.get("seconds", 0))
        self.prepared = params

    async def update_params(self, params: Params) -> None:
        if "seconds" in params and self.prepared != params:
            raise InvalidInput("was not prepared", field="seconds")
        await super().update_params({"level": params["level"]} if "level" in params else {})
