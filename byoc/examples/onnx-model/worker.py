"""Puts a colour in place of the background: an ONNX model says where the person is.

`MODEL` names another ONNX file: one picture in, N x 3 x H x W of 0..1, one mask out, N x 1 x H x W.
"""

import asyncio
import os
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from byoc import FrameProcessor, Picture, StreamServer, VideoFrame


class Params(BaseModel):
    red: int = Field(0, ge=0, le=255)
    green: int = Field(177, ge=0, le=255)
    blue: int = Field(64, ge=0, le=255)


class RemoveBackground(FrameProcessor):
    parameters = Params
    params: Params
    session: Any = None

    async def load_model(self, **kwargs: Any) -> None:
        import onnxruntime

        path = os.environ.get("MODEL") or str(files("workflows.models") / "selfie_segmentation.onnx")
        wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        usable = [name for name in wanted if name in onnxruntime.get_available_providers()]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("THREADS", "1"))
        self.session = onnxruntime.InferenceSession(path, options, providers=usable)
        self.input = self.session.get_inputs()[0]

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        rgb = frame.picture.rgb()
        _, _, height, width = self.input.shape
        small = np.asarray(Image.fromarray(rgb).resize((width, height)), np.float32) / 255
        small = np.ascontiguousarray(small.transpose(2, 0, 1)[None])
        mask = self.session.run(None, {self.input.name: small})[0].reshape(height, width)
        whole = Image.fromarray(mask.astype(np.float32)).resize((frame.width, frame.height))
        share = np.asarray(whole, np.float32)[..., None].clip(0, 1)
        colour = np.array([self.params.red, self.params.green, self.params.blue], np.float32)
        result = rgb * share + colour * (1 - share)
        return frame.replace_picture(Picture.from_rgb(result.astype(np.uint8)))


if __name__ == "__main__":
    port, token = int(os.environ.get("PORT", "8000")), os.environ.get("AUTH_TOKEN") or None
    server = StreamServer(RemoveBackground(), port=port, token=token)
    asyncio.run(server.run_forever())
