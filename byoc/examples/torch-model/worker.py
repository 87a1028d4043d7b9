"""Edges by a small torch model, on CUDA where there is one, else on the CPU.

`WEIGHTS` names a safetensors file for `Edges`; without it the weights are Sobel's, which need no training.
"""

import asyncio
import os
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import nn

from byoc import FrameProcessor, StreamServer, VideoFrame


class Params(BaseModel):
    gain: float = Field(1.0, ge=0, le=10)


class Edges(nn.Module):
    """How fast brightness changes, across and down: 1 x 3 x H x W in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        self.slopes.weight.data = torch.stack([across, across.T])[:, None]

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        slopes = self.slopes(rgb.mean(1, keepdim=True))
        strength: torch.Tensor = slopes.pow(2).sum(1, keepdim=True).sqrt().clamp(0, 1)
        return strength.expand(-1, 3, -1, -1)


class TorchEdges(FrameProcessor):
    parameters = Params
    params: Params
    tensor_device = "cuda" if torch.cuda.is_available() else "cpu"

    async def load_model(self, **kwargs: Any) -> None:
        self.dtype = torch.float16 if self.tensor_device == "cuda" else torch.float32
        model = Edges()
        if weights := os.environ.get("WEIGHTS"):
            from safetensors.torch import load_file

            model.load_state_dict(load_file(weights))
        self.model = model.to(self.tensor_device, self.dtype).eval()

    @torch.inference_mode()
    def edges(self, tensor: torch.Tensor) -> torch.Tensor:
        """1 x H x W x 3 of 0..1 in and out, on the device."""
        rgb = tensor.to(self.tensor_device, self.dtype).permute(0, 3, 1, 2)
        found: torch.Tensor = self.model(rgb) * self.params.gain
        return found.clamp(0, 1).permute(0, 2, 3, 1).float().contiguous()

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        return frame.replace_tensor(self.edges(frame.tensor))


if __name__ == "__main__":
    port, token = int(os.environ.get("PORT", "8000")), os.environ.get("AUTH_TOKEN") or None
    server = StreamServer(TorchEdges(), port=port, token=token)
    asyncio.run(server.run_forever())
