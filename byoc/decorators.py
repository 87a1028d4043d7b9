"""Decorators that make a method the handler of something. The method may be a plain function: it then runs in
a thread of its own."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from byoc.plain import in_daemon_thread
from byoc.registry import MARK, HandlerFn, HandlerInfo, HandlerKind
from stream.frames import AudioFrame, VideoFrame

__all__ = [
    "audio_handler",
    "model_loader",
    "on_stream_start",
    "on_stream_stop",
    "param_updater",
    "trickle_handler",
    "video_handler",
]

log = logging.getLogger(__name__)

AsyncHandler = Callable[..., Awaitable[Any]]
WARNED_FIRST, WARNED_EVERY = 3, 100


def trickle_handler(
    handler_type: HandlerKind, description: str | None = None, validate_signature: bool = True
) -> Callable[[HandlerFn], HandlerFn]:
    """Mark a function as a handler of that kind and leave it as it is."""

    def mark(function: HandlerFn) -> HandlerFn:
        if validate_signature:
            _check_signature(function, handler_type)
        name = getattr(function, "__name__", "handler")
        text = description or f"{handler_type.replace('_', ' ')} handler: {name}"
        _mark(function, HandlerInfo(handler_type, text, str(inspect.signature(function))))
        return function

    return mark


def video_handler(func: HandlerFn) -> AsyncHandler:
    """Handles pictures. May return a `VideoFrame`, or pixels (tensor or array) in the frame's own shape with
    1 or 3 channels; anything else counts as None, with a warning."""
    warn = _Warner(func, "a VideoFrame, or pixels in the shape of the frame's tensor")

    @functools.wraps(func)
    async def handler(*args: Any, **kwargs: Any) -> Any:
        frame = _frame_of(args, kwargs)
        result = await _awaited(func, args, kwargs)
        return _as_picture(result, frame, warn)

    return _marked(func, handler, "video")


def audio_handler(func: HandlerFn) -> AsyncHandler:
    """Handles sound. May return a list of `AudioFrame`, one of them, or samples (tensor or array)."""
    warn = _Warner(func, "a list of AudioFrame, an AudioFrame or samples")

    @functools.wraps(func)
    async def handler(*args: Any, **kwargs: Any) -> Any:
        frame = _frame_of(args, kwargs)
        result = await _awaited(func, args, kwargs)
        return _as_sound(result, frame, warn)

    return _marked(func, handler, "audio")


def model_loader(func: HandlerFn) -> AsyncHandler:
    """Loads the model, once, before the first stream."""
    return _silent(func, "model_loader")


def param_updater(func: HandlerFn) -> AsyncHandler:
    """Gets parameters while a stream runs; raising refuses them."""
    return _silent(func, "param_updater")


def on_stream_start(func: HandlerFn) -> AsyncHandler:
    """Gets a stream's parameters before its first frame."""
    return _silent(func, "stream_start")


def on_stream_stop(func: HandlerFn) -> AsyncHandler:
    """Is called once when a stream has ended."""
    return _silent(func, "stream_stop")


# -- how -------------------------------------------------------------------------------------------------


def _silent(func: HandlerFn, kind: HandlerKind) -> AsyncHandler:
    """A handler whose result nobody looks at."""

    @functools.wraps(func)
    async def handler(*args: Any, **kwargs: Any) -> None:
        await _awaited(func, args, kwargs)

    return _marked(func, handler, kind)


def _marked(func: HandlerFn, handler: AsyncHandler, kind: HandlerKind) -> AsyncHandler:
    trickle_handler(kind)(func)
    _mark(handler, getattr(func, MARK))
    return handler


def _mark(function: HandlerFn, info: HandlerInfo) -> None:
    marks = {"_trickle_handler": True, "_trickle_handler_type": info.handler_type, MARK: info}
    for name, value in marks.items():
        setattr(function, name, value)


async def _awaited(func: HandlerFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(func):
        return await func(*args, **kwargs)
    result = await in_daemon_thread(func, *args, **kwargs)
    return await result if inspect.isawaitable(result) else result


def _frame_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs.get("frame", args[-1] if args else None)


def _as_picture(result: Any, frame: Any, warn: _Warner) -> Any:
    if result is None or isinstance(result, VideoFrame) or not isinstance(frame, VideoFrame):
        return result
    if isinstance(result, list) and all(isinstance(item, VideoFrame) for item in result):
        return result
    if _is_choice(result):
        return result
    shape = getattr(result, "shape", None)
    if shape is not None and len(shape) == 4 and shape[-1] in (1, 3):
        if isinstance(result, np.ndarray):
            import torch

            return frame.replace_tensor(torch.from_numpy(result))
        return frame.replace_tensor(result)
    warn(f"{type(result).__name__}{'' if shape is None else f' of {tuple(shape)}'}")
    return None


def _is_choice(result: Any) -> bool:
    """Whether it says by a word of ours what is to happen."""
    from byoc.stream_processor import VideoProcessingResult

    return isinstance(result, VideoProcessingResult)


def _as_sound(result: Any, frame: Any, warn: _Warner) -> Any:
    if result is None or isinstance(result, list) or not isinstance(frame, AudioFrame):
        return result
    if isinstance(result, AudioFrame):
        return [result]
    if isinstance(result, np.ndarray):
        return [frame.replace_samples(result)]
    if hasattr(result, "detach"):
        return [frame.replace_samples(result.detach().cpu().numpy())]
    warn(type(result).__name__)
    return None


class _Warner:
    """Says what a handler returned in place of what it should, without filling the log."""

    def __init__(self, func: HandlerFn, expected: str) -> None:
        self._name = getattr(func, "__qualname__", "the handler")
        self._expected = expected
        self._seen = 0

    def __call__(self, found: str) -> None:
        self._seen += 1
        if self._seen <= WARNED_FIRST or self._seen % WARNED_EVERY == 0:
            log.warning("%s returned %s, not %s (%d times)", self._name, found, self._expected, self._seen)


def _check_signature(function: HandlerFn, kind: HandlerKind) -> None:
    """Warn of a handler that cannot take what it will be given."""
    parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
    name = getattr(function, "__qualname__", "the handler")
    if kind in ("video", "audio") and not parameters:
        log.warning("%s takes no frame", name)
    elif kind in ("param_updater", "stream_start") and not parameters:
        log.warning("%s takes no params", name)
