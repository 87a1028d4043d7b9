"""A workflow on the installation's nodes."""

from __future__ import annotations

from typing import Any

from headrace.comfyui.host.turn import Turn
from stream.frames import VideoFrame
from stream.processor import Params, VideoResult
from workflows.processor import WorkflowProcessor
from workflows.registry import NodeRegistry


class ComfyProcessor(WorkflowProcessor):
    """`WorkflowProcessor` whose frames and changes take their turn with whatever else runs nodes.

    ``device``: where ComfyUI keeps pictures between nodes, ``engine`` or ``cpu``.
    """

    def __init__(
        self, workflow: Any, registry: NodeRegistry, turn: Turn, *, device: str, **options: Any
    ) -> None:
        super().__init__(workflow, registry, **options)
        self._turn = turn
        self.tensor_device = device

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        turn = await self._turn.of_frame()
        try:
            return await super().process_video_async(frame)
        finally:
            turn.__exit__()

    async def update_params(self, params: Params) -> None:
        turn = await self._turn.of_frame()
        try:
            await super().update_params(params)
        finally:
            turn.__exit__()
