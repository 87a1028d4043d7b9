"""The base class of a container author's processors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from stream.processor import FrameProcessor as StreamFrameProcessor
from stream.processor import called

if TYPE_CHECKING:
    from byoc.base import ErrorCallback
    from byoc.state import StreamState

__all__ = ["FrameProcessor"]


class FrameProcessor(StreamFrameProcessor):
    """Works on the frames of one stream: see `stream.processor.FrameProcessor` for what may be overridden.

    ``state`` is that of the server which runs it, once there is one.
    """

    def __init__(self, error_callback: ErrorCallback | None = None, **init_kwargs: Any) -> None:
        super().__init__(error_callback, **init_kwargs)
        self.state: StreamState | None = None
        self._model_loaded = False
        self._model_load_lock = asyncio.Lock()

    def attach_state(self, state: StreamState) -> None:
        """Tell the state of the server when the model is loaded."""
        self.state = state

    async def ensure_model_loaded(self, **kwargs: Any) -> None:
        """Load the model unless it is loaded; one that failed to load is tried again by the next call."""
        async with self._model_load_lock:
            if not self._model_loaded:
                await called(self.load_model, **kwargs)
                self._model_loaded = True
        if self.state is not None:
            self.state.set_startup_complete()
