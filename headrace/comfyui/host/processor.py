"""A workflow on the installation's nodes."""

from __future__ import annotations

from typing import Any

from headrace.comfyui.host.turn import Turn
from stream.frames import AudioFrame, VideoFrame
from stream.processor import AudioResult, VideoResult
from workflows.processor import WorkflowProcessor
from workflows.registry import NodeRegistry


class ComfyProcessor(WorkflowProcessor):
    """`WorkflowProcessor` whose frames take their turn with whatever else runs nodes.

    ``device``: where ComfyUI keeps pictures between nodes, ``engine`` or ``cpu``. ``later`` takes the place
    of ``registry`` for workflows that replace the first one: they come from callers.
    """

    def __init__(
        self, workflow: Any, registry: NodeRegistry, turn: Turn, *, later: NodeRegistry, device: str
    ) -> None:
        super().__init__(workflow, registry)
        self._turn = turn
        self._later = later
        self.tensor_device = device

    async def load_model(self, **kwargs: Any) -> None:
        await super().load_model(**kwargs)
        self._registry = self._later

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        async with self._turn.of_frame():
            return await super().process_video_async(frame)

    async def process_audio_async(self, frame: AudioFrame) -> AudioResult:
        async with self._turn.of_frame():
            return await super().process_audio_async(frame)
