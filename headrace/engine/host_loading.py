"""Making a processor and loading its model beside the frames of other sessions."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import TYPE_CHECKING, Any

from headrace.engine.processors import build
from stream.errors import ProcessorError
from stream.processor import EmitSink, FrameProcessor

if TYPE_CHECKING:
    import torch


def load_in_thread(
    spec: dict[str, Any], kwargs: dict[str, Any], device: torch.device, threads: int, emit: EmitSink
) -> asyncio.Future[FrameProcessor]:
    """Begin in a thread of its own; the future gives the loaded processor or what building it raised.

    A thread cannot be stopped: when the future is cancelled, the result is thrown away as it arrives.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[FrameProcessor] = loop.create_future()

    def deliver(processor: FrameProcessor | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif processor is not None:
            future.set_result(processor)

    def work() -> None:
        processor: FrameProcessor | None = None
        failure: BaseException | None = None
        try:
            processor = _load(spec, kwargs, device, threads, emit)
        except BaseException as error:  # noqa: BLE001 (the edge of a thread: everything is handed over)
            # A future cannot carry StopIteration, and CancelledError would look like our own wish.
            plain = isinstance(error, (Exception, SystemExit)) and not isinstance(error, StopIteration)
            failure = error if plain else ProcessorError(f"loading ended with {type(error).__name__}")
        try:
            loop.call_soon_threadsafe(deliver, processor, failure)
        except RuntimeError:
            return  # the engine is ending

    threading.Thread(target=work, name="load", daemon=True).start()
    return future


def _load(
    spec: dict[str, Any], kwargs: dict[str, Any], device: torch.device, threads: int, emit: EmitSink
) -> FrameProcessor:
    import torch

    # All three hold for the thread that sets them.
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with torch.no_grad():
        processor = build(spec)
        processor.bind(emit)
        asyncio.run(_load_model(processor, kwargs, device))
    return processor


async def _load_model(processor: FrameProcessor, kwargs: dict[str, Any], device: torch.device) -> None:
    if _takes(processor.load_model, "device"):
        kwargs = {"device": str(device), **kwargs}
    await processor.load_model(**kwargs)
    strays = asyncio.all_tasks() - {asyncio.current_task()}
    if strays:
        raise ProcessorError(
            f"load_model of {type(processor).__name__} started a task; the loop it runs in ends with it. "
            "Start tasks in on_stream_start"
        )


def _takes(function: Any, name: str) -> bool:
    """Whether a keyword of that name may be passed."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
