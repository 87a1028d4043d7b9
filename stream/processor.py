"""The one contract between media and models.

A user's class, a ComfyUI workflow, a diffusion pipeline and the stand-in that forwards to an engine are all
a `FrameProcessor`; the pipeline knows nothing else about models. Method names and meaning follow PyTrickle's
public interface, so that a processor written for it runs here.

Imports the standard library alone besides `stream.frames`, `stream.typed` and `stream.errors`, because the
engine's host loads this module in foreign interpreters.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from stream.errors import InvalidInput, ProcessorError
from stream.frames import AudioFrame, VideoFrame
from stream.typed import TypedParameters, typed

T = TypeVar("T")
Params = dict[str, Any]
VideoResult = VideoFrame | Sequence[VideoFrame] | None
AudioResult = Sequence[AudioFrame] | None

MAX_RATE = 240.0
"""Pictures a second that a processor may be asked for without input."""


@dataclass(frozen=True, slots=True)
class Emission:
    """Something that a processor says beside its frames, stamped with the time of the frame it belongs to.

    ``kind`` is ``text`` (``data`` is a str), ``data`` (any JSON value) or ``event`` (a JSON object).
    ``time`` is in seconds of the source's clock, None outside a frame.
    """

    kind: Literal["text", "data", "event"]
    data: Any
    time: float | None = None


EmitSink = Callable[[Emission], None]


@dataclass(frozen=True, slots=True)
class ProcessorInfo:
    """What the pipeline wants to know of a processor before its first frame.

    ``video`` and ``audio``: whether frames of that kind are handed to it (what is not goes past it);
    ``schema``: JSON Schema of its live parameters; ``generates``: how many pictures a second it makes where a
    stream has no input (None: it needs one). Raises `InvalidInput` for a rate that is none.
    """

    video: bool = True
    audio: bool = False
    schema: dict[str, Any] = field(default_factory=dict)
    generates: float | None = None

    def __post_init__(self) -> None:
        rate = self.generates
        if rate is None:
            return
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= MAX_RATE:
            raise InvalidInput(
                f"generates must be a rate over 0 and up to {MAX_RATE:g}, or None, not {rate!r}",
                field="generates",
            )


async def called(method: Callable[..., Awaitable[T]], *arguments: Any, **keywords: Any) -> T:
    """Await a method of a processor. Raises `ProcessorError` where its author left out the ``async``."""
    made = method(*arguments, **keywords)
    if not inspect.isawaitable(made):
        raise ProcessorError(f"{name_of(method)} must be written with `async def`")
    return await made


def name_of(method: Callable[..., Any]) -> str:
    """A method of a processor, for a message."""
    return getattr(method, "__qualname__", getattr(method, "__name__", "the processor"))


class FrameProcessor:
    """Works on the frames of one stream.

    Calls never overlap for frames of one kind, and `update_params` runs between two frames. While one awaits,
    those of other streams go on in the same thread: what objects share and nobody may change meanwhile needs
    a lock. Handlers may block where they serve one stream. Override only what the processor touches.

    Pictures go one by one to `process_video_async`. Instead of it a class may bring `process_video_window`,
    which gets the last ``window`` pictures whenever ``hop`` new ones have come, or `process_video_batch`,
    which gets those of several streams at once: at most ``batch_size``, and none waits longer for others than
    ``batch_wait`` (s).

    ``parameters``: a pydantic model or dataclass. `params` is then an object of it, values are checked before
    they take effect, and callers are told its JSON Schema. A class that brings its own `on_stream_start` or
    `update_params` calls these.

    ``tensor_device``: where the tensors of frames are: ``cpu``, ``cuda``, ``cuda:N``, or ``engine`` for that
    of the engine.

    ``generates``: one that makes pictures of nothing is asked so many times a second where a stream has no
    input. It gets black frames of the stream's size then (and 20 ms of silence, if it works on sound), whose
    times are those of a clock.
    """

    generates: float | None = None
    tensor_device: str = "cpu"
    window: int = 1
    hop: int = 1
    batch_size: int = 8
    batch_wait: float = 0.005
    parameters: ClassVar[type | None] = None
    params: Any
    _window: deque[VideoFrame] | None = None
    _new = 0

    def __init__(self, error_callback: Any = None, **init_kwargs: Any) -> None:
        self.error_callback = error_callback
        self.init_kwargs = init_kwargs
        self._emit_sink: EmitSink | None = None
        self.frame_time: float | None = None
        if (checker := self._typed()) is not None:
            self.params = checker.defaults()

    async def load_model(self, **kwargs: Any) -> None:
        """Load weights; awaited once before the first frame."""

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        """One frame in; one, several or no (None) frames out. ``frame`` itself passes on untouched.

        None leaves it to the overlay what is shown; an empty list shows nothing.
        """
        if overrides(self, "process_video_window"):
            if self._window is None:
                self._window = deque(maxlen=max(1, self.window))
            self._window.append(frame)
            self._new += 1
            if len(self._window) < self.window or self._new < self.hop:
                return []
            self._new = 0
            return await self.process_video_window(tuple(self._window))
        if overrides(self, "process_video_batch"):
            result = (await self.process_video_batch([self], [frame]))[0]
            if isinstance(result, Exception):
                raise result
            return result
        return frame

    async def process_video_window(self, frames: Sequence[VideoFrame]) -> VideoResult:
        """Exactly ``window`` pictures, oldest first, of which ``hop`` are new; see `process_video_async`."""
        return frames[-1]

    async def process_video_batch(
        self, streams: Sequence[FrameProcessor], frames: Sequence[VideoFrame]
    ) -> Sequence[VideoResult | Exception]:
        """One picture of each of ``streams``; as many results, in the same order.

        ``self`` is one of them: parameters and state of each stream are those of its own object. An exception
        in place of a result is that stream's alone, one that is raised is everybody's.
        """
        return list(frames)

    async def process_audio_async(self, frame: AudioFrame) -> AudioResult:
        """One stretch of sound in, a list out; None or an empty list puts nothing out."""
        return [frame]

    async def prepare_params(self, params: Params) -> None:
        """What takes long of `update_params`, which follows with the same parameters unless this raises.

        Frames go on meanwhile with the old parameters, so nothing may take effect yet and nothing may block.
        """

    async def update_params(self, params: Params) -> None:
        """New parameters, whole or not at all: raise and the old ones stay in force."""
        if (checker := self._typed()) is not None:
            self.params = checker.make({**checker.values(self.params), **params})
        elif params:
            raise InvalidInput(f"{type(self).__name__} takes no parameters", field=next(iter(params)))

    async def on_stream_start(self, params: Params) -> None:
        """A stream begins; ``params`` are those of its start, coerced. Awaited before the first frame."""
        self._window, self._new = None, 0
        if (checker := self._typed()) is not None:
            self.params = checker.make(params)

    def check_params(self, params: Params) -> None:
        """Raise `InvalidInput` for what a start with ``params`` would be refused for."""
        if (checker := self._typed()) is not None:
            checker.make(params)

    @classmethod
    def _typed(cls) -> TypedParameters | None:
        return None if cls.parameters is None else typed(cls.parameters)

    async def on_stream_stop(self) -> None:
        """The stream has ended; awaited once."""

    async def wait_ready(self, timeout: float) -> None:
        """Return when frames can be processed; raise `EngineError` when that takes longer than ``timeout`` s.

        A processor that runs elsewhere raises `EngineError` from `process_video_async` at once while it is
        not there; the live path then shows the last result, a file waits here and tries the frame again.
        """

    def progress(self) -> tuple[str, float | None]:
        """What it is doing while frames cannot be processed yet, in words, and how far it is (0 to 1)."""
        return ("Loading", None)

    def info(self) -> ProcessorInfo:
        """Which media the processor touches follows from the methods that it overrides."""
        return ProcessorInfo(
            video=any(overrides(self, name) for name in _VIDEO),
            schema={} if (checker := self._typed()) is None else checker.schema,
            audio=overrides(self, "process_audio_async"),
            generates=self.generates,
        )

    def emit(self, kind: Literal["text", "data", "event"], data: Any) -> None:
        """Send text, data or an event to whichever data sinks there are; never blocks."""
        if self._emit_sink is not None:
            self._emit_sink(Emission(kind, data, self.frame_time))

    def bind(self, sink: EmitSink | None) -> None:
        """Where `emit` leads; called by whoever runs the processor."""
        self._emit_sink = sink


_VIDEO = ("process_video_async", "process_video_window", "process_video_batch")


def overrides(processor: FrameProcessor, method: str) -> bool:
    """Whether the class of ``processor`` brings its own ``method``."""
    return getattr(type(processor), method) is not getattr(FrameProcessor, method)
