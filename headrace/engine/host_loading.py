"""Making a processor and loading its model beside the frames of other sessions."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.engine.host_together import Companies, Company
from headrace.engine.processors import build
from stream.errors import ProcessorError
from stream.processor import EmitSink, FrameProcessor, called, overrides

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Loaded:
    """``company``: whose pictures go through it together, where it works on those of several streams."""

    processor: FrameProcessor
    company: Company | None


@dataclass(frozen=True)
class Loading:
    """What is to be made and loaded, and where. ``spec`` and ``kwargs`` are JSON."""

    spec: dict[str, Any]
    kwargs: dict[str, Any]
    device: torch.device
    threads: int
    companies: Companies


def load_in_thread(wanted: Loading, emit: EmitSink) -> asyncio.Future[Loaded]:
    """Begin in a thread of its own; the future gives the loaded processor or what building it raised.

    A thread cannot be stopped: when the future is cancelled, the result is thrown away as it arrives.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Loaded] = loop.create_future()

    def deliver(loaded: Loaded | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif loaded is not None:
            future.set_result(loaded)

    def work() -> None:
        loaded: Loaded | None = None
        failure: BaseException | None = None
        try:
            loaded = _load(wanted, emit, lambda: not future.done())
        except BaseException as error:  # noqa: BLE001 (the edge of a thread: everything is handed over)
            # A future cannot carry StopIteration, and CancelledError would look like our own wish.
            plain = isinstance(error, (Exception, SystemExit)) and not isinstance(error, StopIteration)
            failure = error if plain else ProcessorError(f"loading ended with {type(error).__name__}")
        try:
            loop.call_soon_threadsafe(deliver, loaded, failure)
        except RuntimeError:
            return  # the engine is ending

    threading.Thread(target=work, name="load", daemon=True).start()
    return future


def _load(wanted: Loading, emit: EmitSink, awaited: Callable[[], bool]) -> Loaded:
    import torch

    # All three hold for the thread that sets them.
    torch.set_num_threads(wanted.threads)
    if wanted.device.type == "cuda":
        torch.cuda.set_device(wanted.device)
    with torch.no_grad():
        processor = build(wanted.spec)
        processor.bind(emit)

        def load() -> None:
            asyncio.run(_load_model(processor, wanted.kwargs, wanted.device))

        if not overrides(processor, "process_video_batch"):
            load()
            return Loaded(processor, None)
        company = wanted.companies.of(wanted.spec, wanted.kwargs)
        company.load(processor, load, emit, awaited)
        return Loaded(processor, company)


async def _load_model(processor: FrameProcessor, kwargs: dict[str, Any], device: torch.device) -> None:
    if _takes(processor.load_model, "device"):
        kwargs = {"device": str(device), **kwargs}
    await called(processor.load_model, **kwargs)
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
