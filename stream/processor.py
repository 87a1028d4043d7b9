"""The one contract between media and models.

A user's class, a ComfyUI workflow, a diffusion pipeline and the stand-in that forwards to an engine are all
a `FrameProcessor`; the pipeline knows nothing else about models. Method names and meaning follow PyTrickle's
public interface, so that a processor written for it runs here.

Imports the standard library alone besides `stream.frames` and `stream.errors`, because the engine's host
loads this module in foreign interpreters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stream.errors import InvalidInput
from stream.frames import AudioFrame, VideoFrame

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


class FrameProcessor:
    """Works on the frames of one stream.

    Calls never overlap for frames of one kind, and `update_params` runs between two frames. Handlers may
    block: they run where nothing else waits for them. Override only what the processor touches.

    ``generates``: one that makes pictures of nothing is asked so many times a second where a stream has no
    input. It gets black frames of the stream's size then (and 20 ms of silence, if it works on sound), whose
    times are those of a clock.
    """

    generates: float | None = None

    def __init__(self, error_callback: Any = None, **init_kwargs: Any) -> None:
        self.error_callback = error_callback
        self.init_kwargs = init_kwargs
        self._emit_sink: EmitSink | None = None
        self.frame_time: float | None = None

    async def load_model(self, **kwargs: Any) -> None:
        """Load weights; awaited once before the first frame."""

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        """One frame in; one, several or no (None) frames out. ``frame`` itself passes on untouched."""
        return frame

    async def process_audio_async(self, frame: AudioFrame) -> AudioResult:
        """One stretch of sound in, a list out; None or an empty list puts nothing out."""
        return [frame]

    async def prepare_params(self, params: Params) -> None:
        """What takes long of `update_params`, which follows with the same parameters unless this raises.

        Frames go on meanwhile with the old parameters, so nothing may take effect yet and nothing may block.
        """

    async def update_params(self, params: Params) -> None:
        """New parameters, whole or not at all: raise and the old ones stay in force."""
        if params:
            raise InvalidInput(f"{type(self).__name__} takes no parameters", field=next(iter(params)))

    async def on_stream_start(self, params: Params) -> None:
        """A stream begins; ``params`` are those of its start, coerced. Awaited before the first frame."""

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
            video=overrides(self, "process_video_async"),
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


def overrides(processor: FrameProcessor, method: str) -> bool:
    """Whether the class of ``processor`` brings its own ``method``."""
    return getattr(type(processor), method) is not getattr(FrameProcessor, method)
