"""Real-time diffusion as a `FrameProcessor`: `headrace serve --pipeline stream-diffusion`."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import torch

from headrace.diffusion import parameters
from headrace.diffusion.asked import Settings
from headrace.diffusion.compiler import accelerate
from headrace.diffusion.frame import run
from headrace.diffusion.loading import Loan, borrow
from headrace.diffusion.parameters import StreamDiffusionParams
from headrace.diffusion.pictures import fitting, resized, thumbnail_of
from headrace.diffusion.preparing import settings_for
from headrace.diffusion.similarity import SimilarityFilter
from headrace.diffusion.stream import Stream
from stream.errors import ProcessorError
from stream.frames import VideoFrame
from stream.processor import FrameProcessor, Params, ProcessorInfo, VideoResult
from workflows.beside import run_beside

log = logging.getLogger(__name__)

_WARM_UP = 64
"""Side of the made-up picture that is taken through the networks before the first frame."""


@dataclass(frozen=True, slots=True)
class _Change:
    """Worked out beside the frames for ``params`` on top of ``before``."""

    before: StreamDiffusionParams
    params: Params
    after: StreamDiffusionParams
    held: Loan
    settings: Settings | None


class StreamDiffusionProcessor(FrameProcessor):
    """Turns every frame into what the prompt says, with as much of the frame as the steps leave.

    Parameters are those of `StreamDiffusionParams`, given to the constructor, at the start of a stream, or
    while it runs. Frames keep their size; sides that are no multiple of 8 pixels are resized to the nearest.
    """

    tensor_device = "engine"

    def __init__(self, error_callback: Any = None, **params: Any) -> None:
        super().__init__(error_callback)
        self._params = parameters.start(params)
        self._held: Loan | None = None
        self._stream: Stream | None = None
        self._size: tuple[int, int] | None = None
        self._prepared: _Change | None = None
        self._filter = _filter_of(self._params)
        self._last: torch.Tensor | None = None
        self._state: tuple[str, float | None] = ("Loading", None)
        self._told: tuple[str, str] | None = None

    # -- life ------------------------------------------------------------------------------------------

    async def load_model(self, **kwargs: Any) -> None:
        self._held = await run_beside(lambda: self._acquire(self._params))
        accelerate(self._held.networks, self._params.acceleration)
        log.info(
            "stream-diffusion: %s, autoencoder %s, %s weights",
            self._params.model_id,
            self._held.autoencoder,
            self._held.weights,
        )

    async def on_stream_start(self, params: Params) -> None:
        if params:
            await self.update_params(params)

    async def on_stream_stop(self) -> None:
        held, self._held = self._held, None
        self._stream = self._last = None
        if held is not None:
            held.release()

    def progress(self) -> tuple[str, float | None]:
        return self._state

    def info(self) -> ProcessorInfo:
        schema = StreamDiffusionParams.model_json_schema()
        # A picture is no default for anybody to see.
        for name, value in self._params.model_dump(
            mode="json", exclude={"ip_adapter_style_image_url"}
        ).items():
            schema["properties"][name]["default"] = value
        return ProcessorInfo(video=True, audio=False, schema=schema)

    # -- frames ----------------------------------------------------------------------------------------

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        """The result that is due with ``frame``, `Stream.delay` frames behind it."""
        held = self._loaded()
        if self._filter is not None and self._filter.skips(thumbnail_of(frame)) and self._last is not None:
            return frame.replace_tensor(self._last)
        source = frame.tensor
        picture = fitting(source)
        if self._params.skip_diffusion:
            with torch.inference_mode():
                out = _through(held, picture)
        else:
            self._tell(held)
            out = await held.calls.run(self._stream_for(held, picture), picture)
        if held.safety is not None:
            out = held.safety(out)
        out = resized(out, source.shape[1], source.shape[2])
        self._last = out if self._filter is not None else None
        return frame.replace_tensor(out)

    def _tell(self, held: Loan) -> None:
        """Say how frames are worked on, when that has changed."""
        state = held.networks.acceleration.state
        if state != self._told:
            self._told = state
            self.emit("event", {"type": "processor", "acceleration": state[0], "reason": state[1]})

    def _stream_for(self, held: Loan, picture: torch.Tensor) -> Stream:
        size = (picture.shape[1], picture.shape[2])
        if self._stream is None or size != self._size:
            held.kit.settle(None)
            self._stream = Stream(settings_for(self._params, held, *size))
            self._size = size
        return self._stream

    # -- parameters ------------------------------------------------------------------------------------

    async def prepare_params(self, params: Params) -> None:
        """Encode prompts, draw noise or load another model, in a thread, while frames go on."""
        self._prepared = None
        self._prepared = await run_beside(lambda: self._work_out(params))

    async def update_params(self, params: Params) -> None:
        change, self._prepared = self._prepared, None
        if change is None or change.before is not self._params or change.params != params:
            if change is not None and change.held is not self._held:
                change.held.release()
            change = await run_beside(lambda: self._work_out(params))
        self._commit(change)

    async def _work_out(self, params: Params) -> _Change:
        before, held = self._params, self._held
        after = parameters.changed(before, params)
        if held is None or parameters.needs_load(before, after):
            held = await self._acquire(after)
        settings = settings_for(after, held, *self._size) if self._size is not None else None
        return _Change(before, dict(params), after, held, settings)

    def _commit(self, change: _Change) -> None:
        before = self._held
        other_model = before is None or change.held.networks is not before.networks
        if before is not None and before is not change.held:
            before.release()
        self._params, self._held = change.after, change.held
        accelerate(change.held.networks, change.after.acceleration)
        if _filter_settings(change.before) != _filter_settings(change.after):
            self._filter = _filter_of(change.after)
        if change.settings is not None:
            change.held.kit.settle(change.settings.adapters)
        if change.settings is None:
            self._stream = None
        elif self._stream is None or other_model:
            # Latents of another model are another language.
            self._stream = Stream(change.settings)
        else:
            self._stream.apply(change.settings)
        self._last = None
        if self._filter is not None:
            self._filter.reset()

    async def _acquire(self, params: StreamDiffusionParams) -> Loan:
        def tell(fraction: float, what: str) -> None:
            self._state = (what, fraction)

        held = await asyncio.to_thread(borrow, params, tell)
        try:
            tell(0.9, "warming up")
            settings = settings_for(params, held, _WARM_UP, _WARM_UP)
            picture = torch.rand((1, _WARM_UP, _WARM_UP, 3), device=held.networks.device)
            run(held.networks, [Stream(settings)], [picture], eager=True)
            held.kit.settle(None)
        except BaseException:
            held.release()
            raise
        return held

    def _loaded(self) -> Loan:
        if self._held is None:
            raise ProcessorError("the model is not loaded")
        return self._held


def _filter_settings(params: StreamDiffusionParams) -> tuple[bool, float, int]:
    return (
        params.enable_similar_image_filter,
        params.similar_image_filter_threshold,
        params.similar_image_filter_max_skip_frame,
    )


def _filter_of(params: StreamDiffusionParams) -> SimilarityFilter | None:
    enabled, threshold, max_skip = _filter_settings(params)
    return SimilarityFilter(threshold, max_skip) if enabled else None


def _through(held: Loan, picture: torch.Tensor) -> torch.Tensor:
    networks = held.networks
    decoded: torch.Tensor = networks.decode(networks.encode(picture))
    return decoded
